"""--deaddir-explain, --deaddir-list-rules and --deaddir-check-rules: they print and exit, and look at no model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from plugin.helpers import assert_refused, text_of
from plugin.test_custom_rules import PYTHON, TOML
from pytest_deaddir.rules import load_rules, shipped_rules

RULES = load_rules([shipped_rules()])


@pytest.fixture(autouse=True)
def project(pytester):
    """A project with a test, an ini-file that names a model which is not there, and rules of its own."""
    pytester.makeini("[pytest]\ndeaddir_model = no-such-checkpoint\n")
    pytester.makepyfile(test_mine="raise AssertionError('collected')")
    (pytester.path / "wide.py").write_text(PYTHON)
    (pytester.path / "narrow.toml").write_text(TOML)


@pytest.fixture
def run(pytester):
    def run(*options):
        result = pytester.runpytest_inprocess(*options)
        assert "collected" not in text_of(result)
        return result

    return run


@pytest.mark.parametrize("rule", RULES[::7], ids=lambda rule: rule.code)
def test_explain_prints_the_page_of_a_shipped_rule(run, rule):
    result = run(f"--deaddir-explain={rule.code}")
    assert result.ret == 0
    assert result.outlines[0] == f"{rule.code} {rule.name}"
    assert rule.remedy.split("\n")[0][:40].rstrip() in text_of(result)
    assert max(map(len, result.outlines)) <= 80


def test_explain_knows_the_rules_that_were_given(run):
    result = run("--deaddir-explain=ACME001", "--deaddir-rules=wide.py")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        ["ACME001 wide", "error · heuristic · level read · table norms", "A norm is wide.", "Loaded from wide.py:5"]
    )


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("DD110", "--deaddir-explain DD110: no rule has this code, did you mean DD101?"),
        ("DD1", "--deaddir-explain DD1: no rule has this code"),
        ("dead-coordinates", "rules go by their code here, DD002"),
        ("", "no rule has this code"),
    ],
)
def test_explain_of_what_is_no_rule_is_a_usage_error(run, code, says):
    assert_refused(run(f"--deaddir-explain={code}"), says)


def test_the_list_names_every_rule_with_where_it_comes_from(run, pytester):
    pytester.makeconftest(
        PYTHON.replace("ACME001", "ACME003") + "def pytest_deaddir_register_rules(config):\n    return wide\n"
    )
    result = run(
        "--deaddir-list-rules",
        "--deaddir-rules=wide.py",
        "--deaddir-rules=narrow.toml",
        "--deaddir-ignore=DD9",
        "--deaddir-severity=ACME002=info",
    )
    assert result.ret == 0
    rows = {line.split()[0]: line.split(maxsplit=5) for line in result.outlines[2:] if line.startswith(("ACME", "DD"))}
    assert list(rows) == ["ACME001", "ACME002", "ACME003", *(rule.code for rule in RULES)]
    assert rows["ACME001"][1:] == ["wide", "error", "heuristic", "read", "wide.py:5"]
    assert rows["ACME002"][1:] == ["narrow", "info", "heuristic", "read", "narrow.toml"]
    assert rows["ACME003"][5] == "conftest.py:4 (the hook pytest_deaddir_register_rules)"
    for rule in RULES:
        assert rows[rule.code][2] == ("off" if rule.code.startswith("DD9") else rule.severity)
        assert rows[rule.code][5].endswith(f"{rule.code}-{rule.name}.toml")
    off = sum(rule.code.startswith("DD9") for rule in RULES)
    assert result.outlines[-1].startswith(f"{len(rows)} rules, {off} of them not selected")


def test_a_rule_file_that_cannot_be_used_stops_the_list(run, pytester):
    (pytester.path / "narrow.toml").write_text(TOML.replace("narrow", "NARROW"))
    assert_refused(run("--deaddir-list-rules", "--deaddir-rules=narrow.toml"), "narrow.toml:3: name 'NARROW'")


# --- checking rule files ----------------------------------------------------------------------------------------------

EXAMPLES = """
[[example]]
row = { features = 32 }
expect = "pass"

[[example]]
row = { features = 31 }
expect = "finding"
"""


def test_examples_that_come_out_as_they_say_pass(run, pytester):
    (pytester.path / "narrow.toml").write_text(TOML + EXAMPLES)
    result = run("--deaddir-check-rules=narrow.toml")
    assert result.ret == 0
    assert result.outlines == ["ACME002 narrow: 2 examples", "1 rule, 2 examples: 0 not as expected"]


def test_an_example_that_does_not_fails_with_its_line(run, pytester):
    text = TOML + EXAMPLES.replace("31", "33")
    (pytester.path / "narrow.toml").write_text(text)
    result = run("--deaddir-check-rules=narrow.toml")
    assert result.ret == 1
    line = text[: text.rindex("[[example]]")].count("\n") + 1
    result.stdout.fnmatch_lines(
        [f"*narrow.toml:{line}: ACME002: example 2 expects finding, and the rule says pass", "* 1 not as expected"]
    )


def test_what_no_example_holds_is_said_and_does_not_fail(run, pytester):
    text = (
        TOML.replace("[[", "") + 'where = { kind = "layernorm" }' + EXAMPLES.replace("{ f", '{ kind = "layernorm", f')
    )
    (pytester.path / "narrow.toml").write_text(text)
    result = run("--deaddir-check-rules=narrow.toml")
    assert result.ret == 0
    assert "  no example notices: where.kind left out" in result.outlines


def test_a_rule_without_examples_is_said_to_be_unchecked(run):
    result = run("--deaddir-check-rules=narrow.toml", "--deaddir-check-rules=wide.py")
    assert result.ret == 0
    assert result.outlines[:2] == [
        "ACME001 wide: no examples, so that nothing was checked",
        "ACME002 narrow: no examples, so that nothing was checked",
    ]


def test_the_examples_of_a_rule_in_python_are_run_too_and_what_it_raises_is_told(run, pytester):
    examples = 'severity="error", examples=[({"features": 5}, "finding"), ({"features": "x"}, "pass"), ({}, "skip")]'
    (pytester.path / "wide.py").write_text(
        PYTHON.replace('severity="error"', examples.replace('"x"', "0")).replace("> 4", "> 4 / row.features")
    )
    result = run("--deaddir-check-rules=wide.py")
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        ["*ACME001: example 2 expects pass, and the rule raises *wide.py:8: ZeroDivisionError*"]
    )
    assert "3 examples: 1 not as expected" in result.outlines[-1]


def test_files_that_cannot_be_used_are_a_usage_error(run, pytester):
    (pytester.path / "narrow.toml").write_text(TOML.replace("narrow", "NARROW"))
    assert_refused(
        run("--deaddir-check-rules=narrow.toml", "--deaddir-check-rules=gone.toml"),
        "narrow.toml:3: name",
        "gone.toml: cannot be read",
    )


def test_a_code_that_the_catalogue_has_is_taken(run, pytester):
    (pytester.path / "wide.py").write_text(PYTHON.replace("ACME001", "DD001"))
    (pytester.path / "narrow.toml").write_text(TOML.replace("ACME002", "DD002"))
    result = run("--deaddir-check-rules=wide.py", "--deaddir-check-rules=narrow.toml")
    assert_refused(result, "wide.py:5: code DD001 is taken by ", "narrow.toml: code DD002 is taken by ")
    assert [line.partition(": /")[0] for line in result.errlines if line] == ["ERROR: deaddir"] * 2
    assert "" not in result.errlines[:2]


def test_a_file_of_the_catalogue_checks_itself(run):
    file = next(shipped_rules().glob("DD001-*.toml"))
    result = run(f"--deaddir-check-rules={file}")
    assert result.ret == 0
    assert result.outlines[-1].startswith("1 rule, ")


def test_the_catalogue_checks_itself(run):
    result = run(f"--deaddir-check-rules={shipped_rules()}")
    assert result.ret == 0
    assert result.outlines[-1].startswith(f"{len(RULES)} rules, ")
    assert not [line for line in result.outlines if "no example" in line]


def test_a_terminal_that_knows_no_greek_is_shown_escapes(pytester, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    result = pytester.runpytest_subprocess("--deaddir-explain=DD101")
    assert result.ret == 0
    assert "\\u03b3" in text_of(result)


# --- the documentation ------------------------------------------------------------------------------------------------

HOW_TO = Path(__file__).parents[2] / "docs" / "how-to"


def blocks(page, language):
    """The blocks of a language in a page."""
    return re.findall(rf"```{language}\n(.*?)```", (HOW_TO / page).read_text(encoding="utf-8"), re.DOTALL)


def test_the_rule_file_of_the_how_to_holds_and_none_of_its_conditions_is_loose(run, pytester):
    (pytester.path / "acme.toml").write_text(blocks("write-a-rule-file.md", "toml")[0], encoding="utf-8")
    result = run("--deaddir-check-rules=acme.toml")
    assert result.ret == 0
    assert result.outlines == ["ACME001 gamma-outlier: 3 examples", "1 rule, 3 examples: 0 not as expected"]


def test_the_rule_in_python_of_the_how_to_is_a_rule_and_its_test_passes(run, pytester):
    pytester.makeini("[pytest]\npythonpath = .\n")
    rule, test = blocks("write-a-rule-in-python.md", "python")
    (pytester.path / "acme.py").write_text(rule, encoding="utf-8")
    (pytester.path / "test_acme.py").write_text(test, encoding="utf-8")
    assert run("--deaddir-explain=ACME002", "--deaddir-rules=acme.py").ret == 0
    pytester.runpytest_inprocess("test_acme.py").assert_outcomes(passed=1)
