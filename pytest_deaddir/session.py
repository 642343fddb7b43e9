"""One run's memory: each subject measured once, whoever asks first; and what came of every check."""

from __future__ import annotations

import functools
import json
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_deaddir.evidence import Evidence
from pytest_deaddir.options import GATE
from pytest_deaddir.settings import Settings, read_settings
from pytest_deaddir.shared import Shared
from pytest_deaddir.stages.ranks import world

if TYPE_CHECKING:
    from pytest_deaddir.plan import Plan, Subject
    from pytest_deaddir.rules import Rule
    from pytest_deaddir.tables import Audit, Row

#: The name of a model's first item, beside the rules' codes.
DISCOVERY = "discovery"


class Measurements:
    """Audits by what was measured and how, or the error that each ended in. With xdist's other workers they are shared."""

    def __init__(self, config: pytest.Config, evidence: Evidence | None) -> None:
        self._config = config
        self._evidence = evidence
        self._shared = Shared.of(config)
        self._results: dict[Plan, Audit | Exception] = {}
        self._origins: dict[Plan, str | None] = {}
        self._batches: dict[Plan, list[Mapping[str, Any]]] = {}
        self._expected: dict[Plan, None] = {}

    def expect(self, plans: Iterable[Plan]) -> None:
        """Note what this run will ask for, so that a worker that would wait for another has something to do."""
        self._expected |= dict.fromkeys(replace(plan, baseline=None) for plan in plans if plan.stored is None)

    def audit(self, plan: Plan) -> Audit:
        """Measure, unless that was done. The same error is raised again to everyone who asks."""
        if plan not in self._results:
            self._results[plan] = self._compared(plan) if plan.baseline else self._agreed(plan)
        result = self._results[plan]
        if isinstance(result, Exception):
            raise result
        return result

    def _compared(self, plan: Plan) -> Audit | Exception:
        """The audit beside its baseline; what was measured is the same as without one."""
        assert plan.baseline is not None
        try:
            return plan.baseline.beside(self.audit(replace(plan, baseline=None)), self.audit)
        except Exception as error:
            return error

    def _agreed(self, plan: Plan) -> Audit | Exception:
        """Measured here or by another worker; while that one is at it, this one measures what nobody has begun."""
        shared = self._shared
        if shared is None or plan.stored is not None:
            return self._measured(plan)
        others = [other for other in self._expected if other != plan and other not in self._results]
        while True:
            result = shared.outcome(repr(plan), lambda: self._measured(plan), wait=not others)
            if result is not None:
                return result
            other = others.pop(0)
            found = shared.outcome(repr(other), functools.partial(self._measured, other), wait=False)
            if found is not None:
                self._results[other] = found

    def _measured(self, plan: Plan) -> Audit | Exception:
        """The audit as it is measured now, or was before; or the error that it ended in."""
        from pytest_deaddir.report.line import progress_line

        try:
            if plan.stored is not None:
                self._origins[plan] = f"measured earlier, from {plan.stored.path.name}"
                return plan.stored.at(plan.level)
            inputs = self._inputs(plan)
            with progress_line(self._config, plan.spec.text.rpartition("/")[2]):
                if self._evidence is None:
                    return _measure(plan, inputs)
                audit, self._origins[plan] = self._evidence.audit(plan, inputs, lambda: _measure(plan, inputs))
        except Exception as error:
            return error
        else:
            return audit

    def _inputs(self, plan: Plan) -> Any:
        """Those of the option, else of the hook, else None."""
        if plan.inputs is not None or plan.level == "read":
            return plan.inputs
        return self._config.hook.pytest_deaddir_inputs(config=self._config, spec=plan.spec.text)

    def batches(self, plan: Plan) -> list[Mapping[str, Any]]:
        """What the subject is fed in its forward pass. Raises as measuring does."""
        from pytest_deaddir.api import batches
        from pytest_deaddir.errors import ModelError

        if plan.stored is not None:
            raise ModelError(f"{plan.spec.text} is judged again from {plan.stored.path.name} and fed nothing")
        plan = replace(plan, level="forward", baseline=None)
        if plan not in self._batches:
            self._batches[plan] = batches(plan.spec, inputs=self._inputs(plan), **plan.how)
        return self._batches[plan]

    def origin(self, plan: Plan) -> str | None:
        """Where an audit that was not measured in this run is from."""
        return self._origins.get(replace(plan, baseline=None))

    def done(self, plan: Plan) -> Audit | None:
        """The audit, if it was made."""
        result = self._results.get(plan)
        return None if isinstance(result, Exception) else result

    def error(self, plan: Plan) -> Exception | None:
        """What measuring ended in, if it was not an audit."""
        result = self._results.get(plan)
        return result if isinstance(result, Exception) else None


def _measure(plan: Plan, inputs: Any) -> Audit:
    from pytest_deaddir.api import measure

    return measure(plan.spec, inputs=inputs, **plan.how)


@dataclass
class ModelResult:
    """What reached the controller of one model's checks. ``planned``: item names; ``outcomes``: of those that ran."""

    spec: str
    planned: list[str] = field(default_factory=list)
    audit: dict[str, Any] | None = None
    origin: str | None = None
    outcomes: dict[str, str] = field(default_factory=dict)
    findings: list[Row] = field(default_factory=list)
    skips: dict[str, str] = field(default_factory=dict)
    error: str | None = None
    anchor: dict[str, Any] | None = None

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
        found = {finding["code"] for finding in self.findings}
        return {name for name, outcome in self.outcomes.items() if outcome != "failed" or name in found}

    @property
    def unreported(self) -> bool:
        """Whether planned checks never reported: a crashed worker, -x, an interrupt."""
        return len(self.outcomes) < len(self.planned)

    def as_dict(self) -> dict[str, Any]:
        """One entry of the report's ``models``."""
        audit = self.audit or {"model": {"spec": self.spec}, "norms": [], "blocks": []}
        findings = sorted(self.findings, key=lambda finding: (finding["code"], finding["path"]))
        entry = audit | {"findings": findings, "checks": self.checks}
        return entry | ({"error": self.error} if self.error else {})


class Results:
    """Collects what items report, in this process or through xdist, and writes it out at the end."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.models = {label: ModelResult(subject.spec.text) for label, subject in settings.subjects.items()}
        self.notes: list[str] = []  # what came of the baselines, for the summary
        self.unwritten: dict[Path, str] = {}  # reports that could not be written, and why

    def plan(self, nodeids: list[str]) -> None:
        """Note which checks are to run; xdist's workers all name the same."""
        for nodeid in nodeids:
            label, _, name = nodeid.rpartition("::")
            if label.partition("::")[0].rpartition("/")[2] == GATE:
                self.models.setdefault(label, ModelResult(label))
            if label in self.models and name not in self.models[label].planned:
                self.models[label].planned.append(name)

    def take(self, report: pytest.TestReport) -> Iterator[tuple[str, Row]]:
        """Take what :func:`attach` put on a report; gives the findings, each with its model's label."""
        raw = getattr(report, "deaddir", None)
        if raw is None or report.when != "call":
            return
        message = json.loads(raw)
        result = self.models[message["label"]]
        result.spec = message["spec"]
        result.outcomes[message["name"]] = message["outcome"]
        result.findings += message["findings"]
        result.audit = message["audit"] or result.audit
        result.origin = message["origin"] or result.origin
        result.error = message["error"] or result.error
        result.anchor = message["anchor"]
        if report.skipped and isinstance(report.longrepr, tuple):
            result.skips[message["name"]] = report.longrepr[2].removeprefix("Skipped: ")
        for finding in message["findings"]:
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


@dataclass
class State:
    """What the plugin keeps on the config while it is in use."""

    config: pytest.Config
    settings: Settings
    measurements: Measurements
    results: Results
    gates: dict[Path, list[Subject]] = field(default_factory=dict)

    def gate(self, path: Path) -> list[Subject]:
        """The subjects of a gate file, which is read once. Raises :class:`~pytest_deaddir.gate.GateError`."""
        from pytest_deaddir.gate import read_gate

        if path not in self.gates:
            self.gates[path] = read_gate(path, self.config)
        return self.gates[path]

    @property
    def subjects(self) -> list[Subject]:
        """The models of the run: of the options, and of the gate files of which any check was to run."""
        gates = {self.config.rootpath / label.rpartition("::")[0] for label in self.results.reported if "::" in label}
        return [*self.settings.subjects.values(), *(one for gate in sorted(gates) for one in self.gate(gate))]

    def update_baselines(self) -> bool:
        """Write the baselines that are to be; false where one was refused. What came of it stands in the summary."""
        from pytest_deaddir.baseline import update_files

        subjects = {subject.label: subject for subject in self.subjects}
        entries = [entry for entry in self.results.entries if entry["label"] in subjects]
        done = list(update_files([(subjects[e["label"]], e, self.results.models[e["label"]].judged) for e in entries]))
        self.results.notes += [text for _, text in done]
        return all(written for written, _ in done)

    @property
    def rules(self) -> list[Rule]:
        """The rules that any model of the run was judged by, each code once."""
        rules: dict[str, Rule] = {}
        for subject in self.subjects:
            rules = {rule.code: rule for rule in subject.applicable} | rules
        return list(rules.values())

    @cached_property
    def checkpoint_folders(self) -> list[Path]:
        """The checkpoints' directories: of the subjects, and of what the gate file in pytest's root names."""
        from pytest_deaddir.gate import named_paths

        specs = [subject.spec for subject in self.settings.subjects.values()]
        found = [spec.path for spec in specs if spec.form in ("directory", "stored") and spec.path]
        gate = self.config.rootpath / GATE
        found += named_paths(gate) if gate.exists() else []
        return [path.resolve() for path in found if path.is_dir()]


STATE = pytest.StashKey[State]()


def state_of(config: pytest.Config) -> State:
    """The run's state, made on first use. Raises pytest.UsageError where the options are wrong."""
    if STATE not in config.stash:
        settings = read_settings(config)
        # There is none under -p no:cacheprovider. Processes of torchrun measure together, or none of them does.
        cache = getattr(config, "cache", None) if settings.cache and world()[1] == 1 else None
        evidence = None if cache is None else Evidence(lambda: cache.mkdir("deaddir"))
        config.stash[STATE] = State(config, settings, Measurements(config, evidence), Results(settings))
    return config.stash[STATE]
