"""One process for each model: a crash, a hang or a memory hog costs one type only.

The children are forks of a parent that has torch and transformers loaded, which is as quick as a pool of workers.
"""

from __future__ import annotations

import json
import os
import resource
import selectors
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

Record = dict[str, Any]


@dataclass
class _Child:
    name: str
    pid: int
    reader: int
    deadline: float
    data: bytearray = field(default_factory=bytearray)

    def answer(self) -> Record:
        """What the child wrote, or what became of it."""
        try:
            return json.loads(self.data)
        except ValueError:
            return {"reason": "time limit" if time.monotonic() >= self.deadline else "the process died"}


def each(
    function: Callable[[str], Record], names: Iterable[str], *, processes: int, timeout: float, memory: int
) -> Iterator[tuple[str, Record]]:
    """``function`` of each name in a process of its own, as they are done.

    A child that ends without an answer, or takes longer than ``timeout`` seconds, gives a record with only a ``reason``.
    """
    waiting, running = deque(names), selectors.DefaultSelector()
    while waiting or running.get_map():
        while waiting and len(running.get_map()) < processes:
            child = _started(function, waiting.popleft(), timeout, memory)
            running.register(child.reader, selectors.EVENT_READ, child)
        children: list[_Child] = [key.data for key in running.get_map().values()]
        patience = min(child.deadline for child in children) - time.monotonic()
        ready = {key.data.pid for key, _ in running.select(max(0.0, patience))}
        for child in children:
            if child.pid in ready:
                part = os.read(child.reader, 1 << 16)
                child.data += part
                if part:
                    continue
            elif time.monotonic() < child.deadline:
                continue
            else:
                os.kill(child.pid, signal.SIGKILL)
            running.unregister(child.reader)
            os.close(child.reader)
            os.waitpid(child.pid, 0)
            yield child.name, child.answer()


def _started(function: Callable[[str], Record], name: str, timeout: float, memory: int) -> _Child:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return _Child(name, pid, reader, time.monotonic() + timeout)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    try:
        answer = function(name)
    except BaseException as error:  # ours, not the model's: said in its row, and the types that follow still run
        answer = {"reason": f"zoo: {type(error).__name__}: {error}"[:300]}
    with os.fdopen(writer, "w") as pipe:
        json.dump(answer, pipe)
    os._exit(0)
