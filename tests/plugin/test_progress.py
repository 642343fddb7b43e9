"""The line that says how far a long audit is: on a terminal, and gone without a trace."""

import os
import pty
import re
import subprocess
import sys

import pytest

from plugin.helpers import write_checkpoint
from pytest_deaddir.progress import Step, listening, tell, with_progress
from pytest_deaddir.report.line import words

SOON = """
import time
from pytest_deaddir.report import line
line.AFTER, line._EVERY = 0, 0.02
import pytest_deaddir.api as api
measure = api.measure
def slowly(*arguments, **options):
    from pytest_deaddir.progress import Step, tell
    for done in range(8):
        tell(Step("forward", done, 8, "batches"))
        time.sleep(0.05)
    return measure(*arguments, **options)
api.measure = slowly
"""


@pytest.fixture
def on_a_terminal(pytester):
    """What a run writes to a terminal of its own, byte by byte."""
    write_checkpoint(pytester.path / "m")
    pytester.makeconftest(SOON)

    def run(*arguments, env=()):
        parent, child = pty.openpty()
        environment = {name: value for name, value in os.environ.items() if name != "CI"}
        environment |= {"TERM": "xterm", "COLUMNS": "80", "PY_COLORS": "0", **dict(env)}
        command = [sys.executable, "-m", "pytest", "--deaddir-model=m", "--deaddir-level=read", *arguments]
        process = subprocess.Popen(command, cwd=pytester.path, env=environment, stdout=child, stderr=child)
        os.close(child)
        written = b""
        while True:
            try:
                piece = os.read(parent, 4096)
            except OSError:  # the other end is closed
                break
            if not piece:
                break
            written += piece
        os.close(parent)
        assert process.wait() == 0, written.decode()
        return written.decode()

    return run


def seen(text):
    """What stays on the screen of a text with backspaces."""
    lines = []
    for line in text.replace("\r\n", "\n").split("\n"):
        cells, at = [], 0
        for letter in line:
            if letter == "\b":
                at -= 1
            else:
                cells[at : at + 1] = [letter]
                at += 1
        lines.append("".join(cells).rstrip())
    return re.sub(r"\d+\.\d+ ?s", "TIME", "\n".join(lines))


@pytest.mark.parametrize("options", [(), ("-s",), ("-v",), ("--capture=sys",)])
def test_the_line_shows_how_far_it_is_and_leaves_the_output_as_it_was(on_a_terminal, options):
    written = on_a_terminal(*options)
    assert re.search(r"forward \d/8 batches, \d", written)
    assert re.search(r"s left\b", written)
    assert "batches" not in seen(written)
    assert seen(written) == seen(on_a_terminal(*options, env={"TERM": "dumb"}))


@pytest.mark.parametrize(("options", "env"), [(("-q",), {}), ((), {"CI": "1"}), ((), {"TERM": "dumb"})])
def test_where_nobody_looks_there_is_none(on_a_terminal, options, env):
    written = on_a_terminal(*options, env=env)
    assert "batches" not in written
    assert "\b" not in written


def test_workers_of_xdist_leave_the_terminal_to_its_owner(on_a_terminal):
    assert "batches" not in on_a_terminal("-n1", "-p", "xdist")


def test_words():
    """The numbers come first: a name that is too long for the line must not push them out of it."""
    assert words("m", Step(""), 3.2) == "3 s · m"
    assert words("m", Step("loading"), 12) == "loading 12 s · m"
    assert words("m", Step("forward", 10, 40, "rows"), 5) == "forward 10/40 rows, 2/s, 15 s left · m"
    assert words("m", Step("reading", 3.14159, None, "MB"), 2) == "reading 3.14 MB, 2 s · m"
    assert "\x1b" not in words("\x1b[31mm", Step("loading"), 1)


def test_steps_are_told_to_who_listens_and_to_nobody_else():
    heard = []
    with listening(heard.append):
        assert list(with_progress("spectra", "ab", 2, "norms")) == ["a", "b"]
    tell(Step("later"))
    assert heard == [Step("spectra", 0, 2, "norms"), Step("spectra", 1, 2, "norms")]
