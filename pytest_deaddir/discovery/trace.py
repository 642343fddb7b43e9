"""One forward pass, watched: which module took and gave which tensor, told by value and not by name.

Each floating-point tensor is reduced to a key at the moment it passes, since models add to hidden states in place:
a hash of its values, so that equal keys mean equal values whatever the object or its shape, or on the meta device,
where there are no values, the identity of the storage and its version.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

Key = int


@dataclass(frozen=True)
class Call:
    """One execution of one module. ``started``, ``finished``: ticks of one clock. ``taken``: keys of the tensors it took.

    ``given``: key of the first tensor it gave. ``shape``: of the first tensor taken; ``keeps_shape``: it gave one of the
    same. Only for norms: ``sorted_key``, of the given values in ascending order, equal for every layout of them, and
    ``rows``, of each given row by itself, for a model that returns some of the rows (padding cut off).
    """

    path: str
    started: int
    finished: int
    taken: tuple[Key, ...]
    given: Key | None
    shape: tuple[int, ...]
    given_shape: tuple[int, ...]
    sorted_key: Key | None = None
    rows: frozenset[Key] = frozenset()

    @property
    def keeps_shape(self) -> bool:
        """Whether it maps a tensor to one of its shape, as a norm does."""
        return self.shape == self.given_shape and len(self.shape) > 1


@dataclass
class Trace:
    """All calls in the order in which they returned, and what the module itself returned."""

    calls: list[Call] = field(default_factory=list)
    by_path: dict[str, list[Call]] = field(default_factory=lambda: defaultdict(list))
    returned: Key | None = None
    returned_sorted: Key | None = None
    returned_rows: frozenset[Key] = frozenset()
    returned_hidden: bool = False

    def add(self, call: Call) -> None:
        """Append a call."""
        self.calls.append(call)
        self.by_path[call.path].append(call)


class Keys:
    """Keys of tensors; holds the meta ones, so that their storages stay unique."""

    def __init__(self) -> None:
        self._held: list[torch.Tensor] = []

    def of(self, tensor: torch.Tensor, *, ordered: bool = True) -> Key:
        """The key of a tensor's values; with ``ordered`` false, of the same values in whatever layout."""
        if tensor.is_meta:
            self._held.append(tensor)
            where = (tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.numel())
            return hash((*where, tensor._version))  # a view of all of a tensor holds the same values
        values = tensor.detach().reshape(-1)
        if not ordered:
            values = values.sort().values
        return hash(_bytes(values))

    def of_rows(self, tensor: torch.Tensor) -> frozenset[Key]:
        """The keys of a tensor's rows along its last axis; none on the meta device."""
        if tensor.is_meta or tensor.dim() < 2:
            return frozenset()
        rows = tensor.detach().reshape(-1, tensor.shape[-1]).cpu()
        bits = rows.view(_INTEGERS[rows.element_size()]).long()
        generator = torch.Generator().manual_seed(rows.shape[1])
        factors = torch.randint(1, 2**62, (rows.shape[1],), generator=generator, device="cpu") * 2 + 1
        return frozenset((bits * factors).sum(1).tolist())  # wraps around, as a hash does


def _bytes(values: torch.Tensor) -> bytes:
    """The values in order as bytes; as integers of the same size, since numpy has no bfloat16."""
    return values.cpu().view(_INTEGERS[values.element_size()]).numpy().tobytes()


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def watch(module: nn.Module, inputs: Mapping[str, Any] | tuple[Any, ...], is_norm_like: Any) -> Trace:
    """Run ``module`` in eval mode without gradients and record every call in it.

    ``is_norm_like(path)``: for which modules the layout-free key is worth its cost. The module is left in the mode it was
    in, without hooks, whatever happens.
    """
    trace, keys, clock = Trace(), Keys(), itertools.count()
    open_calls: dict[str, list[tuple[int, tuple[Key, ...], tuple[int, ...]]]] = defaultdict(list)

    def before(path: str) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            taken = [tensor for tensor in floating((args, kwargs)) if tensor.numel()]
            shape = tuple(taken[0].shape) if taken else ()
            open_calls[path].append((next(clock), tuple(keys.of(tensor) for tensor in taken), shape))

        return hook

    def after(path: str) -> Any:
        def hook(_: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
            started, taken, shape = open_calls[path].pop()
            given = next((tensor for tensor in floating(output) if tensor.numel()), None)
            key = None if given is None else keys.of(given)
            loose, rows = None, frozenset[Key]()
            if given is not None and is_norm_like(path):
                loose, rows = keys.of(given, ordered=False), keys.of_rows(given)
            given_shape = () if given is None else tuple(given.shape)
            trace.add(Call(path, started, next(clock), taken, key, shape, given_shape, loose, rows))

        return hook

    with ExitStack() as undo:
        undo.enter_context(evaluating(module))
        for path, child in module.named_modules():
            undo.callback(child.register_forward_pre_hook(before(path), with_kwargs=True).remove)
            undo.callback(child.register_forward_hook(after(path), with_kwargs=True).remove)
        with torch.no_grad():
            output = module(**inputs) if isinstance(inputs, Mapping) else module(*inputs)
    hidden = getattr(output, "last_hidden_state", None)
    trace.returned_hidden = isinstance(hidden, torch.Tensor)
    returned = hidden if isinstance(hidden, torch.Tensor) else next(floating(output), None)
    if returned is not None and returned.is_floating_point():
        trace.returned, trace.returned_sorted = keys.of(returned), keys.of(returned, ordered=False)
        trace.returned_rows = keys.of_rows(returned)
    return trace


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """``module`` in eval mode (dropout off), each submodule's own mode given back afterwards."""
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for child, mode in modes.items():
            child.training = mode


def floating(value: Any, depth: int = 4) -> Iterator[torch.Tensor]:
    """The floating-point tensors in what a module takes or returns, in order, in nested tuples, lists and dicts."""
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield value
    elif depth and isinstance(value, Mapping):
        for item in value.values():
            yield from floating(item, depth - 1)
    elif depth and isinstance(value, (tuple, list)):
        for item in value:
            yield from floating(item, depth - 1)
