"""The census: discovery on every architecture of transformers, compared with the truth table, as docs/zoo.md.

    python -m tests.zoo.census            # every type, in two processes: the whole of docs/zoo.md
    python -m tests.zoo.census gpt2 t5    # what the census says of these, to stdout

Each type is shrunk, built, run and discovered in a process of its own with a limit of time and memory.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from pytest_deaddir.discovery.discover import NormSite
from pytest_deaddir.discovery.probe import probe

from . import judge, shrink
from .compare import built, compared, discover
from .isolate import each

Record = dict[str, Any]

PAGE = Path(__file__).parents[2] / "docs" / "zoo.md"
MEMORY = 8 << 30
#: |vᵀ(y − β)|/‖y − β‖ that float64 leaves of a true LayerNorm; 1e-7 where it computes in float32 inside.
PROBE_FLOOR = 1e-5
#: Roundings of float32, times how much of them the centring and the shift leave standing, that the same may reach in a forward.
ROUNDINGS = 64
#: Above this floor the activations say nothing: they have collapsed to one point.
BLIND = 0.01

#: What is behind a miss, where somebody has looked.
_PAIR = "a module that returns more than one tensor is `other` by the project's definition of a norm"
REASONS = {
    "ibert": f"integer arithmetic: its norms take and return a scaling factor too, and {_PAIR}; all else follows from that",
    "zaya": f"its norm takes queries and keys together, and {_PAIR}",
    "patchtst": f"it standardises the series over time and returns mean and scale too, and {_PAIR}",
    "patchtsmixer": f"it standardises the series over time and returns mean and scale too, and {_PAIR}",
}


# --- one type -------------------------------------------------------------------------------------------------------


def census(model_type: str) -> Record:
    """Everything that docs/zoo.md says of one type."""
    started = time.perf_counter()
    try:
        model, inputs = built(model_type)
        with torch.no_grad():
            model(**inputs)
    except Exception as error:  # whatever the model's code raises
        return {"ran": False, "reason": judge.reason_of(error)}
    run = time.perf_counter()
    found = discover(model, inputs)
    discovered = time.perf_counter()
    record: Record = {"ran": True, "class": type(model).__name__, "how": found.how}
    record["kinds"] = Counter(norm.kind for norm in found.norms)
    record["roles"] = Counter(norm.role for norm in found.norms)
    record["styles"] = [stack.style for stack in found.stacks if stack.within is None]
    record["kernel"] = list(kernels(model, inputs, found.norms))
    row = judge.committed()[1].get(model_type, {"ran": False})
    if row["ran"]:
        record |= compared(found, row)
        record["refused"] = {path: refusal(model, path) for path, _, mine in record["wrong"] if mine is None}
    record["seconds"] = {"run": run - started, "discover": discovered - run}
    return record


def refusal(model: nn.Module, path: str) -> str:
    """Why the probe does not call the module at ``path`` a norm."""
    return probe(model.get_submodule(path)).reason or "it is not called as one"


def kernels(model: nn.Module, inputs: dict[str, Any], norms: list[NormSite]) -> Iterator[list[Any]]:
    """Of each norm that discovery found: path, kind, and how large vᵀ(y − β) is against ‖y − β‖ in a float64 probe and
    on the activations of a forward, with the floor of the latter (None, None where they tell nothing)."""
    measured: dict[str, list[float | None]] = {}

    def hook(site: NormSite) -> Any:
        def after(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            taken = next(
                (a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and a.is_floating_point()), None
            )
            if taken is not None and isinstance(output, Tensor) and site.path not in measured:
                measured[site.path] = along_kernel(site, taken, output)

        return after

    handles = [model.get_submodule(s.path).register_forward_hook(hook(s), with_kwargs=True) for s in norms]
    with torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()
    for site in norms:
        yield [site.path, site.kind, site.probe.kernel_error, *measured.get(site.path, [None, None])]


def along_kernel(site: NormSite, x: Tensor, y: Tensor) -> list[float | None]:
    """‖vᵀ(y − β)‖/‖y − β‖ over the rows of one call, and what rounding alone may make of it."""
    unknown: list[float | None] = [None, None]
    if site.probe.gamma is None or site.probe.beta is None or not site.probe.gamma.all() or x.numel() == 0:
        return unknown
    axis = site.probe.axis if site.probe.axis is not None else -1
    x, y = (t.detach().double().movedim(axis, -1).reshape(-1, site.features) for t in (x, y))
    v = torch.from_numpy(1 / site.probe.gamma)
    shift_free = y - torch.from_numpy(site.probe.beta)
    centred = x - x.mean(-1, keepdim=True)
    if not (torch.isfinite(y).all() and shift_free.norm() > 0 and centred.norm() > 0):
        return unknown
    error = float((shift_free @ (v / v.norm())).norm() / shift_free.norm())
    left = float(x.norm() / centred.norm() * y.norm() / shift_free.norm())
    floor = ROUNDINGS * torch.finfo(torch.float32).eps / 2 * max(1.0, left)
    return [error, floor] if floor < BLIND else unknown


# --- the page -------------------------------------------------------------------------------------------------------


def page(records: dict[str, Record], seconds: float) -> str:
    """docs/zoo.md."""
    header, rows = judge.committed()
    ran = {t: r for t, r in records.items() if r["ran"]}
    judged = {t: r for t, r in ran.items() if "sites" in r}
    finals = {t: r for t, r in judged.items() if r["final"] is not None and rows[t]["final"].get("norms")}
    without = {t: r for t, r in judged.items() if r["final"] is not None and t not in finals}
    stacks = {t: r for t, r in judged.items() if r["stacks"] is not None}
    stacked = {t: r for t, r in stacks.items() if any(r["stack_pair"])}
    sites, wrong = sum(r["sites"] for r in judged.values()), sum(len(r["wrong"]) for r in judged.values())
    towers = [(t, *tower) for t, r in judged.items() for tower in r["towers"]]
    agreeing = sum(truth == mine for _, _, truth, mine in towers)
    false = [(t, *k) for t, r in ran.items() for k in r["kernel"] if is_false(*k[1:])]
    measured = [k for r in ran.values() for k in r["kernel"]]
    kinds: Counter[str] = Counter()
    styles: Counter[str] = Counter()
    roles: Counter[str] = Counter()
    for r in ran.values():
        kinds.update(r["kinds"])
        roles.update(r["roles"])
        styles.update(r["styles"])
    incomplete = [t for t in judged if rows[t].get("left_out_tensors")]
    stackless = {t: r for t, r in stacks.items() if t not in stacked}
    bars = [
        ("types that ran", f"{len(ran)} of {len(records)}", "≥ 640", len(ran) >= 640),
        ("norm sites with the right kind, width and axis", *share(sites - wrong, sites, 0.995)),
        ("final norm right, of the types that have one", *share(right(finals, "final"), len(finals), 0.97)),
        ("no final norm found, of the types that have none", *share(right(without, "final"), len(without))),
        ("stacks exact, of the types that have any", *share(right(stacked, "stacks"), len(stacked), 0.96)),
        ("no stack found, of the types that have none", *share(right(stackless, "stacks"), len(stackless))),
        ("final norm of a model inside the model", *share(agreeing, len(towers))),
        ("false kernels", str(len(false)), "0", not false),
    ]  # fmt: skip
    lines = [INTRODUCTION.format(version=header["transformers"], types=len(records))]
    lines += ["| | census | bar | |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {value} | {bar} | {('met' if met else 'MISSED') if bar else ''} |"
        for name, value, bar, met in bars
    ]
    lines += ["", METHOD.format(
        incomplete=", ".join(f"`{t}`" for t in incomplete) or "none",
        minutes=f"{seconds / 60:.0f}",
        **{k: header[k] for k in ("norms", "worst_probe_residual", "worst_recorded_residual", "norms_without_recorded_rows")},
        **kernel_figures(measured),
        kinds=counted(kinds), roles=counted(roles), styles=counted(styles),
    )]  # fmt: skip
    lines += ["## False kernels", ""]
    lines += [
        f"* `{t}`, `{path}`: {kind}, {shown(probed)} in the probe, {shown(seen)} in the forward (floor {shown(floor)})"
        for t, path, kind, probed, seen, floor in false
    ] or ["None."]
    lines += ["", "## Models inside a model whose final norm differs", ""]
    lines += [
        f"* `{t}`, `{path}`: truth {code(truth)}, found {code(mine)}"
        for t, path, truth, mine in towers
        if truth != mine
    ] or ["None."]
    lines += ["", "## Every type", "", TABLE_HEAD]
    lines += [table_row(t, records[t], rows.get(t, {"ran": False})) for t in sorted(records)]
    return "\n".join(lines) + "\n"


def is_false(kind: str, probed: float | None, recorded: float | None, floor: float | None) -> bool:
    """Whether a site's kind is at odds with what its kernel measures, in the probe or in the forward."""
    at_floor = [probed < PROBE_FLOOR] if probed is not None else []
    if recorded is not None and floor is not None:
        at_floor.append(recorded < floor)
    return any(there != (kind == "layernorm") for there in at_floor)


def kernel_figures(measured: list[list[Any]]) -> dict[str, str]:
    """The extremes of what was measured along kernels."""
    figures = {"blind": str(sum(k[3] is None for k in measured)), "measured": str(len(measured))}
    for kind, extreme in (("layernorm", max), ("rmsnorm", min)):
        probed = [k[2] for k in measured if k[1] == kind and k[2] is not None]
        recorded = [k[3] for k in measured if k[1] == kind and k[3] is not None]
        margins = [k[3] / k[4] for k in measured if k[1] == kind and k[3] is not None]
        figures |= {
            f"{kind}_{n}": f"{extreme(v):.1e}"
            for n, v in (("probe", probed), ("seen", recorded), ("of_floor", margins))
        }
    return figures


def shown(value: float | None) -> str:
    """A measurement, or that there is none."""
    return "unknown" if value is None else f"{value:.1e}"


def right(records: dict[str, Record], key: str) -> int:
    """How many agree with the truth."""
    return sum(r[key] is True for r in records.values())


def share(part: int, whole: int, bar: float | None = None) -> tuple[str, str, bool]:
    """A share in words, the bar in words, and whether it is met."""
    value = part / whole if whole else 1.0
    return f"{part} of {whole} ({value:.2%})", f"≥ {bar:.1%}" if bar else "", bar is None or value >= bar


def counted(counter: Counter[str]) -> str:
    """``pre-norm 506, post-norm 132``."""
    return ", ".join(f"{name} {count}" for name, count in counter.most_common())


def code(path: str | None) -> str:
    """A module path as the page shows it."""
    return f"`{path}`" if path else "none"


def table_row(model_type: str, record: Record, row: Record) -> str:
    """One line of the table."""
    if not record["ran"]:
        reason = record["reason"].partition("; pass the inputs")[0].replace("|", "∣")
        return f"| `{model_type}` | | | | | | did not run: {reason} |"
    kinds = counted(Counter(record["kinds"])) or "none"
    styles = ", ".join(dict.fromkeys(record["styles"])) or ""
    if "sites" not in record:
        return f"| `{model_type}` | – | {kinds} | – | – | {styles} | the judge's own forward did not run |"
    marks = {True: "ok", False: "**miss**", None: "not judged"}
    _, mine = record["final_pair"]
    return (
        f"| `{model_type}` | {record['sites'] - len(record['wrong'])}/{record['sites']} | {kinds} "
        f"| {code(mine)} {marks[record['final']]} | {len(record['stack_pair'][1])} {marks[record['stacks']]} "
        f"| {styles} | {'; '.join(notes(model_type, record, row))} |"
    )


def notes(model_type: str, record: Record, row: Record) -> Iterator[str]:
    """What differs, and why."""
    if row.get("left_out_tensors"):
        yield f"the truth lacks {row['left_out_tensors']} tensors that were too large to keep"
    if record["how"] != "values":
        yield f"discovered by {record['how']}"
    for path, truth, mine in record["wrong"][:2]:
        why = f" ({record['refused'][path]})" if path in record["refused"] else ""
        yield f"`{path}` is {truth or 'no norm'}, found {mine or 'none'}{why}"
    if len(record["wrong"]) > 2:
        yield f"and {len(record['wrong']) - 2} more like these"
    if record["final"] is False:
        truth, mine = record["final_pair"]
        yield f"final norm is {code(truth)}, found {code(mine)}"
    if record["stacks"] is False:
        truth, mine = record["stack_pair"]
        missing = [code(path) for path in truth if truth[path] != mine.get(path)]
        extra = [code(path) for path in mine if truth.get(path) != mine[path]]
        yield f"stacks are {', '.join(missing) or 'none'}, found {', '.join(extra) or 'none'}"
    if model_type in REASONS:
        yield REASONS[model_type]


INTRODUCTION = """\
# The zoo

What `discover()` makes of every architecture that transformers {version} knows ({types} config types), against a truth
table that was made without it. Written by `python -m tests.zoo.census`; do not edit.
"""

METHOD = """\
## How this was counted

**Models.** Each type's default config is shrunk (all widths divided by one power of two, 3 layers or as many as it takes to
have each kind, a vocabulary of 256), built by its own class with random weights, and fed what `pytest_deaddir.source.synthetic`
makes up for its forward's arguments. Parameters along one axis are then randomised, so that γ and β are not 1 and 0. Each type
runs in a process of its own with limits of time and memory; this page took {minutes} minutes in two processes.
Multimodal models whose text and images meet through placeholder tokens get text only: their towers do not run, and what did
not run is in neither side's list. Most of these towers are types of their own.

**Truth** (`tests/zoo/judge.py` → `tests/zoo/truth.json`; it shares no code with discovery). One forward keeps every module's
tensors.
A *norm* is a module that a least-squares fit in float64 explains as γ∘(x − mean)/std + β or γ∘x/rms + β at two scales, and that
the recorded tensors do not contradict: {norms} sites, worst residual {worst_probe_residual} in the probe and
{worst_recorded_residual} on what was recorded; {norms_without_recorded_rows} sites had too few or collapsed
recorded rows and rest on the probe. Of a norm that wraps a norm, only the outer counts.
A *final norm* is one whose output is the model's last hidden state (or, where it returns none, its first output),
also with its numbers in another order (permuted, folded back from windows), or cut, or every
n-th row of it.
A *stack* is a container whose every child that ran holds a norm beside other things and takes the tensor
that the child before it gave; the outermost of those are compared, with their children in the order of their run.

**Comparison.** A norm site counts as right if kind, width and axis agree; a site that only one side has is wrong. A type
that returns logits and no hidden state has no truth about its final norm unless a norm's output is its output. Models inside
a model: the final norm of the last outermost stack under each inner model that ran and holds a stack, if that norm too lies
in the inner model, against the norm whose output it returned; inner models that return logits or feature maps are left out.
Styles and roles have no truth; they are shown as discovery names them.
Truth is incomplete, since tensors of more than 16 Mi elements are not kept, for: {incomplete}. There, norms are compared only
where the truth has one, and stacks and inner models not at all.

**False kernels.** For every site that discovery calls a norm, |vᵀ(y − β)|/‖y − β‖ with v ∝ 1/γ is measured in a float64
probe and on the activations of the forward in float32. A LayerNorm must be at the floor in both, an RMSNorm above it in both.
The floor is 1e-5 in the probe and, in the forward, 64 roundings of float32 times ‖x‖/‖x − mean‖ · ‖y‖/‖y − β‖.
LayerNorms reach at most {layernorm_probe} in the probe and {layernorm_seen} in the forward, and at most
{layernorm_of_floor} of the floor there; RMSNorms have at least {rmsnorm_probe} and {rmsnorm_seen}, and at least
{rmsnorm_of_floor} times the floor. {blind} of {measured} sites tell nothing in the forward, because their rows have collapsed to
one point, γ has a zero, or they are not given a plain tensor.

**Found.** Kinds: {kinds}. Roles: {roles}. Styles of outermost stacks: {styles}.
"""

TABLE_HEAD = """\
| type | norms right | kinds | final norm | stacks | styles | notes |
|---|---|---|---|---|---|---|"""


def main() -> None:
    """The command of the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("types", nargs="*", metavar="TYPE")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--records", type=Path, help="also write what the page is made from, as JSON")
    parser.add_argument("--timeout", type=float, default=120, help="seconds per type")
    options = parser.parse_args()
    judge.quieten()
    header, _ = judge.committed()
    if not judge.is_current(header):
        sys.exit(
            f"truth.json is of transformers {header['transformers']}, and {transformers.__version__} is installed: "
            "write it again first (python -m tests.zoo.judge --write)"
        )
    started, records = time.monotonic(), {}
    wanted = options.types or shrink.model_types()
    done = each(census, wanted, processes=options.processes, timeout=options.timeout, memory=MEMORY)
    for count, (model_type, record) in enumerate(done, 1):
        records[model_type] = {"ran": False} | record
        print(f"{count}/{len(wanted)} {model_type}: {record.get('reason', 'ran')}", file=sys.stderr, flush=True)
    if options.records:
        options.records.write_text(json.dumps(records), encoding="utf-8")
    if options.types:
        print(json.dumps(records, indent=1))
    else:
        PAGE.write_text(page(records, time.monotonic() - started), encoding="utf-8")


if __name__ == "__main__":
    main()
