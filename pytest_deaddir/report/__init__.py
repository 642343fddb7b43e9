"""How people see an audit: one small module per format, each from the same plain data.

A format's module has ``render(models, rules) -> str``. ``models``: entries as :meth:`pytest_deaddir.Audit.as_dict` gives
them; a run of pytest adds ``label``, its name for the model, ``anchor``, where in the repository a finding is shown
(``{"file": …, "line": …}``), and ``error``, what an audit ended in. ``rules``: those of the run, for formats that explain
them. It is imported when a report of its suffix is written.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pytest_deaddir.files import write_whole

if TYPE_CHECKING:
    from pytest_deaddir.rules import Rule

#: A report's suffix → the module that writes it.
FORMATS = {".json": "json", ".md": "markdown", ".sarif": "sarif", ".csv": "csv", ".html": "html"}


def write(
    path: Path,
    models: Sequence[dict[str, Any]],
    rules: Sequence[Rule] = (),
    more: Mapping[str, Callable[..., str]] = MappingProxyType({}),
) -> None:
    """Write a report in the format of its suffix, whole or not at all: a reader never sees half a file.

    ``more``: the ``render`` of formats that are not ours, by suffix; they come first.
    """
    render = more.get(path.suffix)
    if render is None:
        render = importlib.import_module(f"pytest_deaddir.report.{FORMATS[path.suffix]}").render
    write_whole(path, render(models, rules))
