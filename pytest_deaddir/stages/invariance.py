"""The parameter-space stage: what the kernels of the norms leave open in the weights that read them.

A linear map W, b that reads a norm's output y may be moved along the norm's kernel v, by any amount and for any u,

    W → W + u vᵀ,     b → b − (vᵀβ) u

and the function stays what it is (arXiv 2606.19491; algebra/gauge.py derives the whole family). Here the family is
counted, members of it are tried on the model, and what the weights hold along it is measured. The model is never written
to: a forward pass is called with other tensors in the place of a few of its parameters.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from pytest_deaddir.algebra.floor import UNIT_ROUNDOFF
from pytest_deaddir.algebra.gauge import free_directions
from pytest_deaddir.algebra.kernel import kernel_basis
from pytest_deaddir.discovery.consumers import Consumer, Uses, find_consumers
from pytest_deaddir.discovery.discover import NormSite
from pytest_deaddir.discovery.trace import evaluating, floating
from pytest_deaddir.progress import with_progress
from pytest_deaddir.source.inputs import Arguments
from pytest_deaddir.source.safetensors import dtype_name
from pytest_deaddir.tables import Row

#: Forward passes that one audit may cost by default.
FORWARDS = 256
#: How many of them one move costs: two, and two derivatives that cost about three each.
_EACH = 8
#: Rows of a weight that are in float64 at a time.
_CHUNK = 1024
#: How far two runs of the same model may be apart, in units of round-off, before nothing is compared.
_REPEATABLE = 16
#: Where a model sorts or selects, rounding alone can change its output by a lot. So a change of more than _SUSPECT units of
#: round-off is checked by _AGAIN random moves of _SMALL units each: if one of them changes the output by more than a quarter
#: as much, the change proves nothing.
_SUSPECT, _SMALL, _AGAIN = 64, 8, 4

Tensors = dict[str, torch.Tensor]


def parameter_space(
    module: nn.Module,
    core: nn.Module,
    sites: Sequence[NormSite],
    arguments: Arguments,
    *,
    seed: int = 0,
    forwards: int = FORWARDS,
) -> dict[str, Row]:
    """The parameter-space columns of each site, by path.

    ``module``: the whole model, which is run, so that its head counts as a consumer; ``core``: the part of it that is run
    where the whole does not take the arguments. ``sites``: with paths in ``module``. ``arguments``: of one small forward
    pass, on the model's device. ``seed``: of the directions. ``forwards``: bounds the cost; where it does not reach for
    every consumer, consumers at even distances are tried.

    Parameters, modes, hooks and the state of the random generators are afterwards what they were, whatever happens, and so
    are buffers unless the model's own forward pass writes to them. The memory it takes is that of a copy of one consumer's
    weight, and of all consumers of one site where they can only be moved together. Raises what the forward pass raises.
    """
    with _undisturbed(module):
        runner, uses = _watched(module, core, sites, arguments)
        spaces = [_space(site, uses[site.path], runner) for site in sites if site.path in uses]
        random = np.random.default_rng(seed)
        tries = [(space, move) for space in spaces for move in space.moves(random)]
        count = min(len(tries), max(0, forwards - 2) // _EACH)
        chosen = [tries[i] for i in np.linspace(0, len(tries) - 1, count).round().astype(int)]
        if chosen:
            _try(runner, chosen, random)
    return {space.site.path: space.columns(runner.prefix) for space in spaces}


# --- the model ------------------------------------------------------------------------------------------------------


class _Runner:
    """What is run. ``prefix``: its path in the whole model, with a dot behind it where there is one."""

    def __init__(self, module: nn.Module, prefix: str, arguments: Arguments) -> None:
        self.module, self.prefix, self.arguments = module, prefix, arguments
        self.parameters = {name: p.detach() for name, p in module.named_parameters(remove_duplicate=False)}

    def outputs(self, replaced: Tensors) -> list[torch.Tensor]:
        """The floating-point tensors that it returns with these in the place of its parameters."""
        for generator in _generators(self.module):  # some models draw random numbers in eval mode too
            generator.manual_seed(0)
        positional, named = ((), dict(self.arguments)) if isinstance(self.arguments, Mapping) else (self.arguments, {})
        return list(floating(functional_call(self.module, replaced, positional, named)))

    def derivative(self, tangents: Tensors) -> list[torch.Tensor]:
        """The derivative of :meth:`outputs` along ``tangents``, by forward-mode differentiation."""
        # The fused kernels of attention have no such mode.
        with warnings.catch_warnings(), forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
            warnings.simplefilter("ignore", DeprecationWarning)  # torch scripts some of its derivatives on first use
            dual = {name: forward_ad.make_dual(self.parameters[name], tangent) for name, tangent in tangents.items()}
            found = [(y, forward_ad.unpack_dual(y).tangent) for y in self.outputs(dual)]
        return [torch.zeros_like(y) if tangent is None else tangent for y, tangent in found]

    def matrix(self, consumer: Consumer) -> torch.Tensor:
        """A consumer's weight as (outputs, d), a view."""
        weight = self.parameters[consumer.weight]
        return weight.T if consumer.transposed else weight


@contextmanager
def _undisturbed(module: nn.Module) -> Iterator[None]:
    """In eval mode and without gradients; modes and random generators are given back as they were."""
    generators = _generators(module)
    states = [generator.get_state() for generator in generators]
    try:
        with evaluating(module), torch.no_grad():
            yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def _generators(module: nn.Module) -> list[torch.Generator]:
    """The default random generators of the CPU and of the CUDA devices that the module is on."""
    devices = sorted({p.device.index for p in module.parameters() if p.device.type == "cuda"})
    return [torch.default_generator, *(torch.cuda.default_generators[i] for i in devices)]


def _watched(
    module: nn.Module, core: nn.Module, sites: Sequence[NormSite], arguments: Arguments
) -> tuple[_Runner, dict[str, Uses]]:
    """The part of the model that runs, and the uses of its sites, by their paths in the whole."""
    try:
        return _Runner(module, "", arguments), find_consumers(module, sites, arguments)
    except Exception:  # a head may want arguments of its own
        if core is module:
            raise
    prefix = next(f"{path}." for path, child in module.named_modules() if child is core)
    inside = {site.path: site.path.removeprefix(prefix) for site in sites if site.path.startswith(prefix)}
    own = [replace(site, path=inside[site.path]) for site in sites if site.path in inside]
    found = find_consumers(core, own, arguments, whole=module)
    return _Runner(core, prefix, arguments), {path: found[name] for path, name in inside.items()}


# --- one site -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Move:
    """A way to move consumers of one site along ``direction``, a unit vector w of the kernel, with wᵀβ = ``constant``.

    One consumer by itself, whose bias makes up for it, or where ``shift`` names the norm's β, all of them together.
    """

    consumers: tuple[Consumer, ...]
    direction: np.ndarray
    constant: float
    shift: str | None = None


@dataclass
class _Trial:
    """What one move did to the output, and a random one of the same size.

    ``error``, ``random``: relative changes. ``unit``: the round-off that they are seen in. ``fisher``: the squared
    relative derivatives along the two directions.
    """

    consumers: int
    unit: float
    error: float
    random: float
    fisher: tuple[float, float] | None


@dataclass
class _Space:
    """One site's family. ``kernel``: (d, k), orthonormal. ``constant``: Kᵀβ, (k,). ``note``: why something is missing."""

    site: NormSite
    uses: Uses
    kernel: np.ndarray
    constant: np.ndarray
    redundant: int | None = None
    energy: float | None = None
    note: str = ""
    trials: list[_Trial] = field(default_factory=list)

    @property
    def free(self) -> list[Consumer]:
        """The consumers whose weight nothing else uses."""
        return [consumer for consumer in self.uses.consumers if not consumer.tied]

    @property
    def shift(self) -> str | None:
        """β, where it can make up for moves: every use of the output is then a consumer that can be moved with it."""
        return self.uses.shift if self.uses.only and len(self.free) == len(self.uses.consumers) else None

    @property
    def movable(self) -> list[Consumer]:
        """The consumers that can be moved in some direction of the kernel."""
        k = self.kernel.shape[1]
        return [c for c in self.free if k > 1 or (k and (c.bias or not self.constant.any() or self.shift))]

    def moves(self, random: np.random.Generator) -> Iterator[_Move]:
        """A move of each consumer that can be moved by itself, and one of all of them where that takes β."""
        together = False
        for consumer in self.movable:
            a = random.standard_normal((self.kernel.shape[1],))
            if self.constant.any() and not consumer.bias:
                together = self.shift is not None
                if a.size == 1:
                    continue
                a -= self.constant * (self.constant @ a) / (self.constant @ self.constant)  # to where Kᵀy is 0
            a /= np.linalg.norm(a)
            yield _Move((consumer,), self.kernel @ a, float(a @ self.constant) if consumer.bias else 0.0)
        if together:
            size = float(np.linalg.norm(self.constant))
            yield _Move(tuple(self.free), self.kernel @ self.constant / size, size, self.shift)

    def columns(self, prefix: str) -> Row:
        """The site's columns; ``prefix``: what the consumers' paths lack."""
        trials = self.trials
        fishers = [trial.fisher for trial in trials if trial.fisher is not None]
        dtype = self.uses.dtype and dtype_name(self.uses.dtype)
        return ({"dtype": dtype} if dtype in UNIT_ROUNDOFF else {}) | {
            "consumers": [f"{prefix}{consumer.path}" for consumer in self.uses.consumers],
            "consumers_tested": sum(trial.consumers for trial in trials),
            "redundant_parameters": self.redundant,
            "invariance_error": max((trial.error for trial in trials), default=None),
            "invariance_error_relative": max((trial.error / trial.unit for trial in trials), default=None),
            "random_change": min((trial.random for trial in trials), default=None),
            "fisher_dead": max((dead for dead, _ in fishers), default=None),
            "fisher_random": min((random for _, random in fishers), default=None),
            "dead_energy": self.energy,
            "invariance_note": self.note,
        }


def _space(site: NormSite, uses: Uses, runner: _Runner) -> _Space:
    """What the parameters alone tell of a site's family."""
    gamma, beta = site.probe.gamma, site.probe.beta
    none = _Space(site, uses, np.zeros((site.features, 0)), np.zeros(0))
    if gamma is None or beta is None or not np.isfinite([gamma, beta]).all():
        return replace(none, note="its scale and shift are not known, or not finite")
    if site.probe.convention == "fitted":
        return replace(none, note="its scale is known only as well as it could be fitted")
    if site.kind != "layernorm" and gamma.all():
        return replace(none, redundant=0)  # nothing is dead behind an RMSNorm without zeros in its scale
    kernel = kernel_basis(gamma)
    constant = kernel.T @ beta
    if np.linalg.norm(constant) <= np.finfo(float).eps * gamma.size * np.linalg.norm(beta):  # rounding
        constant = np.zeros_like(constant)
    space = _Space(site, uses, kernel, constant)
    bias_free = [consumer for consumer in space.free if not consumer.bias]
    shared = bool(space.shift and bias_free and constant.any())
    space.redundant = free_directions(
        k=kernel.shape[1],
        biased=[consumer.outputs for consumer in space.free if consumer.bias],
        bias_free=[consumer.outputs for consumer in bias_free],
        constant=bool(constant.any()),
        rank=_rank([runner.matrix(consumer) for consumer in bias_free]) if shared else 0,
    )
    energies = [_energy(runner.matrix(consumer), kernel) for consumer in space.movable]
    space.energy = max((energy for energy in energies if energy is not None), default=None)
    space.note = "more consumers than forward passes" if space.movable else "no linear map that reads it can be moved"
    return space


# --- moves ----------------------------------------------------------------------------------------------------------


def _try(runner: _Runner, tries: list[tuple[_Space, _Move]], random: np.random.Generator) -> None:
    """Run the model with each move, and fill in the trials of its space."""
    base = runner.outputs({})
    rounding = max((_unit(y.dtype) for y in base), default=0.0)
    problem = _problem(runner, base, rounding)
    for space, _ in tries:
        space.note = problem
    for space, move in with_progress("parameter space", tries if not problem else (), len(tries), "moves"):
        step = _Step(runner, move, random)
        dtypes = (space.uses.dtype, *(weight.dtype for weight in step.weights.values()))
        own = space.site.probe.kernel_error or 0.0  # of a norm that computes in less than it returns
        unit = max(rounding, own, *(_unit(dtype) for dtype in dtypes if dtype is not None))
        error = _change(base, runner.outputs(step.moved()))
        if error > _SUSPECT * unit and any(
            4 * _change(base, runner.outputs(step.random_moved(_SMALL * unit, i))) > error for i in range(_AGAIN)
        ):
            space.note = "rounding alone changes the model's output as much"
            continue
        change = _change(base, runner.outputs(step.random_moved()))
        fisher, note = _fisher(runner, base, step)
        space.note = space.note or note
        space.trials.append(_Trial(len(move.consumers), unit, error, change, fisher))


def _problem(runner: _Runner, base: list[torch.Tensor], rounding: float) -> str:
    """Why nothing can be compared with the model's output."""
    if not base:
        return "the model returns no floating-point tensor"
    if not all(bool(torch.isfinite(y).any()) for y in base):
        return "the model's output is not finite"
    if _change(base, runner.outputs({})) > _REPEATABLE * rounding:
        return "the model's output is not the same in two runs"
    return ""


def _fisher(runner: _Runner, base: list[torch.Tensor], step: _Step) -> tuple[tuple[float, float] | None, str]:
    """The squared relative derivatives along a move and at random; None with the reason where there are none."""
    try:
        dead = _square(base, runner.derivative(step.tangents()))
        random = _square(base, runner.derivative(step.random_tangents()))
    except (NotImplementedError, RuntimeError) as failure:  # an operation without forward-mode derivative
        return None, f"no derivative: {str(failure).strip().splitlines()[0][:200]}"
    if max(dead, random) == sys.float_info.max:  # half precision overflows
        return None, "the derivative is not finite"
    return (dead, random), ""


class _Step:
    """A move at a definite size: that of the weights themselves, ‖δW‖ = ‖W‖."""

    def __init__(self, runner: _Runner, move: _Move, random: np.random.Generator) -> None:
        self.weights = {c.weight: runner.parameters[c.weight] for c in move.consumers}
        self._runner, self._direction = runner, move.direction
        self._transposed = {c.weight: c.transposed for c in move.consumers}
        self._norms = {name: _norm(weight) for name, weight in self.weights.items()}
        self._seed = int(random.integers(2**62))
        self._left: dict[str, np.ndarray] = {}  # u of each weight's u wᵀ
        self._vectors: dict[str, np.ndarray] = {}  # by how much biases or β change
        self._slopes: dict[str, np.ndarray] = {}  # the same to first order
        if move.shift is None:
            [consumer] = move.consumers
            u = random.standard_normal(consumer.outputs)
            u *= self._norms[consumer.weight] / np.linalg.norm(u)
            self._left = {consumer.weight: u}
            if consumer.bias and move.constant:
                self._vectors = self._slopes = {consumer.bias: -move.constant * u}
        else:  # W → W(1 + a wᵀ), β → β − a (wᵀβ)/(1 + wᵀa)
            a = random.standard_normal(move.direction.size)
            left = {c.weight: _product(runner.matrix(c), a) for c in move.consumers}
            reached = math.hypot(*(float(np.linalg.norm(u)) for u in left.values()))
            size = math.hypot(*self._norms.values()) / reached if reached else 1.0
            size = math.copysign(size, move.direction @ a)  # away from wᵀa = −1
            self._left = {name: size * u for name, u in left.items()}
            self._slopes = {move.shift: -size * move.constant * a}
            self._vectors = {move.shift: self._slopes[move.shift] / (1 + size * float(move.direction @ a))}

    def moved(self) -> Tensors:
        """The parameters behind the move."""
        new = {name: self._plus_rank_one(name, weight) for name, weight in self.weights.items()}
        for name, change in self._vectors.items():
            old = self._runner.parameters[name]
            new[name] = (old.to("cpu", torch.float64) + torch.from_numpy(change)).to(old)
        return new

    def tangents(self) -> Tensors:
        """The move's direction in parameter space."""
        new = {name: self._plus_rank_one(name, torch.zeros_like(weight)) for name, weight in self.weights.items()}
        for name, change in self._slopes.items():
            new[name] = torch.from_numpy(change).to(self._runner.parameters[name])
        return new

    def random_moved(self, size: float = 1.0, draw: int = 0) -> Tensors:
        """The weights behind a move in a random direction, ``size`` times as large as they are."""
        tangents = self.random_tangents(draw)
        return {name: tangent.mul_(size).add_(self.weights[name]) for name, tangent in tangents.items()}

    def random_tangents(self, draw: int = 0) -> Tensors:
        """A random direction, as large as the weights are."""
        generator = torch.Generator().manual_seed(self._seed + draw)
        new = {}
        for name, weight in self.weights.items():
            tangent = (
                torch.empty(weight.shape, dtype=weight.dtype, device="cpu")
                .normal_(generator=generator)
                .to(weight.device)
            )
            new[name] = tangent.mul_(self._norms[name] / _norm(tangent))
        return new

    def _plus_rank_one(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """weight + u wᵀ, rounded once."""
        u, w = torch.from_numpy(self._left[name]), torch.from_numpy(self._direction)
        left, right = (w, u) if self._transposed[name] else (u, w)
        new = torch.empty_like(weight)
        for rows, target, factor in zip(_chunks(weight), new.split(_CHUNK), left.split(_CHUNK), strict=True):
            target.copy_(rows + torch.outer(factor, right))
        return new


def _change(base: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """The largest relative change of any output, ‖y' − y‖/‖y‖."""
    return math.sqrt(_square(base, [y - x for x, y in zip(base, other, strict=True)]))


def _square(base: list[torch.Tensor], vectors: list[torch.Tensor]) -> float:
    """The largest ‖vector‖²/‖y‖² of any output y, over the entries where y is finite (masks are −inf).

    The largest float where a vector is not finite: such a change is a change of everything.
    """
    largest = 0.0
    for y, vector in zip(base, vectors, strict=True):
        seen = torch.isfinite(y)
        whole = float(y[seen].to("cpu", torch.float64).square().sum())
        part = float(vector[seen].to("cpu", torch.float64).square().sum())
        if not math.isfinite(part):
            return sys.float_info.max
        largest = max(largest, part / whole if whole else 0.0)
    return largest


def _unit(dtype: torch.dtype) -> float:
    return UNIT_ROUNDOFF.get(dtype_name(dtype), 0.0)


# --- weights, some rows at a time -----------------------------------------------------------------------------------


def _chunks(weight: torch.Tensor) -> Iterator[torch.Tensor]:
    for rows in weight.split(_CHUNK):
        yield rows.to("cpu", torch.float64)


def _norm(weight: torch.Tensor) -> float:
    return math.sqrt(sum(float(rows.square().sum()) for rows in _chunks(weight)))


def _product(weight: torch.Tensor, vector: np.ndarray) -> np.ndarray:
    return np.concatenate([(rows @ torch.from_numpy(vector)).numpy() for rows in _chunks(weight)])


def _energy(weight: torch.Tensor, kernel: np.ndarray) -> float | None:
    """‖WK‖² over what an isotropic weight of the same norm has there, ‖W‖² k/d; None for a weight of zeros."""
    basis = torch.from_numpy(kernel)
    along = sum(float((rows @ basis).square().sum()) for rows in _chunks(weight))
    expected = _norm(weight) ** 2 * kernel.shape[1] / kernel.shape[0]
    return along / expected if expected else None


def _rank(weights: list[torch.Tensor]) -> int:
    """The rank of the stacked weights, (…, d) each, from a triangular factor that takes their rows some at a time."""
    factor = torch.zeros(0, weights[0].shape[1], dtype=torch.float64)
    for weight in weights:
        for rows in _chunks(weight):
            factor = torch.linalg.qr(torch.cat([factor, rows]), mode="r").R
    return int(torch.linalg.matrix_rank(factor))
