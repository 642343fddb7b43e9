import pytest

from pytest_deaddir.errors import RuleError
from pytest_deaddir.rules import evaluate, formatted, judge, load_rules, shipped_rules
from pytest_deaddir.tables import COLUMNS, Audit, row

RULE = """
code = "ACME001"
name = "gamma-outlier"
severity = "warning"
table = "norms"
where = { kind = ["layernorm", "rmsnorm"] }
require = { gamma_max = { max = 50 } }
message = "largest |γ| of {path} is {gamma_max:.1f}"
summary = "One coordinate carries this norm."
"""


def rule_from(tmp_path, text=RULE):
    (tmp_path / "rule.toml").write_text(text)
    return load_rules([tmp_path / "rule.toml"])[0]


def audit_of(*norms, level="read"):
    return Audit(model=row("model", spec="m", level=level), norms=[row("norms", **norm) for norm in norms])


def test_the_shipped_catalogue_loads_and_every_rule_has_its_page():
    rules = load_rules([shipped_rules()])
    assert [rule.code for rule in rules] == [
        *(f"DD{n:03}" for n in range(1, 12)),
        "DD101",
        "DD201",
        "DD202",
        "DD203",
        *(f"DD30{n}" for n in range(1, 4)),
        *(f"DD40{n}" for n in range(1, 4)),
        *(f"DD90{n}" for n in range(1, 5)),
    ]
    for rule in rules:
        assert rule.source.endswith(f"{rule.code}-{rule.name}.toml")
        assert rule.why
        assert rule.remedy
        assert rule.references


def test_a_row_past_the_limit_is_a_finding_with_all_its_parts(tmp_path):
    rule = rule_from(tmp_path)
    verdict = evaluate(rule, audit_of({"path": "a", "kind": "rmsnorm", "gamma_max": 51.0}))
    assert verdict.outcome == "warned"
    assert verdict.findings == [
        {
            "code": "ACME001",
            "name": "gamma-outlier",
            "severity": "warning",
            "confidence": "heuristic",
            "table": "norms",
            "path": "a",
            "message": "largest |γ| of a is 51.0",
            "measured": {"gamma_max": 51.0},
            "limit": {"gamma_max": {"max": 50}},
        }
    ]


@pytest.mark.parametrize(("value", "outcome"), [(50, "passed"), (50.0001, "warned"), (None, "skipped")])
def test_limits_are_inclusive_and_unmeasured_is_not_judged(tmp_path, value, outcome):
    audit = audit_of({"path": "a", "kind": "layernorm", "gamma_max": value})
    assert evaluate(rule_from(tmp_path), audit).outcome == outcome


def test_rows_that_where_leaves_out_are_not_judged_and_the_reason_is_given(tmp_path):
    verdict = evaluate(rule_from(tmp_path), audit_of({"path": "a", "kind": "undecided", "gamma_max": 1e9}))
    assert verdict.outcome == "skipped"
    assert verdict.skipped == "no row of norms with kind = layernorm | rmsnorm"


@pytest.mark.parametrize(
    ("require", "good", "bad"),
    [
        ("{ min = 2 }", 2, 1.9),
        ("{ max = 2 }", 2, 2.1),
        ("{ min = 1, max = 2 }", 1.5, 3),
        ("{ equal = 2 }", 2, 3),
        ("{ not = 2 }", 3, 2),
        ("{ in = [1, 2] }", 1, 3),
    ],
)
def test_every_operator(tmp_path, require, good, bad):
    rule = rule_from(tmp_path, RULE.replace("{ max = 50 }", require))
    assert evaluate(rule, audit_of({"path": "a", "kind": "rmsnorm", "gamma_max": good})).outcome == "passed"
    assert evaluate(rule, audit_of({"path": "a", "kind": "rmsnorm", "gamma_max": bad})).outcome == "warned"


def test_a_rule_needs_the_highest_level_of_its_columns(tmp_path):
    assert rule_from(tmp_path).level == "read"
    assert rule_from(tmp_path, RULE.replace("gamma_max = {", "noise_ratio = {")).level == "forward"
    assert rule_from(tmp_path, RULE.replace("gamma_max = {", "dead_energy = {")).level == "full"


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('code = "ACME001"', 'code = "acme1"', "code 'acme1'"),
        ("gamma-outlier", "Gamma Outlier", "lower-case-with-dashes"),
        ('"warning"', '"fatal"', "severity 'fatal'"),
        ('"norms"', '"layers"', "table 'layers'"),
        ("gamma_max = {", "gamma_mx = {", "no column 'gamma_mx'"),
        ("kind = [", "knd = [", "no column 'knd'"),
        ("max = 50", "maximum = 50", "no operator 'maximum'"),
        ("max = 50", 'max = "50"', "must be a number"),
        ("max = 50", "max = true", "must be a number"),
        ("max = 50", "max = nan", "must be finite"),
        ("gamma_max = { max = 50 }", "path = { min = 2 }", "is for numbers"),
        ('kind = ["layernorm", "rmsnorm"]', "kind = { min = 1 }", "a value or a list"),
        ("{ gamma_max = { max = 50 } }", "{}", "could not fail"),
        ("{path}", "{path.__class__}", "no column 'path.__class__'"),
        ("{path}", "{path!r:>99999}", "not a format"),
        ("{gamma_max:.1f}", "{gamma_max:999999999}", "not a format"),
        ("{path}", "{", "message"),
        ("summary =", "sumary =", "missing summary"),
        ("code =", "exec = 'x'\ncode =", "unknown key exec"),
        ('"ACME001"', "1", "must be a string"),
        ("[", "[[", "not TOML"),
    ],
)
def test_a_mistake_in_a_rule_file_is_named_with_its_file(tmp_path, old, new, problem):
    with pytest.raises(RuleError) as caught:
        rule_from(tmp_path, RULE.replace(old, new, 1))
    assert problem in str(caught.value)
    assert "rule.toml" in str(caught.value)


def test_all_mistakes_of_all_files_come_at_once(tmp_path):
    (tmp_path / "a.toml").write_text(RULE.replace('"warning"', '"fatal"').replace("max = 50", "most = 50"))
    (tmp_path / "b.toml").write_text("nonsense")
    with pytest.raises(RuleError) as caught:
        load_rules([tmp_path, tmp_path / "gone.toml"])
    text = str(caught.value)
    assert text.count("\n") == 3
    assert all(part in text for part in ("fatal", "most", "not TOML", "gone.toml"))


def test_two_rules_may_not_share_a_code(tmp_path):
    (tmp_path / "a.toml").write_text(RULE)
    (tmp_path / "b.toml").write_text(RULE)
    with pytest.raises(RuleError, match="taken by"):
        load_rules([tmp_path])


def test_messages_show_unmeasured_and_lists():
    values = {"x": None, "y": [1e-9, 2.0], "z": list(range(20))}
    assert formatted("{x:.3f} {y} {z}", values) == "unmeasured 1e-09, 2 0, 1, 2, 3, 4, 5, 6, 7, …"


def test_judging_counts_what_could_be_judged():
    audit = audit_of(
        {"path": "a", "kind": "layernorm", "role": "final", "gamma_nonfinite": 2, "gamma_source": "file"},
    )
    judged = judge(audit, load_rules([shipped_rules()]))
    assert judged.checks == {"planned": 9, "run": 2, "passed": 1, "failed": 1, "warned": 0, "skipped": 7}
    assert [finding["code"] for finding in judged.findings] == ["DD001"]


def test_an_audit_is_equal_after_a_round_trip():
    audit = judge(
        audit_of({"path": "γ\x1b[31m", "gamma_nonfinite": 1, "gamma_min": 4.8e-33}), load_rules([shipped_rules()])
    )
    assert Audit.from_json(audit.to_json()) == audit


@pytest.mark.parametrize("text", ["{}", "[]", '{"schema": "pytest-deaddir/audit/0", "models": []}'])
def test_another_schema_is_refused(text):
    with pytest.raises(ValueError, match="schema"):
        Audit.from_json(text)


def test_a_row_has_every_column_and_no_other():
    assert list(row("norms", path="a")) == list(COLUMNS["norms"])
    with pytest.raises(TypeError, match="no column pth"):
        row("norms", pth="a")
