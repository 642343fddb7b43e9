"""pytest's own options do to an audit's items what they do to any test."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from plugin.helpers import CHECKS, READ_ITEMS, failed, outcomes, report_of

BROKEN = "transformer.ln_f"
ALL = [f"m::{name}" for name in READ_ITEMS]


def test_quiet_keeps_the_findings_and_drops_the_table(audit, checkpoint):
    checkpoint(nan=BROKEN)
    result = audit("-q")
    assert failed(result) == ["m::DD001"]
    result.stdout.fnmatch_lines(["DD001 error *", f"{CHECKS} of {CHECKS} checks ran: {CHECKS - 1} passed, 1 failed"])
    result.stdout.no_fnmatch_line("norm *kind *role*")


def test_twice_quiet_still_says_what_failed(audit, checkpoint):
    checkpoint(nan=BROKEN)
    result = audit("-qq")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["DD001 error *"])


def test_verbose_shows_every_norm(audit, checkpoint):
    checkpoint(layers=3)
    short, long = audit(), audit("-v")
    assert "transformer.h.1.ln_2" not in short.stdout.str()
    short.stdout.fnmatch_lines(["(6 more without findings; -v shows them)"])
    assert long.stdout.str().count("transformer.h.1.ln_2") == 1
    long.stdout.fnmatch_lines(["m::DD001 PASSED*"])


def test_a_norm_with_a_finding_is_in_the_table_without_verbose(audit, checkpoint):
    checkpoint(layers=3, nan="transformer.h.1.ln_2")
    audit().stdout.fnmatch_lines(["transformer.h.1.ln_2  *layernorm*", "transformer.ln_f *"])


def test_without_a_cache(audit, checkpoint, pytester):
    checkpoint(nan=BROKEN)
    result = audit("-p", "no:cacheprovider")
    assert failed(result) == ["m::DD001"]
    assert not (pytester.path / ".pytest_cache").exists()


def test_last_failed_reruns_only_what_failed_until_it_is_repaired(audit, checkpoint):
    checkpoint(nan=BROKEN)
    assert failed(audit()) == ["m::DD001"]
    again = audit("--lf")
    assert outcomes(again) == {"m::DD001": "failed"}
    assert again.ret == 1
    checkpoint()
    repaired = audit("--lf")
    assert outcomes(repaired) == {"m::DD001": "passed"}
    assert repaired.ret == 0


@pytest.mark.parametrize("name", ["m[1]@x", "a b/it's"])
def test_last_failed_finds_models_with_awkward_names(audit, checkpoint, name):
    checkpoint(name, nan=BROKEN)
    first = failed(audit(models=[name]))
    again = audit("--lf", models=[name])
    assert again.ret == 1
    assert list(outcomes(again)) == first


def test_last_failed_finds_a_model_outside_of_the_root(audit, checkpoint, pytester, monkeypatch):
    model = checkpoint("elsewhere/m", nan=BROKEN)
    pytester.mkdir("root")
    monkeypatch.chdir(pytester.path / "root")
    (pytester.path / "root/pytest.ini").touch()
    audit(models=[model])
    again = audit("--lf", models=[model])
    assert again.ret == 1
    assert len(outcomes(again)) == 1


def test_last_failed_beside_ordinary_tests(pytester, checkpoint):
    checkpoint(nan=BROKEN)
    pytester.makepyfile(test_mine="def test_one(): pass\ndef test_two(): assert 0")
    options = ["--deaddir-model=m", "--deaddir-level=read"]
    pytester.runpytest_inprocess(*options)
    again = pytester.runpytest_inprocess("--lf", *options)
    assert outcomes(again) == {"test_mine.py::test_two": "failed", "m::DD001": "failed"}


def test_failed_first(audit, checkpoint):
    checkpoint(nan=BROKEN)
    audit()
    assert list(outcomes(audit("--ff"))) == ["m::DD001", *(nodeid for nodeid in ALL if nodeid != "m::DD001")]


def test_new_first(audit, checkpoint):
    checkpoint("a")
    checkpoint("b")
    audit(models=["a"])
    result = audit("--nf", models=["a", "b"])
    assert list(outcomes(result))[: len(READ_ITEMS)] == [f"b::{name}" for name in READ_ITEMS]


def test_stepwise_stops_at_a_failure_and_goes_on_from_there(audit, checkpoint):
    checkpoint(nan=BROKEN)
    assert outcomes(audit("--sw")) == {"m::discovery": "passed", "m::DD001": "failed"}
    assert outcomes(audit("--sw")) == {"m::DD001": "failed"}
    checkpoint()
    assert outcomes(audit("--sw")) == dict.fromkeys(ALL[1:], "passed")


@pytest.mark.parametrize(
    ("expression", "chosen"),
    [
        ("DD002", ["DD002"]),
        ("dead-coordinates", ["DD002"]),
        ("discovery", ["discovery"]),
        ("not DD001", [name for name in READ_ITEMS if name != "DD001"]),
        ("m", READ_ITEMS),
    ],
)
def test_keywords_choose_by_code_name_and_model(audit, checkpoint, expression, chosen):
    checkpoint()
    result = audit("-k", expression)
    assert list(outcomes(result)) == [f"m::{name}" for name in chosen]


def test_a_chosen_part_is_a_whole_run_of_that_part(audit, checkpoint):
    checkpoint()
    result = audit("-k", "DD002", "--deaddir-report=out.json")
    result.stdout.fnmatch_lines(["1 of 1 checks ran: 1 passed, 0 failed"])
    (model,) = report_of("out.json")
    assert model["checks"] == {"planned": 1, "run": 1, "passed": 1, "failed": 0, "warned": 0, "known": 0, "skipped": 0}


def test_the_marker_chooses_the_audit_or_all_but_the_audit(pytester, checkpoint):
    checkpoint()
    pytester.makepyfile(test_mine="def test_one(): pass")
    options = ["--deaddir-model=m", "--deaddir-level=read", "--strict-markers", "-m"]
    assert list(outcomes(pytester.runpytest_inprocess(*options, "deaddir"))) == ALL
    others = pytester.runpytest_inprocess(*options, "not deaddir")
    assert list(outcomes(others)) == ["test_mine.py::test_one"]
    others.stdout.no_fnmatch_line("*= deaddir =*")


@pytest.mark.parametrize("option", ["-x", "--maxfail=1"])
def test_a_run_that_stopped_early_is_not_called_a_pass(audit, checkpoint, option):
    checkpoint(nan=BROKEN)
    result = audit(option, "--deaddir-report=out.json")
    assert result.ret == 1
    assert outcomes(result) == {"m::discovery": "passed", "m::DD001": "failed"}
    result.stdout.fnmatch_lines([f"1 of {CHECKS} checks ran: 0 passed, 1 failed. NOT A PASS*"])
    (model,) = report_of("out.json")
    assert (model["checks"]["planned"], model["checks"]["run"]) == (CHECKS, 1)


def test_a_model_that_was_never_reached_is_not_called_a_pass(pytester, checkpoint):
    checkpoint()
    pytester.makepyfile(test_mine="def test_one(): assert 0")
    result = pytester.runpytest_inprocess("-x", "--deaddir-model=m", "--deaddir-level=read")
    result.stdout.fnmatch_lines(["m: not audited", f"0 of {CHECKS} checks ran*NOT A PASS*"])


def test_maxfail_counts_across_models(audit, checkpoint):
    for name in "abc":
        checkpoint(name, nan=BROKEN)
    result = audit("--maxfail=2", models=["a", "b", "c"])
    assert failed(result) == ["a::DD001", "b::DD001"]
    assert list(outcomes(result))[-1] == "b::DD001"


def test_deselect(audit, checkpoint):
    checkpoint(nan=BROKEN)
    result = audit("--deselect", "m::DD001")
    assert result.ret == 0
    assert list(outcomes(result)) == [nodeid for nodeid in ALL if nodeid != "m::DD001"]


def test_durations_name_the_items(audit, checkpoint):
    checkpoint()
    audit("--durations=3", "--durations-min=0", "-vv").stdout.fnmatch_lines(["*s call *m::discovery"])


def test_junit_xml_counts_the_items_and_carries_no_audit(audit, checkpoint, pytester):
    checkpoint(nan=BROKEN, tiny="transformer.h.0.ln_1")
    audit("--junitxml=out.xml")
    (suite,) = ElementTree.parse(pytester.path / "out.xml").getroot()
    counts = {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": str(len(ALL)), "failures": "1", "errors": "0", "skipped": "0"}
    assert [case.get("name") for case in suite] == READ_ITEMS
    assert {case.get("classname") for case in suite} == {"m"}
    assert not list(suite.iter("property"))
    (failure,) = suite.iter("failure")
    assert "non-finite-gamma" in failure.text
    assert "re-run" in failure.text


def test_warnings_as_errors(pytester, checkpoint):
    checkpoint()
    result = pytester.runpytest_subprocess("-W", "error", "--deaddir-model=m", "--deaddir-level=read")
    result.assert_outcomes(passed=len(READ_ITEMS))


def test_without_a_terminal_the_exit_code_the_report_and_standard_error_say_it(audit, checkpoint):
    checkpoint(nan=BROKEN)
    result = audit("-p", "no:terminal", "--deaddir-report=out.json")
    assert result.ret == 1
    (model,) = report_of("out.json")
    assert [finding["code"] for finding in model["findings"]] == ["DD001"]
    assert not result.outlines
    result.stderr.fnmatch_lines(["m: *", "", "DD001 error *", "", f"{CHECKS} of {CHECKS} checks ran*1 failed"])


def test_without_xdist(audit, checkpoint):
    checkpoint(nan=BROKEN)
    assert failed(audit("-p", "no:xdist")) == ["m::DD001"]


def test_setup_show_tells_the_fixtures_of_a_test_and_none_of_a_check(pytester, checkpoint):
    checkpoint()
    pytester.makepyfile(test_mine="def test_one(deaddir_audit): pass")
    result = pytester.runpytest_inprocess("--setup-show", "--deaddir-model=m", "--deaddir-level=read")
    result.stdout.fnmatch_lines(
        ["*SETUP    F deaddir_model*", "*SETUP    F deaddir_audit (fixtures used: deaddir_model)*"]
    )
    result.stdout.fnmatch_lines(["*m::DD001*."])
    assert result.ret == 0


def test_a_repository_with_its_own_conftest_and_tests(pytester, checkpoint):
    """Its fixtures, options, ini-file and marks are as they were, in tests with ours and without."""
    checkpoint("models/m", nan=BROKEN)
    pytester.makeini(
        "[pytest]\ntestpaths = tests\naddopts = --strict-markers --strict-config\nmarkers = slow: takes long"
    )
    (pytester.path / "tests").mkdir()
    (pytester.path / "tests" / "conftest.py").write_text(
        """\
import pytest

def pytest_addoption(parser):
    parser.addoption("--scale", type=float, default=1.0)

@pytest.fixture(autouse=True, scope="session")
def limit(request):
    return request.config.getoption("--scale")

@pytest.fixture
def worst(deaddir_audit):
    return deaddir_audit.findings[0]
"""
    )
    (pytester.path / "tests" / "test_theirs.py").write_text(
        """\
import pytest

@pytest.mark.slow
def test_plain(limit):
    assert limit == 2

@pytest.mark.parametrize("code", ["DD001", "DD002"])
def test_with_ours(worst, code):
    assert worst["code"] == code
"""
    )
    result = pytester.runpytest_inprocess("--scale=2", "--deaddir-model=models/m", "--deaddir-level=read")
    theirs = {nodeid: outcome for nodeid, outcome in outcomes(result).items() if nodeid.startswith("tests/")}
    assert theirs == {
        "tests/test_theirs.py::test_plain": "passed",
        "tests/test_theirs.py::test_with_ours[models/m-DD001]": "passed",
        "tests/test_theirs.py::test_with_ours[models/m-DD002]": "failed",
    }
    assert len(outcomes(result)) == 3 + len(READ_ITEMS)


def test_an_interrupt_in_a_forward_pass_leaves_no_hooks_and_a_report_that_says_it_is_partial(pytester, with_torch):
    pytester.makepyfile(
        interrupted="""
        import torch
        from torch import nn

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16)) for _ in range(3))

            def forward(self, x):
                if len(x) == 13:
                    assert any(module._forward_hooks for module in self.modules())
                    raise KeyboardInterrupt
                for block in self.blocks:
                    x = block(x)
                return x

        torch.manual_seed(0)
        net = Net()

        def make():
            return net, [torch.randn(50, 16), torch.randn(13, 16)]
        """
    )
    pytester.makeconftest(
        """
        def pytest_unconfigure():
            from interrupted import net

            hooks = [module._forward_hooks or module._forward_pre_hooks for module in net.modules()]
            print("left:", any(hooks), "training:", net.training)
        """
    )
    options = ["--deaddir-model=interrupted:make", "--deaddir-report=out.json", "--deaddir-report=out.md"]
    result = pytester.runpytest_subprocess(*options)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["interrupted:make: not audited", "0 of * checks ran*NOT A PASS: some never reported"])
    result.stdout.fnmatch_lines(["left: False training: True"])
    (model,) = report_of("out.json")
    assert model["checks"]["run"] + model["checks"]["skipped"] == 0 < model["checks"]["planned"]
    assert "NOT A PASS" in (pytester.path / "out.md").read_text()


@pytest.mark.parametrize("options", [["--deaddir-model="], ["--deaddir-only"], ["--deaddir-report=out.json"]])
def test_an_option_that_means_a_model_and_no_model_is_a_usage_error(pytester, options):
    pytester.makepyfile("def test_one(): pass")
    assert pytester.runpytest_inprocess(*options).ret == pytest.ExitCode.USAGE_ERROR


@pytest.mark.parametrize("option", ["--import-mode=importlib", "--setup-show", "--capture=no", "--strict-markers"])
def test_options_that_leave_the_outcomes_as_they_are(audit, checkpoint, option):
    checkpoint(nan=BROKEN)
    result = audit(option)
    assert list(outcomes(result)) == ALL
    assert failed(result) == ["m::DD001"]


def test_every_style_of_traceback_tells_a_failure_in_our_words(audit, checkpoint):
    checkpoint(nan=BROKEN)
    for style in ("auto", "long", "short", "line", "native"):
        audit(f"--tb={style}").stdout.fnmatch_lines(["*DD001 non-finite-gamma (error)*"])


def test_a_mark_that_a_conftest_adds_is_respected(audit, checkpoint, pytester):
    checkpoint(nan=BROKEN)
    pytester.makeconftest(
        """
        import pytest

        def pytest_collection_modifyitems(items):
            for item in items:
                if item.name == "DD001":
                    item.add_marker(pytest.mark.xfail(reason="known"))
        """
    )
    result = audit()
    assert result.ret == 0
    result.assert_outcomes(passed=len(ALL) - 1, xfailed=1)


@pytest.mark.parametrize("model", ["m", "../elsewhere"])
@pytest.mark.parametrize("options", [["--deaddir-only"], []], ids=["only", "beside other tests"])
def test_the_hooks_of_a_conftest_see_the_items(pytester, checkpoint, monkeypatch, model, options):
    checkpoint("work/m")
    checkpoint("elsewhere")
    (pytester.path / "work" / "conftest.py").write_text(
        "def pytest_runtest_call(item):\n    with open('seen.txt', 'a') as file:\n        file.write(f'{item.name}\\n')\n"
    )
    monkeypatch.chdir(pytester.path / "work")
    pytester.runpytest_inprocess(f"--deaddir-model={model}", "--deaddir-level=read", *options)
    assert (pytester.path / "work" / "seen.txt").read_text().split() == READ_ITEMS


def test_the_marker_and_the_fixtures_are_documented(pytester):
    pytester.runpytest_inprocess("--markers").stdout.fnmatch_lines(["@pytest.mark.deaddir(*"])
    fixtures = pytester.runpytest_inprocess("--fixtures").stdout
    fixtures.fnmatch_lines(["deaddir_audit -- *"])
    fixtures.fnmatch_lines(["norm_site -- *"])


def test_the_level_full_makes_no_warning(pytester):
    """Warnings as errors, in a process of its own: torch scripts some derivatives of activations on their first use."""
    spec = "random:bert?num_hidden_layers=1&hidden_size=32&num_attention_heads=2&intermediate_size=64&vocab_size=64"
    result = pytester.runpytest_subprocess("-W", "error", f"--deaddir-model={spec}", "--deaddir-level=full")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*depth*redundant parameters*"])
