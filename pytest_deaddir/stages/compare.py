"""An audit beside an earlier one, or beside that of another form of the model: which rows belong together, what changed.

Pure: plain data in, plain data out. What is no more than another dtype, another seed or another file format is no change.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from pytest_deaddir.algebra.floor import UNIT_ROUNDOFF
from pytest_deaddir.discovery.names import matched_paths
from pytest_deaddir.stages.read import normalisation
from pytest_deaddir.tables import COMPARED, LEVELS, Audit, Row, completed, is_comparison

#: Relative difference up to which two scales count as the same, where the names of two forms of a checkpoint tell nothing.
SAME_SCALE = 0.05

#: With this many times fewer rows of activations than the baseline, σ_min is not compared.
FEWER = 2

#: Takes the place of a σ_min / σ_median of 0, which has no logarithm; whatever is measured is larger.
LEAST = 1e-30

#: Paths that a sentence names, at most.
MOST_NAMED = 4


def compare(audit: Audit, baseline: Audit) -> Audit:
    """``audit`` with the columns of the comparison filled; neither is changed.

    Rows are matched by path, by path under one prefix, or where the names tell nothing by place and scale. A row that has
    no counterpart keeps None in these columns; ``not_compared`` of the model says what could not be compared, and why.
    """
    baseline = completed(baseline)
    scope, theirs = _scoped(audit, baseline), _scoped(baseline, audit)
    norms = _matched_norms(scope, theirs)
    blocks = _matched_blocks(audit.blocks, baseline.blocks)
    same_inputs = all(audit.model[column] == baseline.model[column] for column in ("inputs", "inputs_source"))
    dtypes = audit.model["dtype"], baseline.model["dtype"]
    held = _held(baseline)
    orphans = audit.model["orphan_norms"] or ()
    met = {other["path"] for other in norms.values()}
    lost = [row["path"] for row in theirs if row["path"] not in met]
    new = [row["path"] for row in scope if row["path"] not in norms]
    model = {
        "baseline": baseline.model["spec"],
        "baseline_findings": held["model"].get(baseline.model["spec"], {}),
        "normalisation_change": _change(normalisation(scope), normalisation(theirs), [*scope, *theirs]),
        "lost_sites": [path for path in lost if not any(name.startswith(f"{path}.") for name in orphans)],
        "new_sites": new,
        "not_compared": list(_not_compared(audit, baseline, new, blocks, same_inputs)),
    }
    return replace(
        audit,
        model=audit.model | model,
        norms=[
            row | _norm_columns(row, norms.get(row["path"]), held["norms"], dtypes, same_inputs) for row in audit.norms
        ],
        blocks=[
            row | _block_columns(row, blocks.get(_place(row)), held["blocks"], same_inputs) for row in audit.blocks
        ],
    )


def _norm_columns(row: Row, other: Row | None, held: dict[str, Row], dtypes: tuple[str, str], same_inputs: bool) -> Row:
    if other is None:
        return dict.fromkeys(COMPARED["norms"])
    measured = same_inputs and _is_usable(row) and _is_usable(other)
    same_dtype = row["dtype"] == other["dtype"]
    return {
        "baseline_path": other["path"],
        "baseline_findings": held.get(other["path"], {}),
        "kind_change": _change(row["kind"], other["kind"], [row, other]),
        "new_dead_coordinates": None if _is_coarser(*dtypes) else _new_dead_coordinates(row, other),
        "predicted_dead_grown": _predicted_grown(row, other, max(dtypes, key=_roundoff)),
        "dead_dimension_grown": _dead_grown(row, other) if measured else None,
        "depth_moved": _difference(row["depth"], other["depth"]) if measured and same_dtype else None,
    }


def _block_columns(row: Row, other: Row | None, held: dict[str, Row], same_inputs: bool) -> Row:
    if other is None:
        return dict.fromkeys(COMPARED["blocks"])
    measured = same_inputs and _is_usable(row) and _is_usable(other)
    return {
        "baseline_path": other["path"],
        "baseline_findings": held.get(other["path"], {}),
        "sigma_min_moved": _sigma_min_moved(row, other) if measured else None,
        "dead_dimension_grown": _dead_grown(row, other) if measured else None,
    }


def _change(here: str, there: str, rows: Sequence[Row]) -> str | None:
    """``layernorm → rmsnorm``, empty where nothing changed; None where a kind is undecided on either side."""
    if any(row["kind"] == "undecided" for row in rows):
        return None
    return "" if here == there else f"{there} → {here}"


def _difference(here: Any, there: Any) -> Any:
    return None if here is None or there is None else here - there


def _is_usable(row: Row) -> bool:
    return row["samples"] is not None and not row["unmeasured"] and not row["inconclusive"]


def _dead_grown(row: Row, other: Row) -> int | None:
    """Measured dead directions beyond the baseline's. A coarser dtype hides more, so that nothing is said of one."""
    if _is_coarser(row["dtype"], other["dtype"]) or None in (row["dead_dimension"], other["dead_dimension"]):
        return None
    grown: int = row["dead_dimension"] - other["dead_dimension"] + _deflated_more(row, other)
    return grown


def _deflated_more(row: Row, other: Row) -> int:
    """Of a block: directions that were known to be dead beyond the baseline's. float16 makes such of tiny scales."""
    counts = row.get("deflated_dimension"), other.get("deflated_dimension")
    return _difference(*counts) or 0


def _sigma_min_moved(row: Row, other: Row) -> float | None:
    """Orders of ten of σ_min / σ_median over the baseline's.

    None where the baseline's σ_min is under its noise floor, so that there is nothing to lose and a finer dtype reads
    less; where other directions were taken out before; and where the rows are so few that they alone make it smaller.
    """
    if not other["readable"] or not other["sigma_min"] or not other["sigma_median"] or not row["sigma_median"]:
        return None
    if _deflated_more(row, other) or _has_few_rows(row, other):
        return None
    here, there = row["sigma_min"] / row["sigma_median"], other["sigma_min"] / other["sigma_median"]
    return math.log10(max(here, LEAST) / there)


def _has_few_rows(row: Row, other: Row) -> bool:
    return bool(FEWER * row["samples"] < other["samples"])


def _roundoff(dtype: str | None) -> float:
    return UNIT_ROUNDOFF.get(dtype or "", 0.0)


def _is_coarser(dtype: str | None, other: str | None) -> bool:
    """Whether more is lost in ``dtype``, or nobody knows."""
    return dtype != other and not 0 < _roundoff(dtype) <= _roundoff(other)


def _new_dead_coordinates(row: Row, other: Row) -> list[int] | None:
    here, there = row["predicted_dead_coordinates"], other["predicted_dead_coordinates"]
    return None if here is None or there is None else sorted(set(here) - set(there))


def _predicted_grown(row: Row, other: Row, dtype: str) -> Any:
    """Of the dead dimensions that the scales predict in ``dtype``: in one dtype the same scales predict the same."""
    name = "float32" if dtype == "float64" else dtype
    here, there = ((side["predicted_dead_by_dtype"] or {}).get(name) for side in (row, other))
    return _difference(here, there)


def _held(baseline: Audit) -> dict[str, dict[str, Row]]:
    """Table → path → code → what was measured, of the baseline's findings.

    Not of those that were accepted for a reason of their own, which may end, nor of those that came of a comparison:
    they were about another baseline.
    """
    held: dict[str, dict[str, Row]] = {table: {} for table in COMPARED}
    for finding in baseline.findings:
        if not finding.get("suppressed") and not is_comparison(finding):
            held[finding["table"]].setdefault(finding["path"], {})[finding["code"]] = finding["measured"]
    return held


# --- which rows belong together ---------------------------------------------------------------------------------------


def _scoped(audit: Audit, other: Audit) -> list[Row]:
    """The norms that both audits could have seen: at level read only those with tensors, and perhaps only the final one."""
    rows = audit.norms
    if "read" in (audit.model["level"], other.model["level"]):
        rows = [row for row in rows if row["gamma_source"] in ("file", "missing")]
    if _is_final_only(audit) or _is_final_only(other):
        rows = [row for row in rows if row["role"] == "final"]
    return rows


def _is_final_only(audit: Audit) -> bool:
    return audit.model["level"] == "read" and [row["role"] for row in audit.norms] == ["final"]


def _matched_norms(rows: Sequence[Row], others: Sequence[Row]) -> dict[str, Row]:
    """Path → the baseline's row. By place only where most names tell nothing: one that is gone among names that stay is
    lost, whatever else has come."""
    theirs = {row["path"]: row for row in others}
    named = _matched_names([row["path"] for row in rows], list(theirs))
    if 2 * len(named) >= min(len(rows), len(others)):
        return {path: theirs[other] for path, other in named.items()}
    places = _places(others)
    found: dict[str, Row] = {}
    for place, here in _places(rows).items():
        there = places.get(place, [])
        if len(here) == len(there):
            found |= {row["path"]: other for row, other in _paired(here, there)}
    return found


def _matched_names(names: Sequence[str], others: Sequence[str]) -> dict[str, str]:
    exact = {name: name for name in names if name in set(others)}
    if len(exact) == min(len(names), len(others)):
        return exact
    return max(exact, matched_paths(names, others), key=len)


def _places(rows: Sequence[Row]) -> dict[tuple[Any, ...], list[Row]]:
    """The norms by where they are: the number of the stack and of the block, else the role; and the width."""
    stacks = list(dict.fromkeys(row["stack"] for row in rows if row["stack"] is not None))
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        number = re.search(r"\.(\d+)(\.|$)", f".{row['path']}")
        inside = row["stack"] is not None and number is not None
        place = (stacks.index(row["stack"]), int(number[1])) if inside and number else (row["role"],)
        found.setdefault((*place, row["features"]), []).append(row)
    return found


def _paired(here: Sequence[Row], there: Sequence[Row]) -> Iterator[tuple[Row, Row]]:
    """By scale where the scales of the two are the same, as in a conversion; else in their order."""
    by_scale = list(zip(sorted(here, key=_scale), sorted(there, key=_scale), strict=True))
    same = all(
        math.isclose(ours, theirs, rel_tol=SAME_SCALE)
        for row, other in by_scale
        for ours, theirs in zip(_scale(row), _scale(other), strict=True)
    )
    yield from by_scale if same else zip(here, there, strict=True)


def _scale(row: Row) -> tuple[float, ...]:
    return tuple(row[column] or 0.0 for column in ("gamma_median", "gamma_max"))


def _matched_blocks(rows: Sequence[Row], others: Sequence[Row]) -> dict[str, Row]:
    """Place → the baseline's row; in the order of the stacks where their names tell nothing and they are as long."""
    theirs = {_place(row): row for row in others}
    named = _matched_names([_place(row) for row in rows], list(theirs))
    if 2 * len(named) >= min(len(rows), len(others)):
        return {place: theirs[other] for place, other in named.items()}
    here, there = _stacks(rows), _stacks(others)
    if [len(stack) for stack in here] != [len(stack) for stack in there]:
        return {}
    pairs = zip((row for stack in here for row in stack), (row for stack in there for row in stack), strict=True)
    return {_place(row): other for row, other in pairs}


def _place(row: Row) -> str:
    return f"{row['stack']}.{row['index']}"


def _stacks(rows: Sequence[Row]) -> list[list[Row]]:
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault(row["stack"], []).append(row)
    return list(found.values())


# --- what could not be compared ---------------------------------------------------------------------------------------


def _not_compared(
    audit: Audit, baseline: Audit, new: Sequence[str], blocks: dict[str, Row], same_inputs: bool
) -> Iterator[str]:
    here, there = audit.model["level"], baseline.model["level"]
    lower = min(here, there, key=LEVELS.index)
    if here != there:
        whose = "this audit" if here == lower else "the baseline"
        yield f"what only level {max(here, there, key=LEVELS.index)} measures: {whose} is of level {lower}"
    if _is_final_only(audit) != _is_final_only(baseline):
        yield "norms other than the final one: one of the two looked at that alone"
    if new:
        yield f"{_listed(new)}: not among the baseline's norms"
    dtypes = audit.model["dtype"], baseline.model["dtype"]
    if _is_coarser(*dtypes):
        yield f"dead coordinates, and measured dead dimensions: {dtypes[0]} hides more than the baseline's {dtypes[1]}"
    if lower == "read":
        return
    if not same_inputs:
        fed = [f"{audit_.model['inputs']} ({audit_.model['inputs_source']})" for audit_ in (audit, baseline)]
        yield f"what depends on the inputs: {fed[0]} here, {fed[1]} in the baseline"
        return
    matched = [(row, blocks[_place(row)]) for row in audit.blocks if _place(row) in blocks]
    if any(_is_usable(row) and _is_usable(other) and _has_few_rows(row, other) for row, other in matched):
        yield f"σ_min: {audit.model['samples']} rows, and {baseline.model['samples']} in the baseline"
    lacking = [row["path"] for row in audit.blocks if _place(row) not in blocks]
    if lacking:
        yield f"the stream after {_listed(lacking)}: not among the baseline's blocks"
    worse = [row["path"] for row, other in matched if _is_usable(other) and not _is_usable(row)]
    if worse:
        yield f"the stream after {_listed(worse)}: measured in the baseline, and not here"


def _listed(paths: Sequence[str]) -> str:
    """The first few of them."""
    return ", ".join(paths[:MOST_NAMED]) + (f" and {len(paths) - MOST_NAMED} more" if len(paths) > MOST_NAMED else "")
