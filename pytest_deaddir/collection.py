"""The virtual tree: Session → ModelCollector → DiscoveryItem and a RuleItem per rule. Collecting opens nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_deaddir.results import DISCOVERY, attach
from pytest_deaddir.session import STATE, State

if TYPE_CHECKING:
    from pytest_deaddir.plan import Plan, Subject
    from pytest_deaddir.rules import Rule, Verdict
    from pytest_deaddir.tables import Audit, Row


class FoundError(Exception):
    """A check failed: there are findings of a severity that fails, or suppressions of them that no longer hold."""

    def __init__(self, findings: list[Row], outdated: Sequence[str] = ()) -> None:
        super().__init__(f"{len(findings)} findings")
        self.findings = findings
        self.outdated = outdated


class GateFile(pytest.File):
    """A deaddir.toml: its models."""

    def collect(self) -> Iterator[pytest.Collector]:
        """A collector per model. Raises CollectError with every mistake of the file."""
        from pytest_deaddir.gate import GateError

        try:
            subjects = self.config.stash[STATE].gate(self.path)
        except GateError as error:
            raise self.CollectError(error_text(error)) from None
        for subject in subjects:
            name = subject.label.rpartition("::")[2]
            yield ModelCollector.from_parent(self, name=name, nodeid=subject.label, path=self.path, subject=subject)


class ModelCollector(pytest.Collector):
    """One subject. Its id is the subject's label, so that --dist loadscope keeps its items on one worker."""

    def __init__(self, *, subject: Subject, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.subject = subject
        self.add_marker(pytest.mark.deaddir(model=subject.spec.text, level=subject.plan.level))

    @classmethod
    def of(cls, session: pytest.Session, subject: Subject) -> ModelCollector:
        """The collector of a subject; its path is the checkpoint's, or for what has none the root's (--nf stats it)."""
        path = subject.spec.path.resolve() if subject.spec.path is not None else session.path
        return cls.from_parent(session, name=subject.label, nodeid=subject.label, path=path, subject=subject)

    @cached_property
    def anchor(self) -> dict[str, Any] | None:
        """Where in the user's repository reports and annotations show what is found; None where there are none, since git is
        asked for it."""
        from pytest_deaddir.report.anchor import anchor_of
        from pytest_deaddir.report.github import annotations_wanted

        if not self.config.stash[STATE].settings.reports and not annotations_wanted(self.config):
            return None
        return anchor_of(self.subject.spec, self.subject.gate, self.subject.name, self.config)

    def collect(self) -> Iterator[pytest.Item]:
        """The discovery item, then a rule item per rule that the level can answer."""
        yield DiscoveryItem.from_parent(self, name=DISCOVERY)
        for rule in self.subject.applicable:
            yield RuleItem.from_parent(self, name=rule.code, rule=rule)


class AuditItem(pytest.Item):
    """A check on one audit. What it reports beside its outcome travels on the test report."""

    parent: ModelCollector

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.extra_keyword_matches.add(f"only:{self.name}")  # -k DD101 also selects all of a model in a folder DD101

    @property
    def ihook(self) -> Any:
        """The hooks of the user's conftest files where pytest was called, wherever the checkpoint lies."""
        return self.session.gethookproxy(self.config.invocation_params.dir)

    def audit(self) -> Audit:
        """The subject's audit. An error in it fails the discovery item, and the others where that is not to run."""
        from pytest_deaddir.errors import DeaddirError

        try:
            return self.config.stash[STATE].measurements.audit(self.parent.subject.plan)
        except Exception as error:
            if self._is_told_by_discovery():
                kind = "failed" if isinstance(error, DeaddirError) else "broke"
                pytest.skip(
                    f"not judged: the audit of {self.parent.name} {kind}, see {self.parent.nodeid}::{DISCOVERY}"
                )
            raise

    def _is_told_by_discovery(self) -> bool:
        items = self.session.items
        return self.name != DISCOVERY and any(i.parent is self.parent and i.name == DISCOVERY for i in items)

    def reportinfo(self) -> tuple[Any, int | None, str]:
        """Shown as the headline of a failure."""
        return self.path, None, f"{self.parent.name} {self.name}"

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Our own errors as text; any other is a bug of ours or of the model's code and keeps its traceback."""
        from pytest_deaddir.errors import DeaddirError
        from pytest_deaddir.shared import WorkerError

        start = self.config.invocation_params.dir
        rerun = f"re-run    {self.parent.subject.rerun(self.name, start)}"
        if isinstance(excinfo.value, FoundError):
            from pytest_deaddir.report.terminal import finding_lines
            from pytest_deaddir.report.words import escaped

            lines = [line for finding in excinfo.value.findings for line in finding_lines(finding)]
            return "\n".join([*lines, *map(escaped, excinfo.value.outdated), rerun])
        if isinstance(excinfo.value, (DeaddirError, WorkerError)):
            return f"{error_text(excinfo.value)}\n{rerun}"
        return super().repr_failure(excinfo, style)

    def report(self, report: pytest.TestReport) -> None:
        """Put on the call's report what the controller needs."""
        from pytest_deaddir.errors import DeaddirError

        if report.skipped and isinstance(report.longrepr, tuple):  # the place that it names is a line of this file
            report.longrepr = (str(self.path), None, report.longrepr[2])  # type: ignore[assignment]
        measurements = self.config.stash[STATE].measurements
        error = measurements.error(self.parent.subject.plan)
        attach(
            report,
            label=self.parent.nodeid,
            spec=self.parent.subject.spec.text,
            name=self.name,
            outcome=self._passed_as() if report.passed else report.outcome,
            findings=self._findings(),
            audit=self._audit_once(),
            origin=measurements.origin(self.parent.subject.plan),
            anchor=self.parent.anchor,
            error=error and (str(error) if isinstance(error, DeaddirError) else repr(error)),
            broke=self._broke(),
        )

    def _findings(self) -> list[Row]:
        return []

    def _passed_as(self) -> str:
        return "passed"

    def _broke(self) -> str | None:
        return None

    def _audit_once(self) -> dict[str, Any] | None:
        """The audit's tables with the first item of the subject that this process reports."""
        sent = self.parent.stash.setdefault(_SENT, False)
        measurements = self.config.stash[STATE].measurements
        measured = measurements.done(self.parent.subject.plan)
        if sent or measured is None:
            return None
        self.parent.stash[_SENT] = True
        model = measured.model | {"name": self.parent.subject.name}
        return {"model": model, "norms": measured.norms, "blocks": measured.blocks, "broken": measured.broken}


def lies_in_a_checkpoint(path: Path, state: State) -> bool:
    """Whether a file to collect belongs to an audited directory: a stranger's tests and conftest are not ours to run.

    Whoever stands in the checkpoint's own repository means its tests.
    """
    here = state.settings.start.resolve()
    return any(
        path.resolve().is_relative_to(folder) and not here.is_relative_to(folder) for folder in state.checkpoint_folders
    )


def plans_of(items: Iterable[pytest.Item]) -> Iterator[Plan]:
    """What checks and tests with our fixtures will ask for."""
    from pytest_deaddir.plan import Subject

    for item in items:
        if isinstance(item, AuditItem):
            yield item.parent.subject.plan
        elif isinstance(item, pytest.Function) and "deaddir_audit" in item.fixturenames:
            parameters = getattr(
                item, "callspec", None
            )  # not of a unittest.TestCase, nor of a fixture of the user's own
            subject = parameters and parameters.params.get("deaddir_model")
            if isinstance(subject, Subject):  # none where there is no model, and the test is skipped
                yield subject.plan


def error_text(error: Exception) -> str:
    """An error of ours as its lines; it may name a stranger's files."""
    from pytest_deaddir.report.words import escaped_lines

    return escaped_lines(str(error))


_SENT = pytest.StashKey[bool]()


class DiscoveryItem(AuditItem):
    """The subject could be audited, and has norms: a run that looked at nothing must not be green."""

    def runtest(self) -> None:
        """Fails with the error that the audit ended in, and where a table of norms is empty."""
        from pytest_deaddir.errors import ModelError

        audit = self.audit()
        if self.config.stash[STATE].settings.junit_properties:
            from pytest_deaddir.report.junit import model_properties

            self.user_properties += model_properties(audit)
        if not audit.norms:
            raise ModelError(f"{self.parent.name}: no norm was found: nothing to audit")


class RuleItem(AuditItem):
    """One rule on one subject."""

    def __init__(self, *, rule: Rule, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rule = rule
        self.verdict: Verdict | None = None
        self.raised: Exception | None = None
        self.extra_keyword_matches.add(rule.name)

    def runtest(self) -> None:
        """Fails on findings of a severity that fails; skips, with the reason, where the rule has nothing to judge."""
        from pytest_deaddir.rules import evaluate

        subject = self.parent.subject
        audit = self.audit()
        self.verdict = self.raised = None  # a plugin may run it again
        try:
            verdict = evaluate(self.rule, audit, subject.rules.fail_on)
        except Exception as error:
            self.raised = error
            raise
        verdict = verdict.suppressing(subject.suppressions, date.today())
        if subject.plan.baseline is not None and subject.plan.baseline.takes_all:
            verdict = verdict.taking_all()
        self.verdict = verdict
        if self.config.stash[STATE].settings.junit_properties:
            from pytest_deaddir.report.junit import rule_properties

            self.user_properties += rule_properties(self.rule, audit, verdict.findings)
        if verdict.outcome == "failed":
            raise FoundError(verdict.open, verdict.outdated)
        if verdict.skipped is not None:
            pytest.skip(verdict.skipped)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The traceback of a rule in Python begins in the rule's own file."""
        if self.rule.check is not None:
            excinfo.traceback = excinfo.traceback.cut(path=self.rule.source)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Any, int | None, str]:
        """As for every check, with the rule's name."""
        return self.path, None, f"{self.parent.name} {self.rule.code} {self.rule.name}"

    def _findings(self) -> list[Row]:
        return self.verdict.findings if self.verdict else []

    def _broke(self) -> str | None:
        from pytest_deaddir.rules.python import broke

        return None if self.raised is None else broke(self.rule, self.raised)

    def _passed_as(self) -> str:
        return self.verdict.outcome if self.verdict else "passed"
