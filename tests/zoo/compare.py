"""Discovery against a row of the truth table: the same comparison for the census and for the sample in the test suite."""

from __future__ import annotations

from typing import Any

from torch import nn

from pytest_deaddir.discovery.discover import Discovery
from pytest_deaddir.discovery.discover import discover as discover
from pytest_deaddir.source.synthetic import synthetic_inputs

from . import judge, shrink

Record = dict[str, Any]


def built(model_type: str) -> tuple[nn.Module, dict[str, Any]]:
    """The small model as the judge saw it, and its inputs."""
    model = shrink.build(model_type)
    judge.randomise(model)
    return model, synthetic_inputs(model)


def truth_row(model_type: str) -> Record:
    """The committed row; judged afresh where another transformers is installed than the one it is of."""
    header, rows = judge.committed()
    if judge.is_current(header):
        return rows[model_type]
    return judge.row(judge.truth(model_type))


def compared(found: Discovery, row: Record) -> Record:
    """What agrees and what does not, in JSON's types.

    ``sites``, ``wrong``: norms that either side has, and those of them ([path, truth, found]) on whose kind, width or axis
    they differ. ``final``, ``stacks``: True, False, or None where the truth is not known; with what both sides have.
    """
    incomplete = bool(row.get("left_out_tensors"))
    true = row.get("norms", {})
    mine = {n.path: f"{n.kind} {n.features}{' dim1' if n.probe.axis == 1 else ''}" for n in found.norms}
    for path in row.get("unseen", ()):
        mine.pop(path, None)
    if incomplete:  # the truth misses norms on tensors that were too large to keep
        mine = {path: kind for path, kind in mine.items() if path in true}
    sites = true.keys() | mine.keys()
    wrong = [[p, true.get(p), mine.get(p)] for p in sorted(sites) if true.get(p) != mine.get(p)]

    finals = row["final"].get("norms", {})
    final = found.final_norm in finals if finals else found.final_norm is None
    knows_final = (bool(finals) or row["final"]["of"] == "last_hidden_state") and (bool(finals) or not incomplete)

    true_stacks = {
        path: [f"{path}.{child}" if path else child for child in run.split()]
        for path, run in row.get("stacks", {}).items()
    }
    my_stacks = {stack.path: list(stack.blocks) for stack in found.stacks if stack.within is None}
    towers = [[path, norm, _of_tower(found, path)] for path, norm in row.get("towers", {}).items()]
    return {
        "sites": len(sites),
        "wrong": wrong,
        "final": final if knows_final else None,
        "final_pair": [next(iter(finals), None), found.final_norm],
        "stacks": true_stacks == my_stacks if not incomplete else None,
        "stack_pair": [true_stacks, my_stacks],
        "towers": [tower for tower in towers if tower[2] != "no stack" and not incomplete],
    }


def _of_tower(found: Discovery, path: str) -> str | None:
    """The final norm of the last outermost stack in the model at ``path``, which is what that model returns last; none where
    the norm lies outside it, in the model around it."""
    stacks = [s for s in found.stacks if s.within is None and s.path.startswith(f"{path}.")]
    if not stacks:
        return "no stack"
    final = stacks[-1].final_norm
    return final if final and final.startswith(f"{path}.") else None
