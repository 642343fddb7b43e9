"""Progress on the terminal while a model is measured, erased before pytest writes again.

pytest may have written part of a line and goes on where it left the cursor. So the text is put behind what is there, within
the same line, and is erased by stepping back over it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TextIO

import pytest
from _pytest._io import TerminalWriter

from pytest_deaddir.progress import Step, listening
from pytest_deaddir.report.words import escaped

#: Seconds before progress is shown.
AFTER = 2.0

_EVERY = 0.25

#: Columns that must be free in the line; with fewer nothing is shown.
_LEAST = 16


@contextmanager
def progress_line(config: pytest.Config, name: str) -> Iterator[None]:
    """Show progress while this lasts: on a terminal, in the process that owns it, unless pytest is to be quiet."""
    terminal = None if config.get_verbosity() < 0 or "CI" in os.environ else _terminal(config)
    if terminal is None:
        yield
        return
    line = Line(terminal, config.get_terminal_writer(), name)
    with terminal, listening(line.take), line.kept():
        yield


def _terminal(config: pytest.Config) -> TextIO | None:
    """The terminal that pytest itself writes to, bypassing its capturing of output; None where there is none."""
    capturing = config.pluginmanager.get_plugin("capturemanager")
    is_worker = hasattr(config, "workerinput") or not config.pluginmanager.has_plugin("terminalreporter")
    if is_worker or os.environ.get("TERM") == "dumb":
        return None
    with capturing.global_and_fixture_disabled() if capturing else nullcontext():
        stream = config.get_terminal_writer()._file
        if not stream.isatty():
            return None
        stream.flush()
        return os.fdopen(os.dup(stream.fileno()), "w", encoding=stream.encoding, errors="replace")


class Line:
    """The text, and a thread that renews it, so that seconds are counted even while a step reports nothing."""

    def __init__(self, terminal: TextIO, writer: TerminalWriter, name: str) -> None:
        self.terminal = terminal
        self.writer = writer
        self.name = name
        self.step = Step("")
        self.began = self.step_began = time.monotonic()
        self.shown = 0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._keep, daemon=True)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep the text up to date while this lasts, then erase it."""
        self.thread.start()
        try:
            yield
        finally:
            self.ended.set()
            self.thread.join()
            self._write("")

    def take(self, step: Step) -> None:
        """Note how far a step is."""
        if step.name != self.step.name:
            self.step_began = time.monotonic()
        self.step = step

    def _keep(self) -> None:
        while not self.ended.wait(_EVERY):
            now = time.monotonic()
            if now - self.began >= AFTER:
                self._write(words(self.name, self.step, now - self.step_began))

    def _write(self, text: str) -> None:
        room = self.writer.fullwidth - self.writer.width_of_current_line - 1
        text = f" {text}"[:room] if text and room >= _LEAST else ""
        if not text and not self.shown:
            return
        back = "\b" * self.shown
        erase = back + " " * self.shown + back
        self.shown = len(text)
        try:
            self.terminal.write(erase + text)
            self.terminal.flush()
        except (OSError, ValueError):  # the terminal has gone, or cannot write these letters
            self.shown = 0


def words(name: str, step: Step, seconds: float) -> str:
    """``forward 12/40 batches, 5.1/s, 5 s left · encoder``: where the line is too short, the name is what is cut."""
    told = f"{step.name} {_amount(step)}{seconds:.0f} s".lstrip()
    if step.total is not None and step.done and seconds > 0:
        rate = step.done / seconds
        told = f"{step.name} {_amount(step)}{rate:.3g}/s, {(step.total - step.done) / rate:.0f} s left"
    return escaped(f"{told} · {name}")


def _amount(step: Step) -> str:
    if step.total is None:
        return f"{step.done:.3g} {step.unit}, " if step.done else ""
    return f"{step.done:.0f}/{step.total:.0f} {step.unit}, "
