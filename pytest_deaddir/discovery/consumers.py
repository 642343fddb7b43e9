"""Who reads a norm's output: the linear maps that take it as it is, and whether anything else does.

One small forward pass is watched below every module, where torch dispatches its operations: each tensor carries the paths
of the norms that it depends on, and a linear map that takes a norm's output takes that path away from what it gives. What
still carries it where the model returns has another use (a residual stream, a gate). Names decide nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_deaddir.discovery.discover import NormSite
from pytest_deaddir.discovery.stacks import under
from pytest_deaddir.discovery.trace import Key, Keys, evaluating, floating

#: Rows on which a module's output is compared with that of the linear map that its weight would be.
ROWS = 8
#: Largest relative difference of the two: what rounding makes of it is far below, another map far above.
LINEAR = {torch.bfloat16: 0.05, torch.float16: 0.05, torch.float32: 1e-3, torch.float64: 1e-6}


@dataclass(frozen=True)
class Consumer:
    """A linear map whose input is a norm's output, in every one of its calls.

    ``weight``, ``bias``: names of its parameters, as the module that was watched has them; ``bias`` is None where there
    is none, or where something else uses it too. ``transposed``: the weight is (d, outputs) and not (outputs, d).
    ``tied``: something else uses the weight too (an embedding, a second head), so it cannot be moved by itself.
    """

    path: str
    weight: str
    bias: str | None
    outputs: int
    transposed: bool
    tied: bool


@dataclass(frozen=True)
class Uses:
    """What becomes of one norm's output.

    ``consumers``: in the order of execution. ``only``: it is known that nothing else uses the output. ``shift``: name of
    the norm's β where only the norm uses it. ``dtype``: of the output; None where the norm was not run.
    """

    consumers: tuple[Consumer, ...] = ()
    only: bool = False
    shift: str | None = None
    dtype: torch.dtype | None = None


def find_consumers(
    module: nn.Module,
    sites: Iterable[NormSite],
    inputs: Mapping[str, Any] | tuple[Any, ...],
    whole: nn.Module | None = None,
) -> dict[str, Uses]:
    """The uses of each site's output, by path, seen in one forward pass of ``module`` in eval mode without gradients.

    ``sites``: with paths in ``module``. ``inputs``: keyword (mapping) or positional arguments; a few rows are enough.
    ``whole``: what ``module`` is a part of, where ties with the rest count. Raises what the forward pass raises.
    The module is left as it was.
    """
    watch = _Watch(module, {site.path: site for site in sites})
    with ExitStack() as undo:
        undo.enter_context(evaluating(module))
        for path, child in module.named_modules():
            undo.callback(child.register_forward_pre_hook(watch.before(path), with_kwargs=True).remove)
            undo.callback(child.register_forward_hook(watch.after(path), with_kwargs=True).remove)
        with torch.no_grad(), watch.flow:
            output = module(**inputs) if isinstance(inputs, Mapping) else module(*inputs)
    watch.flow.used_otherwise |= watch.flow.sources(_tensors(output))
    registered = _owners(whole if whole is not None else module)
    return {path: watch.uses(site, registered) for path, site in watch.sites.items()}


class _Flow(TorchDispatchMode):
    """Follows which norms each tensor depends on, by its storage: views share it, and writes into it add to it."""

    def __init__(self, parameters: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.of: dict[StorageWeakRef, frozenset[str]] = {}  # a weak reference keeps an identity from being used again
        self.users: dict[StorageWeakRef, set[str]] = {_storage(p): set() for p in parameters}
        self.used_otherwise: set[str] = set()
        self.running = [""]
        self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation; what it gives depends on all that it takes."""
        output = func(*args, **(kwargs or {}))
        if self.paused:
            return output
        taken = list(_tensors((args, kwargs)))
        for tensor in taken:
            users = self.users.get(_storage(tensor))
            if users is not None:
                users.add(self.running[-1])
        sources = self.sources(taken)
        if sources:
            given = list(_tensors(output))
            if not given and func._schema.is_mutable:
                given = taken  # it writes into what it took
            for tensor in given:
                self.add(tensor, sources)
            if not given:
                self.used_otherwise |= sources  # a number that Python code goes on with
        return output

    def sources(self, tensors: Iterable[torch.Tensor]) -> frozenset[str]:
        """The norms that any of these depend on."""
        return frozenset[str]().union(*(self.of.get(_storage(tensor), frozenset()) for tensor in tensors))

    def add(self, tensor: torch.Tensor, sources: frozenset[str]) -> None:
        """Let ``tensor`` depend on these too."""
        key = _storage(tensor)
        self.of[key] = self.of.get(key, frozenset()) | sources


@dataclass
class _Seen:
    """One module's calls as a linear map: the site whose output it took in each, None where it was none's."""

    took: list[str | None] = field(default_factory=list)
    transposed: bool = False
    adds_bias: bool = False


class _Watch:
    """The hooks of one pass, and what they saw."""

    def __init__(self, module: nn.Module, sites: dict[str, NormSite]) -> None:
        self.sites = sites
        self.parameters = dict(module.named_parameters(remove_duplicate=False))
        self.flow = _Flow(self.parameters.values())
        self.keys = Keys()
        self.rows: dict[str, frozenset[Key]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self.seen: dict[str, _Seen] = defaultdict(_Seen)
        self.open: dict[str, list[str | None]] = defaultdict(list)

    def before(self, path: str) -> Any:
        def hook(child: nn.Module, args: Any, kwargs: Any) -> None:
            self.flow.running.append(path)
            if _weight(child) is not None:
                self.flow.paused = True
                self.open[path].append(self._source(child, list(floating((args, kwargs)))))
                self.flow.paused = False

        return hook

    def after(self, path: str) -> Any:
        def hook(child: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self.flow.running.pop()
            self.flow.paused = True
            given = next(floating(output), None)
            if given is not None and path in self.sites:
                self._norm(self.sites[path], given)
            if _weight(child) is not None:
                source = self.open[path].pop()
                taken = list(floating((args, kwargs)))
                if source is not None and not (given is not None and self._is_linear(path, child, taken[0], given)):
                    source = None
                self.seen[path].took.append(source)
                for tensor in _tensors(output) if source is not None else ():
                    self.flow.of[_storage(tensor)] = self.flow.sources(taken) - {source}
            self.flow.paused = False

        return hook

    def _norm(self, site: NormSite, output: torch.Tensor) -> None:
        rows = self._rows(output.movedim(site.probe.axis or -1, -1))
        # the latest behind the others, so that of two norms with the same values the latest is taken
        self.rows[site.path] = self.rows.pop(site.path, frozenset()) | rows
        self.dtypes[site.path] = output.dtype
        self.flow.add(output, frozenset([site.path]))

    def _rows(self, tensor: torch.Tensor) -> frozenset[Key]:
        return self.keys.of_rows(tensor.detach().to("cpu", torch.float64))  # equal after a widening cast

    def _source(self, child: nn.Module, taken: Sequence[torch.Tensor]) -> str | None:
        """The site of which each row of the one tensor taken is a row: through reshapes, selections and copies."""
        if len(taken) != 1 or taken[0].dim() < 2 or taken[0].shape[-1] not in _weight(child).shape:  # type: ignore[union-attr]
            return None
        sources = self.flow.sources(taken)
        rows = self._rows(taken[0]) if sources else frozenset()
        matching = [path for path in self.rows if path in sources and rows and rows <= self.rows[path]]
        return matching[-1] if matching else None

    def _is_linear(self, path: str, child: nn.Module, taken: torch.Tensor, given: torch.Tensor) -> bool:
        """Whether it gave what its weight, and its bias where it has one, make of what it took; by values, on a few rows."""
        weight, bias = _weight(child), child._parameters.get("bias")
        assert weight is not None
        x = taken.detach().reshape(-1, taken.shape[-1])[:ROWS].to(weight.dtype)
        y = given.detach().reshape(-1, given.shape[-1])[:ROWS].double()
        limit = LINEAR.get(weight.dtype, 0.0) * float(y.norm())
        found = []
        for transposed in (False, True):
            inputs, outputs = weight.shape if transposed else weight.shape[::-1]
            if (inputs, outputs) != (x.shape[1], y.shape[1]) or len(x) != len(y):
                continue
            product = (x @ (weight if transposed else weight.T)).double()
            found.append((float((product - y).norm()), transposed, False))
            if bias is not None and bias.shape == (outputs,):
                found.append((float((product + bias.double() - y).norm()), transposed, True))
        error, transposed, adds_bias = min(found, key=lambda fit: (fit[0], not fit[2]), default=(1.0, False, False))
        self.seen[path].transposed, self.seen[path].adds_bias = transposed, adds_bias
        return bool(found) and error <= limit

    def uses(self, site: NormSite, registered: Mapping[StorageWeakRef, set[int]]) -> Uses:
        """What was seen of one site."""

        def is_free(name: str, path: str) -> bool:
            storage = _storage(self.parameters[name])
            users = self.flow.users[storage]
            return len(registered.get(storage, ())) <= 1 and all(user == path or under(user, path) for user in users)

        takers = [path for path, seen in self.seen.items() if site.path in seen.took]
        wholly = [path for path in takers if set(self.seen[path].took) == {site.path}]
        consumers = []
        for path in wholly:
            seen, prefix = self.seen[path], f"{path}." if path else ""
            weight = self.parameters[f"{prefix}weight"]
            bias = f"{prefix}bias" if seen.adds_bias and is_free(f"{prefix}bias", path) else None
            consumers.append(
                Consumer(
                    path=path,
                    weight=f"{prefix}weight",
                    bias=bias,
                    outputs=weight.shape[1 if seen.transposed else 0],
                    transposed=seen.transposed,
                    tied=not is_free(f"{prefix}weight", path),
                )
            )
        beta = site.probe.beta_parameter
        shift = None if beta is None else f"{site.path}.{beta}" if site.path else beta
        return Uses(
            consumers=tuple(consumers),
            only=bool(wholly) and takers == wholly and site.path not in self.flow.used_otherwise,
            shift=shift if shift is not None and is_free(shift, site.path) else None,
            dtype=self.dtypes.get(site.path),
        )


def _weight(module: nn.Module) -> torch.Tensor | None:
    """The matrix of what may be a linear map: Linear, transformers' Conv1D, whatever holds one under that name."""
    weight = module._parameters.get("weight")
    is_matrix = weight is not None and weight.dim() == 2 and weight.is_floating_point() and not weight.is_meta
    return weight if is_matrix else None


def _owners(module: nn.Module) -> dict[StorageWeakRef, set[int]]:
    """Which modules have a parameter in each storage."""
    owners: dict[StorageWeakRef, set[int]] = defaultdict(set)
    for child in module.modules():
        for parameter in child._parameters.values():
            if parameter is not None:
                owners[_storage(parameter)].add(id(child))
    return owners


def _storage(tensor: torch.Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor in nested tuples, lists and mappings."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
