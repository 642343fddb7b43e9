"""The hooks of a run that audits, registered once there is something to audit."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from pytest_deaddir.collection import AuditItem, ModelCollector, lies_in_a_checkpoint, plans_of
from pytest_deaddir.options import GATE
from pytest_deaddir.report import github
from pytest_deaddir.report.terminal import gate_header, header, summary_lines, write_lines
from pytest_deaddir.session import State, state_of
from pytest_deaddir.stages.ranks import world

#: The name under which they are registered.
RUN = "deaddir-run"


def begin(config: pytest.Config) -> None:
    """From here on this run audits."""
    if config.pluginmanager.has_plugin(RUN):
        return
    config.pluginmanager.register(AuditRun(state_of(config)), RUN)
    if world()[0]:
        _be_silent(config)


def _be_silent(config: pytest.Config) -> None:
    """Of several processes that torchrun started only the first reports and writes files."""
    config.option.xmlpath = None
    config.pluginmanager.unregister(name="terminalreporter")
    config.pluginmanager.set_blocked("terminalreporter")


def _runs_nothing(config: pytest.Config) -> bool:
    """Whether pytest was asked to show something and to run no test."""
    shows = ("collectonly", "setuponly", "setupplan", "showfixtures", "show_fixtures_per_test", "cacheshow")
    return any(getattr(config.option, name, None) for name in shows)


class AuditRun:
    """From the header to the summary."""

    def __init__(self, state: State) -> None:
        self.state = state

    def pytest_report_header(self) -> list[str]:
        return header(self.state.settings) if self.state.settings.subjects else []

    def pytest_report_collectionfinish(self, config: pytest.Config) -> list[str]:
        if config.get_verbosity() < 0:
            return []
        return [line for path, subjects in self.state.gates.items() for line in gate_header(path, subjects)]

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(
        self, collector: pytest.Collector
    ) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        report = yield
        if isinstance(collector, pytest.Session):
            subjects = self.state.settings.subjects.values()
            others = [] if self.state.settings.only and subjects else report.result or []
            report.result = [*others, *(ModelCollector.of(collector, subject) for subject in subjects)]
        return report

    def pytest_ignore_collect(self, collection_path: Path) -> bool | None:
        settings = self.state.settings
        left_out = settings.only and collection_path.is_file() and collection_path.name != GATE
        return True if left_out or lies_in_a_checkpoint(collection_path, self.state) else None

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.state.results.plan([item.nodeid for item in session.items])
        self.state.measurements.expect(plans_of(session.items))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if isinstance(item, AuditItem) and call.when == "call":
            item.report(report)
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        config = self.state.config
        for model, finding in self.state.results.take(report):
            if hasattr(config, "workerinput"):
                continue
            try:
                config.hook.pytest_deaddir_finding(config=config, model=model, finding=finding)
            except Exception:  # of the user's own code, for which no finding must be lost
                self.state.results.problems.append(f"pytest_deaddir_finding failed: {traceback.format_exc()}")

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        config = session.config
        results = self.state.results
        if hasattr(config, "workerinput") or world()[0] or _runs_nothing(config):  # one process writes files
            return
        if results.reported or session.testsfailed:  # where nothing was to run, an earlier report stays as it is
            results.write(self.state.rules)
        done = self.state.update_baselines() and not results.unwritten and not results.problems
        if not done and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if not config.pluginmanager.has_plugin("terminalreporter"):  # -p no:terminal is no wish not to know
            sys.stderr.writelines(f"{line}\n" for line in self._summary(verbosity=-1))

    def _summary(self, verbosity: int) -> list[str]:
        """The lines that end the run, with the annotations that a job on GitHub takes from its log."""
        lines = summary_lines(self.state.results, verbosity)
        if lines and github.annotations_wanted(self.state.config):
            lines += github.annotation_lines(self.state.results.entries)
        return lines

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        config = terminalreporter.config
        lines = self._summary(terminalreporter.verbosity)
        if not lines or _runs_nothing(config):
            return
        terminalreporter.section("deaddir", sep="=")
        write_lines(terminalreporter, lines)
