"""The gate file of a model repository: ``pytest`` there collects it by itself."""

import json
from datetime import date, timedelta

import pytest

from plugin.helpers import READ_ITEMS, collected, failed, outcomes

NAN = {"nan": "transformer.ln_f"}  # one scale of the last norm


@pytest.fixture
def gate(pytester):
    """Write deaddir.toml with ``text`` below a table of the model m, at level read."""

    def write(text="", top='level = "read"', folder="."):
        content = f'{top}\n\n[models.m]\npath = "m"\n{text}\n'
        (pytester.path / folder).mkdir(exist_ok=True)
        (pytester.path / folder / "deaddir.toml").write_text(content)

    return write


@pytest.fixture
def run(pytester):
    return pytester.runpytest_inprocess


def suppress(code="DD001", **keys):
    entries = {"code": f'"{code}"', "reason": '"known"'} | keys
    return "[[suppress]]\n" + "\n".join(f"{key} = {value}" for key, value in entries.items())


def test_pytest_collects_the_models_of_the_gate_file_by_itself(run, gate, checkpoint):
    checkpoint()
    gate()
    result = run()
    assert result.ret == 0
    assert outcomes(result) == {f"deaddir.toml::m::{name}": "passed" for name in READ_ITEMS}
    result.stdout.fnmatch_lines(["deaddir: 1 model of deaddir.toml", "deaddir rules: * from the catalogue"])
    result.stdout.fnmatch_lines(["deaddir.toml::m: GPT2LMHeadModel*", "*checks ran: *passed*"])


def test_one_check_has_an_address(run, gate, checkpoint):
    checkpoint(**NAN)
    gate()
    result = run("deaddir.toml::m::DD001")
    assert outcomes(result) == {"deaddir.toml::m::DD001": "failed"}
    result.stdout.fnmatch_lines(["re-run * pytest deaddir.toml::m::DD001"])


def test_the_address_that_is_told_holds_from_where_pytest_was_called(run, gate, checkpoint, pytester, monkeypatch):
    checkpoint("repo/m", **NAN)
    gate(folder="repo")
    (pytester.path / "repo" / "sub").mkdir()
    monkeypatch.chdir(pytester.path / "repo" / "sub")
    run("../deaddir.toml").stdout.fnmatch_lines(["re-run * pytest ../deaddir.toml::m::DD001"])


def test_it_is_collected_beside_tests_that_testpaths_names(run, gate, checkpoint, pytester):
    checkpoint()
    gate()
    pytester.makeini("[pytest]\ntestpaths = tests\n")
    pytester.mkdir("tests").joinpath("test_mine.py").write_text("def test_one(): pass")
    assert set(outcomes(run())) == {"tests/test_mine.py::test_one", *(f"deaddir.toml::m::{n}" for n in READ_ITEMS)}
    assert set(outcomes(run("tests"))) == {"tests/test_mine.py::test_one"}


def test_the_tests_of_an_audited_checkpoint_are_not_run(run, gate, checkpoint):
    folder = checkpoint()
    (folder / "test_theirs.py").write_text("def test_one(): raise AssertionError('a stranger ran code')")
    (folder / "deaddir.toml").write_text("no TOML at all")
    gate()
    assert set(outcomes(run())) == {f"deaddir.toml::m::{name}" for name in READ_ITEMS}


def test_only_leaves_the_gate_and_no_other_tests(run, gate, checkpoint, pytester):
    checkpoint()
    gate()
    pytester.makepyfile(test_mine="def test_one(): pass")
    assert set(outcomes(run("--deaddir-only"))) == {f"deaddir.toml::m::{name}" for name in READ_ITEMS}


def test_files_of_several_folders_keep_their_models_apart(run, gate, checkpoint, pytester):
    for folder in ("a", "b"):
        checkpoint(f"{folder}/m", **(NAN if folder == "b" else {}))
        gate(folder=folder)
    result = run("--deaddir-report=out.json", "a", "b")
    assert failed(result) == ["b/deaddir.toml::m::DD001"]
    models = json.loads((pytester.path / "out.json").read_text())["models"]
    assert [len(model["findings"]) for model in models] == [0, 1]


def test_each_model_has_its_own_settings_and_the_command_line_the_last_word(run, gate, checkpoint, pytester):
    checkpoint(**NAN)
    gate('dtype = "float16"\nselect = ["DD001"]\n\n[models.other]\npath = "m"\nseverity = { DD001 = "warning" }')
    result = run("--deaddir-report=out.json")
    assert failed(result) == ["deaddir.toml::m::DD001"]
    m, other = json.loads((pytester.path / "out.json").read_text())["models"]
    assert (m["model"]["dtype"], other["model"]["dtype"]) == ("float16", "float32")
    assert (m["checks"]["planned"], other["checks"]["warned"]) == (1, 1)
    run("--deaddir-dtype=bfloat16", "--deaddir-report=out.json")
    models = json.loads((pytester.path / "out.json").read_text())["models"]
    assert [model["model"]["dtype"] for model in models] == ["bfloat16", "bfloat16"]


ACME = """
code = "ACME001"
name = "tiny-gamma"
severity = "error"
table = "norms"
require = { gamma_min = { min = 1e-3 } }
message = "least |γ| of {path} is {gamma_min}"
summary = "No scale is tiny."
"""


def test_rule_files_of_the_gate_and_of_a_model_add_up(run, gate, checkpoint, pytester):
    checkpoint(tiny="transformer.ln_f")
    (pytester.path / "acme.toml").write_text(ACME)
    (pytester.path / "more.toml").write_text(ACME.replace("ACME001", "ACME002"))
    gate('rules = ["more.toml"]\nselect = ["ACME"]', top='level = "read"\nrules = ["acme.toml"]')
    assert failed(run()) == ["deaddir.toml::m::ACME001", "deaddir.toml::m::ACME002"]


def test_a_suppressed_finding_passes_and_is_still_told(run, gate, checkpoint, pytester):
    checkpoint(**NAN)
    gate(suppress(site='"transformer.*"', reason='"trained so, ticket 12"'))
    result = run("--deaddir-report=out.json")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["DD001 error*", "  accepted: trained so, ticket 12"])
    [finding] = json.loads((pytester.path / "out.json").read_text())["models"][0]["findings"]
    assert finding["suppressed"] == "trained so, ticket 12"


@pytest.mark.parametrize(
    ("planted", "text", "told"),
    [
        ({}, suppress(), "deaddir.toml:5: * is stale*"),
        (NAN, suppress(site='"h.*"'), "deaddir.toml:5: * DD001 at h.* is stale*"),
        (NAN, suppress(expires=date.today() - timedelta(1)), "deaddir.toml:5: * expired on *: known"),
    ],
)
def test_a_suppression_that_is_stale_or_expired_fails(run, gate, checkpoint, planted, text, told):
    checkpoint(**planted)
    gate(text)
    result = run()
    assert failed(result) == ["deaddir.toml::m::DD001"]
    result.stdout.fnmatch_lines([told])


def test_a_suppression_holds_on_its_last_day(run, gate, checkpoint):
    checkpoint(**NAN)
    gate(suppress(expires=date.today()))
    assert run().ret == 0


def test_a_suppression_is_of_one_model(run, gate, checkpoint):
    checkpoint(**NAN)
    gate('[models.other]\npath = "m"\n' + suppress(model='"other"'))
    assert failed(run()) == ["deaddir.toml::m::DD001"]


@pytest.mark.parametrize("option", ["--deaddir-level=read", "--deaddir-select=DD0", "--deaddir-ignore=DD902"])
def test_a_choice_of_the_command_line_makes_no_suppression_a_mistake(run, gate, checkpoint, with_torch, option):
    checkpoint()
    gate(suppress("DD902", site="'*.no'"), top='level = "forward"\ndtype = "float32"')
    result = run(option, "-k", "DD001")
    assert outcomes(result) == {"deaddir.toml::m::DD001": "passed"}


def test_a_suppression_of_a_rule_that_compares_may_stand_before_there_is_a_baseline(run, gate, checkpoint):
    checkpoint()
    gate(suppress("DD604"), top='level = "read"\nbaseline = "base.json"')
    assert run("--deaddir-baseline-update").ret == 0
    assert failed(run()) == ["deaddir.toml::m::DD604"]  # it is stale


def test_a_choice_of_the_command_line_hides_no_mistake(run, gate, checkpoint):
    checkpoint()
    gate("ignore = ['DD005']\n" + suppress("DD005"))
    told = "deaddir.toml:7: suppress: DD005 is not among the rules that m is judged by"
    run("--deaddir-select=DD0").stdout.fnmatch_lines([told])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("levle = 'read'", ["deaddir.toml:5: models.m: unknown key levle, did you mean level?"]),
        ("level = 3", ["deaddir.toml:5: models.m: level must be a string, not 3"]),
        ("level = 'deep'", ["deaddir.toml:5: level deep: not one of read, forward, full"]),
        ("samples = 0", ["deaddir.toml:5: models.m: samples must be a positive whole number, not 0"]),
        ("inputs = 'no.txt'", ["deaddir.toml:5: inputs no.txt: no such file or folder"]),
        ("select = ['DD999']", ["deaddir.toml:5: select DD999: no rule has this code*"]),
        ("severity = { DD001 = 'fatal' }", ["deaddir.toml:5: severity DD001=fatal: write *"]),
        ("rules = ['no.toml']", ["*no.toml: cannot be read*"]),
        ("ignore = ['DD']", ["*leave no rule to judge by*"]),
        ("select = ['DD3']", ["deaddir.toml:3: models.m: no rule that was selected can be answered at level read*"]),
        ("revision = 'main'", ["deaddir.toml:5: models.m: m is no model on the hub*"]),
        ("[models.x]\npath = 'gone'", ["deaddir.toml:6: no such model: 'gone'*"]),
        ("[models.x]", ["deaddir.toml:5: models.x: path is missing"]),
        ("[models.'a b']\npath = 'm'", ["deaddir.toml:5: models: 'a b' cannot be a name*"]),
        ("[model.x]", ["deaddir.toml:5: unknown key model, did you mean models?"]),
        ("models = 3", ["deaddir.toml:5: models.m: unknown key models*"]),
        (suppress("DD999"), ["deaddir.toml:6: suppress: DD999: no rule has this code*"]),
        (suppress("DD101"), ["deaddir.toml:6: suppress: DD101 is not among the rules that m is judged by"]),
        (suppress(model="'n'"), ["deaddir.toml:8: suppress: the file has no model 'n'*"]),
        (suppress(reason='" "'), ["deaddir.toml:7: suppress: the reason is empty"]),
        (suppress(expires='"soon"'), ["deaddir.toml:8: suppress: expires must be a date such as *, not 'soon'"]),
        ("[[suppress]]\ncode = 'DD001'", ["deaddir.toml:5: suppress: reason is missing"]),
        ("[models.x]\npath = 'm'\n" + suppress(), ["deaddir.toml:7: suppress: say of which model*"]),
        ("x = 1 2", ["*deaddir.toml:5: not TOML*"]),
        (
            "level = 'deep'\ndtype = 'float8'\n" + suppress(model="'n'"),
            ["deaddir.toml:5: level deep*", "deaddir.toml:6: dtype float8*", "deaddir.toml:10: suppress*"],
        ),
    ],
)
def test_every_mistake_is_told_at_once_with_its_line(run, gate, checkpoint, text, told):
    checkpoint()
    gate(text)
    result = run()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.assert_outcomes(errors=1)
    for line in told:
        result.stdout.fnmatch_lines([line])
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*INTERNALERROR*")


def told(result):
    return [line for line in result.outlines if line.startswith("deaddir.toml:")]


def test_mistakes_of_every_kind_come_in_one_round_and_in_order(run, checkpoint, pytester):
    checkpoint()
    (pytester.path / "deaddir.toml").write_text(
        """
levle = "read"
level = "read"
select = [
    "DD0",
    "DD998",
]
rules = ["missing.toml"]
[models.m]
path = "m"
dtype = "float8"
samples = "many"
severity.DD001 = "info"
severity.DD777 = "error"
[models.gone]
path = "gone"
baseline = "no.json"
ignore = ["DD0", "DD997"]
[models.again]
path = "m"
ignore = ["DD0", "DD997"]
[models.none]
inputs = "no.txt"
"""
    )
    lines = told(run())
    where = [line.split(": ")[0].rpartition(":")[2] for line in lines]
    assert where == sorted(where, key=int)
    for line, text in {
        2: "unknown key levle, did you mean level?",
        8: "rules *missing.toml: cannot be read",
        11: "dtype float8: not one of",
        12: "models.m: samples must be a positive whole number, not 'many'",
        16: "no such model: 'gone'",
        17: "baseline no.json: no such file",
        22: "models.none: path is missing",
        23: "inputs no.txt: no such file",
    }.items():
        run_lines = [found for found in lines if found.startswith(f"deaddir.toml:{line}: ")]
        assert run_lines, (line, lines)
        assert any(all(part in found for part in text.split("*")) for found in run_lines), (line, run_lines)

    file = pytester.path / "deaddir.toml"
    file.write_text(file.read_text().replace('rules = ["missing.toml"]', ""))
    lines = told(run())
    for line, text in {
        6: "select DD998: no rule",
        14: "severity DD777: no rule",
        18: "ignore DD997: no rule",
        21: "ignore DD997: no rule",
    }.items():
        assert any(found.startswith(f"deaddir.toml:{line}: {text}") for found in lines), (line, lines)


def test_entries_of_a_list_over_several_lines_have_lines_of_their_own(run, checkpoint, pytester):
    checkpoint()
    (pytester.path / "deaddir.toml").write_text(
        """
level = "read"
suppress = [
    { code = "DD998", reason = "x" },
    { code = "DD001", reason = " " },
    { code = "DD001" },
    { code = "DD001", reason = 5, model = 6 },
]
[models.m]
path = "m"
[models.other]
path = "m"
"""
    )
    say = "suppress: say of which model: model = one of m, other"
    assert told(run()) == [
        f"deaddir.toml:4: {say}",
        "deaddir.toml:4: suppress: DD998: no rule has this code; --deaddir-list-rules shows them all",
        "deaddir.toml:5: suppress: the reason is empty",
        f"deaddir.toml:5: {say}",
        "deaddir.toml:6: suppress: reason is missing",
        f"deaddir.toml:6: {say}",
        "deaddir.toml:7: suppress: reason must be a string, not 5",
        "deaddir.toml:7: suppress: model must be a string, not 6",
    ]


def test_a_name_with_a_dot_that_is_not_quoted(run, checkpoint, pytester):
    checkpoint()
    (pytester.path / "deaddir.toml").write_text(
        'level = "read"\n[models.v1.1]\npath = "m"\n[models.v2.0.1]\npath = "m"\n'
    )
    quote = "models: a name with a dot is written in quotes"
    assert told(run()) == [f'deaddir.toml:2: {quote}: [models."v1.1"]', f'deaddir.toml:4: {quote}: [models."v2.0.1"]']


def test_a_gate_file_without_a_model_is_a_mistake(run, pytester):
    (pytester.path / "deaddir.toml").write_text("level = 'read'\n")
    run().stdout.fnmatch_lines(["deaddir.toml:1: no model: each needs a table *"])


def test_the_fixtures_see_the_models_of_the_gate(run, gate, checkpoint, pytester):
    checkpoint()
    gate('[models.half]\npath = "m"\ndtype = "float16"')
    pytester.makepyfile(
        test_mine="""
        import pytest

        def test_every(deaddir_audit): assert deaddir_audit.norms

        @pytest.mark.deaddir(model="half")
        def test_one(deaddir_audit, deaddir_model):
            assert deaddir_audit.model["dtype"] == "float16" and deaddir_model.plan.dtype == "float16"

        @pytest.mark.deaddir(model="half", role="final")
        def test_final(norm_site): assert norm_site["path"] == "transformer.ln_f"
        """
    )
    assert outcomes(run("test_mine.py")) == {
        "test_mine.py::test_every[m]": "passed",
        "test_mine.py::test_every[half]": "passed",
        "test_mine.py::test_one[half]": "passed",
        "test_mine.py::test_final[transformer.ln_f]": "passed",
    }


def test_xdist_runs_the_gate_as_one_process_does(pytester, gate, checkpoint):
    pytest.importorskip("xdist", reason="pytest-xdist is not installed (dependency group test)")
    checkpoint(**NAN)
    gate()
    result = pytester.runpytest_subprocess("-n2", "--deaddir-report=out.json", "-p", "xdist")
    result.stdout.fnmatch_lines(["*deaddir.toml::m: GPT2LMHeadModel*", "FAILED deaddir.toml::m::DD001*"])
    result.assert_outcomes(passed=len(READ_ITEMS) - 1, failed=1)
    [model] = json.loads((pytester.path / "out.json").read_text())["models"]
    assert model["checks"]["run"] == len(READ_ITEMS) - 1


def test_collecting_opens_no_checkpoint(run, gate, checkpoint):
    (checkpoint() / "model.safetensors").write_bytes(b"none")
    gate()
    assert collected(run("--collect-only", "-q")) == [f"deaddir.toml::m::{name}" for name in READ_ITEMS]


def test_the_schema_for_editors_knows_what_the_loader_does(gate):
    from jsonschema import Draft7Validator

    from pytest_deaddir.gate import gate_schema_text

    schema = Draft7Validator(json.loads(gate_schema_text()))
    Draft7Validator.check_schema(schema.schema)
    model = {"path": ".", "level": "read", "samples": 5, "severity": {"DD001": "info"}, "rules": ["a.toml"]}
    assert schema.is_valid({"models": {"m": model}, "dtype": "auto", "suppress": [{"code": "DD001", "reason": "x"}]})
    for wrong in (
        {},
        {"models": {}},
        {"models": {"m": {}}},
        {"models": {"a b": model}},
        {"models": {"m": model}, "x": 1},
    ):
        assert not schema.is_valid(wrong)
    assert not schema.is_valid({"models": {"m": model | {"level": "deep"}}})
    assert not schema.is_valid({"models": {"m": model}, "suppress": [{"code": "DD001"}]})


def test_a_gate_that_cannot_be_read_leaves_no_report_of_success(run, gate, checkpoint, pytester):
    checkpoint()
    gate("levle = 'read'")
    run("--deaddir-report=out.sarif", "--deaddir-report=out.md", "--deaddir-report=out.html")
    [sarif] = json.loads((pytester.path / "out.sarif").read_text())["runs"]
    assert not sarif["invocations"][0]["executionSuccessful"]
    assert (pytester.path / "out.md").read_text() == "Nothing was audited.\n"
    assert "Nothing was audited" in (pytester.path / "out.html").read_text()
