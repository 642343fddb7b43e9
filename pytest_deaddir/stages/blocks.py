"""The residual stream from block to block: is its smallest singular value kept, and if not, what took it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pytest_deaddir.algebra.floor import dead_threshold
from pytest_deaddir.algebra.kernel import kernel_basis, participation_ratio
from pytest_deaddir.algebra.spectrum import bottom_eigenpairs, dead_dimension
from pytest_deaddir.discovery.discover import NormSite
from pytest_deaddir.discovery.stacks import under
from pytest_deaddir.progress import with_progress
from pytest_deaddir.stages.measure import Bottom, dtype_of, spectrum, too_few, unmeasurable
from pytest_deaddir.stages.taps import StreamTaps, Tap
from pytest_deaddir.tables import Row, row

#: Coordinates that a pinpoint names, at most, and the part of a dead direction that one must carry.
COORDINATES = 8
CARRIES = 0.1

_BEFORE = "before the first block"


def block_rows(stream: StreamTaps, sites: Mapping[str, NormSite], default_dtype: str, solver: str) -> list[Row]:
    """A row for the stream before the first block, of index -1, and one after each block.

    What is known to be dead is deflated first: a LayerNorm's kernel where the stream is its output (post-norm), and from
    there on, since blocks only add to it; the mean where every writer is centred (folded weights). ``smin_ratio``: σ_min
    over that of the row before; ``smin_ratio_relative``: the same over the median, which a rescaled stream keeps, with
    σ_min taken for its noise floor where it lies below that, so that it is the most that it can be.
    """
    stack = stream.stack
    ends = stack.ends or (None,) * len(stream.taps)
    folded = not any(ends) and all(map(_is_centred, stream.taps))
    rows: list[Row] = []
    previous: Bottom | None = None
    broken = ""
    known = np.zeros((0, 0))
    for index, (tap, end) in enumerate(
        with_progress("spectra", zip(stream.taps, ends, strict=True), len(ends), "blocks"), start=-1
    ):
        path = stack.blocks[index] if index >= 0 else f"input of {stack.blocks[0]}"
        facts = row(
            "blocks",
            stack=stack.path,
            index=index,
            path=path,
            features=tap.rows.width,
            samples=tap.samples or None,
        )
        rows.append(facts)
        facts |= {"unmeasured": "", "inconclusive": f"it lies behind {broken}"} if broken else _unusable(tap, index)
        if facts["unmeasured"] or facts["inconclusive"]:
            broken = broken or (path if facts["unmeasured"] or facts["inconclusive"].startswith(_BEFORE) else "")
            previous = None
            continue
        if (here := _known(sites.get(end or ""), tap.rows.width, folded))[1] or known.shape[0] != tap.rows.width:
            known, facts["deflated"] = here
        else:
            facts["deflated"] = rows[-2]["deflated"]
        facts["deflated_dimension"] = known.shape[1]
        dtype = facts["dtype"] = dtype_of(tap, default_dtype)
        found = spectrum(tap.rows, dtype, solver=solver, without=known)
        facts |= {
            "sigma_min": float(found.values[0]),
            "sigma_median": found.median,
            "sigma_max": found.largest,
            "dead_dimension": found.dead,
            "readable": found.dead == 0,
        }
        if previous is not None and previous.dead == 0:
            facts |= _ratios(found, previous)
        if found.dead and index < 0:
            facts["inconclusive"] = (
                f"the inputs span {tap.rows.width - found.dead} of {tap.rows.width} dimensions before the first block: "
                "more distinct inputs would settle its first step (--deaddir-inputs)"
            )
        if found.dead:
            block = [site for site in sites.values() if under(site.path, path)]
            facts |= _pinpoint(found, known, block, tap, dtype)
        previous = found
    return rows


def _ratios(found: Bottom, previous: Bottom) -> Row:
    """What a block keeps, of σ_min and of the scale."""
    smallest, before = float(found.values[0]), float(previous.values[0])
    most = max(smallest, float(found.floors[0]) if found.floors.size else 0.0)
    return {
        "smin_ratio": smallest / before,
        "scale_ratio": found.median / previous.median,
        "smin_ratio_relative": most / found.median / (before / previous.median),
    }


def _unusable(tap: Tap, index: int) -> Row:
    """Why nothing can be measured at a place of the stream, or nothing can be concluded; both empty where something can."""
    if not tap.samples and tap.rows.finite:
        return {
            "unmeasured": "",
            "inconclusive": f"no rows of {tap.rows.width} features: the width changes here, or nothing ran",
        }
    reason = unmeasurable(tap)
    if reason and index < 0 and tap.rows.finite:  # learned queries, all alike before they are trained
        return {"unmeasured": "", "inconclusive": f"{_BEFORE} {reason}"}
    return {"unmeasured": reason, "inconclusive": "" if reason else too_few(tap)}


def _is_centred(tap: Tap) -> bool:
    """Whether the stream has no mean over its features at all, as far as its dtype can show."""
    if tap.samples <= tap.rows.width or not tap.rows.finite:
        return False
    mean = np.full((tap.rows.width, 1), tap.rows.width**-0.5)
    threshold = dead_threshold(mean, tap.rows.energy.cpu().numpy(), dtype_of(tap, "float32"))
    return bool((tap.rows.variance.cpu().numpy() <= threshold).all())


def _known(end: NormSite | None, width: int, folded: bool) -> tuple[np.ndarray, str]:
    """What is dead by algebra at one place of the stream, (d, j), and what to call it."""
    if end is not None and end.kind == "layernorm" and end.probe.gamma is not None and end.features == width:
        if np.isfinite(end.probe.gamma).all():
            return kernel_basis(end.probe.gamma), f"the kernel of {end.path}"
    elif folded:
        return np.full((width, 1), width**-0.5), "the mean: every writer is centred, as folding leaves them"
    return np.zeros((width, 0)), ""


def _pinpoint(found: Bottom, known: np.ndarray, block: Sequence[NormSite], tap: Tap, dtype: str) -> Row:
    """Where a dead direction lies: its coordinates, and the norm of the block whose scale predicts it.

    The overlap is the root mean square cosine of the dead directions with the norm's predicted dead subspace, 0 … 1.
    """
    dead = found.vectors[:, : found.dead]
    carried = np.square(np.column_stack([known, dead])).sum(1)
    largest = np.argsort(-carried, kind="stable")[:COORDINATES]
    best: tuple[float, str | None] = (0.0, None)
    for site in block:
        gamma, beta = site.probe.gamma, site.probe.beta
        if gamma is None or site.features != tap.rows.width or not np.isfinite(gamma).all():
            continue
        centred = site.kind == "layernorm"
        predicted = dead_dimension(gamma, beta, dtype, centred=centred)
        if not predicted:
            continue
        if centred:
            span = bottom_eigenpairs(gamma, predicted)[1]
        else:
            span = np.eye(gamma.size)[:, np.argsort(np.abs(gamma), kind="stable")[:predicted]]
        overlap = float(np.linalg.norm(span.T @ dead) / dead.shape[1] ** 0.5)
        best = max(best, (overlap, site.path), key=lambda pair: pair[0])
    return {
        "pinpoint_coordinates": sorted(int(i) for i in largest if carried[i] >= CARRIES),
        "pinpoint_participation": participation_ratio(dead[:, 0]),
        "pinpoint_site": best[1],
        "pinpoint_overlap": best[0] if best[1] else None,
    }
