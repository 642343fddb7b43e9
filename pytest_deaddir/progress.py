"""Progress of long steps: each step reports it, and a listener shows it. In the lowest layer, so that all can report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class Step(NamedTuple):
    """``name``: what is being done; ``done`` of ``total`` in ``unit``; ``total`` is None where nobody knows it."""

    name: str
    done: float = 0
    total: float | None = None
    unit: str = ""


_listener: Callable[[Step], None] | None = None


def tell(step: Step) -> None:
    """Report how far a step is."""
    if _listener is not None:
        _listener(step)


def with_progress(name: str, items: Iterable[T], total: int | None, unit: str) -> Iterator[T]:
    """The items, one after the other, with a report of how many are done before each."""
    for count, item in enumerate(items):
        tell(Step(name, count, total, unit))
        yield item


@contextmanager
def listening(listener: Callable[[Step], None]) -> Iterator[None]:
    """Pass every report to ``listener`` while this lasts, in the thread that does the step."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before
