"""The pytest hooks, as a table of contents. pytest imports this in every run: nothing heavy, and nothing at all is
registered beyond options, a marker and fixtures until a model is named (run.py)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from pytest_deaddir import hookspecs
from pytest_deaddir.fixtures import deaddir_audit as deaddir_audit
from pytest_deaddir.fixtures import deaddir_device as deaddir_device
from pytest_deaddir.fixtures import deaddir_inputs as deaddir_inputs
from pytest_deaddir.fixtures import deaddir_model as deaddir_model
from pytest_deaddir.fixtures import norm_probe as norm_probe
from pytest_deaddir.fixtures import norm_site as norm_site
from pytest_deaddir.fixtures import residual_block as residual_block
from pytest_deaddir.options import GATE, add_options

_MARKER = (
    "deaddir(model=None, level=None, dtype=None, kind=None, role=None, stack=None, rules=None): "
    "the model that a test audits and how, which norms and blocks it visits, and the rules that judge"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.add_hookspecs(hookspecs)


#: The command line to start again with, where pytest began with somebody else's configuration.
_RESTART = pytest.StashKey[list[str]]()


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config, args: list[str], parser: pytest.Parser) -> None:
    if not any("--deaddir-" in str(word) for word in early_config.invocation_params.args):
        return
    from pytest_deaddir.restart import in_one_word

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


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for an audit runs once per model, one that asks for a row of a table once per row of each."""
    if "deaddir_model" in metafunc.fixturenames:  # which all that need one ask for
        from pytest_deaddir.visits import parametrize

        parametrize(metafunc)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any, ids: list[str]) -> None:
    """The controller collects nothing by itself."""
    if any(nodeid.partition("::")[0].rpartition("/")[2] == GATE for nodeid in ids):
        _begin(node.config)
    if run := node.config.pluginmanager.get_plugin("deaddir-run"):
        run.state.results.plan(ids)


def _begin(config: pytest.Config) -> None:
    """From here on this run audits."""
    from pytest_deaddir.run import begin

    begin(config)
