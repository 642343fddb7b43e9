"""The pytest hooks, as a table of contents. pytest imports this in every run: nothing heavy, and nothing at all is
registered beyond options, a marker and fixtures until a model is named."""

from __future__ import annotations

import sys
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_deaddir.options import GATE, add_options, in_one_word

if TYPE_CHECKING:
    from pytest_deaddir.session import State

_MARKER = (
    "deaddir(model=None, level=None, dtype=None, kind=None, role=None, stack=None, rules=None): "
    "the model that a test audits and how, which norms and blocks it visits, and the rules that judge"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    from pytest_deaddir import fixtures, hookspecs

    pluginmanager.add_hookspecs(hookspecs)
    # not by pytest_plugins, for which pytest reads the entry points of every installed distribution: some milliseconds
    pluginmanager.register(fixtures, "deaddir-fixtures")


#: The name under which what a run that audits needs is registered.
_RUN = "deaddir-run"

#: The command line to start again with, where pytest began with somebody else's configuration.
_RESTART = pytest.StashKey[list[str]]()


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config, args: list[str], parser: pytest.Parser) -> None:
    if not any("--deaddir-" in str(word) for word in early_config.invocation_params.args):
        return
    if words := in_one_word(early_config, parser):
        early_config.stash[_RESTART] = words
        args[:] = words  # without the addopts of that configuration
        early_config.known_args_namespace.noconftest = True


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    words = config.stash.get(_RESTART, None)
    if words is None:
        return _command(config)
    theirs = {str(path) for path in config.getini("pythonpath")}
    sys.path[:] = [path for path in sys.path if path not in theirs]
    return int(pytest.main(words, plugins=config.invocation_params.plugins))


def _command(config: pytest.Config) -> int | None:
    """The options that print something and exit, as --markers does."""
    given = config.option
    if given.deaddir_explain is None and not given.deaddir_list_rules and given.deaddir_check_rules is None:
        return None
    from pytest_deaddir.commands import run_command

    return run_command(config)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", _MARKER)
    given = vars(config.option)
    asked = any(given[name] is not None for name in given if name.startswith("deaddir_"))
    if asked or config.getini("deaddir_model") or config.getini("deaddir_from"):
        _begin(config)
    gate = config.rootpath / GATE
    if gate.exists():
        _begin(config)
        if config.args_source is config.ArgsSource.TESTPATHS:
            config.args.append(str(gate))  # it lies beside the tests, and not below them


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    if file_path.name != GATE:
        return None
    from pytest_deaddir.collection import GateFile

    _begin(parent.config)
    return GateFile.from_parent(parent, path=file_path)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any, ids: list[str]) -> None:
    """The controller collects nothing by itself."""
    if any(nodeid.partition("::")[0].rpartition("/")[2] == GATE for nodeid in ids):
        _begin(node.config)
    if run := node.config.pluginmanager.get_plugin(_RUN):
        run.state.results.plan(ids)


def _begin(config: pytest.Config) -> None:
    """From here on this run audits."""
    if config.pluginmanager.has_plugin(_RUN):
        return
    from pytest_deaddir.session import state_of
    from pytest_deaddir.stages.ranks import world

    config.pluginmanager.register(AuditRun(state_of(config)), _RUN)
    if world()[0]:
        _be_silent(config)


def _be_silent(config: pytest.Config) -> None:
    """Of several processes that torchrun started the first alone shows and writes what came out."""
    config.option.xmlpath = None
    config.pluginmanager.unregister(name="terminalreporter")
    config.pluginmanager.set_blocked("terminalreporter")


class AuditRun:
    """Registered where there is something to audit."""

    def __init__(self, state: State) -> None:
        self.state = state

    def pytest_report_header(self) -> list[str]:
        from pytest_deaddir.report.terminal import header

        return header(self.state.settings) if self.state.settings.subjects else []

    def pytest_report_collectionfinish(self, config: pytest.Config) -> list[str]:
        from pytest_deaddir.report.terminal import gate_header

        if config.get_verbosity() < 0:
            return []
        return [line for path, subjects in self.state.gates.items() for line in gate_header(path, subjects)]

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(
        self, collector: pytest.Collector
    ) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        report = yield
        if isinstance(collector, pytest.Session):
            from pytest_deaddir.collection import ModelCollector

            subjects = self.state.settings.subjects.values()
            others = [] if self.state.settings.only and subjects else report.result or []
            report.result = [*others, *(ModelCollector.of(collector, subject) for subject in subjects)]
        return report

    def pytest_ignore_collect(self, collection_path: Path) -> bool | None:
        from pytest_deaddir.collection import lies_in_a_checkpoint

        settings = self.state.settings
        left_out = settings.only and collection_path.is_file() and collection_path.name != GATE
        return True if left_out or lies_in_a_checkpoint(collection_path, self.state) else None

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        from pytest_deaddir.collection import plans_of

        self.state.results.plan([item.nodeid for item in session.items])
        self.state.measurements.expect(plans_of(session.items))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        from pytest_deaddir.collection import AuditItem

        report = yield
        if isinstance(item, AuditItem) and call.when == "call":
            item.report(report)
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        config = self.state.config
        for model, finding in self.state.results.take(report):
            if not hasattr(config, "workerinput"):
                config.hook.pytest_deaddir_finding(config=config, model=model, finding=finding)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        from pytest_deaddir.stages.ranks import world

        config = session.config
        if hasattr(config, "workerinput") or world()[0] or config.option.collectonly:  # one process writes files
            return
        self.state.results.write(self.state.rules)
        if not self.state.update_baselines() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if not config.pluginmanager.has_plugin("terminalreporter"):  # -p no:terminal is no wish not to know
            from pytest_deaddir.report.terminal import summary_lines

            sys.stderr.writelines(f"{line}\n" for line in summary_lines(self.state.results, verbosity=-1))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        from pytest_deaddir.report import github
        from pytest_deaddir.report.terminal import summary_lines, write_lines

        config = terminalreporter.config
        lines = summary_lines(self.state.results, terminalreporter.verbosity)
        if not lines or config.option.collectonly:
            return
        terminalreporter.section("deaddir", sep="=")
        if github.annotations_wanted(config):
            lines += github.annotation_lines(self.state.results.entries)
        write_lines(terminalreporter, lines)
