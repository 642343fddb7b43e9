"""Rules in Python: what a function sees of a row, how it is loaded, and how each of its author's mistakes is told."""

from __future__ import annotations

import copy
import sys
import types

import pytest

from pytest_deaddir.errors import RuleError
from pytest_deaddir.rules import RowView, Source, check_rule, evaluate, judge, load_rules, rule
from pytest_deaddir.rules.row import Unmeasured
from pytest_deaddir.tables import COLUMNS, Audit, row

OUTLIER = '''
from pytest_deaddir import rule


@rule("ACME001", table="norms", severity="warning", where={"kind": ["layernorm", "rmsnorm"]})
def gamma_outlier(row):
    """One coordinate carries
    this norm.

    The others add little.
    """
    if row.gamma_max > 50 * row.gamma_median:
        return f"max/median of |γ| is {row.gamma_max / row.gamma_median:.0f}"
'''


@pytest.fixture
def written(tmp_path):
    """Write a Python file; gives its path."""

    def write(text=OUTLIER, name="acme.py"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


@pytest.fixture
def outlier(written):
    return load_rules([written()])[0]


def audit_of(*norms, level="read"):
    return Audit(model=row("model", spec="m", level=level), norms=[row("norms", **norm) for norm in norms])


def problems(*sources):
    """What loading tells, a line each."""
    with pytest.raises(RuleError) as caught:
        load_rules(sources)
    return str(caught.value).split("\n")


# --- what a rule is ---------------------------------------------------------------------------------------------------


def test_the_function_is_the_rule_and_its_docstring_the_page(outlier, written):
    assert (outlier.code, outlier.name, outlier.severity, outlier.confidence) == (
        "ACME001",
        "gamma-outlier",
        "warning",
        "heuristic",
    )
    assert outlier.summary == "One coordinate carries this norm."
    assert outlier.why == "The others add little."
    assert outlier.place == f"{written()}:5"  # of the decorator
    assert outlier.level == "read"


def test_a_finding_shows_what_the_function_looked_at(outlier):
    verdict = evaluate(outlier, audit_of({"path": "a", "kind": "rmsnorm", "gamma_max": 80.0, "gamma_median": 1.0}))
    assert verdict.outcome == "warned"
    assert verdict.findings == [
        {
            "code": "ACME001",
            "name": "gamma-outlier",
            "severity": "warning",
            "confidence": "heuristic",
            "table": "norms",
            "path": "a",
            "message": "max/median of |γ| is 80",
            "measured": {"gamma_max": 80.0, "gamma_median": 1.0},
            "limit": {},
            "suppressed": None,
            "known": False,
        }
    ]


@pytest.mark.parametrize(
    ("norm", "outcome", "why"),
    [
        ({"kind": "rmsnorm", "gamma_max": 50.0, "gamma_median": 1.0}, "passed", None),
        ({"kind": "rmsnorm", "gamma_max": 80.0}, "skipped", "gamma_median not measured"),
        ({"kind": "rmsnorm"}, "skipped", "gamma_max not measured"),
        ({"kind": "other", "gamma_max": 80.0, "gamma_median": 1.0}, "skipped", "no row of norms with kind ="),
    ],
)
def test_what_passes_and_what_is_not_judged(outlier, norm, outcome, why):
    verdict = evaluate(outlier, audit_of({"path": "a", **norm}))
    assert verdict.outcome == outcome
    assert (verdict.skipped or "").startswith(why or "")


def test_rows_that_lack_a_column_are_left_out_of_the_count(outlier):
    rows = [{"gamma_max": 80.0, "gamma_median": 1.0}, {"gamma_max": 80.0}, {"gamma_max": 1.0, "gamma_median": 1.0}]
    verdict = evaluate(outlier, audit_of(*({"path": str(i), "kind": "rmsnorm"} | r for i, r in enumerate(rows))))
    assert len(verdict.findings) == 1


def test_the_level_is_the_one_that_was_said_or_that_where_needs():
    def plain(row):
        """x"""

    assert rule("ACME001", table="norms", severity="info")(plain).level == "read"
    assert rule("ACME001", table="norms", severity="info", level="forward")(plain).level == "forward"
    assert rule("ACME001", table="norms", severity="info", where={"inconclusive": ""})(plain).level == "forward"


# --- what it sees -----------------------------------------------------------------------------------------------------


@pytest.fixture
def view():
    return RowView("norms", row("norms", path="a", gamma_max=2.0, predicted_bottom=[1.0, 2.0]))


def test_a_column_is_an_attribute_or_an_item(view):
    assert view.gamma_max == view["gamma_max"] == 2.0
    assert dict(view)["path"] == "a"
    assert len(view) == len(COLUMNS["norms"])
    assert "gamma_min" in view
    assert "gama_min" not in view


def test_what_was_not_measured_ends_the_judging_as_an_attribute_and_is_none_as_an_item(view):
    with pytest.raises(Unmeasured, match="gamma_min not measured"):
        _ = view.gamma_min
    assert view["gamma_min"] is view.get("gamma_min") is None


@pytest.mark.parametrize(
    "read", [lambda view: view.gama_max, lambda view: view["gama_max"], lambda view: view.get("gama_max")]
)
def test_a_column_that_does_not_exist_is_never_a_none(view, read):
    with pytest.raises(
        (AttributeError, LookupError), match="table norms has no column 'gama_max', did you mean gamma_max"
    ):
        read(view)


def test_no_column_hides_behind_a_method_of_the_view():
    own = {name for name in dir(RowView) if not name.startswith("_")}
    assert own == {"get", "items", "keys", "measured", "values"}
    assert not own & {column for columns in COLUMNS.values() for column in columns}


def test_a_rule_cannot_change_what_was_measured():
    @rule("ACME001", table="norms", severity="error")
    def spoils(row):
        """x"""
        row.predicted_bottom.clear()
        row.gamma_max = 9.0

    audit = audit_of({"path": "a", "predicted_bottom": [1.0], "gamma_max": 2.0})
    before = copy.deepcopy(audit)
    judge(audit, [spoils])
    assert audit == before


# --- what it does wrong -----------------------------------------------------------------------------------------------


def test_what_a_rule_raises_is_raised_with_the_rule_and_the_row():
    @rule("ACME001", table="norms", severity="error")
    def divides(row):
        """x"""
        return row.gamma_max / 0

    with pytest.raises(ZeroDivisionError) as caught:
        evaluate(divides, audit_of({"path": "a.b", "gamma_max": 1.0}))
    (note,) = caught.value.__notes__
    assert note.startswith("raised by the rule ACME001 (")
    assert note.endswith("on the row 'a.b' of norms")


@pytest.mark.parametrize("returned", [True, False, 3, "", ["x"]], ids=repr)
def test_what_is_neither_none_nor_a_message_is_an_error_of_the_rule(returned):
    @rule("ACME001", table="norms", severity="error")
    def says(row):
        """x"""
        return returned

    with pytest.raises(RuleError, match=r"ACME001 returned .*: it must return None, or the text of a finding"):
        check_rule(says, [{}])


MISTAKES = (
    OUTLIER.replace('"warning"', '"loud"').replace('"rmsnorm"]', '"RMSNorm"]')
    + """

@rule("acme2", table="norms", severity="error", level="deep", examples=[({"gama_max": 1}, "pass")])
def nothing_to_say(row):
    pass
"""
)


def test_every_mistake_of_every_rule_is_told_at_once_with_file_and_line(written):
    file = written(MISTAKES)
    told = problems(file)
    assert len(told) == 6
    first = [line for line in told if line.startswith(f"{file}:5: ACME001: ")]
    second = [line for line in told if line.startswith(f"{file}:16: acme2: ")]
    assert len(first) == 2
    assert len(second) == 4
    for part in (
        "severity 'loud'",
        "kind is never 'RMSNorm'",
        "code 'acme2'",
        "level 'deep'",
        "'gama_max'",
        "no summary",
    ):
        assert any(part in line for line in told), part


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("import no_such_module_for_test\n", 1, "ModuleNotFoundError: No module named 'no_such_module_for_test'"),
        ("x = 1\ndef broken(:\n", 2, "SyntaxError"),
        ("\n\n1 / 0\n", 3, "ZeroDivisionError: division by zero"),
        ("def f():\n    return {}['x']\n\nf()\n", 2, "KeyError: 'x'"),
        ("import sys\nsys.exit(3)\n", 2, "SystemExit: 3"),
        ("import pytest\npytest.skip('not here', allow_module_level=True)\n", 2, "Skipped: not here"),
        (OUTLIER.replace("severity", "sverity"), 5, "TypeError: rule() got an unexpected keyword argument 'sverity'"),
        (
            "from pytest_deaddir import rule\n@rule('A', table='norms', severity='error')\nclass C: pass\n",
            2,
            "TypeError",
        ),
    ],
    ids=["import", "syntax", "raises", "raises below", "exit", "skip", "argument", "class"],
)
def test_a_file_that_cannot_be_run_is_told_with_the_line_of_its_own(written, text, line, what):
    file = written(text)
    (told,) = problems(file)
    assert told.startswith(f"{file}:{line}: {what}")
    assert not [
        name for name in sys.modules if name.startswith("deaddir_rules_") and sys.modules[name].__file__ == str(file)
    ]


def test_a_file_without_a_rule_is_no_rule_file(written):
    assert problems(written("x = 1\n")) == [f"{written('x = 1')}: no rule in it: a function needs @rule"]


def test_toml_and_python_are_told_together_and_codes_that_two_have_with_both_places(written, tmp_path):
    first, second = written(), written(OUTLIER, "other.py")
    (tmp_path / "bad.toml").write_text("code = 3")
    told = problems(first, second, tmp_path / "bad.toml", tmp_path / "gone.py")
    assert f"{second}:5: code ACME001 is taken by {first}:5" in told
    assert any(line.startswith(f"{tmp_path / 'bad.toml'}:1: code must be a string") for line in told)
    assert any("gone.py: cannot be read" in line for line in told)


# --- where it comes from ----------------------------------------------------------------------------------------------


def test_a_folder_gives_its_python_rules_but_not_its_tests_and_helpers(written, tmp_path):
    written()
    for name in ("conftest.py", "test_acme.py", "acme_test.py", "_helper.py", "setup.py"):
        written("raise AssertionError(__file__)", name)
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "deeper.py").write_text("raise AssertionError(__file__)")
    assert [made.code for made in load_rules([tmp_path])] == ["ACME001"]


@pytest.mark.parametrize("beside", ["config.json", "model.safetensors", "pytorch_model.bin", "model.gguf"])
def test_python_beside_a_checkpoint_is_run_only_where_the_file_itself_is_named(written, tmp_path, beside):
    (tmp_path / beside).touch()
    trap = written("raise AssertionError(__file__)", "modeling_trap.py")
    (told,) = problems(tmp_path)
    assert told.startswith(f"{tmp_path}: modeling_trap.py not run: a checkpoint lies in")
    trap.unlink()
    assert [made.code for made in load_rules([written()])] == ["ACME001"]


def test_nor_is_python_in_a_folder_of_the_checkpoint(tmp_path):
    (tmp_path / "config.json").touch()
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "acme.py").write_text("raise AssertionError(__file__)")
    (told,) = problems(tmp_path / "rules")
    assert "acme.py not run" in told


def test_a_module_a_callable_a_path_a_rule_and_lists_of_them_give_rules(outlier, written, tmp_path):
    module = types.ModuleType("acme")
    module.one = outlier
    module.again = outlier  # under two names, and yet one rule
    for given in (
        outlier,
        module,
        lambda: [outlier],
        lambda: iter([outlier]),
        written(),
        str(written()),
        [[outlier], module],
    ):
        (loaded,) = load_rules([Source("the hook", given)])
        assert (loaded.code, loaded.origin) == ("ACME001", "the hook")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (3, "here: gave 3, which is neither a rule nor where one is"),
        (None, "here: gave None"),
        (lambda: None, "here: gave None"),
        (types.ModuleType("acme"), "here: no rule in the module acme"),
        (lambda: 1 / 0, "ZeroDivisionError"),
        (lambda: sys.exit(3), "SystemExit: 3"),
        (lambda: (1 / 0 for _ in "x"), "ZeroDivisionError"),
    ],
    ids=["number", "none", "returns none", "empty module", "raises", "exits", "raises later"],
)
def test_what_gives_no_rule_is_told(given, says):
    (told,) = problems(Source("here", given))
    assert says in told
