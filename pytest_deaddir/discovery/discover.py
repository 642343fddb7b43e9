"""Every norm site of a module, and which one is final: by comparing values in a traced forward, by structure where
none can run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from pytest_deaddir.discovery.names import final_path, role_of, stack_of
from pytest_deaddir.discovery.probe import NormProbe, probe, tensor_of


@dataclass(frozen=True)
class NormSite:
    """One norm at one path. ``how``: what decided its role. ``class_name``: for people, never for decisions."""

    path: str
    kind: str
    role: str
    how: str
    class_name: str
    stack: str | None
    features: int
    probe: NormProbe = field(repr=False)


@dataclass(frozen=True)
class Discovery:
    """What a module is made of: its norms, in the order of execution where that was seen, else of registration."""

    norms: list[NormSite]

    @property
    def final(self) -> NormSite | None:
        """The norm whose output the model returns."""
        return next((norm for norm in self.norms if norm.role == "final"), None)

    def below(self, prefix: str) -> Discovery:
        """The same, with the paths that a module has which holds this one at ``prefix``."""
        if not prefix:
            return self
        return Discovery([_below(norm, prefix) for norm in self.norms])


def _below(norm: NormSite, prefix: str) -> NormSite:
    stack = f"{prefix}.{norm.stack}" if norm.stack else None
    return replace(norm, path=f"{prefix}.{norm.path}", stack=stack)


@dataclass
class _Call:
    """A candidate's first call in the trace."""

    path: str
    features: int
    output: torch.Tensor


def discover(module: nn.Module, inputs: Mapping[str, Any] | tuple[Any, ...] | None = None) -> Discovery:
    """Find the norms of ``module``.

    ``inputs``: keyword (mapping) or positional (tuple) arguments of one small forward pass. With them every module that
    maps a tensor to one of its shape is probed and the final norm is the one whose output is the hidden state that the
    module returns; without them only modules with vector parameters are probed and names decide the roles.
    The module is left as it was: in its training mode, without hooks.
    """
    calls: list[_Call] = []
    returned = None
    if inputs is not None:
        calls, returned = _trace(module, inputs)
    modules = dict(module.named_modules())
    widths = {call.path: call.features for call in calls}
    paths = list(widths) if inputs is not None else [path for path, child in modules.items() if _is_candidate(child)]
    probes = {path: probe(modules[path], widths.get(path)) for path in paths}
    norms = {path: found for path, found in probes.items() if found.kind != "other"}
    # a norm that wraps another (γ = 1 + w around an affine-less LayerNorm) is one site, the outer
    norms = {p: found for p, found in norms.items() if not any(p.startswith(f"{outer}.") for outer in norms if outer)}
    final, how = _final(norms, calls, returned)
    return Discovery(
        [
            NormSite(
                path,
                found.kind,
                role_of(path, path == final),
                how,
                type(modules[path]).__name__,
                stack_of(path),
                found.features or 0,
                found,
            )
            for path, found in norms.items()
        ]
    )


def _is_candidate(module: nn.Module) -> bool:
    """Without a trace: a module that owns vectors and nothing larger."""
    parameters = list(module.parameters())
    return bool(parameters) and all(sum(n > 1 for n in parameter.shape) <= 1 for parameter in parameters)


def _trace(module: nn.Module, inputs: Mapping[str, Any] | tuple[Any, ...]) -> tuple[list[_Call], torch.Tensor | None]:
    """One forward in eval mode with a hook on every module that might be a norm."""
    calls: dict[str, _Call] = {}

    def hook(path: str) -> Any:
        def record(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            taken = tensor_of((*args, *kwargs.values()))
            if path in calls or taken is None or not isinstance(output, torch.Tensor):
                return
            if taken.shape == output.shape and output.is_floating_point() and output.dim() >= 2:
                calls[path] = _Call(path, 0, output.detach().clone())  # a later block may add to it in place

        return record

    was_training = module.training
    with ExitStack() as hooks:
        hooks.callback(module.train, was_training)
        for path, child in module.named_modules():
            if path and not any(sum(n > 1 for n in parameter.shape) > 1 for parameter in child.parameters()):
                handle = child.register_forward_hook(hook(path), with_kwargs=True)
                hooks.callback(handle.remove)
        module.eval()
        with torch.no_grad():
            returned = module(**inputs) if isinstance(inputs, Mapping) else module(*inputs)
    for path, call in calls.items():
        sizes = {p.numel() for p in module.get_submodule(path).parameters() if p.numel() > 1}
        call.features = sizes.pop() if len(sizes) == 1 else call.output.shape[-1]
    hidden = getattr(returned, "last_hidden_state", None)
    return list(calls.values()), hidden if isinstance(hidden, torch.Tensor) else tensor_of(returned)


def _final(norms: Mapping[str, NormProbe], calls: list[_Call], returned: torch.Tensor | None) -> tuple[str | None, str]:
    """The final norm's path and what decided it."""
    if not calls:
        return final_path(list(norms), {path: found.features or 0 for path, found in norms.items()}), "names"
    executed = [call for call in calls if call.path in norms]
    for call in reversed(executed):
        if returned is not None and call.output.shape == returned.shape and torch.equal(call.output, returned):
            return call.path, "its output is the hidden state returned"
    if returned is None or not executed:
        return None, "no hidden state"
    widest = max(call.features for call in executed)
    return next(call.path for call in reversed(executed) if call.features == widest), "last executed"
