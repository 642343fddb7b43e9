"""What came of every check of a run, by model: items put it on their reports, and the controller takes it from there."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from pytest_deaddir.options import GATE

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_deaddir.rules import Rule
    from pytest_deaddir.settings import Settings
    from pytest_deaddir.tables import Row

#: The name of a model's first item, beside the rules' codes.
DISCOVERY = "discovery"


@dataclass
class ModelResult:
    """What reached the controller of one model's checks. ``planned``: item names; ``outcomes``: of those that ran."""

    spec: str
    planned: list[str] = field(default_factory=list)
    audit: dict[str, Any] | None = None
    origin: str | None = None
    outcomes: dict[str, str] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)  # the code of a rule in Python that raised → what
    found: dict[str, list[Row]] = field(default_factory=dict)  # by check: one that runs again finds anew
    skips: dict[str, str] = field(default_factory=dict)
    error: str | None = None
    anchor: dict[str, Any] | None = None

    @property
    def findings(self) -> list[Row]:
        """What all checks found."""
        return [finding for findings in self.found.values() for finding in findings]

    @property
    def checks(self) -> dict[str, int]:
        """The counts of the rules, as in :class:`~pytest_deaddir.tables.Audit`."""
        rules = [outcome for name, outcome in self.outcomes.items() if name != DISCOVERY]
        skipped = rules.count("skipped")
        return {
            "planned": len([name for name in self.planned if name != DISCOVERY]),
            "run": len(rules) - skipped,
            "passed": sum(rules.count(outcome) for outcome in ("passed", "warned", "known")),
            "failed": rules.count("failed"),
            "warned": rules.count("warned"),
            "known": rules.count("known"),
            "skipped": skipped,
        }

    @property
    def judged(self) -> set[str]:
        """The codes of the rules that judged it: all that ran, but for rules in Python that raised."""
        return self.outcomes.keys() - self.broken.keys() - {DISCOVERY}

    @property
    def unreported(self) -> bool:
        """Whether planned checks never reported: a crashed worker, -x, an interrupt."""
        return len(self.outcomes) < len(self.planned)

    def as_dict(self) -> dict[str, Any]:
        """One entry of the report's ``models``."""
        tables = self.audit or {"model": {"spec": self.spec}, "norms": [], "blocks": []}
        findings = sorted(self.findings, key=lambda finding: (finding["code"], finding["path"]))
        entry = {name: tables[name] for name in ("model", "norms", "blocks")}
        entry |= {"findings": findings, "checks": self.checks}
        if broken := [*self.broken_earlier, *self.broken_now]:
            entry["broken"] = broken
        return entry | ({"error": self.error} if self.error else {})

    @property
    def broken_now(self) -> list[dict[str, str]]:
        """The rules in Python that raised."""
        return [{"code": code, "error": self.broken[code]} for code in sorted(self.broken)]

    @property
    def broken_earlier(self) -> list[dict[str, str]]:
        """Those that raised in the run which wrote the report that is judged again, and do not judge in this one."""
        return [rule for rule in (self.audit or {}).get("broken", ()) if rule["code"] not in self.outcomes]


class Results:
    """Collects what items report, in this process or through xdist, and writes it out at the end."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.models = {label: ModelResult(subject.spec.text) for label, subject in settings.subjects.items()}
        self.notes: list[str] = []  # what came of the baselines, for the summary
        self.unwritten: dict[Path, str] = {}  # reports that could not be written, and why
        self.problems: list[str] = []  # of the user's hooks

    def plan(self, nodeids: list[str]) -> None:
        """Note which checks are to run; xdist's workers all name the same."""
        for nodeid in nodeids:
            label, _, name = nodeid.rpartition("::")
            if label.partition("::")[0].rpartition("/")[2] == GATE:
                self.models.setdefault(label, ModelResult(label))
            if label in self.models and name not in self.models[label].planned:
                self.models[label].planned.append(name)

    def take(self, report: pytest.TestReport) -> Iterator[tuple[str, Row]]:
        """Take what :func:`attach` put on a report; gives the findings, each with its model's label.

        Under ``--dist=each`` and with reruns a check reports several times: the last counts, and nothing is given twice.
        """
        raw = getattr(report, "deaddir", None)
        if raw is None or report.when != "call":
            return
        message = json.loads(raw)
        result = self.models[message["label"]]
        result.spec = message["spec"]
        result.outcomes[message["name"]] = message["outcome"]
        before = result.found.get(message["name"], [])
        result.found[message["name"]] = message["findings"]
        result.audit = message["audit"] or result.audit
        result.origin = message["origin"] or result.origin
        result.error = message["error"] or result.error
        if message["broke"]:
            result.broken[message["name"]] = message["broke"]
        result.anchor = message["anchor"]
        if report.skipped and isinstance(report.longrepr, tuple):
            result.skips[message["name"]] = report.longrepr[2].removeprefix("Skipped: ")
        for finding in message["findings"]:
            if finding not in before:
                yield message["label"], finding

    @property
    def reported(self) -> dict[str, ModelResult]:
        """The models of which any check was to run."""
        return {label: result for label, result in self.models.items() if result.planned or result.outcomes}

    @property
    def entries(self) -> list[dict[str, Any]]:
        """What every format is written from, see :mod:`pytest_deaddir.report`."""
        return [result.as_dict() | {"label": label, "anchor": result.anchor} for label, result in self.reported.items()]

    def write(self, rules: Sequence[Rule]) -> None:
        """Write the reports asked for, each whole or not at all, and the summary of a job on GitHub.

        What cannot be written is noted and keeps nothing else from being written or shown.
        """
        from pytest_deaddir import report
        from pytest_deaddir.report import github

        for path in self.settings.reports:
            try:
                report.write(path, self.entries, rules, self.settings.formats)
            except OSError as error:
                self.unwritten[path] = str(error)
            except Exception:  # of a format of the user's, or a bug of ours
                self.unwritten[path] = traceback.format_exc()
        github.append_summary(self.entries)


def attach(report: pytest.TestReport, **message: Any) -> None:
    """Put a result on a report as one JSON string: xdist carries builtins alone, and JUnit shows user_properties."""
    report.deaddir = json.dumps(message, allow_nan=False)  # type: ignore[attr-defined]
