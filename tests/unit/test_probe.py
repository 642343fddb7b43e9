"""probe() judges by behaviour: real norms, norms written this morning, and modules that only look like one."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from pytest_deaddir import probe


def filled(module, seed=0):
    """Random parameters away from their initial values, so that nothing is found by luck."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.25)
    return module


class Norm(nn.Module):
    """A norm with every choice that one can make."""

    def __init__(self, width, *, centre=True, plus_one=False, bias=False, eps=1e-6, scale_name="weight", cast=True):
        super().__init__()
        self.register_parameter(scale_name, nn.Parameter(torch.ones(width)))
        self.shift = nn.Parameter(torch.zeros(width)) if bias else None
        self.centre, self.plus_one, self.eps, self.scale_name, self.cast = centre, plus_one, eps, scale_name, cast

    def forward(self, x):
        y = x.float() if self.cast else x
        if self.centre:
            y = y - y.mean(-1, keepdim=True)
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        scale = getattr(self, self.scale_name)
        y = y.to(x.dtype) * ((1 + scale) if self.plus_one else scale)
        return y if self.shift is None else y + self.shift


class ChannelsFirst(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Wrapped(nn.Module):
    """γ = 1 + gamma around an affine-less LayerNorm, as MoonshineStreaming has it."""

    def __init__(self, width):
        super().__init__()
        self.ln = nn.LayerNorm(width, elementwise_affine=False)
        self.gamma = nn.Parameter(torch.zeros(width))

    def forward(self, x):
        return self.ln(x) * (1 + self.gamma)


@pytest.mark.parametrize(
    ("module", "kind", "convention", "axis", "eps"),
    [
        (nn.LayerNorm(32), "layernorm", "w", -1, 1e-5),
        (nn.LayerNorm(32, eps=1e-12, bias=False), "layernorm", "w", -1, 1e-12),
        (nn.LayerNorm(32, elementwise_affine=False), "layernorm", "none", -1, 1e-5),
        (nn.RMSNorm(32, eps=1e-6), "rmsnorm", "w", -1, 1e-6),
        (nn.RMSNorm(32, elementwise_affine=False, eps=1e-6), "rmsnorm", "none", -1, 1e-6),
        (Norm(32), "layernorm", "w", -1, 1e-6),
        (Norm(32, centre=False), "rmsnorm", "w", -1, 1e-6),
        (Norm(32, centre=False, plus_one=True), "rmsnorm", "1+w", -1, 1e-6),
        (Norm(32, plus_one=True, bias=True), "layernorm", "1+w", -1, 1e-6),
        (Norm(32, centre=False, bias=True, scale_name="g", cast=False), "rmsnorm", "w", -1, 1e-6),
        (ChannelsFirst(24), "layernorm", "w", 1, 1e-5),
        (Wrapped(32), "layernorm", "1+w", -1, 1e-5),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_kind_convention_axis_and_eps(module, kind, convention, axis, eps):
    found = probe(filled(module))
    assert (found.kind, found.convention, found.axis) == (kind, convention, axis)
    assert found.eps == pytest.approx(eps, rel=0.02, abs=1e-13)
    assert found.reason is None


@pytest.mark.parametrize("plus_one", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_gamma_and_beta_are_the_effective_ones_to_the_last_bit(plus_one, bias):
    module = filled(Norm(16, plus_one=plus_one, bias=bias))
    found = probe(module)
    assert np.array_equal(found.gamma, module.weight.detach().double().numpy() + plus_one)
    assert np.array_equal(found.beta, module.shift.detach().double().numpy() if bias else np.zeros(16))


def test_a_scale_of_1e_minus_33_is_recovered_exactly():
    module = filled(nn.LayerNorm(16))
    module.weight.data[3] = 4.8e-33
    assert probe(module).gamma[3] == module.weight[3].item()


def test_the_kernel_shows_exactly_in_a_layernorm():
    assert probe(filled(nn.LayerNorm(32))).kernel_error < 1e-15
    assert probe(filled(Norm(32))).kernel_error < 1e-6  # float32 inside
    assert probe(filled(nn.RMSNorm(32))).kernel_error > 0.1


def test_a_zero_or_near_zero_scale_does_not_hide_the_kind():
    """A near-zero γ makes v one-hot, and along it even an RMSNorm's output is small."""
    for value in (0.0, 1e-30):
        for module, kind in ((nn.LayerNorm(16), "layernorm"), (nn.RMSNorm(16), "rmsnorm")):
            module.weight.data[5] = value
            assert probe(module).kind == kind


class Residual(nn.Module):
    def forward(self, x):
        return x + 1


class Gated(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x, gate):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weight * gate


class Pair(nn.RMSNorm):
    def forward(self, x):
        return super().forward(x), x


class Clip(nn.Module):
    """An L2 clip normalises large rows only."""

    def forward(self, x):
        return x / x.square().mean(-1, keepdim=True).sqrt().clamp(min=5)


class OnlyTheFactor(nn.Module):
    def forward(self, x):
        return torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


class StdWithoutCentring(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x / (x.std(-1, keepdim=True) + 1e-6) * self.weight


class Clamped(nn.RMSNorm):
    def forward(self, x):
        return super().forward(x).clamp(-1, 1)


class Constant(nn.Module):
    """A position table looks like a norm with γ = 0."""

    def __init__(self, width):
        super().__init__()
        self.table = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return self.table.expand_as(x).clone()


@pytest.mark.parametrize(
    "module",
    [
        nn.BatchNorm1d(24),
        nn.GroupNorm(8, 8),
        nn.GroupNorm(1, 8),  # over channels and positions together, unless it is given rows
        nn.InstanceNorm1d(16, affine=True),
        nn.GELU(),
        nn.Identity(),
        nn.Softmax(-1),
        nn.PReLU(16),
        nn.Dropout(0.5),
        nn.Linear(4, 4),
        Residual(),
        Gated(16),
        Pair(16),
        Clip(),
        OnlyTheFactor(),
        StdWithoutCentring(16),
        Clamped(16),
        Constant(16),
    ],
    ids=lambda module: type(module).__name__,
)
def test_what_is_no_norm_is_other_with_a_reason(module):
    found = probe(module)
    assert found.kind == "other"
    assert found.reason
    assert found.gamma is None


def test_the_shape_in_use_settles_what_a_norm_of_channels_means():
    assert probe(nn.GroupNorm(1, 8), shape=(5, 8)).kind == "layernorm"
    assert probe(nn.GroupNorm(1, 8), shape=(5, 8, 7)).kind == "other"


def test_a_class_name_decides_nothing():
    class LayerNorm(nn.RMSNorm):
        """As T5's."""

    assert probe(LayerNorm(16)).kind == "rmsnorm"


def test_on_the_meta_device_the_kind_is_found_without_values():
    with torch.device("meta"):
        found = probe(nn.LayerNorm(256))
    assert (found.kind, found.convention, found.gamma) == ("layernorm", "w", None)


def test_the_module_is_left_as_it_was():
    module = nn.LayerNorm(16).half()
    before = copy.deepcopy(module.state_dict())
    module.train()
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    probe(module)
    assert module.training
    assert module.weight.dtype == torch.float16
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_half_precision_parameters_are_read_as_they_are():
    module = filled(nn.RMSNorm(16)).to(torch.bfloat16)
    assert np.array_equal(probe(module).gamma, module.weight.detach().double().numpy())
