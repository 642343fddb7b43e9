"""The pytest hooks, as a table of contents. pytest imports this in every run: nothing heavy, and nothing at all is
registered beyond options, a marker and fixtures until a model is named."""

from __future__ import annotations

import sys
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_deaddir.session import State

pytest_plugins = ("pytest_deaddir.fixtures",)

_MARKER = (
    "deaddir(model=None, kind=None, role=None, level=None): the model a test audits, and which norms `norm_site` visits"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    from pytest_deaddir.options import add_options

    add_options(parser)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    from pytest_deaddir import hookspecs

    pluginmanager.add_hookspecs(hookspecs)


#: The command line to start again with, where pytest began with somebody else's configuration.
_RESTART = pytest.StashKey[list[str]]()


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config, args: list[str], parser: pytest.Parser) -> None:
    if not any("--deaddir-" in str(word) for word in early_config.invocation_params.args):
        return
    from pytest_deaddir.options import in_one_word

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
    if any(given[name] is not None for name in given if name.startswith("deaddir_")) or config.getini("deaddir_model"):
        from pytest_deaddir.session import state_of

        config.pluginmanager.register(AuditRun(state_of(config)), "deaddir-run")


class AuditRun:
    """Registered where there is something to audit."""

    def __init__(self, state: State) -> None:
        self.state = state

    def pytest_report_header(self) -> list[str]:
        from pytest_deaddir.report.terminal import header

        return header(self.state.settings)

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(
        self, collector: pytest.Collector
    ) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        report = yield
        if isinstance(collector, pytest.Session):
            from pytest_deaddir.collection import ModelCollector

            others = [] if self.state.settings.only else report.result or []
            models = self.state.settings.models.items()
            report.result = [*others, *(ModelCollector.of(collector, label, spec) for label, spec in models)]
        return report

    def pytest_ignore_collect(self, collection_path: Path) -> bool | None:
        from pytest_deaddir.collection import lies_in_a_checkpoint

        return True if lies_in_a_checkpoint(collection_path, self.state.settings) else None

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.state.results.plan([item.nodeid for item in session.items])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        self.state.results.plan(ids)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        from pytest_deaddir.collection import AuditItem

        report = yield
        if isinstance(item, AuditItem) and call.when == "call":
            item.report(report, call)
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.state.results.take(report)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        is_worker = hasattr(session.config, "workerinput")  # only xdist's controller writes files
        if not is_worker and not session.config.option.collectonly:
            self.state.results.write()

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        from pytest_deaddir.report.terminal import summary_lines

        lines = summary_lines(self.state.results, terminalreporter.verbosity)
        if lines and not terminalreporter.config.option.collectonly:
            terminalreporter.section("deaddir", sep="=")
            for line in lines:
                terminalreporter.write_line(line)
