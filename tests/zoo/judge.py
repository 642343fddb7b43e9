"""The truth table: what is a norm, which one is final and what are the stacks, judged by values alone.

Discovery is compared with this, so nothing here shares its code or its reasoning: one traced forward keeps every module's
tensors themselves; a norm is what a float64 least-squares fit says is one, and what the recorded tensors do not contradict;
the final norm is that whose output *is* the model's output; a stack is a container whose children hand one another the
very same tensor. No class name and no module name decides. Parameters along one axis are randomised first, so that equal
values mean the same tensor and γ can be told from a constant.

    python -m tests.zoo.judge gpt2 t5     # to stdout, with the evidence
    python -m tests.zoo.judge --write     # judge every type again and write truth.json: about 15 minutes on one core
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import os
import re
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import logging as transformers_logging

from pytest_deaddir.source.synthetic import synthetic_inputs

from . import shrink
from .isolate import each

Record = dict[str, Any]
Path_ = str

KINDS = ("layernorm", "rmsnorm")
MEMORY = 12 << 30
TABLE = Path(__file__).with_name("truth.json")
HEADER = "_header"
NOISE = 0.1  # on parameters along one axis: norms, biases, layer scales
WEIGHT_NOISE = 0.02  # on matrices that start at zero, where unrelated tensors would be equal
RESIDUAL = 1e-5  # of the fit to float64 probes
RECORDED_RESIDUAL = 1e-3  # of the fit to what the float32 forward recorded
EPSILONS = (0.0, 1e-12, 1e-8, 1e-7, 1e-6, 5e-6, 1e-5, 1e-4, 1e-3)
ROWS = 64
LARGEST = 1 << 24  # elements of a tensor that can be kept: a few feature maps are larger
MOST_ROWS = 256  # enough to judge any norm by, and what keeps image models affordable
NORM_PARAMETERS = 4


# --- one traced forward -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """One execution of one module: snapshots of the floating tensors it took and gave, in order."""

    path: Path_
    time: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    arguments: tuple[tuple[Any, ...], dict[str, Any]]  # as passed; tensors in it may have been changed since
    gives_hidden: bool  # whether it returned something as last_hidden_state


@dataclass
class Trace:
    """All calls of one forward, in the order in which they returned."""

    calls: list[Call] = field(default_factory=list)
    by_path: dict[Path_, list[Call]] = field(default_factory=lambda: defaultdict(list))
    left_out: int = 0  # tensors too large to keep: what they passed through is not judged

    def add(self, call: Call) -> None:
        self.calls.append(call)
        self.by_path[call.path].append(call)


class _Snapshots:
    """Clones of tensors as they were: models add to hidden states in place. One clone per tensor version."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self.left_out = 0

    def take(self, tensor: Tensor) -> Tensor:
        key = (id(tensor), tensor._version)
        if key not in self._kept:
            self._kept[key] = (tensor, tensor.detach().clone())  # holding the tensor keeps its id unique
        return self._kept[key][1]

    def all(self, value: Any) -> tuple[Tensor, ...]:
        """The floating tensors in ``value``; the empty ones say nothing, the huge ones would not fit."""
        wanted = [t for t in _tensors(value) if t.is_floating_point() and t.numel()]
        self.left_out += sum(t.numel() > LARGEST for t in wanted)
        return tuple(self.take(t) for t in wanted if t.numel() <= LARGEST)


def _tensors(value: Any, depth: int = 3) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item, depth - 1)
    elif depth and isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item, depth - 1)


def traced(model: nn.Module, inputs: dict[str, Any]) -> tuple[Any, Trace]:
    """The model's output and what every module took and gave."""
    trace, snapshots, clock = Trace(), _Snapshots(), itertools.count()
    pending: dict[int, list[tuple[int, tuple[Tensor, ...]]]] = defaultdict(list)
    handles = []

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        pending[id(module)].append((next(clock), snapshots.all([list(args), kwargs])))

    def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        started, taken = pending[id(module)].pop()
        hidden = isinstance(output, dict) and isinstance(output.get("last_hidden_state"), Tensor)
        trace.add(Call(paths[id(module)], started, taken, snapshots.all(output), (args, kwargs), hidden))

    paths = {id(module): path for path, module in model.named_modules()}
    for module in model.modules():
        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after, with_kwargs=True))
    try:
        with torch.no_grad():
            output = model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    trace.left_out = snapshots.left_out
    return output, trace


def randomise(model: nn.Module, seed: int = 1) -> None:
    """Move parameters along one axis, and those that are all but zero, off their initial values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.is_floating_point() or parameter.numel() < 2:
                continue
            size = NOISE if _axes(parameter) <= 1 else WEIGHT_NOISE if parameter.std() < 1e-3 else 0.0
            if size:
                parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype), alpha=size)


def _axes(tensor: Tensor) -> int:
    return sum(n > 1 for n in tensor.shape)


# --- norms --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """The best affine explanation of rows y by normalised rows x."""

    kind: str
    residual: float
    gamma: Tensor
    beta: Tensor


def fitted(x: Tensor, y: Tensor) -> list[Fit]:
    """Per kind, y = gamma * normalised(x) + beta by least squares per coordinate, at the best epsilon."""
    x, y = x.double(), y.double()
    centred = x - x.mean(1, keepdim=True)
    spread = (y - y.mean(0)).norm()
    if not torch.isfinite(x).all() or not torch.isfinite(y).all() or spread <= 1e-6 * y.norm():
        return []  # constant output: an embedding or a cache, not a norm
    fits = []
    for kind, base in (("layernorm", centred), ("rmsnorm", x)):
        power = base.square().mean(1, keepdim=True)
        if float(power.min()) <= 0:
            continue
        best = min((_least_squares(kind, base / (power + eps).sqrt(), y, spread) for eps in EPSILONS), key=_residual)
        fits.append(best)
    return fits


def _residual(fit: Fit) -> float:
    return fit.residual


def _least_squares(kind: str, z: Tensor, y: Tensor, spread: Tensor) -> Fit:
    z_mean, y_mean = z.mean(0), y.mean(0)
    zc, yc = z - z_mean, y - y_mean
    gamma = (zc * yc).sum(0) / zc.square().sum(0).clamp_min(1e-300)
    residual = (yc - gamma * zc).norm() / spread
    return Fit(kind, float(residual), gamma, y_mean - gamma * z_mean)


def _rows(tensor: Tensor, axis: str) -> Tensor:
    """Feature vectors as rows, for features along the last axis or along dim 1; an even sample of many."""
    moved = tensor.movedim(1, -1) if axis == "1" else tensor
    rows = moved.reshape(-1, moved.shape[-1])
    return rows[:: -(-len(rows) // MOST_ROWS)]


def _is_candidate(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return len(parameters) <= NORM_PARAMETERS and all(_axes(p) <= 1 for p in parameters)


def judged(module: nn.Module, calls: list[Call]) -> Record | None:
    """Whether ``module`` is a norm: kind, axis and the evidence; None where it is not."""
    usable = [
        c for c in calls if c.inputs and c.outputs and c.inputs[0].shape == c.outputs[0].shape and c.inputs[0].ndim > 1
    ]
    if not usable:
        return None
    call = max(usable, key=lambda c: c.inputs[0].numel())
    shape = call.inputs[0].shape
    for axis in ["last", "1"] if len(shape) in (3, 4) else ["last"]:
        features = shape[-1] if axis == "last" else shape[1]
        if features < 2:
            continue
        seen = _recorded(call, axis)
        if seen and min(seen.values()) > RECORDED_RESIDUAL:
            continue  # whatever it would do to random rows, it did not normalise in the model
        probe = _probed(module, call, axis)
        if probe is None:
            continue
        recorded = seen.get(probe.kind)
        if recorded is not None and recorded > RECORDED_RESIDUAL:
            continue
        return {
            "kind": probe.kind,
            "axis": axis,
            "features": features,
            "probe_residual": float(f"{probe.residual:.1e}"),
            "recorded_residual": None if recorded is None else float(f"{recorded:.1e}"),
            "unit_gamma": bool((probe.gamma - 1).abs().max() < 1e-5),
            "zero_beta": bool(probe.beta.abs().max() < 1e-5),
        }
    return None


def _recorded(call: Call, axis: str) -> dict[str, float]:
    """Residuals of the fits to the recorded rows; none where they are too few or collapsed to one."""
    x, y = _rows(call.inputs[0], axis), _rows(call.outputs[0], axis)
    if len(x) < 8 or float((x - x.mean(0)).norm()) < 1e-3 * float(x.norm()) or not torch.isfinite(x).all():
        return {}
    return {f.kind: f.residual for f in fitted(x, y)}


def _probed(module: nn.Module, call: Call, axis: str) -> Fit | None:
    """The kind that a float64 copy shows at scale 1 and, with the same gamma and beta, at 1000."""
    shape = list(call.inputs[0].shape)
    probe = copy.deepcopy(module).double()
    generator = torch.Generator().manual_seed(2)
    per_scale: list[dict[str, Fit]] = []
    rows_each = math.prod(shape) // shape[0] // (shape[-1] if axis == "last" else shape[1])
    for scale in (1.0, 1e3):
        # as few items as give rows enough, or as many as recorded where the module minds the batch size
        for batch in (max(1, -(-ROWS // max(1, rows_each))), shape[0]):
            x = _random_rows([batch, *shape[1:]], axis, scale, generator)
            y = _run(probe, call, x)
            if y is not None and y.shape == x.shape:
                break
        else:
            return None
        fits = fitted(_rows(x, axis), _rows(y, axis))
        per_scale.append({f.kind: f for f in fits if f.residual < RESIDUAL})
    small, large = per_scale
    for kind in small.keys() & large.keys():
        size = large[kind].gamma.abs().max()
        if (
            max(
                (small[kind].gamma - large[kind].gamma).abs().max(),
                (small[kind].beta - large[kind].beta).abs().max(),
            )
            < 1e-3 * size
        ):
            return large[kind]
    return None


def _random_rows(shape: list[int], axis: str, scale: float, generator: torch.Generator) -> Tensor:
    """Independent rows of unlike scale and mean, so that rms, std and identity cannot be mistaken."""
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    per_row = [n if i != (1 if axis == "1" else len(shape) - 1) else 1 for i, n in enumerate(shape)]
    sizes = 1 + 2 * torch.rand(per_row, generator=generator, dtype=torch.float64)
    means = torch.randn(per_row, generator=generator, dtype=torch.float64)
    return scale * (x * sizes + means)


def _run(module: nn.Module, call: Call, x: Tensor) -> Tensor | None:
    """The module on ``x`` in place of its first tensor, everything else as it was called."""
    args, kwargs = call.arguments
    replaced = [False]

    def other(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            if not replaced[0]:
                replaced[0] = True
                return x.clone()
            return value.double()
        return value

    args = tuple(other(a) for a in args)
    kwargs = {k: other(v) for k, v in kwargs.items()}
    try:
        with torch.no_grad():
            return next(_tensors(module(*args, **kwargs)), None) if replaced[0] else None
    except Exception:  # a module that cannot run alone is not a norm that can be probed
        return None


def norms_of(model: nn.Module, trace: Trace) -> list[Record]:
    """Every executed norm, in the order of first execution."""
    modules = dict(model.named_modules())
    found: list[Record] = []
    for path, calls in sorted(trace.by_path.items(), key=lambda item: item[1][0].time):
        module = modules[path]
        if not _is_candidate(module):
            continue
        verdict = judged(module, calls)
        name = type(module).__name__
        if verdict is None and "norm" in name.lower():
            fed = any(c.inputs for c in calls)
            # for information only; unseen: called on no rows, or on tensors too large to keep
            verdict = {"kind": "other" if fed else "unseen"}
        if verdict is not None:
            outer = next((f["path"] for f in found if f["kind"] in KINDS and path.startswith(f"{f['path']}.")), None)
            extra = {"inside": outer} if outer else {}
            found.append({"path": path, "class": name, "calls": len(calls), **verdict, **extra})
    return found


# --- which tensors are the same -----------------------------------------------------------------------------


def same(a: Tensor, b: Tensor) -> bool:
    if a is b:
        return True
    return a.shape == b.shape and a.dtype == b.dtype and (torch.equal(a, b) or torch.allclose(a, b, rtol=1e-6, atol=0))


def same_up_to_layout(a: Tensor, b: Tensor) -> str | None:
    """``equal``, or the layout change that makes ``a`` into ``b``, or None."""
    if same(a, b):
        return "equal"
    if a.dtype != b.dtype:
        return None
    if a.numel() != b.numel():
        return _slice(a, b)
    if not torch.isclose(a.sum(), b.sum(), rtol=1e-3, atol=1e-3):
        return None
    if same(a.reshape(-1), b.reshape(-1)):
        return "reshape"
    for order in itertools.permutations(range(a.ndim)) if 2 < a.ndim < 5 else []:
        if same(a.permute(order).reshape(-1), b.reshape(-1)):
            return "permute" + "".join(map(str, order))
    if a.std() > 0 and torch.equal(a.reshape(-1).sort().values, b.reshape(-1).sort().values):
        return "rearranged"  # windows, clips and the like folded back
    return None


def _slice(a: Tensor, b: Tensor) -> str | None:
    """``slice`` and its axis where ``b`` begins or ends ``a`` or is every n-th of it: models cut off padding and prompts,
    and thin out frames."""
    unlike = [d for d in range(a.ndim) if a.ndim == b.ndim and a.shape[d] != b.shape[d]]
    if len(unlike) != 1 or a.shape[unlike[0]] < b.shape[unlike[0]]:
        return None
    axis, size = unlike[0], b.shape[unlike[0]]
    rows, wanted = a.movedim(axis, 0), b.movedim(axis, 0)
    parts = (rows[:size], rows[-size:], rows[:: -(-len(rows) // size)])
    return f"slice{axis}" if any(same(part, wanted) for part in parts) else None


# --- stacks -------------------------------------------------------------------------------------------------


def stacks_of(model: nn.Module, trace: Trace, norms: list[Record]) -> tuple[list[Record], list[Record], list[Record]]:
    """Outermost stacks, stacks inside their blocks, and containers whose chain is broken somewhere."""
    true_norms = [n["path"] for n in norms if n["kind"] in KINDS]
    chains: list[Record] = []
    broken: list[Record] = []
    for path, container in model.named_modules():
        if not isinstance(container, nn.ModuleList | nn.ModuleDict | nn.Sequential):
            continue
        record = _chain(path, container, trace, true_norms)
        if record is not None:
            (broken if "breaks" in record else chains).append(record)
    outer = [c for c in chains if not any(c["path"].startswith(f"{o['path']}.") for o in chains)]
    nested = [c for c in chains if c not in outer]
    return outer, nested, broken


def _chain(path: Path_, container: nn.Module, trace: Trace, true_norms: list[Path_]) -> Record | None:
    children = {f"{path}.{name}" if path else name: name for name, _ in container.named_children()}
    calls = sorted((c for child in children for c in trace.by_path.get(child, [])), key=lambda c: c.time)
    if len(calls) < 2:
        return None
    ran = list(dict.fromkeys(c.path for c in calls))
    with_norm = [p for p in ran if any(n == p or n.startswith(f"{p}.") for n in true_norms)]
    if not with_norm:
        return None
    passes: list[list[Call]] = [[calls[0]]]
    breaks = []
    for previous, call in itertools.pairwise(calls):
        if _hands_over(previous, call):
            passes[-1].append(call)
        elif call.path == calls[0].path:  # the whole stack again, on something else
            passes.append([call])
        else:
            breaks.append([children[previous.path], children[call.path]])
            passes[-1].append(call)
    longest = max(passes, key=len)
    if len(longest) < 2:
        return None
    record: Record = {
        "path": path,
        "indices": [children[c.path] for c in longest],
        "blocks": len({c.path for c in longest}),
        "children": len(children),
        "norm_in_every_block": len(with_norm) == len(ran),
        "passes": len(passes),
        "shared": len({c.path for c in longest}) < len(longest),
    }
    if breaks:
        record["breaks"] = breaks[:8]
    return record


def _hands_over(previous: Call, call: Call) -> bool:
    """Whether the first tensor that ``previous`` gave is one of those that ``call`` took."""
    return bool(previous.outputs) and any(same(previous.outputs[0], taken) for taken in call.inputs)


# --- final norms --------------------------------------------------------------------------------------------


def final_of(output: Any, trace: Trace, norms: list[Record], stacks: Iterable[Record]) -> Record:
    """The norms whose output is the model's output, and how they sit in its last block."""
    field_name, target = _principal(output)
    record: Record = {"field": field_name, "norms": []}
    if target is None:
        return record
    record["shape"] = list(target.shape)
    record["finite"] = bool(torch.isfinite(target).all())
    blocks = [c for s in stacks for i in dict.fromkeys(s["indices"]) for c in trace.by_path[_join(s["path"], i)]]
    record["is_block_output"] = sorted({b.path for b in blocks if b.outputs and same(b.outputs[0], target)})
    for norm in norms:
        if norm["kind"] not in KINDS:
            continue
        for call in trace.by_path[norm["path"]]:
            layout = same_up_to_layout(call.outputs[0], target) if call.outputs else None
            if layout:
                fed = any(b.outputs and same(b.outputs[0], call.inputs[0]) for b in blocks)
                inside = any(call.path.startswith(f"{b.path}.") for b in blocks)
                how = {
                    "path": call.path,
                    "layout": layout,
                    "input_is_block_output": fed,
                    "inside_block": inside,
                }
                if how not in record["norms"]:
                    record["norms"].append(how)
    return record


def _join(path: Path_, name: str) -> Path_:
    return f"{path}.{name}" if path else name


def _principal(output: Any) -> tuple[str, Tensor | None]:
    """``last_hidden_state`` or else the first floating tensor, and the name it goes by."""
    if isinstance(output, dict):
        hidden = output.get("last_hidden_state")
        if isinstance(hidden, Tensor):
            return "last_hidden_state", hidden
        for name, value in output.items():
            for tensor in _tensors(value):
                if tensor.is_floating_point():
                    return str(name), tensor
    for tensor in _tensors(output):
        if tensor.is_floating_point():
            return type(output).__name__, tensor
    return "none", None


def towers_of(model: nn.Module, trace: Trace, norms: list[Record], stacks: list[Record]) -> dict[Path_, Any]:
    """The same question for every model inside the model that ran: path of its final norm, or None.

    One that returns logits or feature maps is left out, unless these are a norm's output: what closes it is not to be seen.
    """
    towers: dict[Path_, Any] = {}
    for path, module in model.named_modules():
        if path and isinstance(module, PreTrainedModel) and trace.by_path.get(path):
            call = trace.by_path[path][-1]
            inner = [n for n in norms if n["path"].startswith(f"{path}.")]
            first = call.outputs[0] if call.outputs else None
            finals = final_of(first, trace, inner, [])["norms"] if first is not None else []
            if finals or call.gives_hidden:
                towers[path] = finals[0]["path"] if finals else None
    return towers


# --- one type, all types ------------------------------------------------------------------------------------


def truth(model_type: str) -> Record:
    """Everything true of one model type with its evidence, or why nothing can be said."""
    record: Record = {"ran": False}
    try:
        model = shrink.build(model_type)
        record["class"] = type(model).__name__
        randomise(model)
        output, trace = traced(model, synthetic_inputs(model))
    except Exception as error:  # whatever the model's code raises
        record["reason"] = reason_of(error)
        return record
    record["ran"] = True
    norms = norms_of(model, trace)
    outer, nested, broken = stacks_of(model, trace, norms)
    record |= {"norms": norms, "stacks": outer, "nested_stacks": nested, "broken_stacks": broken}
    record["final"] = final_of(output, trace, norms, [*outer, *nested, *broken])
    record["towers"] = towers_of(model, trace, norms, outer)
    record["left_out_tensors"] = trace.left_out
    return record


def reason_of(error: Exception) -> str:
    """An error's first line, without what is true of this machine only."""
    lines = str(error).strip().splitlines()
    text = re.sub(r"/\S*/(?=[\w.]+)", "", lines[0] if lines else "")
    return f"{type(error).__name__}: {text}"[:200].rstrip(" :")


def row(record: Record) -> Record:
    """What of a record is compared, as truth.json keeps it.

    ``norms``: path → kind, features and, for norms over dim 1, ``dim1``; of a norm that wraps another, the outer only.
    ``unseen``: named as norms but given no rows or too large ones: nothing is known. ``stacks``: path → children in the
    order of their run, of the outermost containers that hold a norm beside other things in every child that ran and hand
    on the hidden state; ``nested``: those inside them; ``broken``: containers that do not hand it on.
    """
    if not record["ran"]:
        return record
    true = {n["path"]: n for n in record["norms"] if n["kind"] in KINDS}
    blocks = [
        stack
        for stack in [*record["stacks"], *record["nested_stacks"]]
        if stack["norm_in_every_block"] and not any(_join(stack["path"], i) in true for i in stack["indices"])
    ]
    outer = [s for s in blocks if not any(s["path"].startswith(f"{o['path']}.") for o in blocks)]
    kept = {
        "ran": True,
        "class": record["class"],
        "norms": {
            path: f"{n['kind']} {n['features']}{' dim1' if n['axis'] == '1' else ''}"
            for path, n in true.items()
            if "inside" not in n
        },
        "unseen": [n["path"] for n in record["norms"] if n["kind"] == "unseen"],
        "final": {
            "of": record["final"]["field"],
            "norms": {n["path"]: n["layout"] for n in record["final"]["norms"]},
        },
        "stacks": {s["path"]: " ".join(s["indices"]) for s in outer},
        "nested": {s["path"]: " ".join(s["indices"]) for s in blocks if s not in outer},
        "broken": [s["path"] for s in record["broken_stacks"]],
        "towers": record["towers"],
        "left_out_tensors": record["left_out_tensors"],
    }
    return {key: value for key, value in kept.items() if value or key in ("ran", "class", "final")}


def evidence(records: Iterable[Record]) -> Record:
    """How good the fits are on which the whole table rests."""
    norms = [n for r in records for n in r.get("norms", ()) if n["kind"] in KINDS]
    recorded = [n["recorded_residual"] for n in norms if n["recorded_residual"] is not None]
    return {
        "norms": len(norms),
        "worst_probe_residual": max(n["probe_residual"] for n in norms),
        "worst_recorded_residual": max(recorded),
        "norms_without_recorded_rows": len(norms) - len(recorded),
    }


def committed() -> tuple[Record, dict[str, Record]]:
    """truth.json: its header and its rows by model type."""
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    return table.pop(HEADER), table


def is_current(header: Record) -> bool:
    """Whether the committed table is of the transformers that is installed here: module paths change between versions."""
    return header["transformers"] == transformers.__version__


def main() -> None:
    """The command of the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("types", nargs="*", metavar="TYPE")
    parser.add_argument("--write", action="store_true", help="every type of CONFIG_MAPPING, into truth.json")
    parser.add_argument("--timeout", type=float, default=120, help="seconds per type")
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    quieten()
    wanted = shrink.model_types() if options.write else options.types
    records = {}
    judged = each(truth, wanted, processes=options.processes, timeout=options.timeout, memory=MEMORY)
    for count, (model_type, record) in enumerate(judged, 1):
        records[model_type] = {"ran": False} | record
        print(f"{count}/{len(wanted)} {model_type}: {record.get('reason', 'ran')}", file=sys.stderr, flush=True)
    if options.write:
        TABLE.write_text(table(records), encoding="utf-8")
    else:
        print(json.dumps(records, indent=1, sort_keys=True))


def table(records: dict[str, Record]) -> str:
    """truth.json: a header, then a line for each type."""
    header = {"transformers": transformers.__version__, "torch": torch.__version__, **evidence(records.values())}
    rows = {HEADER: header} | {t: row(records[t]) for t in sorted(records)}
    lines = ",\n".join(f"{json.dumps(t)}: {json.dumps(r, sort_keys=True)}" for t, r in rows.items())
    return f"{{\n{lines}\n}}\n"


def quieten() -> None:
    """One thread, and nothing on the terminal but our own lines."""
    warnings.filterwarnings("ignore")
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(1)


if __name__ == "__main__":
    main()
