from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pytest_deaddir.errors import RuleError
from pytest_deaddir.rules import evaluate, formatted, judge, load_rules, shipped_rules
from pytest_deaddir.rules.select import no_such_rule, select, with_severities
from pytest_deaddir.rules.toml import key_lines, read_rule
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
        *(f"DD60{n}" for n in range(1, 8)),
        *(f"DD90{n}" for n in range(1, 5)),
    ]
    for rule in rules:
        assert rule.source.endswith(f"{rule.code}-{rule.name}.toml")
        assert 'confidence = "' in Path(rule.source).read_text(encoding="utf-8")  # said, and not by default
        assert all((rule.why, rule.how, rule.limits, rule.remedy, rule.references))


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
            "suppressed": None,
            "known": False,
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
    rule = replace(rule_from(tmp_path), where={"role": ("final",), "inconclusive": ("",)})
    assert evaluate(rule, audit_of({"path": "a"})).skipped == "no row of norms with role = final, inconclusive = empty"


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
        ("summary =", "sumary =", "unknown key sumary, did you mean summary?"),
        ("code =", "exec = 'x'\ncode =", "unknown key exec"),
        ("gamma_max = {", "gamma_maks = {", "no column 'gamma_maks', did you mean gamma_max?"),
        ("{gamma_max:.1f}", "{gama_max}", "no column 'gama_max' to show, did you mean gamma_max?"),
        ('"layernorm", "rmsnorm"', '"LayerNorm"', "kind is never 'LayerNorm', only layernorm, rmsnorm"),
        ('kind = ["layernorm", "rmsnorm"]', 'features = "wide"', "this column holds numbers"),
        ('kind = ["layernorm", "rmsnorm"]', "path = 3", "this column holds no numbers"),
        ("max = 50", 'equal = "wide"', "this column holds numbers"),
        ("max = 50", "equal = 2026-01-01", "must be text, a number, true or false"),
        ("max = 50", "not = nan", "must be finite"),
        ("max = 50", "in = []", "in must be a list of values"),
        ("max = 50", "empty = true", "empty is for text and lists"),
        ("max = 50", "min = 60, max = 50", "min 60 is above max 50: nothing could pass"),
        ("severity =", 'confidence = "certain"\nseverity =', "confidence 'certain' is not one of exact, measured"),
        ("summary =", "references = [1]\nsummary =", "references must be a list of strings"),
        ("summary =", "example = 3\nsummary =", "example must be tables"),
        (
            'carries this norm."',
            'x"\n[[example]]\nrow = { gama_max = 3 }\nexpect = "pass"',
            "example 1: table norms has no",
        ),
        (
            'carries this norm."',
            'x"\n[[example]]\nrow = { kind = "x" }\nexpect = "pass"',
            "example 1: kind is never 'x'",
        ),
        (
            'carries this norm."',
            'x"\n[[example]]\nrow = {}\nexpect = "fail"',
            "expect 'fail' is not one of pass, finding",
        ),
        ('carries this norm."', 'x"\n[[example]]\nrows = {}\nexpect = "pass"', "example 1: missing row"),
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
    assert judged.checks == {"planned": 9, "run": 2, "passed": 1, "failed": 1, "warned": 0, "known": 0, "skipped": 7}
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


# --- lines ----------------------------------------------------------------------------------------------------------

SPREAD = """# a rule, and nothing in it is right
code = "acme"
name = "gamma-outlier"
severity = "warning"
table = "norms"
summary = "x"
message = "{pth}"
why = '''
severity = "no key, but text"
[[example]]
'''
oddly = 1

[where]
knd = "layernorm"

[require.gamma_max]
max = "50"

[require.gamma_min]
"least" = 3

[[example]] # right
row = { kind = "layernorm" }
expect = "pass"

[[example]]
row = { kind = "layernorm", gama_max = 3.0 }
expect = "maybe"
"""


def test_every_mistake_has_the_line_that_it_stands_in(tmp_path):
    """The oracle is the line number of the text that is wrong, as an editor would count it."""
    file = tmp_path / "rule.toml"
    file.write_text(SPREAD)
    wrong = {
        'code = "acme"': "code 'acme'",
        'message = "{pth}"': "message: no column 'pth'",
        "oddly = 1": "unknown key oddly",
        'knd = "layernorm"': "where: table norms has no column 'knd'",
        'max = "50"': "require: gamma_max: max must be a number",
        '"least" = 3': "require: gamma_min: no operator 'least'",
        'row = { kind = "layernorm", gama_max = 3.0 }': "example 2: table norms has no column 'gama_max'",
        'expect = "maybe"': "example 2: expect 'maybe'",
    }
    found: list[str] = []
    assert read_rule(file, found) is None
    expected = {SPREAD.split("\n").index(text) + 1: problem for text, problem in wrong.items()}
    assert len(found) == len(expected)
    for line, problem in expected.items():
        assert any(told.startswith(f"{file}:{line}: {problem}") for told in found), (line, problem, found)


def test_every_key_and_entry_has_the_line_that_it_begins_in():
    text = '''a = 1
b.c = [  # a list
  "x, y", """
  d = 2
  """, 1979-05-27 07:32:00,
  { e = 3,  f = [4,
     5] },
]
[t."u.v"]
g = { h = 6, i.j = "7 = 8" }
[[w]]
[w.x]
y = 9
[[w]]
x = { y = 10 }
'''
    lines = key_lines(text)
    expected = {("a",): 1, ("b",): 2, ("b", "c", 0): 3, ("b", "c", 1): 3, ("b", "c", 2): 5, ("b", "c", 3): 6}
    expected |= {("b", "c", 3, "e"): 6, ("b", "c", 3, "f", 0): 6, ("b", "c", 3, "f", 1): 7, ("t",): 9, ("t", "u.v"): 9}
    expected |= {("t", "u.v", "g", "h"): 10, ("t", "u.v", "g", "i", "j"): 10, ("w",): 11, ("w", 0, "x", "y"): 13}
    expected |= {("w", 1): 14, ("w", 1, "x", "y"): 15}
    assert {path: lines.get(path) for path in expected} == expected
    assert ("d",) not in lines
    assert ("b", "c", 4) not in lines


def test_what_is_not_toml_has_its_line_too(tmp_path):
    (tmp_path / "rule.toml").write_text('code = "ACME001"\nname =\n')
    with pytest.raises(RuleError, match=r"rule\.toml:2: not TOML"):
        load_rules([tmp_path / "rule.toml"])


def test_an_example_that_fails_is_found_in_its_file(tmp_path):
    rule = rule_from(tmp_path, RULE + '[[example]]\nrow = { gamma_max = 3.0 }\nexpect = "skip"\n')
    assert rule.examples[0].line == RULE.count("\n") + 1


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from([*SPREAD.split("\n"), '"""', "'''", "[", "]]", "a.b.c = {", "\\"]), max_size=12).map(
        "\n".join
    )
)
@example("[[[\n]\n=")
def test_no_text_makes_the_scan_for_lines_fail(text):
    assert all(1 <= line <= text.count("\n") + 1 for line in key_lines(text).values())


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("x = " + "[" * 5000, "nested too deep"),
        ("x = " + "9" * 5000, "not TOML"),
        ("# " + "x" * 300_000, "larger than 256 kB"),
    ],
    ids=["deep", "long number", "large"],
)
def test_a_hostile_rule_file_is_an_error_like_any_other(tmp_path, text, problem):
    (tmp_path / "rule.toml").write_text(text)
    with pytest.raises(RuleError, match=problem):
        load_rules([tmp_path / "rule.toml"])


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b.toml"], ids=["long", "nul"])
def test_what_cannot_be_a_path_is_a_file_that_cannot_be_read(name):
    with pytest.raises(RuleError, match="cannot be read"):
        load_rules([Path(name)])


def test_a_limit_of_400_digits_is_a_number(tmp_path):
    rule = rule_from(tmp_path, RULE.replace("max = 50", f"max = {10**400}"))
    assert evaluate(rule, audit_of({"path": "a", "kind": "rmsnorm", "gamma_max": 1e300})).outcome == "passed"


def test_a_file_that_is_named_twice_is_one_rule(tmp_path):
    rule_from(tmp_path)
    assert [rule.code for rule in load_rules([tmp_path, tmp_path / "rule.toml"])] == ["ACME001"]


# --- selection ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "more", "ignored", "codes"),
    [
        ([], [], [], "DD101 DD102 DD201 ACME001"),
        (["DD1"], [], [], "DD101 DD102"),
        (["DD1", "ACME001"], [], [], "DD101 DD102 ACME001"),
        (["DD201"], ["DD102"], [], "DD102 DD201"),
        ([], ["DD101"], ["DD"], "DD101 ACME001"),  # the longer of the two decides
        (["DD101"], [], ["DD1"], "DD101"),
        (["DD1"], [], ["DD101"], "DD102"),
        (["DD101"], [], ["DD101"], ""),  # of two alike, ignore
    ],
)
def test_the_longest_code_or_prefix_decides_what_is_on(tmp_path, wanted, more, ignored, codes):
    one = rule_from(tmp_path)
    rules = [replace(one, code=code) for code in ("DD101", "DD102", "DD201", "ACME001")]
    assert " ".join(rule.code for rule in select(rules, wanted, more, ignored)) == codes


def test_the_longest_code_or_prefix_decides_how_severe_a_rule_is(tmp_path):
    rules = [replace(rule_from(tmp_path), code=code) for code in ("DD101", "DD201", "ACME001")]
    changed = with_severities(rules, {"DD": "info", "DD2": "error"})
    assert [rule.severity for rule in changed] == ["info", "error", "warning"]


@pytest.mark.parametrize(
    ("entry", "whole", "hint"),
    [
        ("DD10I", False, "did you mean DD101?"),
        ("dd101", False, "did you mean DD101?"),
        ("dd1", False, "did you mean DD1?"),
        ("dd1", True, "did you mean DD101?"),
        ("DD777", False, "begins so; --deaddir-list-rules shows them all"),
        ("gamma-outlier", False, "rules go by their code here, DD101"),
        ("DD1", True, "did you mean DD101?"),
        ("ZZ", False, "--deaddir-list-rules shows them all"),
        ("", False, "no rule has this code"),
    ],
)
def test_what_is_no_rule_is_told_with_what_could_be_meant(tmp_path, entry, whole, hint):
    rules = [replace(rule_from(tmp_path), code=code) for code in ("DD607", "DD101")]
    assert hint in no_such_rule(entry, rules, whole)


def test_a_code_and_a_prefix_of_one_are_rules(tmp_path):
    rules = [replace(rule_from(tmp_path), code="DD101")]
    assert no_such_rule("DD101", rules, whole=True) is no_such_rule("DD1", rules) is None


# --- severities that fail -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("severity", "fail_on", "outcome"),
    [
        ("error", "error", "failed"),
        ("warning", "error", "warned"),
        ("info", "error", "passed"),
        ("error", "warning", "failed"),
        ("warning", "warning", "failed"),
        ("info", "warning", "passed"),
    ],
)
def test_which_severity_fails(tmp_path, severity, fail_on, outcome):
    rule = rule_from(tmp_path, RULE.replace('"warning"', f'"{severity}"'))
    audit = audit_of({"path": "a", "kind": "rmsnorm", "gamma_max": 51.0})
    assert evaluate(rule, audit, fail_on).outcome == outcome
    assert judge(audit, [rule], fail_on).checks["failed"] == int(outcome == "failed")
