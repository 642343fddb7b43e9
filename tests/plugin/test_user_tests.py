"""The fixtures and the marker in people's own tests."""

from __future__ import annotations

import pytest

from plugin.helpers import DEEP_GPT2, GPT2, READ_ITEMS, assert_no_insides, failed, outcomes, text_of

READ = "--deaddir-level=read"
NORMS = ["transformer.h.0.ln_1", "transformer.h.0.ln_2", "transformer.ln_f"]


@pytest.fixture
def measured(monkeypatch):
    """The (spec, level) of every measurement that an in-process run makes."""
    import pytest_deaddir.api

    calls = []
    plain = pytest_deaddir.api.measure

    def measure(subject, **options):
        calls.append((subject.text, options["level"]))
        return plain(subject, **options)

    monkeypatch.setattr(pytest_deaddir.api, "measure", measure)
    return calls


@pytest.fixture
def run(pytester):
    """Run the ordinary tests and not the checks, with these models."""

    def run(*models):
        given = [f"--deaddir-model={model}" for model in models]
        return pytester.runpytest_inprocess(*given, READ, "-m", "not deaddir")

    return run


def test_an_audit_has_the_tables_and_the_findings(pytester, checkpoint, run):
    checkpoint(nan="transformer.ln_f")
    pytester.makepyfile(
        test_mine="""
        from pytest_deaddir import Audit

        def test_one(deaddir_audit):
            assert isinstance(deaddir_audit, Audit)
            assert deaddir_audit.model["level"] == "read"
            assert len(deaddir_audit.norms) == 3
            assert [finding["code"] for finding in deaddir_audit.findings] == ["DD001"]
            assert deaddir_audit.checks["failed"] == 1
            assert Audit.from_json(deaddir_audit.to_json()) == deaddir_audit
        """
    )
    assert outcomes(run("m")) == {"test_mine.py::test_one[m]": "passed"}


def test_a_test_of_an_audit_runs_once_per_model(pytester, checkpoint, run):
    checkpoint("a")
    checkpoint("b", nan="transformer.ln_f")
    pytester.makepyfile(test_mine="def test_one(deaddir_audit): assert not deaddir_audit.findings")
    assert outcomes(run("a", "b")) == {"test_mine.py::test_one[a]": "passed", "test_mine.py::test_one[b]": "failed"}


def test_the_model_of_a_test_is_at_hand(pytester, checkpoint, run):
    checkpoint()
    pytester.makepyfile(test_mine="def test_one(deaddir_model): assert deaddir_model.spec.text == 'm'")
    assert outcomes(run("m")) == {"test_mine.py::test_one[m]": "passed"}


def test_without_a_model_a_test_of_an_audit_is_skipped_and_says_why(pytester):
    pytester.makepyfile(test_mine="def test_one(deaddir_audit): pass\ndef test_two(norm_site): pass")
    result = pytester.runpytest_inprocess("-rs")
    result.assert_outcomes(skipped=2)
    skips = [line for line in result.outlines if line.startswith("SKIPPED")]
    assert skips
    assert all("deaddir" in line for line in skips)


def test_a_test_that_names_its_model_needs_no_option(pytester, checkpoint):
    checkpoint()
    pytester.makepyfile(
        test_mine="""
        import pytest

        @pytest.mark.deaddir(model="m", level="read")
        def test_one(deaddir_audit):
            assert deaddir_audit.model["spec"] == "m"
        """
    )
    result = pytester.runpytest_inprocess("--strict-markers")
    assert result.ret == 0
    assert outcomes(result) == {"test_mine.py::test_one[m]": "passed"}


def test_a_marker_s_path_starts_at_the_root_wherever_pytest_is_called(pytester, checkpoint, monkeypatch):
    checkpoint()
    pytester.makeini("[pytest]")
    pytester.mkdir("below")
    (pytester.path / "below" / "test_mine.py").write_text(
        "import pytest\npytestmark = pytest.mark.deaddir(model='m', level='read')\ndef test_one(deaddir_audit): pass\n"
    )
    assert pytester.runpytest_inprocess().ret == 0
    monkeypatch.chdir(pytester.path / "below")
    assert pytester.runpytest_inprocess().ret == 0


def test_the_closest_marker_wins(pytester, checkpoint):
    checkpoint("a")
    checkpoint("b")
    pytester.makepyfile(
        test_mine="""
        import pytest

        pytestmark = pytest.mark.deaddir(model="a", role="final")

        @pytest.mark.deaddir(model="b")
        def test_one(norm_site, deaddir_audit):
            assert deaddir_audit.model["spec"] == "b"
            assert norm_site["role"] == "final"

        def test_two(deaddir_audit):
            assert deaddir_audit.model["spec"] == "a"
        """
    )
    result = pytester.runpytest_inprocess(READ, "test_mine.py")
    assert list(outcomes(result).values()) == ["passed", "passed"]


def test_a_test_of_norms_runs_once_per_norm_and_is_named_by_its_path(pytester, checkpoint, run):
    checkpoint()
    pytester.makepyfile(test_mine="def test_one(norm_site): assert norm_site['features'] == 16")
    assert outcomes(run("m")) == {f"test_mine.py::test_one[{path}]": "passed" for path in NORMS}


def test_norms_of_several_models_are_told_apart(pytester, checkpoint, run):
    checkpoint("a")
    checkpoint("b", nan="transformer.ln_f")
    pytester.makepyfile(test_mine="def test_one(norm_site): assert norm_site['gamma_nonfinite'] == 0")
    result = run("a", "b")
    assert list(outcomes(result)) == [f"test_mine.py::test_one[{m}-{path}]" for m in "ab" for path in NORMS]
    assert failed(result) == ["test_mine.py::test_one[b-transformer.ln_f]"]


def test_awkward_names_of_models_in_a_marker_do_not_hide_a_failure_from_last_failed(pytester, checkpoint):
    checkpoint("m[1]@x::y")
    pytester.makepyfile(
        test_mine="""
        import pytest

        @pytest.mark.deaddir(model="m[1]@x::y", level="read")
        def test_one(deaddir_audit):
            assert not deaddir_audit.norms
        """
    )
    (nodeid,) = failed(pytester.runpytest_inprocess())
    again = pytester.runpytest_inprocess("--lf")
    assert outcomes(again) == {nodeid: "failed"}
    assert again.ret == 1


@pytest.mark.parametrize("fixture", ["deaddir_audit", "norm_site"])
def test_a_fixture_of_one_s_own_can_ask_for_ours(pytester, checkpoint, run, fixture):
    checkpoint()
    pytester.makepyfile(
        f"""
        import pytest

        @pytest.fixture
        def mine({fixture}):
            return {fixture}

        def test_one(mine):
            assert mine
        """
    )
    assert set(outcomes(run("m")).values()) == {"passed"}


@pytest.mark.parametrize(
    ("wanted", "paths"),
    [
        ('role="final"', NORMS[2:]),
        ('role=["block", "final"]', NORMS),
        ('kind="layernorm", role="block"', NORMS[:2]),
        ('kind="layernorm"', NORMS),
    ],
)
def test_the_marker_chooses_norms_by_kind_and_role(pytester, checkpoint, wanted, paths):
    checkpoint()
    pytester.makepyfile(
        test_mine=f"import pytest\n@pytest.mark.deaddir({wanted})\ndef test_one(norm_site): pass",
    )
    result = pytester.runpytest_inprocess("--deaddir-model=m", READ, "-k", "test_one")
    assert list(outcomes(result)) == [f"test_mine.py::test_one[{path}]" for path in paths]


def test_a_choice_that_matches_no_norm_is_skipped_and_not_a_pass(pytester, checkpoint):
    checkpoint()
    pytester.makepyfile("import pytest\n@pytest.mark.deaddir(kind='rmsnorm')\ndef test_one(norm_site): pass")
    result = pytester.runpytest_inprocess("--deaddir-model=m", READ, "-k", "test_one")
    result.assert_outcomes(skipped=1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ('"m"', "by name"),
        ('modle="m"', "by name"),
        ('model="nothing-here"', "no such model: 'nothing-here'"),
        ('model="m", level="deep"', "deep"),
        ("model=7", "model"),
        ('model="m", level="read", kind="layrnorm"', "layrnorm"),
        ('model="m", level="read", role="last"', "last"),
    ],
)
@pytest.mark.parametrize("fixture", ["deaddir_audit", "norm_site"])
def test_wrong_arguments_of_the_marker_are_an_error_that_names_the_test(pytester, checkpoint, arguments, says, fixture):
    checkpoint()
    pytester.makepyfile(test_mine=f"import pytest\n@pytest.mark.deaddir({arguments})\ndef test_one({fixture}): pass")
    result = pytester.runpytest_inprocess()
    shown = text_of(result)
    assert result.ret in (1, 2, 4), shown
    assert "test_mine.py::test_one" in shown
    assert says in shown
    assert_no_insides(result)


@pytest.mark.parametrize("fixture", ["deaddir_audit", "norm_site"])
def test_a_checkpoint_that_cannot_be_audited_fails_the_test_with_the_file(pytester, checkpoint, run, fixture):
    checkpoint(truncated=True)
    pytester.makepyfile(test_mine=f"def test_one({fixture}): pass")
    result = run("m")
    shown = text_of(result)
    assert result.ret in (1, 2), shown
    assert "m/model.safetensors: truncated" in shown
    assert_no_insides(result)


def test_a_model_is_measured_once_for_its_items_and_all_tests(pytester, checkpoint, measured):
    checkpoint()
    pytester.makepyfile(
        test_mine="""
        def test_one(deaddir_audit): pass
        def test_two(deaddir_audit): pass
        def test_three(norm_site): pass
        """
    )
    result = pytester.runpytest_inprocess("--deaddir-model=m", READ)
    assert len(outcomes(result)) == 5 + len(READ_ITEMS)
    assert measured == [("m", "read")]


def test_a_model_that_a_marker_names_as_the_option_does_is_measured_once(pytester, checkpoint, measured):
    checkpoint()
    pytester.makepyfile(
        "import pytest\n@pytest.mark.deaddir(model='m', level='read')\ndef test_one(deaddir_audit): pass"
    )
    pytester.runpytest_inprocess("--deaddir-model=m", READ)
    assert measured == [("m", "read")]


def test_an_audit_that_failed_is_not_made_again(pytester, checkpoint, measured):
    checkpoint(truncated=True)
    pytester.makepyfile("def test_one(deaddir_audit): pass\ndef test_two(deaddir_audit): pass")
    result = pytester.runpytest_inprocess("--deaddir-model=m", READ)
    assert result.ret == 1
    assert measured == [("m", "read")]


def test_several_models_are_measured_once_each(audit, checkpoint, measured):
    checkpoint("a")
    checkpoint("b")
    audit(models=["a", "b"])
    assert measured == [("a", "read"), ("b", "read")]


def test_collecting_without_a_test_of_norms_measures_nothing(audit, checkpoint, measured):
    checkpoint()
    audit("--collect-only")
    audit("-k", "nothing_of_this_name")
    assert measured == []


def test_what_a_test_does_to_its_audit_does_not_reach_the_checks(pytester, checkpoint):
    checkpoint()
    pytester.makepyfile("def test_one(deaddir_audit):\n    deaddir_audit.norms[0]['gamma_nonfinite'] = 1")
    result = pytester.runpytest_inprocess("--deaddir-model=m", READ)
    assert failed(result) == []


def test_norms_in_the_order_and_with_the_values_of_a_forward_pass(pytester, with_torch):
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.deaddir(role="final")
        def test_dead(norm_site):
            assert norm_site["alignment"] > 0.999
            assert norm_site["noise_ratio"] < 64
        """
    )
    result = pytester.runpytest_inprocess(f"--deaddir-model={GPT2}", "-k", "test_dead")
    assert list(outcomes(result).values()) == ["passed"]


def test_norm_tests_are_the_same_on_every_worker(pytester, checkpoint):
    pytest.importorskip("xdist", reason="pytest-xdist is not installed (dependency group test)")
    checkpoint()
    pytester.makepyfile("def test_one(norm_site): pass\ndef test_two(deaddir_audit): pass")
    result = pytester.runpytest_subprocess("--deaddir-model=m", READ, "-n", "2")
    result.assert_outcomes(passed=len(READ_ITEMS) + len(NORMS) + 1)


# --- blocks, inputs, the device, and what the marker says of rules, stacks and dtypes ---------------------------------

TWO_STACKS = (
    "random:bart?encoder_layers=2&decoder_layers=2&d_model=32&encoder_attention_heads=2&decoder_attention_heads=2"
    "&encoder_ffn_dim=32&decoder_ffn_dim=32&vocab_size=64&max_position_embeddings=64"
)


def test_a_test_of_blocks_runs_once_per_block_and_is_named_by_its_path(pytester, with_torch):
    pytester.makepyfile(
        test_mine="def test_one(residual_block, deaddir_audit): assert residual_block in deaddir_audit.blocks[1:]"
    )
    result = pytester.runpytest_inprocess(f"--deaddir-model={DEEP_GPT2}", "-k", "test_one")
    assert outcomes(result) == {f"test_mine.py::test_one[h.{i}]": "passed" for i in range(3)}


def test_a_layer_that_runs_several_times_is_several_blocks(pytester, with_torch):
    spec = "random:albert?num_hidden_layers=3&hidden_size=32&embedding_size=16&num_attention_heads=2"
    spec += "&intermediate_size=32&vocab_size=64&max_position_embeddings=64"
    pytester.makepyfile(
        test_mine="""
        import pytest

        seen = []

        @pytest.mark.deaddir(stack="encoder.albert_layer_groups")
        def test_one(residual_block):
            seen.append(residual_block["index"])

        def test_two():
            assert seen == [0, 1, 2]
        """
    )
    pytester.runpytest_inprocess(f"--deaddir-model={spec}", "-k", "test_mine").assert_outcomes(passed=4)


def test_the_marker_chooses_norms_and_blocks_by_stack(pytester, with_torch):
    pytester.makepyfile(
        test_mine="""
        import pytest

        @pytest.mark.deaddir(stack="encoder.layers")
        def test_blocks(residual_block):
            assert residual_block["path"].startswith("encoder.layers.")

        @pytest.mark.deaddir(stack=["encoder.layers"], kind="layernorm")
        def test_both(norm_site, residual_block):
            assert norm_site["path"].startswith("encoder.layers.")
        """
    )
    result = pytester.runpytest_inprocess(f"--deaddir-model={TWO_STACKS}", "-k", "test_mine", "--strict-markers")
    blocks = [f"encoder.layers.{i}" for i in range(2)]
    norms = [f"{block}.{name}" for block in blocks for name in ("self_attn_layer_norm", "final_layer_norm")]
    expected = {f"test_mine.py::test_blocks[{block}]" for block in blocks}
    expected |= {f"test_mine.py::test_both[{norm}-{block}]" for norm in norms for block in blocks}
    assert outcomes(result) == dict.fromkeys(expected, "passed")


def test_a_model_with_no_such_row_is_skipped_with_its_name_beside_one_that_has_some(pytester, checkpoint):
    checkpoint("a")
    checkpoint("b", rms=True)
    pytester.makepyfile("import pytest\n@pytest.mark.deaddir(kind='rmsnorm')\ndef test_one(norm_site): pass")
    models = ["--deaddir-model=a", "--deaddir-model=b"]
    result = pytester.runpytest_inprocess(*models, READ, "-k", "test_one", "-rs")
    result.assert_outcomes(passed=3, skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED * a has no norm_site as the deaddir marker wants it, at level read"])


def test_no_block_at_the_level_read_is_a_skip_that_says_so(pytester, checkpoint):
    checkpoint()
    pytester.makepyfile("def test_one(residual_block): pass")
    result = pytester.runpytest_inprocess("--deaddir-model=m", READ, "-k", "test_one", "-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED * m has no residual_block *, at level read"])


@pytest.mark.parametrize(
    ("rules", "codes"),
    [('"DD001"', ["DD001"]), ('["DD002", "DD003"]', ["DD002"]), ('"DD0"', ["DD001", "DD002"]), ('"DD006,DD008"', [])],
)
def test_the_marker_chooses_the_rules_that_judge_an_audit(pytester, checkpoint, rules, codes):
    checkpoint(nan="transformer.ln_f", tiny="transformer.h.0.ln_1")
    pytester.makepyfile(
        test_mine=f"""
        import pytest

        @pytest.mark.deaddir(rules={rules})
        def test_one(deaddir_audit):
            assert [finding["code"] for finding in deaddir_audit.findings] == {codes}
            assert deaddir_audit.checks["run"] > 0
        """
    )
    result = pytester.runpytest_inprocess("--deaddir-model=m", READ, "--deaddir-ignore=DD001", "-k", "test_one")
    assert outcomes(result) == {"test_mine.py::test_one[m]": "passed"}


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ('rules="DD9999"', "DD9999: no rule has this code"),
        ("rules=7", "rules"),
        ('dtype="int8"', "int8"),
        ("stack=7", "stack"),
    ],
)
def test_more_wrong_arguments_of_the_marker(pytester, checkpoint, argument, says):
    checkpoint()
    pytester.makepyfile(test_mine=f"import pytest\n@pytest.mark.deaddir({argument})\ndef test_one(deaddir_audit): pass")
    result = pytester.runpytest_inprocess("--deaddir-model=m", READ)
    assert says in text_of(result)
    assert "test_mine.py::test_one" in text_of(result)
    assert_no_insides(result)


def test_the_inputs_are_what_the_model_was_fed(pytester, with_torch):
    """Counted by hooks on another copy of the model: as many rows as the audit says it saw, and the same every time."""
    pytester.makepyfile(
        """
        import torch

        kept = []

        def test_one(deaddir_inputs, deaddir_audit, deaddir_model):
            from pytest_deaddir.source.load import load

            model = load(deaddir_model.spec).module
            rows = []
            model.ln_f.register_forward_hook(lambda *call: rows.append(call[2].flatten(0, -2).shape[0]))
            for batch in deaddir_inputs:
                model(**batch)
            assert sum(rows) == deaddir_audit.model["samples"]
            kept.extend(deaddir_inputs)
            deaddir_inputs[0].clear()

        def test_two(deaddir_inputs):
            assert [torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(kept[1:], deaddir_inputs[1:], strict=True)]
            assert deaddir_inputs[0]
        """
    )
    result = pytester.runpytest_inprocess(f"--deaddir-model={GPT2}", "--deaddir-batch-size=1", "-k", "test_")
    result.assert_outcomes(passed=2)


def test_inputs_by_position_get_their_names(pytester, with_torch):
    pytester.makepyfile(
        mine="""
        import torch
        from torch import nn

        def make():
            torch.manual_seed(0)
            return nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)), [(torch.randn(20, 8),), torch.randn(20, 8)]
        """,
        test_mine="""
        def test_one(deaddir_inputs):
            assert [batch["input"].shape for batch in deaddir_inputs] == [(20, 8), (20, 8)]
            assert deaddir_inputs[0]["input"].dtype.is_floating_point
        """,
    )
    result = pytester.runpytest_inprocess("--deaddir-model=mine:make", "--deaddir-dtype=bfloat16", "-k", "test_mine.py")
    result.assert_outcomes(passed=1)


def test_inputs_of_what_cannot_run_fail_the_test_in_words(pytester, checkpoint, with_torch):
    checkpoint()
    pytester.makepyfile("def test_one(deaddir_inputs): pass")
    result = pytester.runpytest_inprocess("--deaddir-model=m/model.safetensors", READ, "-k", "test_one")
    assert result.ret == 1
    assert "has no architecture to run" in text_of(result)
    assert_no_insides(result)


def test_the_device_is_that_of_the_option(pytester, with_torch):
    pytester.makepyfile("def test_one(deaddir_device): assert deaddir_device.type == 'cpu'")
    pytester.runpytest_inprocess("--deaddir-device=cpu").assert_outcomes(passed=1)
    result = pytester.runpytest_inprocess("--deaddir-device=mps")
    result.assert_outcomes(errors=1)
    assert "--deaddir-device mps: torch * sees no such device here".partition("*")[0] in text_of(result)
    assert_no_insides(result)


# --- tests that pytest gives no parameters ----------------------------------------------------------------------------

UNITTEST = """
import unittest
import pytest

class TestMine(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def _audit(self, deaddir_audit):
        self.audit = deaddir_audit

    def test_norms(self):
        assert len(self.audit.norms) == 3

class TestRows(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def _row(self, norm_site):
        pass

    def test_rows(self):
        pass
"""


def test_a_unittest_has_the_audit_of_the_only_model(pytester, checkpoint, run):
    checkpoint()
    pytester.makepyfile(test_mine=UNITTEST)
    result = run("m")
    assert outcomes(result) == {
        "test_mine.py::TestMine::test_norms": "passed",
        "test_mine.py::TestRows::test_rows": "failed",
    }
    assert "norm_site visits one row in each test" in text_of(result)
    assert "go through the rows of deaddir_audit instead" in text_of(result)


def test_a_unittest_cannot_choose_among_models(pytester, checkpoint, run):
    checkpoint("a")
    checkpoint("b")
    pytester.makepyfile(test_mine=UNITTEST)
    result = run("a", "b")
    assert set(outcomes(result).values()) == {"failed"}
    assert "one of 2 models here: say which with @pytest.mark.deaddir(model=…)" in text_of(result)
    assert_no_insides(run())
    assert "no model to audit: give --deaddir-model=SPEC" in text_of(run())


def test_a_fixture_that_is_asked_for_while_the_test_runs(pytester, checkpoint, run):
    checkpoint()
    pytester.makepyfile(
        test_mine="def test_one(request): assert request.getfixturevalue('deaddir_audit').model['width'] == 16"
    )
    assert outcomes(run("m")) == {"test_mine.py::test_one": "passed"}


def test_a_fixture_of_one_s_own_by_the_same_name_is_the_user_s(pytester, checkpoint, run):
    checkpoint()
    pytester.makepyfile(
        test_mine="""
        import pytest

        @pytest.fixture
        def deaddir_audit():
            return "mine"

        def test_one(deaddir_audit):
            assert deaddir_audit == "mine"
        """
    )
    assert outcomes(run("m")) == {"test_mine.py::test_one": "passed"}


def test_a_model_that_cannot_be_audited_fails_its_row_test_and_keeps_nothing_else_from_running(pytester, checkpoint):
    checkpoint()
    checkpoint("broken", truncated=True)
    pytester.makepyfile(test_mine="def test_row(norm_site): pass\ndef test_other(): pass")
    result = pytester.runpytest_inprocess("--deaddir-model=m", "--deaddir-model=broken", READ)
    done = outcomes(result)
    assert done["test_mine.py::test_row[broken]"] == "failed"
    assert [done[f"test_mine.py::test_row[m-{norm}]"] for norm in NORMS] == ["passed"] * 3
    assert done["test_mine.py::test_other"] == "passed"
    assert done["broken::discovery"] == "failed"
    assert done["m::discovery"] == "passed"


def test_a_shared_layer_s_blocks_have_ids_of_their_own_where_pytest_insists(pytester, with_torch):
    pytester.makepyfile(
        shared="""
        import torch
        class Shared(torch.nn.Module):
            def __init__(self):
                super().__init__()
                torch.manual_seed(0)
                self.layers = torch.nn.ModuleList(
                    [torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)]
                )
                self.norm = torch.nn.LayerNorm(16)
            def forward(self, x):
                for _ in range(3):
                    x = self.layers[0](x)
                return self.norm(x)
        def make():
            return Shared(), torch.randn(8, 20, 16, generator=torch.Generator().manual_seed(0))
        """,
        test_mine="def test_one(residual_block): pass",
    )
    options = [] if pytest.version_tuple < (9,) else ["-o", "strict_parametrization_ids=true"]
    result = pytester.runpytest_inprocess("--deaddir-model=shared:make", "-m", "not deaddir", *options)
    names = [name.rpartition("[")[2] for name in outcomes(result)]
    assert names == ["layers.0]", "layers.0-2]", "layers.0-3]"]


def test_the_marker_s_dtype_is_what_the_model_runs_in(pytester, with_torch):
    pytester.makepyfile(
        test_mine="""
        import pytest

        @pytest.mark.deaddir(dtype="bfloat16", level=None)
        def test_one(deaddir_audit):
            assert deaddir_audit.model["dtype"] == "bfloat16"
        """
    )
    result = pytester.runpytest_inprocess(f"--deaddir-model={GPT2}", "-k", "test_mine")
    assert list(outcomes(result).values()) == ["passed"]


def test_a_dtype_cannot_be_had_of_an_earlier_report(pytester, checkpoint):
    checkpoint()
    pytester.runpytest_inprocess("--deaddir-only", "--deaddir-model=m", READ, "--deaddir-report=earlier.json")
    pytester.makepyfile(
        test_mine="""
        import pytest

        @pytest.mark.deaddir(dtype="bfloat16")
        def test_one(deaddir_audit):
            pass
        """
    )
    result = pytester.runpytest_inprocess("--deaddir-from=earlier.json", "-k", "test_mine")
    assert list(outcomes(result).values()) == ["failed"]
    assert "was audited in float32, and dtype bfloat16 is asked for" in text_of(result)


@pytest.mark.parametrize("spelling", ["./m", "sub/../m", "{path}/m"])
def test_a_model_is_measured_once_however_a_marker_writes_it(pytester, checkpoint, measured, spelling):
    checkpoint()
    pytester.mkdir("sub")
    text = spelling.format(path=pytester.path)
    pytester.makepyfile(
        test_mine=f"""
        import pytest

        @pytest.mark.deaddir(model={text!r})
        def test_one(deaddir_audit):
            pass
        """
    )
    assert pytester.runpytest_inprocess("--deaddir-model=m", READ).ret == 0
    assert len(measured) == 1


# --- what ends a measurement --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["pytest.skip('no gpu')", "pytest.fail('never')", "raise SystemExit(3)"])
def test_a_factory_that_skips_or_exits_is_an_error_once(pytester, with_torch, ending):
    pytester.makepyfile(
        made=f"""
        import pytest
        def make():
            with open("calls", "a") as file:
                file.write(".")
            {ending}
        """
    )
    result = pytester.runpytest_inprocess("--deaddir-only", "--deaddir-model=made:make")
    assert result.ret == 1
    assert failed(result) == ["made:make::discovery"]
    assert (pytester.path / "calls").read_text() == "."
    assert "measuring was ended by" in text_of(result)


def test_a_check_that_reports_twice_finds_once(pytester, checkpoint):
    """As under --dist=each, and with pytest-rerunfailures."""
    checkpoint(nan="transformer.ln_f")
    pytester.makeconftest("def pytest_deaddir_finding(finding):\n    print('SEEN', finding['code'])")
    options = ["-p", "xdist", "-n2", "--dist=each", "--deaddir-report=out.json"]
    result = pytester.runpytest_subprocess("--deaddir-only", "--deaddir-model=m", READ, *options)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["DD001 error*"])
    assert sum(line.startswith("DD001 error") for line in result.outlines) == 1
    assert sum(line.endswith("SEEN DD001") for line in result.outlines) == 1


# --- runs that run nothing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [["--setup-plan"], ["--setup-only"], ["--fixtures"], ["--cache-show"], ["-k", "nomatch"], ["--collect-only"]],
)
def test_a_run_that_runs_nothing_leaves_the_last_report_as_it_is(pytester, checkpoint, options):
    checkpoint()
    pytester.makeini("[pytest]\ndeaddir_model = m\ndeaddir_level = read\ndeaddir_report = out.json\n")
    pytester.runpytest_inprocess("--deaddir-only")
    before = (pytester.path / "out.json").read_bytes()
    assert b'"DD' not in before
    result = pytester.runpytest_inprocess("--deaddir-only", *options)
    assert (pytester.path / "out.json").read_bytes() == before
    assert "NOT A PASS" not in text_of(result)
    assert "report written" not in text_of(result)
