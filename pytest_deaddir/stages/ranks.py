"""Several processes that measure one model together, as torchrun starts them: each runs a share of the batches, and then all
have everything that was accumulated. Nothing is imported before they talk: the plugin asks for its rank in every run."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from pytest_deaddir.errors import ModelError


def world() -> tuple[int, int]:
    """This process's rank and how many there are; 0 and 1 where torchrun has not started it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 0, 1
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


@dataclass(frozen=True)
class _Failure:
    text: str


class PeerError(ModelError):
    """Another process failed."""


class Ranks:
    """The processes of a run. All of them do the same, so that they meet at each :meth:`exchange`; one that fails tells the
    others at the next, and nobody waits."""

    def __init__(self) -> None:
        self.rank, self.size = world()

    def exchange(self, value: Any) -> list[Any]:
        """What every process gives, in the order of ranks. Raises :class:`PeerError` where one has failed meanwhile."""
        if self.size == 1:
            return [value]
        values = self._gathered(value)
        for rank, given in enumerate(values):
            if isinstance(given, _Failure):
                raise PeerError(f"rank {rank} of {self.size} failed: {given.text}")
        return values

    @contextmanager
    def together(self, task: str) -> Iterator[None]:
        """Do a task that all do: where it fails in one process, it fails in all."""
        if self.size == 1:
            yield
            return
        try:
            tasks = set(self.exchange(task))
            if len(tasks) > 1:
                raise PeerError(f"the processes are not at the same model: {', '.join(sorted(tasks))}")
            yield
            self.exchange(None)
        except PeerError:
            raise
        except BaseException as error:
            with suppress(Exception):  # whoever is gone by now has been told by torchrun
                self._gathered(_Failure(f"{type(error).__name__}: {error}"))
            raise

    def _gathered(self, value: Any) -> list[Any]:
        import torch
        import torch.distributed as distributed

        if not distributed.is_initialized():
            # what is exchanged are numbers on the CPU; a model that is shared brings its own on accelerators
            distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
            _end_with_the_process()
        values: list[Any] = [None] * self.size
        try:
            distributed.all_gather_object(values, value)
        except RuntimeError as error:
            raise PeerError(f"rank {self.rank} of {self.size} has lost another: {error}") from error
        return values


def _end_with_the_process() -> None:
    """At the end all wait for all: torchrun ends the others when one exits with a failure, and the first may still write."""
    import atexit

    import torch.distributed as distributed

    def end() -> None:
        sys.stdout.flush()
        with suppress(RuntimeError):  # one was killed
            distributed.all_gather_object([None] * distributed.get_world_size(), None)
        distributed.destroy_process_group()

    atexit.register(end)
