"""Residual stacks: containers whose children hand one another the hidden state, and how a block uses its norms."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

from pytest_deaddir.discovery.trace import Call, Trace

Style = Literal["pre-norm", "post-norm", "sandwich", "parallel", "other"]


@dataclass(frozen=True)
class Stack:
    """A residual stream's blocks. ``path``: of the module list; ``blocks``: paths in the order they run, a shared layer
    once for each run; ``final_norm``: path, or None where no norm closes the stream; ``within``: the path of the stack in
    whose blocks this one lies (hierarchical towers); ``how``: values | identity | structure. ``width``, ``axis``: of the
    stream's features. ``ends``: of the stream before the first block and after each, the path of the norm whose output it
    is (post-norm), else None."""

    path: str
    blocks: tuple[str, ...]
    final_norm: str | None
    style: Style
    how: str
    within: str | None = None
    width: int | None = None
    axis: int = -1
    ends: tuple[str | None, ...] = ()


@dataclass(frozen=True)
class Chain:
    """A container's children that ran in a chain, as calls of one pass."""

    path: str
    calls: tuple[Call, ...]


def under(path: str, parent: str) -> bool:
    """Whether ``path`` is ``parent`` or lies in it; everything lies in the root, whose path is empty."""
    return not parent or path == parent or path.startswith(f"{parent}.")


def containers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that hold others in order."""
    for path, child in module.named_modules():
        if isinstance(child, (nn.ModuleList, nn.ModuleDict, nn.Sequential)):
            yield path, child


def chains(module: nn.Module, trace: Trace, norms: Collection[str]) -> list[Chain]:
    """Containers whose every executed child holds a norm, and takes what the child before it gave.

    A container may run as a whole more than once (two images, two passes over a text): each pass must be a chain.
    """
    found = []
    for path, container in containers(module):
        children = [f"{path}.{name}" if path else name for name, _ in container.named_children()]
        calls = sorted((call for child in children for call in trace.by_path.get(child, ())), key=lambda c: c.started)
        ran = {call.path for call in calls}
        if len(calls) < 2 or not all(_holds_norm(child, norms) for child in ran):
            continue
        passes: list[list[Call]] = [[calls[0]]]
        broken = False
        for previous, call in itertools.pairwise(calls):
            if previous.given is not None and previous.given in call.taken:
                passes[-1].append(call)
            elif call.path == calls[0].path:
                passes.append([call])
            else:
                broken = True
        longest = max(passes, key=len)
        if not broken and len(longest) > 1:
            found.append(Chain(path, tuple(longest)))
    return found


def _holds_norm(child: str, norms: Collection[str]) -> bool:
    """A block holds a norm beside other things; a norm by itself, in a Sequential head, is no block."""
    return child not in norms and any(under(norm, child) for norm in norms)


def structural(module: nn.Module, norms: Collection[str]) -> list[tuple[str, tuple[str, ...]]]:
    """Where nothing could run: module lists of two or more whose every child holds a norm (right on 94 % of 595 models)."""
    found = []
    for path, container in containers(module):
        children = tuple(f"{path}.{name}" if path else name for name, _ in container.named_children())
        if len(children) > 1 and all(_holds_norm(child, norms) for child in children):
            found.append((path, children))
    return found


def style_of(block: Call, trace: Trace, norms: Mapping[str, Call], modules: Mapping[str, nn.Module]) -> Style:
    """How a block uses its residual-stream norms, from what each took and gave.

    ``norms``: the calls of the block's own norms of the stream's width, by path.
    """
    taken = block.taken[0] if block.taken else None
    reading = [call for call in norms.values() if taken in call.taken]
    closes = any(call.given == block.given for call in norms.values())
    if not reading:
        return "post-norm" if closes else "other"
    inside = [c for c in trace.calls if block.started < c.started and c.finished < block.finished]
    sublayers = [c for c in inside if c.path not in norms and _is_sublayer(modules[c.path])]
    results = {sublayer.given for sublayer in sublayers}
    behind = [call for call in norms.values() if results & set(call.taken)]
    # what a norm behind a sublayer gives is added to the stream; BLOOM's and T5's attention adds by itself, and the norm
    # that takes what it returns feeds the next sublayer
    fed = {
        key
        for call in inside
        if call.path not in norms and (_is_sublayer(modules[call.path]) or is_projection(modules[call.path]))
        for key in call.taken
    }
    if any(call.given not in fed for call in behind):
        return "sandwich"
    readers = {c.path for c in sublayers for call in reading if call.given in c.taken}
    outermost = [path for path in readers if not any(path != other and under(path, other) for other in readers)]
    if len(reading) == len(norms) and len(outermost) > 1:
        return "parallel"
    return "pre-norm"


def is_projection(module: nn.Module) -> bool:
    """A leaf with a matrix."""
    parameters = list(module.parameters(recurse=False))
    return not any(True for _ in module.children()) and any(sum(n > 1 for n in p.shape) > 1 for p in parameters)


def _is_sublayer(module: nn.Module) -> bool:
    """An attention or a feed-forward: something with matrices that is made of parts."""
    return any(True for _ in module.children()) and any(
        sum(n > 1 for n in parameter.shape) > 1 for parameter in module.parameters()
    )
