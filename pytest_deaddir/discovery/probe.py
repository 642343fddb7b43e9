"""What a norm is, from what it does: a float64 copy is run on random rows and fitted. No name or class decides.

A LayerNorm is y = γ∘(x − mean)/std + β and an RMSNorm y = γ∘x/rms + β, with γ and β the same for every row. The copy's
parameters are replaced by random ones first, so that a scale that lies along another axis, a γ of zero or an untrained
γ ≡ 1 cannot hide what the map is (theory: arXiv 2606.19491; the traps are listed in docs/explanation.md).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from pytest_deaddir.algebra.kernel import kernel_basis
from pytest_deaddir.source.offload import onloaded

Kind = Literal["layernorm", "rmsnorm", "other"]
Convention = Literal["w", "1+w", "none", "fitted"]

#: Relative residual of a fit that is one. Norms that compute in float32 inside reach 1e-7, the wrong map 1e-1.
FIT = 1e-5
#: Large enough that no eps in use (up to 1e-3) shows in float64 at FIT, small enough for a float16 inside.
LARGE = 100.0


@dataclass(frozen=True)
class NormProbe:
    """What :func:`probe` found.

    ``gamma``, ``beta``: effective scale and shift, (features,) float64; None for ``other`` and on the meta device.
    ``axis``: -1, or 1 for the (batch, channels, …) layouts. ``convention``: how the parameter becomes γ.
    ``kernel_error``: |Kᵀ(y − β)|/‖y − β‖ along the kernel K of γ, at rounding level exactly where the kernel is present.
    ``reason``: why the module is ``other``; ``unsuitable``: it does not take the inputs of a norm at all.
    ``layout``: the shape that it was probed at. ``computes_in``: float64, or float32 where that is what it rounds to inside
    whatever it is given, as most RMSNorms and some LayerNorms (Cohere's) do.
    """

    kind: Kind
    reason: str | None = None
    features: int | None = None
    axis: int | None = None
    convention: Convention | None = None
    gamma: np.ndarray | None = None
    beta: np.ndarray | None = None
    gamma_parameter: str | None = None
    beta_parameter: str | None = None
    eps: float | None = None
    kernel_error: float | None = None
    unsuitable: bool = False
    layout: tuple[int, ...] | None = None
    computes_in: str | None = None


def probe(
    module: nn.Module,
    features: int | None = None,
    shape: tuple[int, ...] | None = None,
    arguments: Mapping[str, Any] | Callable[[torch.Tensor], Mapping[str, Any]] | None = None,
) -> NormProbe:
    """Decide whether ``module`` is a LayerNorm, an RMSNorm or something else, and recover its γ and β.

    ``features``: the width to probe at, needed only where no parameter or attribute tells it (default then 64).
    ``shape``: of the inputs that it gets in use, whose rank settles what a norm of channels means.
    ``arguments``: what its forward takes beside the tensor, by name, or a function of that tensor (float64) that gives it.
    The module is not changed and not run; a copy is. On the meta device the kind is found and γ, β are None.
    """
    module = _present(module)
    if arguments is not None:
        module = _with_arguments(module, arguments)
    found = _kind_of(module, features, shape)
    return found if found.kind == "other" else _with_values(found, module)


def _with_arguments(module: nn.Module, arguments: Any) -> nn.Module:
    """A copy that brings the arguments itself."""

    def bring(_module: nn.Module, args: Any, kwargs: Any) -> Any:
        return args, {**kwargs, **(arguments(args[0]) if callable(arguments) else arguments)}

    copied = copy.deepcopy(module)
    copied.register_forward_pre_hook(bring, with_kwargs=True)
    return copied


def probe_alike(module: nn.Module, shape: tuple[int, ...] | None = None) -> NormProbe:
    """:func:`probe`, which finds the kind once for modules of the same class, parameters and settings.

    A model has hundreds of equal norms. Modules that hold hooks, buffers or functions of their own are never taken as equal.
    """
    module = _present(module)
    likeness = _likeness(module, shape)
    if likeness is None:
        return probe(module, shape=shape)
    if likeness not in _KINDS:
        _KINDS[likeness] = _kind_of(module, None, shape)
    found = _KINDS[likeness]
    return found if found.kind == "other" else _with_values(found, module)


_KINDS: dict[Any, NormProbe] = {}


def _likeness(module: nn.Module, shape: tuple[int, ...] | None) -> Any:
    """What decides a module's map besides the values of its parameters; None where that cannot be told."""
    parts: list[Any] = [None if shape is None else (len(shape), shape[-1], shape[1] if len(shape) > 1 else 0)]
    for name, child in module.named_modules():
        plain = {k: v for k, v in vars(child).items() if not k.startswith("_") and k not in ("training", "config")}
        if not all(isinstance(v, (int, float, str, bool, tuple, type(None))) for v in plain.values()):
            return None
        if child._forward_hooks or child._forward_pre_hooks or child._buffers or "forward" in plain:
            return None
        widths = tuple((n, None if p is None else tuple(p.shape)) for n, p in child._parameters.items())
        parts.append((name, type(child), widths, tuple(sorted(plain.items(), key=lambda item: item[0]))))
    return tuple(parts)


def _present(module: nn.Module) -> nn.Module:
    """The module with its values, wherever a limit of memory keeps them; what is no norm is not brought."""
    return onloaded(module) if is_vectors_only(module) else module


def is_vectors_only(module: nn.Module) -> bool:
    """Whether a module's parameters, if any, are few vectors: what could be a norm."""
    return _hopeless(module) is None


def _kind_of(module: nn.Module, features: int | None, shape: tuple[int, ...] | None) -> NormProbe:
    if reason := _hopeless(module):
        return NormProbe("other", reason)
    has_vectors = any(parameter.numel() > 1 for parameter in module.parameters())
    widths = _widths(module)
    if shape is not None and not has_vectors:
        widths = [shape[-1], shape[1]] if len(shape) > 2 else [shape[-1]]
    found = NormProbe("other", "it has no width to probe at")
    for width in [features] if features else widths:
        for axis, layout in _layouts(width):
            if shape is not None and len(layout) != len(shape):
                continue
            if shape is not None and shape[axis] != width:
                continue
            result = _probe_at(module, width, axis, layout)
            if result.kind != "other" and not has_vectors:
                return result
            if found.kind == "other":
                found = result
            if result.kind == "other" and not result.unsuitable and has_vectors:
                return result  # GroupNorm(1, C) is a LayerNorm on (N, C), and no norm of one axis on (N, C, T)
        if found.kind != "other":
            return found
    return found


def _hopeless(module: nn.Module) -> str | None:
    """What rules a module out without running it. A norm's parameters are vectors, and few."""
    parameters = list(module.parameters())
    for parameter in parameters:
        if sum(n > 1 for n in parameter.shape) > 1:
            return f"it has a parameter of shape {tuple(parameter.shape)}"
        if not parameter.is_floating_point():
            return f"it has a parameter of {parameter.dtype}"
    return f"it has {len(parameters)} parameters" if len(parameters) > 4 else None


def _widths(module: nn.Module) -> list[int]:
    sizes = {parameter.numel() for parameter in module.parameters() if parameter.numel() > 1}
    for child in module.modules():
        shape = getattr(child, "normalized_shape", None)
        if isinstance(shape, (tuple, list)) and shape and isinstance(shape[-1], int):
            sizes.add(shape[-1])
    return sorted(sizes, reverse=True) or [64]


def _layouts(width: int) -> list[tuple[int, tuple[int, ...]]]:
    """Feature axis and input shape to try: sequences, rows, heads; then images and signals, whose channels are axis 1."""

    def unlike(size: int) -> int:  # a second dimension of the same size would leave open which one is normalised
        return size + 1 if size == width else size

    return [
        (-1, (2, unlike(24), width)),
        (-1, (2, unlike(3), unlike(8), width)),
        (-1, (2, unlike(3), 2, unlike(4), width)),
        (1, (2, width, unlike(4), unlike(6))),
        (1, (4, width, unlike(12))),
        (-1, (unlike(48), width)),  # last, since here axis 1 is the last axis
    ]


def _probe_at(module: nn.Module, width: int, axis: int, shape: tuple[int, ...]) -> NormProbe:
    copied = _float64_copy(module)
    planted = _plant(copied, torch.Generator().manual_seed(0))
    if any(values.numel() not in (1, width) for values in planted.values()):
        return NormProbe("other", f"its parameters are not all of width {width}", unsuitable=True)
    x = _random_rows(shape, axis)

    y, problem = _run(copied, LARGE * x)
    if y is None:
        return NormProbe("other", problem, unsuitable=True)
    rows, outputs = _rows(x, axis), _rows(y, axis)
    candidates: list[tuple[Kind, torch.Tensor]] = [
        ("layernorm", _standardised(rows)),
        ("rmsnorm", _over_rms(rows)),
    ]
    for kind, normalised in candidates:
        fitted = _fit(normalised, outputs)
        if fitted is None:
            continue
        found = _explain(*fitted, planted, width)
        if found is None:
            return NormProbe("other", "its scale does not lie along the axis that it normalises")
        eps = _eps(copied, x, axis, normalised, *fitted)
        if eps is None:
            return NormProbe("other", "it normalises only inputs of some magnitude")
        precision = _precision(copied, x)
        return replace(found, kind=kind, features=width, axis=axis, eps=eps, layout=shape, computes_in=precision)
    return NormProbe("other", "its output is not a fixed scale and shift of the centred or plain normalised input")


def _float64_copy(module: nn.Module) -> nn.Module:
    """A copy to experiment on; on the meta device, whose tensors hold nothing, with storage of its own."""
    on_meta = any(tensor.is_meta for tensor in module.parameters())
    copied = copy.deepcopy(module)
    copied = copied.to_empty(device="cpu") if on_meta else copied.cpu()
    return copied.double().eval().requires_grad_(False)


def _plant(module: nn.Module, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Random values for every parameter, away from 0 and 1; returns them by name, flattened."""
    for parameter in module.parameters():
        parameter.data = torch.rand(parameter.shape, generator=generator, dtype=torch.float64, device="cpu") + 1.5
    return {name: parameter.data.flatten() for name, parameter in module.named_parameters()}


def _run(module: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor | None, str | None]:
    try:
        with torch.no_grad():
            y = module(x.clone())
    except Exception as error:  # whatever a stranger's module raises on one plain tensor, it is not a norm of it
        return None, f"it cannot be called with one tensor: {type(error).__name__}: {str(error).splitlines()[:1]}"
    if not isinstance(y, torch.Tensor):
        return None, f"it returns a {type(y).__name__}"
    if y.shape != x.shape:
        return None, f"it turns {tuple(x.shape)} into {tuple(y.shape)}"
    if not torch.isfinite(y).all():
        return None, "its output is not finite"
    return y.double(), None


def _random_rows(shape: tuple[int, ...], axis: int) -> torch.Tensor:
    """Rows of unlike sizes around a mean of one, so that the two kinds of norm differ on them."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu") + 1.0
    return x * (torch.rand(_row_shape(shape, axis), generator=generator, dtype=torch.float64, device="cpu") + 0.5)


def _row_shape(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    sizes = list(shape)
    sizes[axis] = 1
    return tuple(sizes)


def _rows(x: torch.Tensor, axis: int) -> torch.Tensor:
    return x.movedim(axis, -1).reshape(-1, x.shape[axis])


def _standardised(rows: torch.Tensor) -> torch.Tensor:
    centred = rows - rows.mean(-1, keepdim=True)
    return centred / centred.square().mean(-1, keepdim=True).sqrt()


def _over_rms(rows: torch.Tensor) -> torch.Tensor:
    return rows / rows.square().mean(-1, keepdim=True).sqrt()


def _fit(normalised: torch.Tensor, outputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Least squares of outputs = γ∘normalised + β over the rows, per coordinate; None where that is not what it is."""
    centre, output_centre = normalised.mean(0), outputs.mean(0)
    deviation = normalised - centre
    gamma = (deviation * (outputs - output_centre)).sum(0) / deviation.square().sum(0)
    beta = output_centre - gamma * centre
    residual = outputs - (gamma * normalised + beta)
    spread = (outputs - output_centre).norm()
    if not spread > FIT * outputs.norm() or not residual.norm() <= FIT * spread:
        return None
    return gamma, beta


def _explain(gamma: torch.Tensor, beta: torch.Tensor, planted: dict[str, torch.Tensor], width: int) -> NormProbe | None:
    """Which parameter is γ, under which convention, and which is β. None where a vector parameter acts on another axis."""

    def matches(values: torch.Tensor, target: torch.Tensor) -> bool:
        return values.numel() == width and bool((values - target).abs().max() <= 1e-4 * target.abs().max().clamp(min=1))

    found = NormProbe("other")
    for name, values in planted.items():
        if matches(values, gamma):
            found = replace(found, convention="w", gamma_parameter=name)
        elif matches(1 + values, gamma):
            found = replace(found, convention="1+w", gamma_parameter=name)
        elif matches(values, beta):
            found = replace(found, beta_parameter=name)
    if found.gamma_parameter:
        return found
    uniform = bool((gamma - gamma.mean()).abs().max() <= 1e-4 * gamma.abs().max())
    if uniform:
        vectors = [n for n, values in planted.items() if values.numel() == width and n != found.beta_parameter]
        return None if vectors else replace(found, convention="none")
    return replace(found, convention="fitted")


def _eps(
    module: nn.Module, x: torch.Tensor, axis: int, normalised: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor
) -> float | None:
    """eps, from how the output shrinks with the input: ‖y − β‖² is var/(var + eps) of its size without eps.

    0.0 where no shrinking shows down to a scale of 1e-8. None where the map at unit scale is another one altogether.
    """
    rows = _rows(x, axis)
    plain = (normalised * gamma).norm(dim=-1)
    centred = rows - rows.mean(-1, keepdim=True)
    is_centred = bool(torch.allclose(_standardised(rows), normalised))
    variance = (centred if is_centred else rows).square().mean(-1)
    for scale in 10.0 ** np.arange(0, -8.5, -0.5):
        y, _ = _run(module, float(scale) * x)
        if y is None:
            return None
        shift_free = _rows(y, axis) - beta
        ratio = (shift_free.norm(dim=-1) / plain).square()
        if scale == 1.0 and not bool(((ratio > 0.9) & (ratio < 1 + 1e-3)).all()):
            return None  # an L2 clip normalises large rows only
        if bool((ratio < 0.9).all()):
            estimates = variance * scale**2 * (1 / ratio.clamp(min=1e-30) - 1)
            middle = estimates.median()
            return float(f"{middle:.3g}") if bool(((estimates / middle - 1).abs() < 0.2).all()) else None
    return 0.0


def _precision(module: nn.Module, x: torch.Tensor) -> str:
    """float32 where differences that float32 does not see change nothing of the output, else float64."""
    representable = x.float().double()
    changes = 1e-12 * torch.rand(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64, device="cpu")
    one, _ = _run(module, representable)
    other, _ = _run(module, representable * (1 + changes))
    return "float32" if one is not None and other is not None and torch.equal(one, other) else "float64"


def _with_values(found: NormProbe, module: nn.Module) -> NormProbe:
    """The module's own γ and β, from the parameters that were recognised, and its kernel error on a copy that has them."""
    if any(tensor.is_meta for tensor in module.parameters()):
        return found
    assert found.layout is not None
    assert found.axis is not None
    parameters = {name: p.detach().double().cpu().flatten().numpy() for name, p in module.named_parameters()}
    width = found.layout[found.axis]
    beta = parameters[found.beta_parameter].copy() if found.beta_parameter else np.zeros(width)
    x = _random_rows(found.layout, found.axis)
    y, _ = _run(_float64_copy(module), LARGE * x)
    outputs = None if y is None else _rows(y, found.axis)
    if found.gamma_parameter:
        gamma = parameters[found.gamma_parameter] + (1.0 if found.convention == "1+w" else 0.0)
    else:  # no parameter is γ: it is what the outputs show, the same for every coordinate where none acts at all
        normalised = (_standardised if found.kind == "layernorm" else _over_rms)(_rows(x, found.axis))
        fitted = None if outputs is None else _fit(normalised, outputs)
        if fitted is None:
            return found
        gamma = fitted[0].numpy() if found.convention == "fitted" else np.full(width, float(fitted[0].mean()))
    found = replace(found, gamma=gamma, beta=beta)
    if outputs is None or not np.isfinite(gamma).all() or not np.isfinite(beta).all():
        return found
    shift_free = outputs.numpy() - beta
    size = float(np.linalg.norm(shift_free))
    error = float(np.linalg.norm(shift_free @ kernel_basis(gamma))) / size if size else None
    return replace(found, kernel_error=error)
