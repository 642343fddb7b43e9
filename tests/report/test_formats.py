"""Every format from the same entries: golden files, numbers that agree, and text of a stranger's that breaks none."""

from __future__ import annotations

import csv
import importlib
import io
import json
import re
import subprocess
import sys

import pytest

from pytest_deaddir.report import FORMATS, write
from pytest_deaddir.report.github import annotation_lines
from pytest_deaddir.tables import COLUMNS
from report.entries import RULES, all_entries, broken, faulty, healthy, named
from report.golden import FOLDER, golden

HOSTILE = [
    "a|b",
    "a\\|b",
    "`tick`",
    "``` \n# heading",
    "<img src=x onerror=alert(1)>",
    "[click](http://evil.example)",
    "![x](https://evil.example/x.png)",
    "https://evil.example",
    "www.evil.example",
    "<https://evil.example>",
    "@octocat",
    "owner/repo#1 GH-1",
    "line\nbreak\r\n* item\n\n| a | b |",
    "\x1b[31mred\x07",
    "\u202egnp.exe\u2066",
    "\u2028::error::x",
    "=cmd|'/c calc'!A1",
    "+1",
    "-1",
    "@SUM(A1)",
    "\t=1",
    "＝1",
    "::error::x",
    "\n::stop-commands::x",
    "%0A::error::y",
    "file=x,line=1::",
    "{0} {1}",
    "$x$ ~~y~~ **z** _i_ *e*",
    "&lt;script&gt;",
    "\ud800",
    'say "hi", then',
    " ",
    "",
    "nul\0",
]
EVERY_NAME = pytest.mark.parametrize("name", HOSTILE, ids=ascii)
#: What a terminal, a reader or a parser of lines would obey.
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def rendered(suffix, models):
    text = importlib.import_module(f"pytest_deaddir.report.{FORMATS[suffix]}").render(models, RULES)
    text.encode("utf-8")
    return text


def test_the_golden_files_are_what_is_written():
    texts = golden()
    stale = [path.name for path, text in texts.items() if path.read_bytes() != text.encode()]
    assert stale == [], "look at what changed, and run python tests/report/golden.py"
    of_runs = {FOLDER / name for name in ("terminal.txt", "junit.xml")}  # of tests/plugin/test_terminal.py
    assert {*texts, *of_runs} == set(FOLDER.iterdir())


def test_a_format_is_imported_when_it_is_written_and_no_other(tmp_path):
    script = """
import sys
import pytest_deaddir.settings
from pathlib import Path
from pytest_deaddir.report import FORMATS, write
from report.entries import all_entries
loaded = lambda: {m for m in FORMATS.values() if f"pytest_deaddir.report.{m}" in sys.modules}
assert loaded() == set(), loaded()
for suffix, module in FORMATS.items():
    before = loaded()
    write(Path(sys.argv[1], "out" + suffix), all_entries())
    assert loaded() == before | {module}, (suffix, loaded())
"""
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, cwd="tests")
    assert done.returncode == 0, done.stderr
    assert {path.suffix for path in tmp_path.iterdir()} == set(FORMATS)


def test_what_cannot_be_written_leaves_the_last_report(tmp_path):
    path = tmp_path / "out.json"
    path.write_text("the last")
    entry = healthy()
    entry["norms"][0]["gamma_min"] = float("nan")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write(path, [entry])
    assert path.read_text() == "the last"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_put_in_place_leaves_nothing_behind(tmp_path):
    (tmp_path / "out.csv").mkdir()
    with pytest.raises(OSError):
        write(tmp_path / "out.csv", [healthy()])
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


# --- numbers ----------------------------------------------------------------------------------------------------------


def markdown_tables(text):
    """The tables of a Markdown text as rows of cells, read by a parser of Markdown."""
    tokens = markdown_tokens(text)
    tables = []
    for token, after in zip(tokens, [*tokens[1:], None], strict=True):
        if token.type == "table_open":
            tables.append([])
        elif token.type == "tr_open":
            tables[-1].append([])
        elif token.type in ("td_open", "th_open"):
            tables[-1][-1].append("".join(child.content for child in after.children))
    return tables


def markdown_tokens(text):
    parser = pytest.importorskip("markdown_it", reason="in the dependency group test").MarkdownIt("commonmark")
    return parser.enable("table").enable("strikethrough").parse(text)


def assert_shows(cell, value):
    """The cell is the number to the last digit that it shows."""
    digits = len(re.sub(r"e.*|\D", "", cell).lstrip("0"))
    assert float(cell) == float(f"{value:.{max(digits, 1) - 1}e}"), (cell, value)


def test_every_format_shows_the_numbers_of_the_json_report():
    models = json.loads(rendered(".json", all_entries()))["models"]
    sheet = list(csv.DictReader(io.StringIO(rendered(".csv", all_entries()), newline="")))
    results = json.loads(rendered(".sarif", all_entries()))["runs"][0]["results"]
    tables = markdown_tables(rendered(".md", all_entries()))
    comparison, closing = tables[0], [dict(zip(*table, strict=True)) for table in tables if "final norm" in table[0]]

    norms = [norm for model in models for norm in model["norms"]]
    assert [row["path"] for row in sheet] == [norm["path"] for norm in norms]
    for row, norm in zip(sheet, norms, strict=True):
        for column in ("gamma_min", "gamma_median", "alignment", "noise_ratio", "eps"):
            assert float(row[column]) == norm[column]

    finals = [norm for norm in norms if norm["role"] == "final"]
    for shown, norm in zip(closing, finals, strict=True):
        assert shown["final norm"] == norm["path"]
        assert shown["dead"] == f"{norm['predicted_dead_dimension']}/{norm['dead_dimension']}"
        assert_shows(shown["|γ| min"], norm["gamma_min"])
        assert_shows(shown["median"], norm["gamma_median"])
        assert_shows(shown["noise ratio"], norm["noise_ratio"])
        assert shown["alignment"] == f"{norm['alignment']:.4f}"

    for cells, model, norm in zip(comparison[1:3], models[:2], finals, strict=True):
        shown = dict(zip(comparison[0], cells, strict=True))
        assert shown["d"] == str(model["model"]["width"])
        assert shown["kind"] == norm["kind"]
        assert_shows(shown["noise ratio"], norm["noise_ratio"])
        assert shown["depth"] == ("" if model["model"]["depth"] is None else f"{model['model']['depth']:.2f}")
        ratios = [block["smin_ratio_relative"] for block in model["blocks"] if not block["inconclusive"]]
        assert_shows(shown["worst σ_min ratio"], min(ratio for ratio in ratios if ratio))

    measured = {(f["code"], f["path"]): f["measured"] for model in models for f in model["findings"]}
    assert {(r["ruleId"], *_path(r)): r["properties"]["measured"] for r in results} == measured


def _path(result):
    (location,) = result["locations"]
    site = location["logicalLocations"][0]
    return ["models/faulty" if site["kind"] == "model" else site["fullyQualifiedName"].partition("::")[2]]


@pytest.mark.parametrize(
    ("checks", "verdict"),
    [
        ({}, "passed"),
        ({"warned": 1}, "passed with warnings"),
        ({"failed": 1, "passed": 11}, "failed"),
        ({"run": 11, "passed": 11}, "incomplete"),
        ({"run": 10, "failed": 1}, "failed"),
        ({"run": 0, "passed": 0, "skipped": 12}, "nothing judged"),
        ({"planned": 0, "run": 0, "passed": 0}, "nothing judged"),
    ],
)
def test_the_verdict_is_a_pass_only_where_everything_was_judged(checks, verdict):
    entry = healthy()
    entry["checks"] |= checks
    assert f"### `healthy`: {verdict}\n" in rendered(".md", [entry])


def test_a_model_without_norms_did_not_pass():
    assert "### `healthy`: nothing judged\n" in rendered(".md", [healthy() | {"norms": []}])


def test_a_single_model_is_compared_with_none_and_shown_whole():
    text = rendered(".md", [faulty()])
    assert text.startswith("### `faulty`: failed\n")
    assert [table[0][0] for table in markdown_tables(text)] == ["", "final norm"]


def test_many_findings_are_counted_not_shown():
    entry = faulty()
    entry["findings"] = entry["findings"][:1] * 500 + entry["findings"][2:3]
    text = rendered(".md", [entry])
    assert "**DD101** error" in text
    assert text.count("\n* **DD") == 20
    assert "\n* and 481 more\n" in text


# --- a stranger's text ------------------------------------------------------------------------------------------------


@EVERY_NAME
def test_no_name_is_markup_in_markdown(name):
    def shape(models):
        return [(token.type, token.tag) for token in markdown_tokens(rendered(".md", models))]

    hostile = [named(name), faulty()]
    assert shape(hostile) == shape([named("harmless"), faulty()])
    text = rendered(".md", hostile)
    assert not CONTROL.search(text)
    for token in markdown_tokens(text):
        for child in token.children or ():
            assert child.type in ("text", "code_inline", "strong_open", "strong_close"), child
            if child.type == "text":  # GitHub makes links and mentions of plain text too
                assert not re.search(r"@|#\d|GH-\d|://|www\.|\$|&lt", child.content), child.content


@EVERY_NAME
def test_a_name_in_markdown_is_the_name(name):
    cells = markdown_tables(rendered(".md", [named(name), faulty()]))[0][1]
    assert cells[0].strip() == printable(name).strip()


@EVERY_NAME
def test_no_name_changes_the_rows_of_a_sheet_or_is_a_formula(name):
    text = rendered(".csv", [named(name), healthy()])
    rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    assert [len(row) for row in rows] == [1 + len(COLUMNS["norms"])] * 4
    assert text.count("\n") == text.count("\r\n") == 4
    assert not CONTROL.search(text.replace("\r\n", ""))
    for cell in rows[1]:
        assert not re.match(r"[=+\-@＝＋－＠]", cell) or re.fullmatch(r"-?[\d.e+-]+", cell), cell


def test_a_sheet_holds_lists_as_json_and_nothing_for_what_was_not_measured():
    rows = list(csv.DictReader(io.StringIO(rendered(".csv", [healthy()]), newline="")))
    assert [row["model"] for row in rows] == ["healthy", "healthy"]
    for row, norm in zip(rows, healthy()["norms"], strict=True):
        for column, value in norm.items():
            if isinstance(value, str):
                assert row[column] == value
            else:
                assert (json.loads(row[column]) if row[column] else None) == value, column


@EVERY_NAME
def test_an_annotation_is_one_line_that_says_what_it_should(name):
    lines = list(annotation_lines([named(name) | {"anchor": {"file": name, "line": 3}}]))
    assert len(lines) == 5  # the error, the rule that raised and three findings; the fourth was accepted
    for line in lines:
        properties, text = re.fullmatch(r"::(?:error|warning|notice) (.*?)::(.*)", line).groups()
        values = {key: decoded(value) for key, value in (part.split("=", 1) for part in properties.split(","))}
        assert list(values) == ["file", "line", "title"]
        assert (values["file"], values["line"]) == (printable(name), "3")
        assert not CONTROL.search(line)
        if not values["title"].startswith("deaddir: "):
            assert values["title"].endswith(f": {printable(name)}")
        if values["title"].startswith("DD"):
            assert decoded(text) == f"γ of {printable(name)} is {printable(name)}"


def decoded(text):
    """As GitHub's runner does."""
    return re.sub("%(25|0D|0A|3A|2C)", lambda match: bytes.fromhex(match[1]).decode(), text)


def printable(name):
    """What a reader sees of a name."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


@EVERY_NAME
def test_json_gives_a_name_back_as_it_was(name):
    (model,) = json.loads(rendered(".json", [named(name)]))["models"]
    assert model["norms"][0]["path"] == model["findings"][0]["path"] == name


def test_of_an_error_every_format_says_so():
    assert "model.safetensors: the header ends after the file" in rendered(".md", [broken()])
    assert rendered(".csv", [broken()]).count("\r\n") == 1
    assert json.loads(rendered(".json", [broken()]))["models"][0]["error"] == broken()["error"]
    assert "* **ACME001** raised an error: `rules/acme.py:8:`" in rendered(".md", [faulty()])
    assert json.loads(rendered(".json", [faulty()]))["models"][0]["broken"] == faulty()["broken"]
    told = [line for line in annotation_lines([faulty()]) if "ACME001" in line]
    assert [line.partition("::ru")[0] for line in told] == [
        "::error file=models/faulty one/config.json,line=1,title=ACME001 raised an error%3A faulty"
    ]
    (line,) = annotation_lines([broken()])
    assert line == "::error title=deaddir%3A broken::model.safetensors: the header ends after the file%0Asecond line"
