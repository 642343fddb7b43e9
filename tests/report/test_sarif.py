"""SARIF, against the official schema and what GitHub's code scanning asks for beyond it."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import unquote

import pytest

from pytest_deaddir.report.sarif import MOST_RESULTS, render
from pytest_deaddir.rules import load_rules, shipped_rules
from report.entries import RULES, all_entries, broken, faulty, healthy, named
from report.test_formats import CONTROL, EVERY_NAME

SCHEMA = json.loads((Path(__file__).parents[1] / "data" / "sarif-schema-2.1.0.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def problems():
    jsonschema = pytest.importorskip("jsonschema", reason="in the dependency group test")
    validator = jsonschema.Draft4Validator(SCHEMA, format_checker=jsonschema.Draft4Validator.FORMAT_CHECKER)
    return lambda document: [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


def run_of(models, rules=RULES):
    (run,) = json.loads(render(models, rules))["runs"]
    return run


@pytest.mark.parametrize(
    "models", [all_entries(), [broken()], [healthy()], []], ids=["all", "broken", "healthy", "none"]
)
def test_it_is_sarif(problems, models):
    assert problems(json.loads(render(models, RULES))) == []


def test_it_is_sarif_with_every_shipped_rule(problems):
    assert problems(json.loads(render(all_entries(), load_rules([shipped_rules()])))) == []


@EVERY_NAME
def test_no_name_makes_it_less_or_a_link(problems, name):
    file = name.replace("\ud800", "\udc80")  # what a name that is no UTF-8 comes as
    text = render([named(name) | {"anchor": {"file": f"a {file}/config.json", "line": 1}}], RULES)
    assert text.isascii()
    assert problems(json.loads(text)) == []
    for result in json.loads(text)["runs"][0]["results"]:
        assert "](" not in result["message"]["text"]
        assert not CONTROL.search(result["message"]["text"])


def test_a_result_names_its_rule_by_id_and_index():
    run = run_of(all_entries())
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules][:2] == ["DD002", "DD101"]
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]


def test_severities_are_levels_and_the_worst_comes_first():
    levels = [(result["ruleId"], result["level"]) for result in run_of([faulty()])["results"]]
    assert levels == [("DD101", "error"), ("DD902", "error"), ("DD002", "warning"), ("DD009", "note")]


def test_a_rule_brings_its_page():
    (described,) = [r for r in run_of([])["tool"]["driver"]["rules"] if r["id"] == "DD101"]
    assert described["helpUri"] == "https://arxiv.org/abs/2606.19491"
    assert described["defaultConfiguration"] == {"level": "error"}
    assert "# DD101 kernel-not-bottom-direction" in described["help"]["markdown"]
    for text in ("varies along γ⁻¹", "One forward pass.", "Too few samples.", "Look at the norm's code."):
        assert text in described["help"]["text"]
        assert text in described["help"]["markdown"]


def test_a_description_is_no_longer_than_github_takes():
    from dataclasses import replace

    (described,) = run_of([], [replace(RULES[0], summary="s" * 5000, why="w" * 5000)])["tool"]["driver"]["rules"]
    assert len(described["shortDescription"]["text"]) == len(described["fullDescription"]["text"]) == 1024


def test_a_result_lies_where_its_entry_is_anchored_and_at_its_site():
    (location,) = run_of([faulty()])["results"][0]["locations"]
    physical = location["physicalLocation"]
    assert physical["artifactLocation"]["uriBaseId"] in run_of([])["originalUriBaseIds"]
    assert physical["artifactLocation"]["uri"] == "models/faulty%20one/config.json"
    assert unquote(physical["artifactLocation"]["uri"]) == faulty()["anchor"]["file"]
    assert physical["region"]["startLine"] == 1
    assert location["logicalLocations"] == [
        {"name": "norm", "fullyQualifiedName": "faulty::model.norm", "kind": "module"}
    ]


def test_without_an_anchor_there_is_a_file_all_the_same():
    results = run_of([faulty() | {"anchor": None}])["results"]
    assert all(result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for result in results)


def test_a_finding_is_the_same_alert_whatever_is_measured():
    def prints(entry):
        return [r["partialFingerprints"]["primaryLocationLineHash"] for r in run_of([entry])["results"]]

    again = faulty()
    again["model"]["samples"] = 1
    for finding in again["findings"]:
        finding |= {"message": "another", "measured": {"noise_ratio": 2.0}}
    assert prints(again) == prints(faulty())
    assert len(set(prints(faulty()))) == 4
    assert not set(prints(faulty() | {"label": "other"})) & set(prints(faulty()))
    moved = faulty()  # the spec is where it lies on this machine
    moved["findings"][1]["path"] = "/elsewhere/faulty"
    assert prints(moved) == prints(faulty())


def test_what_was_accepted_is_suppressed_with_its_reason():
    suppressions = {result["ruleId"]: result.get("suppressions") for result in run_of([faulty()])["results"]}
    assert suppressions.pop("DD902") == [{"kind": "external", "justification": "known, see #12"}]
    assert set(suppressions.values()) == {None}


def test_an_audit_that_ended_in_an_error_or_early_was_no_success():
    (invocation,) = run_of([healthy()])["invocations"]
    assert invocation == {"executionSuccessful": True, "toolExecutionNotifications": []}
    (invocation,) = run_of(all_entries())["invocations"]
    assert not invocation["executionSuccessful"]
    (raised, notification) = invocation["toolExecutionNotifications"]
    assert raised["associatedRule"]["id"] == "ACME001"
    assert "faulty: the rule ACME001 raised an error: rules/acme.py:8: ZeroDivisionError" in raised["message"]["text"]
    assert not run_of([faulty()])["invocations"][0]["executionSuccessful"]
    assert "broken: the audit ended in an error: model.safetensors:" in notification["message"]["text"]
    assert not run_of([])["invocations"][0]["executionSuccessful"]
    early = healthy()
    early["checks"]["run"] = 3
    assert not run_of([early])["invocations"][0]["executionSuccessful"]


def test_no_more_results_than_github_takes_and_the_rest_is_told():
    entry = faulty()
    del entry["broken"]
    entry["findings"] = entry["findings"][:1] * MOST_RESULTS + entry["findings"][2:3] * 3
    run = run_of([entry])
    assert len(run["results"]) == MOST_RESULTS
    assert [result["ruleId"] for result in run["results"][:4]] == ["DD101", "DD101", "DD101", "DD002"]
    assert run["invocations"][0]["executionSuccessful"]
    assert "3 findings" in run["invocations"][0]["toolExecutionNotifications"][0]["message"]["text"]
