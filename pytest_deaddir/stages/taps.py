"""Watching a forward pass: accumulators on norms' outputs and on the residual stream between blocks."""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import nn

from pytest_deaddir.algebra.kernel import direction, kernel_basis
from pytest_deaddir.discovery.discover import NormSite
from pytest_deaddir.discovery.stacks import Stack
from pytest_deaddir.discovery.trace import evaluating, floating
from pytest_deaddir.errors import ModelError
from pytest_deaddir.progress import Step, tell
from pytest_deaddir.source.inputs import Inputs, halved, moved
from pytest_deaddir.source.load import Model
from pytest_deaddir.stages.accumulate import Accumulator, Keep
from pytest_deaddir.stages.ranks import Ranks

#: Where a model's parameters are, and in what dtype.
Place = tuple[torch.device, torch.dtype]


class Tap:
    """Accumulates the rows of one tensor of a forward pass. ``axis``: that of the features, -1 or for images 1.

    ``directions``: (d, k) known directions, whose variance is measured directly. ``keep``: as the accumulator's.
    """

    def __init__(self, width: int, directions: np.ndarray, axis: int = -1, keep: Keep | None = None) -> None:
        self.rows = Accumulator(width, torch.from_numpy(directions), keep)
        self.axis = axis
        self.dtype = ""
        self.masks: list[torch.Tensor] = []  # of the batch that runs: 2-D, true where a token is no padding

    @property
    def samples(self) -> int:
        """Rows taken."""
        return self.rows.samples

    def take(self, activations: torch.Tensor | None) -> None:
        """Take a tensor's rows, without those of padding."""
        if activations is None or not activations.numel() or activations.shape[self.axis] != self.rows.width:
            return
        self.dtype = str(activations.dtype).removeprefix("torch.")
        self.rows.update(self.counted(activations))

    def counted(self, activations: torch.Tensor) -> torch.Tensor:
        """The rows of a tensor that are no padding, (…, d)."""
        activations = activations.movedim(self.axis, -1)
        mask = next((mask for mask in self.masks if mask.shape == activations.shape[:2]), None)
        return activations if mask is None else activations[mask.to(activations.device)]

    def share(self) -> dict[str, Any]:
        """What other processes need of what this one took."""
        return {"rows": self.rows, "dtype": self.dtype}

    def all_of(self, shares: Sequence[dict[str, Any]]) -> None:
        """Have what the taps of all processes took; ``shares``: of each, in the order of ranks."""
        self.rows.all_of([share["rows"] for share in shares])
        self.dtype = next((share["dtype"] for share in shares if share["dtype"]), "")

    def state(self) -> dict[str, Any]:
        """What :meth:`restore` takes, to undo all that was taken since. Nothing of it is ever changed in place."""
        return {**vars(self), "rows": copy.copy(self.rows)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to an earlier state."""
        vars(self).update(state)


class NormTap(Tap):
    """On a norm's output. ``kernel``, (d, k): a LayerNorm's kernel, or γ⁻¹ of an RMSNorm, which should not be dead.

    ``offset``: the mean over rows of (mean/std)² of what the norm takes, by which the rounding of a computed mean grows.
    """

    def __init__(self, site: NormSite, keep: Keep | None = None) -> None:
        gamma = site.probe.gamma
        self.kernel = np.zeros((site.features, 0))
        if gamma is not None and np.isfinite(gamma).all():
            if site.kind == "layernorm":
                self.kernel = kernel_basis(gamma)
            elif (gamma != 0).all():
                self.kernel = direction(gamma)[:, None]
        super().__init__(site.features, self.kernel, site.probe.axis or -1, keep)
        self.path = site.path
        self._computes_in = site.probe.computes_in
        self._offsets: tuple[torch.Tensor | float, ...] = ()

    def take(self, activations: torch.Tensor | None) -> None:
        """Take a tensor's rows, whose rounding is that of the norm's own arithmetic where this is coarser than float64."""
        super().take(activations)
        if self.dtype == "float64" and self._computes_in:
            self.dtype = self._computes_in

    @property
    def offset(self) -> float:
        """See above."""
        return sum(map(float, self._offsets)) / max(self.samples, 1)

    def share(self) -> dict[str, Any]:
        """See :class:`Tap`."""
        return super().share() | {"offsets": tuple(map(float, self._offsets))}

    def all_of(self, shares: Sequence[dict[str, Any]]) -> None:
        """See :class:`Tap`."""
        super().all_of(shares)
        self._offsets = tuple(offset for share in shares for offset in share["offsets"])

    def attach(self, module: nn.Module) -> Iterable[Callable[[], None]]:
        """Hook the module; gives what takes the hooks off."""

        def hook(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            given, taken = next(floating(output), None), next(floating((args, kwargs)), None)
            self.take(given)
            if given is not None and taken is not None and taken.shape == given.shape:
                rows = self.counted(taken).detach().float()
                mean = rows.mean(-1, keepdim=True)  # torch.var_mean takes twenty times as long on a CPU
                variance = (rows - mean).square().mean(-1, keepdim=True)
                self._offsets = (*self._offsets, (mean.square() / variance.clamp(min=1e-38)).sum())

        yield module.get_submodule(self.path).register_forward_hook(hook, with_kwargs=True).remove


class StreamTaps:
    """On a stack's residual stream: before its first block, and after each. ``taps``: L + 1 of them, in that order.

    Each also measures the variance along the direction of the mean, 1/√d, where folded weights leave none.
    """

    def __init__(self, stack: Stack, width: int, keep: Keep | None = None) -> None:
        self.stack = stack
        mean = np.full((width, 1), width**-0.5)
        self.taps = [Tap(width, mean, stack.axis, keep) for _ in range(len(stack.blocks) + 1)]

    def attach(self, module: nn.Module) -> Iterable[Callable[[], None]]:
        """Hook every block; a layer that runs several times (ALBERT) is several blocks, told apart by its turn."""
        turns: Counter[str] = Counter()
        places: dict[str, list[int]] = {}
        for index, path in enumerate(self.stack.blocks):
            places.setdefault(path, []).append(index)
        first = self.stack.blocks[0]

        def before(_module: nn.Module, args: Any, kwargs: Any) -> None:
            if turns[first] % len(places[first]) == 0:
                self.taps[0].take(next((tensor for tensor in floating((args, kwargs)) if tensor.numel()), None))

        def after(path: str) -> Any:
            def hook(_module: nn.Module, _args: Any, output: Any) -> None:
                index = places[path][turns[path] % len(places[path])]
                turns[path] += 1
                self.taps[index + 1].take(next((tensor for tensor in floating(output) if tensor.numel()), None))

            return hook

        yield module.get_submodule(first).register_forward_pre_hook(before, with_kwargs=True).remove
        for path in places:
            yield module.get_submodule(path).register_forward_hook(after(path)).remove


def run(
    model: Model,
    inputs: Inputs,
    place: Place,
    norms: Sequence[NormTap],
    streams: Sequence[StreamTaps],
    wanted: int,
    main: Tap,
) -> int:
    """The forward pass, batch by batch, until ``main`` has taken ``wanted`` rows or the inputs end. Where there are several
    processes, each of n runs every n-th batch, and then all have the rows of all. Where they share the weights, all run each
    batch together, and have all of its rows but those of the modules that are split.

    Returns the bytes that all taps together held at most. Dropout is off, no gradient is kept, and the hooks are off
    afterwards, whatever happens. Where an accelerator's memory does not hold a batch, it is run again in halves. Raises
    :class:`ModelError` where the model's own code fails.
    """
    taps = [*norms, *(tap for stream in streams for tap in stream.taps)]
    ranks, held = Ranks(), 0
    turn, turns = (ranks.rank, ranks.size) if model.tensor_parallel is None else (0, 1)
    with ExitStack() as hooks, torch.no_grad():
        hooks.enter_context(evaluating(model.module))
        watched: list[NormTap | StreamTaps] = [*norms, *streams]
        for each in watched:
            for undo in each.attach(model.module):
                hooks.callback(undo)
        batches, total, ended = iter(inputs.batches(wanted)), 0, False
        while not ended and (group := list(itertools.islice(batches, turns))):
            tell(Step("forward", min(main.samples, wanted), wanted, "rows"))
            seen, before = main.samples, [tap.state() for tap in taps]
            if turn < len(group):
                _feed(model, moved(group[turn], *place), taps)
            held = max(held, sum(tap.rows.nbytes for tap in taps))
            for other, taken in enumerate(ranks.exchange(main.samples - seen)[: len(group)]):
                total += taken
                ended = inputs.open_ended and (total >= wanted or not taken)
                if ended and other < turn:  # one process alone would have ended before this batch
                    for tap, state in zip(taps, before, strict=True):
                        tap.restore(state)
                if ended:
                    break
    if ranks.size > 1:
        parts = (
            taps if model.tensor_parallel is None else [tap for tap in norms if tap.path in model.tensor_parallel.split]
        )
        for tap in parts:
            tap.all_of(ranks.exchange(tap.share()))
    return held


def _feed(model: Model, batch: Any, taps: Sequence[Tap]) -> None:
    """One batch; in halves where it does not fit, with what the taps had taken of it taken back."""
    masks = padding_masks(batch)
    before = [tap.state() for tap in taps]
    for tap in taps:
        tap.masks = masks
    try:
        arguments = call_arguments(model.core, batch)
        _ = model.core(**arguments) if isinstance(arguments, Mapping) else model.core(*arguments)
    except torch.OutOfMemoryError as error:
        if model.tensor_parallel is not None:  # the others are in the middle of the same batch
            raise ModelError(
                f"{model.name}: a batch does not fit into the device's memory: give a smaller --deaddir-batch-size: {error}"
            ) from error
        halves = halved(batch)
        if halves is None:
            raise ModelError(
                f"{model.name}: the smallest batch that can be made does not fit into the device's memory: {error}"
            ) from error
        for tap, state in zip(taps, before, strict=True):
            tap.restore(state)
        torch.cuda.empty_cache()
    except ModelError:
        raise
    except Exception as error:  # the model's own code runs here, so anything can be raised
        raise ModelError(f"{model.name}: its forward pass fails: {type(error).__name__}: {error}") from error
    else:
        return
    for half in halves:
        _feed(model, half, taps)


def call_arguments(core: nn.Module, batch: Any) -> Any:
    """The batch, with a transformers model's cache switched off: nothing is generated here."""
    cached = isinstance(batch, Mapping) and hasattr(getattr(core, "config", None), "use_cache")
    return {"use_cache": False, **batch} if cached else batch


def padding_masks(batch: Any) -> list[torch.Tensor]:
    """The attention masks of a batch that leave anything out, (B, T), true where a token counts."""
    if not isinstance(batch, Mapping):
        return []
    masks = [value for name, value in batch.items() if name.endswith("attention_mask") and torch.is_tensor(value)]
    return [mask.bool() for mask in masks if mask.dim() == 2 and not mask.all()]
