"""The findings as SARIF 2.1.0, as GitHub's code scanning takes it.

Plain dicts: the object libraries are heavy or unmaintained, and a test validates against the official schema. What GitHub
asks for beyond it: a file and a line for every result (``anchor``), a help text for every rule, and a fingerprint named
primaryLocationLineHash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest_deaddir
from pytest_deaddir.report.page import PARTS, markdown_page
from pytest_deaddir.report.words import escaped, escaped_lines, incomplete, label_of
from pytest_deaddir.rules.vocabulary import SEVERITIES

if TYPE_CHECKING:
    from pytest_deaddir.report.words import Entry
    from pytest_deaddir.rules import Rule
    from pytest_deaddir.tables import Row

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"

#: Results that GitHub shows of one run, and characters of a description.
MOST_RESULTS, LONGEST = 5000, 1024

_LEVELS = {"error": "error", "warning": "warning", "info": "note"}
_PRECISIONS = {"exact": "very-high", "measured": "high", "heuristic": "medium"}
_ROOT = "%SRCROOT%"


def render(models: Sequence[Entry], rules: Sequence[Rule] = ()) -> str:
    """One run with the rules that judged, and a result for each finding of every model, the most severe first."""
    findings = [(entry, finding) for entry in models for finding in entry["findings"]]
    findings.sort(key=lambda found: SEVERITIES.index(found[1]["severity"]))
    described = {rule.code: _rule(rule) for rule in sorted(rules, key=lambda rule: rule.code)}
    for _, finding in findings:
        described.setdefault(finding["code"], {"id": finding["code"], "name": finding["name"]})
    index = {code: number for number, code in enumerate(described)}
    run = {
        "tool": {
            "driver": {
                "name": "pytest-deaddir",
                "version": pytest_deaddir.__version__,
                "semanticVersion": pytest_deaddir.__version__,
                "rules": list(described.values()),
            }
        },
        "invocations": [_invocation(models, len(findings) - MOST_RESULTS)],
        "originalUriBaseIds": {_ROOT: {"description": {"text": "The root of the repository."}}},
        "columnKind": "unicodeCodePoints",
        "results": [_result(entry, finding, index) for entry, finding in findings[:MOST_RESULTS]],
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2, allow_nan=False) + "\n"


def _rule(rule: Rule) -> dict[str, Any]:
    paragraphs = [rule.summary, *(getattr(rule, key).strip("\n") for key, _ in PARTS)]
    described: dict[str, Any] = {
        "id": rule.code,
        "name": rule.name,
        "shortDescription": {"text": rule.summary[:LONGEST]},
        "fullDescription": {"text": " ".join((rule.why or rule.summary).split())[:LONGEST]},
        "help": {"text": "\n\n".join(filter(None, paragraphs)), "markdown": markdown_page(rule)},
        "defaultConfiguration": {"level": _LEVELS[rule.severity]},
        "properties": {
            "tags": ["checkpoint", rule.table],
            "precision": _PRECISIONS[rule.confidence],
            "problem.severity": "recommendation" if rule.severity == "info" else rule.severity,
        },
    }
    pages = [reference for reference in rule.references if reference.startswith(("https://", "http://"))]
    return described | ({"helpUri": pages[0]} if pages else {})


def _result(entry: Entry, finding: Row, index: dict[str, int]) -> dict[str, Any]:
    """A finding: its fingerprint is made of what it is about, so that it stays one alert whatever is measured."""
    code, path = finding["code"], str(finding["path"])
    subject = (entry.get("anchor") or {}).get("subject") or label_of(entry)
    identity = "\0".join((code, subject, "" if finding["table"] == "model" else path))
    result = {
        "ruleId": code,
        "ruleIndex": index[code],
        "level": _LEVELS[finding["severity"]],
        "message": {"text": _plain(escaped(f"{label_of(entry)}: {finding['message']}"))},
        "locations": [_location(entry) | {"logicalLocations": [_site(entry, finding)]}],
        "partialFingerprints": {"primaryLocationLineHash": hashlib.sha256(_bytes(identity)).hexdigest()[:32]},
        "properties": {"model": escaped(label_of(entry)), "measured": finding["measured"], "limit": finding["limit"]},
    }
    if entry["model"].get("baseline") is not None:
        result["baselineState"] = "unchanged" if finding["known"] else "new"
    if finding["suppressed"] is not None:
        result["suppressions"] = [{"kind": "external", "justification": _plain(escaped(finding["suppressed"]))}]
    return result


def _site(entry: Entry, finding: Row) -> dict[str, Any]:
    """The norm or the block; of a finding about the whole model, the model."""
    label = escaped(label_of(entry))
    if finding["table"] == "model":
        return {"fullyQualifiedName": label, "kind": "model"}
    path = escaped(str(finding["path"]))
    return {"name": path.rpartition(".")[2], "fullyQualifiedName": f"{label}::{path}", "kind": "module"}


def _location(entry: Entry) -> dict[str, Any]:
    anchor = entry.get("anchor") or {"file": "pyproject.toml", "line": 1}
    line = anchor.get("line") or 1
    return {
        "physicalLocation": {
            "artifactLocation": {"uri": quote(anchor["file"], errors="surrogateescape"), "uriBaseId": _ROOT},
            "region": {"startLine": line, "startColumn": 1, "endLine": line, "endColumn": 1},
        }
    }


def _invocation(models: Sequence[Entry], left_out: int) -> dict[str, Any]:
    """Whether every check ran, and what kept it from that. Where there is no model, a gate file could not be read."""
    notes: list[tuple[Entry, str, dict[str, Any]]] = []
    for entry in models:
        for rule in entry.get("broken", ()):
            about = {"associatedRule": {"id": rule["code"]}}
            notes.append((entry, f"the rule {rule['code']} raised an error: {escaped_lines(rule['error'])}", about))
        if entry.get("error"):
            notes.append((entry, f"the audit ended in an error: {escaped_lines(entry['error'])}", {}))
        elif incomplete(entry):
            notes.append((entry, "some checks never reported", {}))
    notifications = [
        {
            "level": "error",
            "message": {"text": _plain(f"{escaped(label_of(entry))}: {problem}")},
            "locations": [_location(entry)],
            **about,
        }
        for entry, problem, about in notes
    ]
    if left_out > 0:
        text = f"{left_out} findings of least severity are left out: GitHub shows {MOST_RESULTS}"
        notifications.append({"level": "warning", "message": {"text": text}})
    return {"executionSuccessful": bool(models) and not notes, "toolExecutionNotifications": notifications}


def _plain(text: str) -> str:
    """A message's text. SARIF makes a link of [text](target): between the two comes a space."""
    return text.replace("](", "] (")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
