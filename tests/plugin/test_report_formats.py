"""Reports in every format from a run: files, where findings are shown in the repository, a job on GitHub, JUnit."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from plugin.helpers import CHECKS, GPT2, report_of, text_of
from pytest_deaddir.report import FORMATS
from pytest_deaddir.report.github import SUMMARY_LIMIT

SARIF = json.loads((Path(__file__).parents[1] / "data" / "sarif-schema-2.1.0.json").read_text(encoding="utf-8"))
ALL = [f"--deaddir-report=out{suffix}" for suffix in FORMATS]


def run_of(path):
    """The run of a SARIF file, which has the official schema."""
    document = json.loads(Path(path).read_text(encoding="utf-8"))
    jsonschema = pytest.importorskip("jsonschema", reason="in the dependency group test")
    jsonschema.Draft4Validator(SARIF).validate(document)
    (run,) = document["runs"]
    return run


def places(path):
    """The file and the line of every result of a SARIF file."""
    for result in run_of(path)["results"]:
        (location,) = result["locations"]
        physical = location["physicalLocation"]
        yield physical["artifactLocation"]["uri"], physical["region"]["startLine"]


@pytest.fixture
def on_github(monkeypatch, tmp_path):
    """A job on GitHub; gives the file of its step's summary, where an earlier command has written."""
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    return summary


def commands(result):
    """The lines of a run's output that GitHub takes for commands."""
    return [line for line in result.outlines if line.lstrip().startswith("::")]


# --- files ------------------------------------------------------------------------------------------------------------


def test_every_format_tells_of_every_model(audit, checkpoint):
    checkpoint("a", tiny="transformer.ln_f")
    checkpoint("b")
    audit(*ALL, models=["a", "b"])
    (first, second) = report_of("out.json")
    assert {f["code"] for f in first["findings"]} == {"DD002"}
    assert second["findings"] == []

    text = Path("out.md").read_text(encoding="utf-8")
    assert "### `a`: passed with warnings" in text
    assert "### `b`: passed\n" in text
    with Path("out.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["model"], row["path"]) for row in rows] == [
        (label, norm["path"]) for label, model in (("a", first), ("b", second)) for norm in model["norms"]
    ]
    (result,) = run_of("out.sarif")["results"]
    assert result["ruleId"] == "DD002"
    assert result["properties"]["measured"] == first["findings"][0]["measured"]


def test_the_html_page_explains_what_was_found_by_the_run_s_own_rules(audit, checkpoint, pytester):
    checkpoint()
    (pytester.path / "rule.toml").write_text(
        """
        code = "ACME001"
        name = "wide"
        severity = "error"
        table = "norms"
        where = { role = "final" }
        require = { features = { max = 4 } }
        message = "{path} is {features} wide"
        summary = "Wide."
        why = "Narrow norms are cheaper."
        """
    )
    audit("--deaddir-rules=rule.toml", "--deaddir-report=out.html")
    page = Path("out.html").read_text(encoding="utf-8")
    assert "<h1>Failed</h1>" in page
    assert "transformer.ln_f is 16 wide" in page
    assert "Narrow norms are cheaper." in page


def test_terminal_and_markdown_show_the_same_numbers(audit, with_torch):
    result = audit("--deaddir-report=out.md", models=[GPT2], level="forward")
    (row,) = [re.split("  +", line.strip()) for line in result.outlines if line.startswith("ln_f ")]
    (shown,) = [line for line in Path("out.md").read_text(encoding="utf-8").splitlines() if "| `ln_f` |" in line]
    cells = [cell.strip() for cell in shown.strip("|").split("|")]
    name, kind, _role, least, median, dead, aligned, noise = row
    assert cells == [f"`{name}`", kind, least, median, dead, aligned, noise]


def test_the_rules_of_sarif_are_those_that_judged_with_their_severities(audit, checkpoint):
    checkpoint(tiny="transformer.ln_f")
    audit("--deaddir-report=out.sarif", "--deaddir-severity=DD002=error", "--deaddir-ignore=DD003")
    run = run_of("out.sarif")
    rules = {rule["id"]: rule for rule in run["tool"]["driver"]["rules"]}
    assert len(rules) == CHECKS - 1
    assert "DD003" not in rules
    assert "DD101" not in rules  # no read of the parameters can answer it
    assert rules["DD002"]["defaultConfiguration"] == {"level": "error"}
    assert [result["level"] for result in run["results"]] == ["error"]


def test_a_model_that_could_not_be_audited_is_no_success(audit, checkpoint):
    checkpoint(truncated=True)
    assert audit(*ALL).ret == 1
    (invocation,) = run_of("out.sarif")["invocations"]
    assert not invocation["executionSuccessful"]
    assert "m: the audit ended in an error" in invocation["toolExecutionNotifications"][0]["message"]["text"]
    assert "### `m`: not audited" in Path("out.md").read_text(encoding="utf-8")


GONE = """
import shutil
def pytest_collection_finish():
    shutil.rmtree("gone")
def pytest_deaddir_report_formats():
    return {".boom": lambda models, rules: 1 / 0}
"""


def test_a_report_that_cannot_be_written_costs_nothing_but_itself(audit, checkpoint, pytester):
    checkpoint(nan="transformer.ln_f")
    pytester.makeconftest(GONE)
    pytester.mkdir("gone")
    result = audit("--deaddir-report=gone/out.json", "--deaddir-report=out.boom", "--deaddir-report=after.json")
    assert result.ret == 1
    assert report_of("after.json")[0]["findings"][0]["code"] == "DD001"
    shown = text_of(result)
    assert "DD001 error" in shown
    assert re.search(r"report NOT written to \S+out\.json: .*No such file or directory", shown)
    assert re.search(r"report NOT written to \S+out\.boom: Traceback", shown)
    assert "ZeroDivisionError" in shown
    assert re.search(r"report written to \S+after\.json", shown)
    assert "INTERNALERROR" not in shown


def test_a_healthy_model_without_its_report_is_no_success(audit, checkpoint, pytester):
    checkpoint()
    pytester.makeconftest(GONE)
    pytester.mkdir("gone")
    assert audit("--deaddir-report=gone/out.json").ret == 1


# --- where a finding is shown -----------------------------------------------------------------------------------------


def test_a_checkpoint_in_the_repository_is_anchored_to_its_config(audit, checkpoint, pytester):
    checkpoint("some models/a", tiny="transformer.ln_f")
    audit("--deaddir-report=out.sarif", models=["some models/a"])
    assert list(places("out.sarif")) == [("some%20models/a/config.json", 1)]


def test_a_bare_file_is_anchored_to_itself_and_the_repository_may_begin_above_pytest(pytester, checkpoint, monkeypatch):
    checkpoint("below/m", tiny="transformer.ln_f")
    pytester.mkdir(".git")
    (pytester.path / "below" / "pytest.ini").write_text("[pytest]\n")
    monkeypatch.chdir(pytester.path / "below")
    pytester.runpytest_inprocess("--deaddir-only", "--deaddir-model=m/model.safetensors", "--deaddir-report=out.sarif")
    assert list(places("out.sarif")) == [("below/m/model.safetensors", 1)]


def test_what_lies_elsewhere_is_anchored_to_the_line_of_the_ini_file_that_names_it(pytester, checkpoint, monkeypatch):
    folder = checkpoint("elsewhere", tiny="transformer.ln_f")
    work = pytester.mkdir("work")
    (work / "pytest.ini").write_text(f"[pytest]\ndeaddir_level = read\ndeaddir_model =\n    {folder}\n")
    monkeypatch.chdir(work)
    pytester.runpytest_inprocess("--deaddir-only", "--deaddir-report=out.sarif")
    assert list(places("out.sarif")) == [("pytest.ini", 4)]


def test_a_model_of_a_gate_file_is_anchored_to_its_line_there(pytester, checkpoint):
    checkpoint(tiny="transformer.ln_f")
    gate = 'level = "read"\nextend-select = ["DD002"]\n\n[models.encoder]\npath = "m"\nseverity = { DD002 = "error" }\n'
    (pytester.path / "deaddir.toml").write_text(gate)
    pytester.runpytest_inprocess("--deaddir-report=out.sarif")
    assert list(places("out.sarif")) == [("deaddir.toml", 4)]
    (rule,) = [rule for rule in run_of("out.sarif")["tool"]["driver"]["rules"] if rule["id"] == "DD002"]
    assert rule["defaultConfiguration"] == {"level": "error"}


@pytest.fixture
def repository(pytester):
    """git, in the folder that the tests run in."""

    def git(*words):
        author = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
        subprocess.run(["git", *author, *words], cwd=pytester.path, check=True, capture_output=True)

    git("init")
    return git


def test_a_checkpoint_that_git_ignores_is_shown_at_a_file_that_is_committed(audit, checkpoint, pytester, repository):
    checkpoint(tiny="transformer.ln_f")
    (pytester.path / ".gitignore").write_text("m/\n")
    (pytester.path / "README.md").write_text("A model.\n")
    repository("add", ".gitignore", "README.md")
    audit("--deaddir-report=out.sarif")
    assert list(places("out.sarif")) == [("README.md", 1)]
    repository("add", "--force", "m/config.json")
    audit("--deaddir-report=out.sarif")
    assert list(places("out.sarif")) == [("m/config.json", 1)]


def test_an_alert_stays_one_wherever_pytest_is_started(pytester, checkpoint, repository, monkeypatch):
    def fingerprints(*options):
        pytester.runpytest_inprocess("--deaddir-only", "--deaddir-level=read", *options, "--deaddir-report=out.sarif")
        return [result["partialFingerprints"] for result in run_of("out.sarif")["results"]]

    checkpoint("models/m", tiny="transformer.ln_f")
    repository("add", "models/m/config.json")
    above = fingerprints("--deaddir-model=models/m")
    sub = pytester.mkdir("sub")
    (sub / "pytest.ini").write_text("[pytest]\n")
    monkeypatch.chdir(sub)
    assert above
    assert fingerprints("--deaddir-model=../models/m") == above
    assert fingerprints(f"--deaddir-model={pytester.path / 'models' / 'm'}") == above


# --- a job on GitHub --------------------------------------------------------------------------------------------------


def test_a_step_gets_a_summary_after_what_stands_there(audit, checkpoint, on_github):
    checkpoint(tiny="transformer.ln_f")
    audit("--deaddir-report=out.md")
    text = on_github.read_text(encoding="utf-8")
    assert text.startswith("before\n## deaddir\n\n### `m`: passed with warnings")
    assert Path("out.md").read_text(encoding="utf-8") in text


def test_only_what_was_audited_is_summed_up(audit, checkpoint, pytester, on_github):
    checkpoint()
    audit("--collect-only")
    pytester.makepyfile("def test_one(): pass")
    pytester.runpytest_inprocess()
    assert on_github.read_text() == "before\n"


def test_a_summary_that_cannot_be_written_fails_nothing(audit, checkpoint, monkeypatch, tmp_path):
    checkpoint()
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "missing" / "summary.md"))
    assert audit().ret == 0


@pytest.mark.parametrize("room", [0, 30, 200, 100_000])
def test_a_summary_is_cut_at_a_line_before_github_drops_it(audit, checkpoint, on_github, room):
    before = "x" * (SUMMARY_LIMIT - room - 1) + "\n"
    on_github.write_text(before)
    checkpoint()
    audit()
    text = on_github.read_text(encoding="utf-8")
    added = text[len(before) :]
    assert text.startswith(before)
    assert len(text.encode()) <= SUMMARY_LIMIT
    assert added == "" or added.endswith(("a summary holds 1 MiB.\n", "nothing to judge\n\n", "0 failed\n\n"))
    assert ("### `m`" in added) == (room > 100)


def test_findings_are_annotations_of_the_files_that_they_are_about(audit, checkpoint, on_github):
    checkpoint(tiny="transformer.ln_f", nan="transformer.h.0.ln_1")
    result = audit()
    first, second = commands(result)
    assert first == (
        "::error file=m/config.json,line=1,title=DD001 non-finite-gamma%3A m::"
        "γ of transformer.h.0.ln_1 has 1 NaN or infinite entries out of 16"
    )
    assert second.startswith(
        "::warning file=m/config.json,line=1,title=DD002 dead-coordinates%3A m::2 of 16 coordinates"
    )


def test_there_are_at_most_ten(audit, checkpoint, pytester, on_github):
    checkpoint(layers=8, nan="transformer.ln_f")
    (pytester.path / "rule.toml").write_text(
        """
        code = "ACME001"
        name = "wide"
        severity = "warning"
        table = "norms"
        require = { features = { max = 4 } }
        message = "{path} is {features} wide"
        summary = "Wide."
        """
    )
    found = commands(audit("--deaddir-rules=rule.toml"))
    assert len(found) == 10
    assert found[0].startswith("::error ")


def test_annotations_do_not_need_the_terminal_plugin(audit, checkpoint, on_github):
    checkpoint(nan="transformer.ln_f")
    result = audit("-p", "no:terminal", "--deaddir-report=out.json")
    assert any(line.startswith("::error file=m/config.json") for line in result.errlines)
    assert any(line.startswith("report written to") for line in result.errlines)


def test_what_was_accepted_is_no_annotation(pytester, checkpoint, on_github):
    checkpoint(tiny="transformer.ln_f")
    gate = 'level = "read"\n[models.encoder]\npath = "m"\n[[suppress]]\ncode = "DD002"\nreason = "known"\n'
    (pytester.path / "deaddir.toml").write_text(gate)
    assert commands(pytester.runpytest_inprocess()) == []
    assert "(accepted: known)" in on_github.read_text()


def test_elsewhere_there_are_none(audit, checkpoint, monkeypatch):
    checkpoint(tiny="transformer.ln_f")
    monkeypatch.setenv("GITHUB_ACTIONS", "false")
    assert commands(audit()) == []


def test_a_plugin_that_annotates_failures_is_left_to_it(audit, checkpoint, pytester, on_github):
    checkpoint(nan="transformer.ln_f")
    pytester.makepyfile(pytest_github_actions_annotate_failures="")
    pytester.syspathinsert()
    assert commands(audit("-p", "pytest_github_actions_annotate_failures")) == []


def test_only_the_controller_writes(pytester, checkpoint, on_github):
    pytest.importorskip("xdist", reason="in the dependency group test")
    for name in "ab":
        checkpoint(name, tiny="transformer.ln_f")
    gate = 'level = "read"\n[models.a]\npath = "a"\n[models.b]\npath = "b"\nseverity = { DD002 = "error" }\n'
    (pytester.path / "deaddir.toml").write_text(gate)
    result = pytester.runpytest_subprocess("-n2", "--dist=loadscope", *ALL)
    assert on_github.read_text().count("## deaddir") == 1
    assert [line.partition(" ")[0] for line in commands(result)] == ["::error", "::warning"], text_of(result)
    assert sorted(places("out.sarif")) == [("deaddir.toml", 2), ("deaddir.toml", 4)]
    assert "DD002" in {rule["id"] for rule in run_of("out.sarif")["tool"]["driver"]["rules"] if "help" in rule}


# --- JUnit ------------------------------------------------------------------------------------------------------------


def properties(path):
    """Test case → its properties, of a JUnit file."""
    cases = ET.parse(path).getroot().iter("testcase")
    return {case.get("name"): {p.get("name"): p.get("value") for p in case.iter("property")} for case in cases}


@pytest.mark.parametrize("asked", ["option", "ini"])
@pytest.mark.parametrize("workers", [[], ["-n1"]], ids=["alone", "xdist"])
def test_what_was_measured_is_in_the_junit_file_where_asked(pytester, audit, checkpoint, asked, workers):
    if workers:
        pytest.importorskip("xdist", reason="pytest-xdist is not installed (dependency group test)")
    checkpoint(tiny="transformer.ln_f")
    options = ["--deaddir-junit-properties"] if asked == "option" else []
    if asked == "ini":
        pytester.makeini("[pytest]\ndeaddir_junit_properties = true\n")
    audit("--junitxml=junit.xml", "--deaddir-report=out.json", *options, *workers)
    (model,) = report_of("out.json")
    cases = properties("junit.xml")
    assert cases["DD002"] == {
        f"{norm['path']}.dead_coordinate_count": str(norm["dead_coordinate_count"]) for norm in model["norms"]
    }
    assert cases["DD005"] == {"model.duplicate_tensors": "[]"}
    assert cases["discovery"]["model.fingerprint"] == model["model"]["fingerprint"]
    assert float(cases["discovery"]["model.norm_eps"]) == model["model"]["norm_eps"]


def test_and_nowhere_else(audit, checkpoint):
    checkpoint()
    audit("--junitxml=junit.xml")
    assert not any(properties("junit.xml").values())


def test_a_rule_in_python_gives_what_its_findings_were_measured_from(audit, checkpoint, pytester):
    checkpoint()
    (pytester.path / "mine.py").write_text(
        "from pytest_deaddir import rule\n"
        '@rule("ACME001", table="norms", severity="warning")\n'
        "def wide(row):\n"
        '    """Wide."""\n'
        '    if row.role == "final" and row.features > 4:\n'
        '        return "wide"\n'
    )
    audit("--junitxml=junit.xml", "--deaddir-junit-properties", "--deaddir-rules=mine.py")
    assert properties("junit.xml")["ACME001"]["transformer.ln_f.features"] == "16"
