"""Rules of one's own in a run: files, folders, entry points, the hook; what they find, and how they fail."""

from __future__ import annotations

import json
import re

import pytest

from plugin.helpers import READ_ITEMS, assert_refused, failed, outcomes, report_of, text_of

PYTHON = '''
from pytest_deaddir import rule


@rule("ACME001", table="norms", severity="error")
def wide(row):
    """A norm is wide."""
    if row.features > 4:
        return f"{row.path} is {row.features} wide"
'''

TOML = """
code = "ACME002"
name = "narrow"
severity = "warning"
table = "norms"
require = { features = { min = 32 } }
message = "{path} is {features} wide"
summary = "A norm is narrow."
"""


@pytest.fixture
def acme(pytester):
    """A folder with a rule in Python and one in TOML."""
    folder = pytester.mkdir("acme")
    (folder / "wide.py").write_text(PYTHON)
    (folder / "narrow.toml").write_text(TOML)
    return folder


def test_a_folder_gives_rules_of_both_kinds(audit, checkpoint, acme):
    checkpoint()
    result = audit("--deaddir-rules=acme", "--deaddir-report=out.json")
    assert failed(result) == ["m::ACME001"]
    assert list(outcomes(result)) == ["m::discovery", "m::ACME001", "m::ACME002", *(f"m::{c}" for c in READ_ITEMS[1:])]
    (model,) = report_of("out.json")
    found = [finding for finding in model["findings"] if finding["path"] == "transformer.ln_f"]
    assert [(f["code"], f["message"], f["measured"]) for f in found] == [
        ("ACME001", "transformer.ln_f is 16 wide", {"features": 16}),
        ("ACME002", "transformer.ln_f is 16 wide", {"features": 16}),
    ]
    result.stdout.fnmatch_lines(["ACME001 wide (error): transformer.h.0.ln_1 is 16 wide", "  measured  features = 16"])
    result.stdout.fnmatch_lines(["deaddir rules: 2 from acme, * from the catalogue"])


def test_workers_load_them_too(audit, checkpoint, acme):
    pytest.importorskip("xdist", reason="pytest-xdist is not installed (dependency group test)")
    checkpoint()
    assert failed(audit("-n", "1", "--deaddir-rules=acme", "--deaddir-select=ACME")) == ["m::ACME001"]


def test_a_rule_in_python_that_no_level_read_can_answer_is_planned_at_forward_only(audit, checkpoint, acme):
    checkpoint()
    (acme / "wide.py").write_text(PYTHON.replace('"error"', '"error", level="forward"'))
    assert "m::ACME001" not in outcomes(audit("--deaddir-rules=acme"))


def test_a_rule_that_raises_fails_as_itself_with_its_own_traceback(audit, checkpoint, acme):
    checkpoint(tiny="transformer.ln_f")
    (acme / "wide.py").write_text(PYTHON.replace("row.features > 4", "row.features / 0"))
    result = audit("--deaddir-rules=acme", "--deaddir-report=out.json")
    assert result.ret == 1
    assert failed(result) == ["m::ACME001"]
    result.stdout.fnmatch_lines(
        [
            "> *row.features / 0*",
            "E * ZeroDivisionError: *",
            "E * raised by the rule ACME001 (*wide.py:5) on the row 'transformer.h.0.ln_1' of norms",
            "*wide.py:8: ZeroDivisionError",
        ]
    )
    assert "judge.py" not in text_of(result)  # from the rule's own file on
    (model,) = report_of("out.json")
    assert {finding["code"] for finding in model["findings"]} == {"ACME002", "DD002"}
    assert model["checks"]["failed"] == 1
    [broken] = model["broken"]
    assert broken["code"] == "ACME001"
    place, error, note = re.fullmatch(r"(.*): (Zero.*)\n(.*)", broken["error"]).groups()
    assert place.endswith("wide.py:8")
    assert error == "ZeroDivisionError: division by zero"
    assert note.startswith("raised by the rule ACME001 (")
    result.stdout.fnmatch_lines(["ACME001 raised an error: *wide.py:8: ZeroDivisionError: division by zero"])


def test_what_a_rule_raised_is_in_every_report_and_is_told_when_it_is_judged_again(audit, checkpoint, acme, pytester):
    checkpoint()
    (acme / "wide.py").write_text(PYTHON.replace("row.features > 4", "row.features / 0"))
    audit("--deaddir-rules=acme", *(f"--deaddir-report=out.{suffix}" for suffix in ("json", "md", "html", "sarif")))

    def run_of(file):
        (run,) = json.loads((pytester.path / file).read_text())["runs"]
        return run["invocations"][0]["executionSuccessful"], run["invocations"][0]["toolExecutionNotifications"]

    success, [notification] = run_of("out.sarif")
    assert not success
    assert notification["associatedRule"]["id"] == "ACME001"
    assert "division by zero" in (pytester.path / "out.md").read_text()
    assert "division by zero" in (pytester.path / "out.html").read_text()

    again = ["--deaddir-only", "--deaddir-from=out.json", "--deaddir-report=again.json", "--deaddir-report=again.sarif"]
    result = pytester.runpytest_inprocess(*again, "--deaddir-report=again.md")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        ["ACME001 raised an error when out.json was written, and does not judge now: *wide.py:8: *"]
    )
    assert report_of("again.json")[0]["broken"] == report_of("out.json")[0]["broken"]
    assert not run_of("again.sarif")[0]
    assert (pytester.path / "again.md").read_text().startswith("### `m`: incomplete")

    (acme / "wide.py").write_text(PYTHON.replace("> 4", "> 400"))
    result = pytester.runpytest_inprocess(*again, "--deaddir-rules=acme")
    assert result.ret == 0
    assert "raised an error" not in text_of(result)
    assert "broken" not in report_of("again.json")[0]
    assert run_of("again.sarif")[0]


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("import pytest; pytest.skip('not today')", "Skipped: not today"),
        ("import pytest; pytest.fail('bad')", "Failed: bad"),
    ],
)
def test_a_rule_that_would_end_or_skip_the_check_fails_as_itself(audit, checkpoint, acme, body, what):
    checkpoint()
    (acme / "wide.py").write_text(
        PYTHON.replace("if row.features > 4:\n        return", f"{body}\n    if row:\n        return")
    )
    result = audit("--deaddir-rules=acme", "--deaddir-report=out.json")
    assert failed(result) == ["m::ACME001"]
    result.stdout.fnmatch_lines([f"*wide.py:8: {what}", "raised by the rule ACME001 (*wide.py:5) on the row *"])
    assert [broken["code"] for broken in report_of("out.json")[0]["broken"]] == ["ACME001"]


def test_a_rule_that_returns_a_flag_is_told_in_words(audit, checkpoint, acme):
    checkpoint()
    (acme / "wide.py").write_text(PYTHON.replace("return f", "return True or f"))
    result = audit("--deaddir-rules=acme")
    assert failed(result) == ["m::ACME001"]
    result.stdout.fnmatch_lines(["*wide.py:5: ACME001 returned True: it must return None, or the text of a finding"])


def test_an_unmeasured_column_skips_with_its_name(audit, checkpoint, acme):
    checkpoint()
    (acme / "wide.py").write_text(PYTHON.replace("row.features > 4", "row.noise_ratio > 4"))
    result = audit("--deaddir-rules=acme", "-rs")
    assert outcomes(result)["m::ACME001"] == "skipped"
    result.stdout.fnmatch_lines(["SKIPPED * noise_ratio not measured"])


def test_every_mistake_of_every_source_is_told_at_once(audit, checkpoint, acme, pytester):
    checkpoint()
    (acme / "wide.py").write_text(PYTHON.replace('"error"', '"loud"'))
    (acme / "narrow.toml").write_text(TOML.replace("min", "least"))
    pytester.makeconftest("def pytest_deaddir_register_rules(config):\n    return 1 / 0\n")
    result = audit("--deaddir-rules=acme", "--deaddir-dtype=int8")
    assert_refused(
        result,
        "wide.py:5: ACME001: severity 'loud'",
        "narrow.toml:6: require: features: no operator 'least'",
        "the hook pytest_deaddir_register_rules: ",
        "conftest.py:2: ZeroDivisionError",
        "int8",
    )


# --- the hook and entry points ----------------------------------------------------------------------------------------


@pytest.fixture
def installed(pytester, monkeypatch):
    """Install a distribution of one module, which offers its rules under one name."""

    def install(module, value):
        site = pytester.mkdir("site")
        (site / "acme_rules.py").write_text(module)
        (site / "more").mkdir()
        (site / "more" / "narrow.toml").write_text(TOML)
        info = site / "acme_rules-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-rules\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[deaddir.rules]\nacme = {value}\n")
        monkeypatch.syspath_prepend(site)

    return install


@pytest.mark.parametrize(
    ("value", "codes"),
    [
        ("acme_rules", ["ACME001"]),
        ("acme_rules:wide", ["ACME001"]),
        ("acme_rules:give", ["ACME001", "ACME002"]),
        ("acme_rules:FOLDER", ["ACME002"]),
    ],
)
def test_what_an_installed_package_offers_is_judged_by(audit, checkpoint, installed, value, codes):
    checkpoint()
    more = 'import pathlib\nFOLDER = pathlib.Path(__file__).parent / "more"\ndef give():\n    return [wide, FOLDER]\n'
    installed(PYTHON + more, value)
    result = audit()
    assert [nodeid.partition("::")[2] for nodeid in outcomes(result) if "ACME" in nodeid] == codes
    result.stdout.fnmatch_lines([f"deaddir rules: {len(codes)} from the entry point acme ({value}), *"])


def test_an_installed_package_that_cannot_give_its_rules_stops_the_run(audit, checkpoint, installed):
    checkpoint()
    installed("import no_such_module_for_test", "acme_rules")
    assert_refused(audit(), "the entry point acme (acme_rules): ", "acme_rules.py:1: ModuleNotFoundError")


# --- a stranger's files -----------------------------------------------------------------------------------------------


def test_python_that_lies_in_a_checkpoint_is_not_run_for_naming_its_folder(audit, checkpoint):
    folder = checkpoint()
    (folder / "modeling.py").write_text("raise AssertionError('it ran')")
    (folder / "narrow.toml").write_text(TOML)
    assert_refused(
        audit("--deaddir-rules=m"), "modeling.py not run: a checkpoint lies in", "where the file itself is named"
    )
    assert outcomes(audit("--deaddir-rules=m/narrow.toml"))["m::ACME002"] == "passed"


def test_python_in_a_folder_of_ones_own_checkpoint_is_run_where_its_folder_is_named(
    audit, checkpoint, acme, monkeypatch, pytester
):
    folder = checkpoint()
    acme.rename(folder / "acme")
    assert_refused(audit("--deaddir-rules=m/acme"), "wide.py not run: a checkpoint lies in")
    assert_refused(audit("--deaddir-check-rules=m/acme"), "wide.py not run: a checkpoint lies in")
    (pytester.path / "deaddir.toml").write_text('level = "read"\nrules = ["m/acme"]\n[models.m]\npath = "m"\n')
    result = pytester.runpytest_inprocess("deaddir.toml")
    result.stdout.fnmatch_lines(["deaddir.toml:2: rules *acme: wide.py not run: a checkpoint lies in *"])
    (pytester.path / "deaddir.toml").unlink()
    (folder / "modeling.py").write_text("raise AssertionError('it ran')")
    monkeypatch.chdir(folder)
    assert failed(audit("--deaddir-rules=acme", models=["."])) == [".::ACME001"]
    assert audit("--deaddir-check-rules=acme").ret == 0
    assert_refused(audit("--deaddir-rules=.", models=["."]), "modeling.py not run")


@pytest.mark.parametrize("option", ["--deaddir-rules", "--deaddir-check-rules"])
def test_what_is_wrong_with_a_strangers_rule_file_does_nothing_to_a_terminal(audit, checkpoint, pytester, option):
    checkpoint()
    (pytester.path / "bad\x1b[31m.toml").write_text(TOML + '"\\u001b[31mkey" = 1\n')
    result = audit(f"{option}={pytester.path}")
    assert_refused(result, "bad\\x1b[31m.toml:9: unknown key \\x1b[31mkey")
    assert "\x1b" not in text_of(result)
