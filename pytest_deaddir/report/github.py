"""A job on GitHub: the summary of its step, and annotations of the files that findings are about."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_deaddir.report.words import escaped, escaped_lines, label_of, open_findings

if TYPE_CHECKING:
    import pytest

    from pytest_deaddir.report.words import Entry

#: Bytes. GitHub drops the whole summary of a step that writes more.
SUMMARY_LIMIT = 1024 * 1024

#: Of one kind and one step; GitHub drops those beyond.
MOST_ANNOTATIONS = 10

_COMMANDS = {"error": "error", "warning": "warning", "info": "notice"}


def append_summary(models: Sequence[Entry]) -> None:
    """Append the audit as Markdown to the file that GITHUB_STEP_SUMMARY names, as much of it as GitHub takes.

    A file that cannot be written is left: the audit does not fail for it.
    """
    name = os.environ.get("GITHUB_STEP_SUMMARY")
    if not name or not models:
        return
    from pytest_deaddir.report import markdown

    path = Path(name)
    text = f"## deaddir\n\n{markdown.render(models)}\n"
    try:
        room = SUMMARY_LIMIT - (path.stat().st_size if path.exists() else 0)
        with path.open("ab") as file:
            file.write(_within(text.encode(), room))
    except OSError:
        pass


def _within(text: bytes, room: int) -> bytes:
    """As many whole lines as fit."""
    if len(text) <= room:
        return text
    note = b"\n\nThe rest is in the log: a summary holds 1 MiB.\n"
    cut = text.rfind(b"\n", 0, max(0, room - len(note)))
    return text[:cut] + note if cut > 0 else b""


def annotations_wanted(config: pytest.Config) -> bool:
    """Whether a job on GitHub reads the output, and no plugin annotates failures already."""
    others = config.pluginmanager.hasplugin("pytest_github_actions_annotate_failures")
    return os.environ.get("GITHUB_ACTIONS") == "true" and not others


def annotation_lines(models: Sequence[Entry]) -> Iterator[str]:
    """The commands that GitHub reads from a job's output, the most severe first, at most :data:`MOST_ANNOTATIONS` of them."""
    found = []
    for entry in models:
        if entry.get("error"):
            found.append(("error", f"deaddir: {label_of(entry)}", escaped_lines(entry["error"]), entry))
        for rule in entry.get("broken", ()):
            title = f"{rule['code']} raised an error: {label_of(entry)}"
            found.append(("error", title, escaped_lines(rule["error"]), entry))
        for finding in open_findings(entry):
            title = f"{finding['code']} {finding['name']}: {label_of(entry)}"
            found.append((_COMMANDS[finding["severity"]], title, escaped(finding["message"]), entry))
    found.sort(key=lambda item: list(_COMMANDS.values()).index(item[0]))
    for command, title, message, entry in found[:MOST_ANNOTATIONS]:
        properties = {"title": title}
        if anchor := entry.get("anchor"):
            properties = {"file": anchor["file"], "line": str(anchor["line"])} | properties
        written = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
        yield f"::{command} {written}::{_data(message)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(escaped(text)).replace(":", "%3A").replace(",", "%2C")
