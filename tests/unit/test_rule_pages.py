"""What is made of the rule files: the pages in docs/rules, the README's table, the schema for editors."""

from __future__ import annotations

import runpy
import tomllib
from pathlib import Path

import pytest

from pytest_deaddir.report.page import markdown_page, terminal_page
from pytest_deaddir.rules import load_rules, shipped_rules
from pytest_deaddir.rules.schema import schema
from pytest_deaddir.rules.vocabulary import problems

ROOT = Path(__file__).parents[2]
GENERATED = runpy.run_path(str(ROOT / "docs" / "generate.py"))["generated"]()
RULES = load_rules([shipped_rules()])


def test_the_documentation_is_what_the_rule_files_say():
    stale = [
        str(path.relative_to(ROOT)) for path, text in GENERATED.items() if path.read_text(encoding="utf-8") != text
    ]
    assert stale == [], "run python docs/generate.py"
    assert {path for path in GENERATED if path.parent.name == "rules"} == set((ROOT / "docs" / "rules").iterdir())


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_a_page_says_all_that_its_file_says(rule):
    document = tomllib.loads(Path(rule.source).read_text(encoding="utf-8"))
    shown = " ".join(" ".join(terminal_page(rule)).split())
    written = " ".join(markdown_page(rule).split())
    for key in (
        "code",
        "name",
        "severity",
        "confidence",
        "table",
        "summary",
        "why",
        "how",
        "limits",
        "remedy",
        "message",
    ):
        text = " ".join(document[key].split())
        assert text in shown, key
        assert text in written, key
    for column, limits in document["require"].items():
        assert column in shown
        for operator, limit in limits.items():
            assert operator == "empty" or str(limit) in shown
    assert all(reference in shown and reference in written for reference in document["references"])
    assert max(map(len, terminal_page(rule))) <= 80
    assert written.count("a **finding**") == [example["expect"] for example in document["example"]].count("finding")


def test_a_page_keeps_paragraphs_and_what_is_indented_and_nothing_that_a_terminal_obeys(tmp_path):
    text = (
        Path(RULES[0].source)
        .read_text(encoding="utf-8")
        .replace('why = """', 'why = """\nOne.\n\n    two  three\n    four\n\n\\u001b[31mred')
    )
    (tmp_path / "rule.toml").write_text(text, encoding="utf-8")
    lines = list(terminal_page(load_rules([tmp_path / "rule.toml"])[0]))
    start = lines.index("Why it matters")
    assert lines[start + 1 : start + 6] == ["  One.", "", "      two  three", "      four", ""]
    assert lines[start + 6].startswith("  \\x1b[31mred")


# --- the schema -------------------------------------------------------------------------------------------------------

HEALTHY = {
    "code": "ACME001",
    "name": "gamma-outlier",
    "severity": "warning",
    "confidence": "heuristic",
    "table": "norms",
    "where": {"kind": ["layernorm", "rmsnorm"], "role": "final"},
    "require": {"gamma_max": {"max": 50}, "path": {"not": ""}, "gamma_source": {"in": ["file"]}},
    "message": "{path}",
    "summary": "x",
    "example": [{"row": {"gamma_max": 51.0, "predicted_bottom": [1.0]}, "expect": "finding"}],
}


@pytest.fixture(scope="module")
def valid():
    jsonschema = pytest.importorskip("jsonschema", reason="in the dependency group test")
    jsonschema.Draft7Validator.check_schema(schema())
    return jsonschema.Draft7Validator(schema()).is_valid


def test_every_shipped_rule_has_the_schema_that_it_names(valid):
    for rule in RULES:
        text = Path(rule.source).read_text(encoding="utf-8")
        assert valid(tomllib.loads(text)), rule.code
        line = text.partition("\n")[0]
        assert line.startswith("#:schema ")
        assert (Path(rule.source).parent / line.removeprefix("#:schema ")).resolve() in GENERATED


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"code": "acme"},
        {"code": "ACME0011111"},
        {"name": "Gamma Outlier"},
        {"severity": "loud"},
        {"confidence": "certain"},
        {"table": "layers"},
        {"table": "model"},
        {"severity": 3},
        {"message": 3},
        {"references": [1]},
        {"references": ["https://example.org"]},
        {"why": "x", "how": "x", "limits": "x", "remedy": "x"},
        {"exec": "x"},
        {"where": {}},
        {"where": {"knd": "layernorm"}},
        {"where": {"kind": "LayerNorm"}},
        {"where": {"kind": []}},
        {"where": {"kind": {"equal": "layernorm"}}},
        {"where": {"features": "wide"}},
        {"where": {"features": [1, 2.5]}},
        {"where": {"path": 3}},
        {"where": {"kind_agrees": True}},
        {"require": {}},
        {"require": 3},
        {"require": {"gamma_mx": {"max": 1}}},
        {"require": {"gamma_max": {}}},
        {"require": {"gamma_max": 3}},
        {"require": {"gamma_max": {"most": 1}}},
        {"require": {"gamma_max": {"max": "1"}}},
        {"require": {"gamma_max": {"max": True}}},
        {"require": {"gamma_max": {"equal": True}}},
        {"require": {"gamma_max": {"empty": True}}},
        {"require": {"gamma_max": {"min": 1, "max": 2.5}}},
        {"require": {"path": {"min": 1}}},
        {"require": {"path": {"empty": False}}},
        {"require": {"path": {"empty": 0}}},
        {"require": {"path": {"in": []}}},
        {"require": {"path": {"in": "a"}}},
        {"require": {"kind": {"not": "lstm"}}},
        {"example": []},
        {"example": [{}]},
        {"example": [{"row": {}, "expect": "fail"}]},
        {"example": [{"row": {"gama": 1}, "expect": "pass"}]},
        {"example": [{"row": {"gamma_max": "1"}, "expect": "pass"}]},
        {"example": [{"row": 1, "expect": "pass"}]},
        {"example": [{"row": {}, "expect": "pass", "note": "x"}]},
        {"example": {"row": {}, "expect": "pass"}},
    ],
    ids=str,
)
def test_an_editor_and_the_loader_agree(valid, change):
    document = HEALTHY | change
    assert valid(document) == (not list(problems(document)))


@pytest.mark.parametrize(
    "key", ["code", "name", "severity", "table", "require", "message", "summary", "where", "example"]
)
def test_they_agree_on_what_may_be_left_out(valid, key):
    document = {other: value for other, value in HEALTHY.items() if other != key}
    assert valid(document) == (not list(problems(document))) == (key in ("where", "example"))
