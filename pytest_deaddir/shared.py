"""The audits of one run that the workers of pytest-xdist share: the worker that asks for one first measures it for all.

A folder that belongs to the run holds three files for each audit: a lock, which the system releases when its holder dies; a
mark that measuring has begun, which a worker that is killed leaves behind; and the outcome.
"""

from __future__ import annotations

import hashlib
import json
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_deaddir.errors import DeaddirError
from pytest_deaddir.tables import Audit

if TYPE_CHECKING:
    import pytest


class WorkerError(Exception):
    """An unexpected error in another worker. ``text``: the traceback there; ``error``: the exception's repr."""

    def __init__(self, text: str, error: str) -> None:
        super().__init__(text)
        self._error = error

    def __repr__(self) -> str:
        """The repr of the exception in the other worker."""
        return self._error


class Shared:
    """The audits of one run. ``folder``: the workers' own; ``worker``: this one's name."""

    def __init__(self, folder: Path, worker: str) -> None:
        self.folder = folder
        self.worker = worker

    @classmethod
    def of(cls, config: pytest.Config) -> Shared | None:
        """None in a process that is no worker of xdist's, and where the workers have no folder in common.

        That folder is the one that the workers' temporary folders lie in, new for each run and its user's alone; a worker
        on another machine has none, nor has one under ``-p no:tmpdir``.
        """
        worker = getattr(config, "workerinput", {}).get("workerid")
        basetemp = config.getoption("basetemp", None)
        if worker is None or not basetemp or not _can_lock():
            return None
        folder = Path(basetemp).parent / "deaddir"
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder, worker)

    def outcome(self, what: str, make: Callable[[], Audit | Exception], wait: bool) -> Audit | Exception | None:
        """What ``make`` gives for ``what``, in this process or in the one that asked first, which is waited for.

        None where ``wait`` is false and another process is measuring it.
        """
        name = hashlib.sha256(what.encode()).hexdigest()[:24]
        kept, begun = (self.folder / f"{name}.{suffix}" for suffix in ("json", "begun"))
        with _locked(self.folder / f"{name}.lock", wait) as mine:
            if not mine:
                return None
            if kept.exists():
                return _outcome(kept.read_text(encoding="utf-8"))
            if begun.exists():
                return DeaddirError(
                    f"the worker {begun.read_text()} ended while it measured this: killed, perhaps for want of memory, "
                    "or crashed in the model's code. Without xdist (-n 0) one model is in memory at a time"
                )
            begun.write_text(self.worker)
            try:
                made = make()
                kept.write_text(_text(made), encoding="utf-8")  # read under the lock alone
            finally:
                begun.unlink()
            return made


def _text(made: Audit | Exception) -> str:
    if isinstance(made, Audit):
        return json.dumps({"audit": made.as_dict()}, allow_nan=False)
    if isinstance(made, DeaddirError):
        return json.dumps({"error": str(made)})
    return json.dumps({"bug": ["".join(traceback.format_exception(made)), repr(made)]})


def _outcome(text: str) -> Audit | Exception:
    kept = json.loads(text)
    if "audit" in kept:
        return Audit(**kept["audit"])
    return DeaddirError(kept["error"]) if "error" in kept else WorkerError(*kept["bug"])


def _can_lock() -> bool:
    return os.name == "posix"  # elsewhere each worker measures for itself


@contextmanager
def _locked(path: Path, wait: bool) -> Iterator[bool]:
    """Hold the lock of a file; yields False where another process holds it and ``wait`` is false."""
    import fcntl

    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True  # closing the file releases the lock
