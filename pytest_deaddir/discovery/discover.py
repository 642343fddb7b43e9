"""Every norm of a module, every residual stack, and which norm is what: by values in a watched forward pass where one can
run, by structure where none can."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from pytest_deaddir.discovery.names import final_path, natural_key, role_of, stack_of
from pytest_deaddir.discovery.probe import NormProbe, is_vectors_only, probe_alike
from pytest_deaddir.discovery.stacks import Chain, Stack, chains, is_projection, structural, style_of, under
from pytest_deaddir.discovery.trace import Call, Trace, watch
from pytest_deaddir.source.offload import is_abstract


@dataclass(frozen=True)
class NormSite:
    """One norm at one path. ``role``: final | block | qk | embedding | pooler | other; ``how``: what decided it.

    ``class_name`` is for people and decides nothing. ``stack``: path of the stack in whose blocks it lies.
    """

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
    """What a module is made of.

    ``norms``: in the order of execution where that was seen, else of registration. ``stacks``: likewise, a stack inside
    another's blocks behind it. ``final_norm``: path of the norm whose output the module returns, None where none does.
    ``how``: values | identity (meta device) | structure, with the reason why no forward pass could run.
    """

    norms: list[NormSite]
    stacks: list[Stack]
    final_norm: str | None
    how: str

    @property
    def final(self) -> NormSite | None:
        """The site of :attr:`final_norm`."""
        return next((norm for norm in self.norms if norm.path == self.final_norm), None)

    def below(self, prefix: str) -> Discovery:
        """The same, with the paths that a module has which holds this one at ``prefix``."""
        if not prefix:
            return self

        def moved(path: str | None) -> str | None:
            return None if path is None else f"{prefix}.{path}" if path else prefix

        return Discovery(
            [replace(n, path=f"{prefix}.{n.path}", stack=moved(n.stack)) for n in self.norms],
            [
                replace(
                    stack,
                    path=moved(stack.path) or prefix,
                    blocks=tuple(f"{prefix}.{block}" for block in stack.blocks),
                    final_norm=moved(stack.final_norm),
                    within=moved(stack.within),
                    ends=tuple(map(moved, stack.ends)),
                )
                for stack in self.stacks
            ],
            moved(self.final_norm),
            self.how,
        )


def discover(module: nn.Module, inputs: Mapping[str, Any] | tuple[Any, ...] | None = None) -> Discovery:
    """Find the norms and residual stacks of ``module``.

    ``inputs``: keyword (mapping) or positional (tuple) arguments of one small forward pass; by default they are made up
    from the transformers config, where there is one. If none can run, structure and names decide, and ``how`` says why.
    A forward pass that fails on inputs which the caller gave raises what it raised. The module is left as it was.
    """
    modules = dict(module.named_modules())
    trace: Trace | None = None
    reason = "no inputs"
    if inputs is not None:
        trace = watch(module, inputs, lambda path: is_vectors_only(modules[path]))
    elif any(getattr(module, name, None) is not None for name in ("config", "pretrained_cfg")):  # transformers', timm's
        from pytest_deaddir.source.synthetic import synthetic_inputs

        try:
            made = synthetic_inputs(module)
            trace = watch(module, made, lambda path: is_vectors_only(modules[path]))
        except Exception as error:  # the model's own code runs on inputs that we made up
            reason = f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}"
    if trace is None:
        return _by_structure(module, modules, reason)
    return _by_values(module, modules, trace)


# --- by values ------------------------------------------------------------------------------------------------------


def _by_values(module: nn.Module, modules: Mapping[str, nn.Module], trace: Trace) -> Discovery:
    calls = {path: made[0] for path, made in trace.by_path.items() if _is_norm_call(made[0], modules[path])}
    probes = _norms_only({path: probe_alike(modules[path], call.shape) for path, call in calls.items()})
    norm_calls = {path: calls[path] for path in probes}
    found = chains(module, trace, probes)
    outer = [c for c in found if not any(c is not o and under(c.path, o.path) for o in found)]
    starts = sorted(chain.calls[0].started for chain in outer)
    finals = {chain.path: _final_of(chain, trace, norm_calls, starts) for chain in outer}
    final, final_how = _returned(trace, norm_calls, outer, finals)
    how = "identity" if is_abstract(module) else "values"
    stacks = [_stack(chain, found, finals, trace, norm_calls, probes, modules, how) for chain in found]
    stacks.sort(key=lambda stack: (stack.within is not None, trace.by_path[stack.blocks[0]][0].started))
    closing = {path: why for path, why in finals.values() if path is not None}
    if final is not None:
        closing[final] = final_how
    norms = []
    for path, found_probe in probes.items():
        stack = next((c for c in outer if any(under(path, block.path) for block in c.calls)), None)
        role, role_how = _role(path, found_probe, trace, norm_calls, outer, stack, modules)
        if path in closing:
            role, role_how = "final", closing[path]
        norms.append(_site(path, found_probe, role, role_how, stack.path if stack else None, modules))
    return Discovery(norms, stacks, final, how)


def _is_norm_call(call: Call, module: nn.Module) -> bool:
    """A norm maps one tensor to one of its shape. Whatever is given a second one (a gate, a condition) is none: with the
    second left out, as a probe must, many such modules would look like one."""
    return call.keeps_shape and len(set(call.taken)) == 1 and is_vectors_only(module)


def _norms_only(probes: Mapping[str, NormProbe]) -> dict[str, NormProbe]:
    """Without what is none; a norm that wraps another (γ = 1 + w around an affine-less LayerNorm) is one site, the outer."""
    norms = {path: found for path, found in probes.items() if found.kind != "other"}
    return {p: found for p, found in norms.items() if not any(p != outer and under(p, outer) for outer in norms)}


def _final_of(chain: Chain, trace: Trace, norms: Mapping[str, Call], starts: list[int]) -> tuple[str | None, str]:
    """The norm that closes a stack: one whose output a module around the stack returns, else one that takes the output of
    its last block, in both cases before the next stack begins."""
    last = chain.calls[-1]
    until = next((start for start in starts if start > last.finished), None)
    near = [
        call
        for call in norms.values()
        for call in trace.by_path[call.path]
        if (under(call.path, last.path) and call.started > last.started)
        or (call.started > last.finished and (until is None or call.started < until))
    ]
    around = chain.path
    while around:
        around = around.rpartition(".")[0]
        for returned in trace.by_path.get(around, ()) if around else ():
            for call in near:
                if returned.finished > last.finished and call.given == returned.given:
                    return call.path, f"its output is what {around} returns"
    for call in near:
        if trace.returned is not None and (call.given == trace.returned or call.sorted_key == trace.returned_sorted):
            return call.path, "its output is what the model returns"
    for call in near:
        if call.given == last.given:
            return call.path, "its output is what the last block gives"
    if trace.returned == last.given:
        return None, "the model returns what the last block gives"
    for call in near:
        if last.given in call.taken:
            return call.path, "it takes what the last block gives"
    return None, "no norm"


def _returned(
    trace: Trace, norms: Mapping[str, Call], outer: list[Chain], finals: Mapping[str, tuple[str | None, str]]
) -> tuple[str | None, str]:
    """The norm whose output the module returns. A module that returns logits closes with its last stack's norm."""
    calls = sorted((c for path in norms for c in trace.by_path[path]), key=lambda call: call.finished, reverse=True)
    for call in calls:
        if trace.returned is not None and call.given == trace.returned:
            return call.path, "its output is what the model returns"
    for call in calls:
        if trace.returned_sorted is not None and call.sorted_key == trace.returned_sorted:
            return call.path, "its output is what the model returns, in another layout"
    for call in calls:
        if trace.returned_rows and trace.returned_rows < call.rows:
            return call.path, "the model returns some rows of its output"
    if trace.returned_hidden:
        return None, "no norm's output is what the model returns"
    if outer:
        last_chain = max(outer, key=lambda chain: chain.calls[-1].finished)
        if finals[last_chain.path][0] is not None:
            return finals[last_chain.path]
        block = last_chain.calls[-1]
        widths = {_width(block), block.given_shape[-1]}
        pooled = [c for c in calls if c.started > block.finished and widths & {c.shape[-1], c.shape[1]}]
        if pooled:  # timm's fc_norm and head.norm
            first = min(pooled, key=lambda call: call.started)
            return first.path, "it normalises what is pooled from the last block"
        return finals[last_chain.path]
    widest = max((call.shape[-1] for call in calls), default=None)
    last = max((c for c in calls if c.shape[-1] == widest), key=lambda call: call.finished, default=None)
    return (last.path, "last executed") if last else (None, "no norm")


def _stack(
    chain: Chain,
    found: list[Chain],
    finals: Mapping[str, tuple[str | None, str]],
    trace: Trace,
    norms: Mapping[str, Call],
    probes: Mapping[str, NormProbe],
    modules: Mapping[str, nn.Module],
    how: str,
) -> Stack:
    holders = [other.path for other in found if other is not chain and under(chain.path, other.path)]
    block = chain.calls[len(chain.calls) // 2]  # the first and last may differ
    own = {
        path: call
        for path in norms
        if under(path, block.path)
        for call in reversed(trace.by_path[path])
        if block.started < call.started < block.finished and _on_stream(path, call, trace, probes, block, modules)
    }
    given = {call.given: path for path in norms for call in trace.by_path[path]}
    axis = _axis(block, [found.features for path, found in probes.items() if under(path, block.path)])
    return Stack(
        path=chain.path,
        blocks=tuple(call.path for call in chain.calls),
        final_norm=finals.get(chain.path, (None, ""))[0],
        style=style_of(block, trace, own, modules),
        how=how,
        within=max(holders, key=len) if holders else None,
        width=block.given_shape[axis],
        axis=axis,
        ends=tuple(given.get(key) for key in (next(iter(chain.calls[0].taken), None), *(c.given for c in chain.calls))),
    )


def _width(block: Call) -> int:
    """The stream's width: a block's last dimension; the channels of one that gives images (B, C, H, W)."""
    return block.given_shape[1] if len(block.given_shape) == 4 else block.given_shape[-1]


def _axis(block: Call, features: list[int | None]) -> int:
    """Of the stream's features: the last, but the channels of a block that gives images (B, C, H, W)."""
    return 1 if len(block.given_shape) == 4 and block.given_shape[-1] not in features else -1


def _on_stream(
    path: str,
    call: Call,
    trace: Trace,
    probes: Mapping[str, NormProbe],
    block: Call,
    modules: Mapping[str, nn.Module],
) -> bool:
    """Whether a norm in a block normalises the residual stream or a sublayer's output, and not queries, keys or latents.

    Those have another width, or take straight from a projection what the sublayer around them does not return.
    """
    if probes[path].features not in (_width(block), block.given_shape[-1]):
        return False
    inside = [c for c in trace.calls if block.started < c.started and c.finished < block.finished]
    for projection in inside:
        if projection.given in call.taken and is_projection(modules[projection.path]):
            around = [c for c in inside if c.started < projection.started and call.finished < c.finished]
            if around and not any(c.given == call.given for c in around):
                return False
    return True


def _role(
    path: str,
    found: NormProbe,
    trace: Trace,
    norms: Mapping[str, Call],
    outer: list[Chain],
    stack: Chain | None,
    modules: Mapping[str, nn.Module],
) -> tuple[str, str]:
    """The role of a norm that closes no stream."""
    call = norms[path]
    if stack is not None:
        block = next(block for block in stack.calls if under(path, block.path))
        if _on_stream(path, call, trace, {path: found}, block, modules):
            return "block", "inside a block, on its residual stream"
        narrow = (found.features or 0) <= _width(block)
        return ("qk" if narrow else "other"), "inside a block, off its residual stream"
    before = [chain for chain in outer if chain.calls[-1].finished < call.started]
    behind = [chain for chain in outer if call.finished < chain.calls[0].started]
    if any(under(path, chain.path.rpartition(".")[0]) for chain in behind if "." in chain.path) or not before:
        first = min(behind, key=lambda chain: chain.calls[0].started, default=None)
        if first and found.features in (_width(first.calls[0]), *first.calls[0].shape[-1:]):
            return "embedding", "before the first block"
    if before:
        stream = max(before, key=lambda chain: chain.calls[-1].finished).calls[-1]
        if _size(call.shape) < _size(stream.given_shape):
            return "pooler", "behind the blocks, on fewer rows"
        return "other", "behind the blocks"
    return "other", "outside every stack"


def _size(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


def _site(
    path: str, found: NormProbe, role: str, how: str, stack: str | None, modules: Mapping[str, nn.Module]
) -> NormSite:
    return NormSite(path, found.kind, role, how, type(modules[path]).__name__, stack, found.features or 0, found)


# --- by structure ---------------------------------------------------------------------------------------------------


def _by_structure(module: nn.Module, modules: Mapping[str, nn.Module], reason: str) -> Discovery:
    how = f"structure ({reason})"
    candidates = {path: child for path, child in modules.items() if path and is_vectors_only(child)}
    probes = _norms_only({path: probe_alike(child) for path, child in candidates.items()})
    found = structural(module, probes)
    outer = [entry for entry in found if not any(entry is not o and under(entry[0], o[0]) for o in found)]
    final = final_path(sorted(probes, key=natural_key), {path: p.features or 0 for path, p in probes.items()})
    stacks = [
        Stack(
            path=path,
            blocks=blocks,
            final_norm=final if final and under(final, path.rpartition(".")[0]) else None,
            style="other",
            how=how,
            within=next((o for o, _ in outer if o != path and under(path, o)), None),
        )
        for path, blocks in found
    ]
    return Discovery(
        [_site(path, p, role_of(path, path == final), how, stack_of(path), modules) for path, p in probes.items()],
        stacks,
        final,
        how,
    )
