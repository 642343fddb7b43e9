"""The read stage: what γ alone says, from the files, without torch and without a forward pass."""

from __future__ import annotations

import platform
import re
import sys
import time
from typing import Any

import numpy as np

import pytest_deaddir
from pytest_deaddir.algebra.floor import UNIT_ROUNDOFF, rounded
from pytest_deaddir.algebra.kernel import direction, participation_ratio
from pytest_deaddir.algebra.spectrum import bottom_eigenpairs, dead_by_dtype, dead_coordinates, dead_dimension
from pytest_deaddir.discovery.names import NamedSite, final_candidates, sites_from_names
from pytest_deaddir.errors import CheckpointError
from pytest_deaddir.source.checkpoint import Checkpoint
from pytest_deaddir.source.open import open_checkpoint
from pytest_deaddir.source.spec import Spec
from pytest_deaddir.stages.settle import settled
from pytest_deaddir.tables import Audit, Row, row

#: Predicted and measured bottom singular values that a row keeps.
BOTTOM = 4

#: Scales that a row keeps of a final norm.
PROFILE = 33

#: Bytes of a scale at most; no model is as wide as a million.
MAX_SCALE = 8_000_000


def read_stage(spec: Spec, dtype: str | None = None, sites: str = "all", *, download: bool = False) -> Audit:
    """Audit the files of a subject at the read level.

    ``sites``: all, or final, which reads no other norm's values and leaves them out of the table.
    ``dtype``: what the model is to be run in (default: what most of it is stored in); it sets the noise floor that
    decides which coordinates are dead. ``download``: whether a hub's model is to be downloaded, not read by range.
    Raises :class:`CheckpointError` and :class:`SpecError`.
    """
    started = time.perf_counter()
    checkpoint = open_checkpoint(spec, download=download, wanted=final_candidates if sites == "final" else None)
    named = sites_from_names(checkpoint.floating_shapes(), checkpoint.config, final_only=sites == "final")
    if checkpoint.partial and not any(site.role == "final" for site in named):  # names misled: look into every shard
        checkpoint = open_checkpoint(spec, download=download)
        named = sites_from_names(checkpoint.floating_shapes(), checkpoint.config, final_only=True)
    named = settled(named, checkpoint)
    if not named:
        raise CheckpointError(checkpoint.path, f"no norm among its {len(checkpoint.tensors)} tensors: nothing to audit")
    wanted = [name for site in named for name in (site.gamma, site.beta) if name]
    for name in wanted:
        if checkpoint.tensors[name].length > MAX_SCALE:
            raise CheckpointError(
                checkpoint.path, f"refused: {name!r} would be a norm of {checkpoint.tensors[name].length} bytes"
            )
    values: dict[str, np.ndarray] = {}
    for tensor, array in checkpoint.read(wanted):
        values[tensor.name] = array
    run_dtype = dtype or ("float32" if spec.form == "gguf" else checkpoint.dtype)  # ggml's norms compute in float32
    if run_dtype not in UNIT_ROUNDOFF:  # F8 and packed weights are computed in bfloat16
        run_dtype = "bfloat16"
    norms = [_site_row(site, checkpoint, values, run_dtype) for site in named]
    final = next((norm for norm in norms if norm["role"] == "final"), None)
    model = row(
        "model",
        spec=spec.text,
        revision=checkpoint.revision,
        fingerprint=checkpoint.fingerprint(),
        architecture=checkpoint.architecture,
        parameters=checkpoint.parameters,
        width=final["features"] if final else None,
        normalisation=normalisation(norms),
        norm_eps=_norm_eps(checkpoint.config),
        duplicate_tensors=sorted(checkpoint.duplicates),
        differing_weights=checkpoint.differing,
        uncompared_weights=checkpoint.uncompared,
        unsafe_names=sorted(name for name in checkpoint.tensors if _is_unsafe(name)),
        bytes_read=checkpoint.traffic.bytes if checkpoint.traffic else None,
        requests=checkpoint.traffic.requests if checkpoint.traffic else None,
        level="read",
        dtype=run_dtype,
        versions=versions("numpy"),
        seconds={"read": round(time.perf_counter() - started, 4)},
        peak_memory=peak_memory(),
    )
    return Audit(model=model, norms=norms)


#: Whatever a tensor is called, its name is shown: in terminals, pages and pull requests.
_SAFE_NAME = re.compile(r"[A-Za-z0-9_.\-/:+ ]*")


def _is_unsafe(name: str) -> bool:
    return not _SAFE_NAME.fullmatch(name) or ".." in name or name.startswith(("/", "."))


def _norm_eps(config: dict[str, Any]) -> float | None:
    """Of all eps of norms in a config and its sections the one that is least plausible: negative, or else the largest.
    What is no finite number counts as 1e308, which no rule lets pass and every report can hold."""
    found: list[float] = []
    pending: list[Any] = [config]
    while pending:
        section = pending.pop()
        for key, value in section.items():
            if isinstance(value, dict):
                pending.append(value)
            elif _EPS.fullmatch(key) and isinstance(value, (int, float)) and not isinstance(value, bool):
                usable = -1e308 <= value <= 1e308  # false for NaN and infinity, and for a whole number of 400 digits
                found.append(float(value) if usable else 1e308)
    return min((eps for eps in found if eps < 0), default=max(found, default=None))


_EPS = re.compile(r"(.*norm.*_)?eps(ilon)?")


def _site_row(site: NamedSite, checkpoint: Checkpoint, values: dict[str, np.ndarray], dtype: str) -> Row:
    facts: dict[str, Any] = {"gamma_source": "missing"}
    if site.gamma:
        tensor = checkpoint.tensors[site.gamma]
        facts = {
            "gamma_source": "file",
            "gamma_file": tensor.file.name,
            "gamma_offset": tensor.offset,
            "gamma_dtype": tensor.dtype,
            "gamma_denormal": None if site.convention == "1+w" else _denormal(values[site.gamma], tensor.dtype),
            **_scale_columns(site, values, dtype),
        }
    return row(
        "norms",
        path=site.path,
        kind=site.kind,
        how=site.how,
        role=site.role,
        role_how="tensor names",
        stack=site.stack,
        features=site.features,
        gamma_convention=site.convention,
        **facts,
    )


def _scale_columns(site: NamedSite, values: dict[str, np.ndarray], dtype: str) -> Row:
    """What the stored numbers say, where it is known what makes a scale of them."""
    assert site.gamma is not None
    stored, beta = values[site.gamma], values.get(site.beta or "")
    if site.convention is None:
        return {"gamma_nonfinite": int(np.count_nonzero(~np.isfinite(stored)))}
    added = 1.0 if site.convention == "1+w" else 0.0  # in float32 or better
    gamma, shift = rounded(stored, dtype) + added, None if beta is None else rounded(beta, dtype)
    columns = gamma_columns(gamma, shift, site.kind, dtype, site.role == "final")
    if site.kind != "undecided":
        columns["predicted_dead_by_dtype"] = dead_by_dtype(stored, beta, added=added, centred=site.kind == "layernorm")
    return columns


#: The smallest normal number of each stored dtype; what lies below it is flushed to 0 on many accelerators.
_SMALLEST_NORMAL = {"F64": 2.0**-1022, "F32": 2.0**-126, "BF16": 2.0**-126, "F16": 2.0**-14}


def _denormal(gamma: np.ndarray, dtype: str) -> int:
    magnitude = np.abs(gamma)
    return int(np.count_nonzero((magnitude > 0) & (magnitude < _SMALLEST_NORMAL.get(dtype, 0.0))))


def gamma_columns(gamma: np.ndarray, beta: np.ndarray | None, kind: str, dtype: str, final: bool) -> Row:
    """What a scale says of its norm: its profile, and where it is finite what is predicted of the output in ``dtype``.

    ``gamma``, ``beta``: (d,) float64, effective, of parameters in ``dtype``.
    """
    finite = np.isfinite(gamma)
    columns: Row = {"gamma_nonfinite": int(gamma.size - np.count_nonzero(finite))}
    if finite.any():
        magnitude = np.sort(np.abs(gamma[finite]))
        middle = magnitude[(magnitude.size - 1) // 2], magnitude[magnitude.size // 2]
        columns |= {
            "gamma_min": float(magnitude[0]),
            "gamma_median": float(middle[0] / 2 + middle[1] / 2),
            "gamma_max": float(magnitude[-1]),
        }
        if final:  # the ranks are evenly apart in their logarithm, because it is the smallest that matter
            ranks = np.rint(magnitude.size ** np.linspace(0, 1, PROFILE)).astype(int)
            columns["gamma_profile"] = magnitude[ranks - 1].tolist()
    if not finite.all() or (beta is not None and not np.isfinite(beta).all()):
        return columns
    dead = dead_coordinates(gamma, beta, dtype)
    columns |= {"predicted_dead_coordinates": dead.tolist(), "dead_coordinate_count": int(dead.size)}
    if kind in ("layernorm", "rmsnorm"):
        columns["predicted_dead_dimension"] = dead_dimension(gamma, beta, dtype, centred=kind == "layernorm")
    if kind == "layernorm" and (final or dead.size):  # elsewhere the bottom is the kernel and then ordinary scales
        unit = np.abs(gamma).max() or 1.0  # the squares of large scales must not overflow
        eigenvalues, _ = bottom_eigenpairs(gamma / unit, min(BOTTOM, gamma.size))
        columns["predicted_bottom"] = (unit * np.sqrt(np.maximum(eigenvalues, 0))).tolist()
        if (gamma != 0).all():
            columns["participation_ratio"] = participation_ratio(direction(gamma))
    return columns


def normalisation(norms: list[Row]) -> str:
    """One word for a whole model: the kind that all its norms share, ``mixed``, or ``none`` where there are none."""
    kinds = {norm["kind"] for norm in norms} - {"other"}
    return kinds.pop() if len(kinds) == 1 else "mixed" if kinds else "none"


def versions(*packages: str) -> dict[str, str]:
    """Versions of this package, Python and the named packages, which are imported."""
    found = {"pytest-deaddir": pytest_deaddir.__version__, "python": platform.python_version()}
    return found | {package: str(sys.modules[package].__version__) for package in packages}


def peak_memory() -> int | None:
    """The process's peak resident memory so far, in bytes; None where the platform does not say (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
