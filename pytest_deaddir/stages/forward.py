"""The forward stage: one pass over the inputs, and from it every norm's kernel and the residual stream, block by block."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from pytest_deaddir.algebra.spectrum import dead_by_dtype
from pytest_deaddir.discovery.discover import Discovery, NormSite, discover
from pytest_deaddir.discovery.names import matched_paths
from pytest_deaddir.discovery.probe import probe_alike
from pytest_deaddir.errors import ModelError
from pytest_deaddir.progress import with_progress
from pytest_deaddir.source.inputs import Arguments, Inputs, moved, prepare, require_samples, samples_wanted
from pytest_deaddir.source.load import Model
from pytest_deaddir.source.offload import parameter_count, place_of, placement
from pytest_deaddir.stages.blocks import block_rows
from pytest_deaddir.stages.measure import site_columns
from pytest_deaddir.stages.ranks import world
from pytest_deaddir.stages.read import gamma_columns, normalisation, peak_memory, versions
from pytest_deaddir.stages.taps import NormTap, Place, StreamTaps, Tap, call_arguments, run
from pytest_deaddir.tables import Audit, Row, row

#: Columns of the model's row that the read stage fills and the forward stage keeps.
_FROM_FILES = (
    "revision",
    "fingerprint",
    "architecture",
    "norm_eps",
    "duplicate_tensors",
    "differing_weights",
    "uncompared_weights",
    "unsafe_names",
)


@dataclass(frozen=True)
class Pass:
    """What one pass over the inputs left: a tap for each norm that was watched, by path, and for each stack.

    ``main``: the tap on whose rows the inputs are sized, None where there was nothing to watch; ``wanted``: how many.
    ``accumulators``: the bytes that all taps together held at most.
    """

    found: Discovery
    inputs: Inputs
    place: Place
    norms: dict[str, NormTap]
    streams: list[StreamTaps]
    main: Tap | None
    wanted: int
    sites: str
    accumulators: int


def forward_stage(
    model: Model,
    audit: Audit | None,
    *,
    spec: str,
    inputs: Any = None,
    samples: int | None = None,
    seed: int = 0,
    sites: str = "all",
    solver: str = "inverse",
    batch_size: int | None = None,
) -> tuple[Audit, Pass]:
    """Audit a loaded model with one forward pass.

    ``audit``: the read stage's, whose rows say which file each γ came from; None where there are no files. ``sites``: all
    LayerNorms, or only the final norms. ``solver``: as in :func:`~pytest_deaddir.stages.bottom.bottom`.
    Raises :class:`InputsError` and :class:`ModelError`. The model is left without hooks.
    """
    started = time.perf_counter()
    done = forward_pass(model, prepare(model, inputs, seed, batch_size), samples=samples, sites=sites)
    final = done.found.final or next((site for site in reversed(done.found.norms) if site.role == "final"), None)
    if final is not None and done.norms[final.path].rows.finite:
        require_samples(done.norms[final.path].samples, final.features, done.inputs.name)

    stored = {} if audit is None else {norm["path"]: norm for norm in audit.norms}
    homes = matched_paths([site.path for site in done.found.norms], stored)
    norms = [
        _site_row(site, model, done.norms.get(site.path), stored.get(homes.get(site.path, "")), solver)
        for site in with_progress("spectra", done.found.norms, len(done.found.norms), "norms")
    ]
    norms += [_odd_row(path, module) for path, module in _odd_ones_out(model.module, done.found)]
    by_path = {site.path: site for site in done.found.norms}
    blocks = [line for stream in done.streams for line in block_rows(stream, by_path, model.dtype, solver)]
    facts = _model_row(model, audit, done, final, normalisation(norms), started)
    return Audit(model=facts | {"spec": spec, "seed": seed}, norms=norms, blocks=blocks), done


def forward_pass(model: Model, inputs: Inputs, *, samples: int | None, sites: str = "all") -> Pass:
    """Discover the model's norms and stacks, and run it over the inputs with all of them watched."""
    place = place_of(model.module)
    found = _discovered(model, inputs, place)
    if not found.norms:
        raise ModelError(f"{model.name}: no module in it behaves as a LayerNorm or RMSNorm: nothing to audit")
    closing = [site for site in found.norms if site.role == "final"]
    watched = closing + [s for s in found.norms if sites == "all" and s.kind == "layernorm" and s.role != "final"]
    keep = None if model.limit is None else model.limit.mapped
    norms = {site.path: NormTap(site, keep) for site in watched}
    streams = [StreamTaps(stack, stack.width, keep) for stack in found.stacks if stack.width]
    main = _main(found, norms, streams)
    wanted = 0 if main is None else samples_wanted(samples, main.rows.width)
    held = 0
    if main is not None:
        held = run(model, inputs, place, list(norms.values()), streams, wanted, main)
    return Pass(found, inputs, place, norms, streams, main, wanted, sites, held)


def batches_fed(model: Model, inputs: Inputs, samples: int | None) -> list[Mapping[str, Any]]:
    """The batches that :func:`forward_pass` takes of the inputs, by argument name, where and in the dtype that it ran."""
    taken: list[Arguments] = []

    def noted(rows: int) -> Iterator[Arguments]:
        for batch in inputs.batches(rows):
            taken.append(batch)
            yield batch

    place = forward_pass(model, replace(inputs, batches=noted), samples=samples, sites="final").place
    signature = inspect.signature(model.core.forward)
    named = [batch if isinstance(batch, Mapping) else signature.bind(*batch).arguments for batch in taken]
    return [moved(batch, *place) for batch in named]  # type: ignore[misc]  # of a mapping it gives a mapping


def _main(found: Discovery, norms: dict[str, NormTap], streams: list[StreamTaps]) -> Tap | None:
    """The final norm's tap; where no norm closes the stream, the stream's last; else the last norm's."""
    closing = [site.path for site in found.norms if site.role == "final"]
    if found.final_norm in norms:
        return norms[found.final_norm]
    if closing:
        return norms[closing[-1]]
    outer = [stream for stream in streams if stream.stack.within is None]
    return outer[-1].taps[-1] if outer else next(reversed(norms.values()), None)


def _model_row(
    model: Model, audit: Audit | None, done: Pass, final: NormSite | None, kinds: str, started: float
) -> Row:
    """What is known of the model and of the pass. ``kinds``: of its norms, in a word; ``started``: when the stage began."""
    facts: Row = {} if audit is None else {k: audit.model[k] for k in _FROM_FILES}
    facts["architecture"] = facts.get("architecture") or model.name
    read_seconds = {} if audit is None else audit.model["seconds"]
    samples = done.main.samples if done.main else 0
    return row(
        "model",
        **facts,
        parameters=parameter_count(model.module),
        width=final.features if final else None,
        final_norm=(final.path or "the module itself") if final else "",
        normalisation=kinds,
        level="forward",
        dtype=model.dtype,
        **_orphans(model, audit),
        device=done.place[0].type,
        inputs=done.inputs.name,
        inputs_source=done.inputs.source,
        samples=samples or None,
        samples_per_width=round(samples / done.main.rows.width, 4) if done.main and samples else None,
        versions=versions("numpy", "torch", *(["transformers"] if model.config is not None else [])),
        seconds=read_seconds | {"forward": round(time.perf_counter() - started, 4)},
        peak_memory=peak_memory(),
        max_memory=None if model.limit is None else model.limit.text,
        placement=placement(model.module),
        accumulators=done.accumulators,
        processes=world()[1],
        tp_plan=None if model.tensor_parallel is None else model.tensor_parallel.plan,
    )


def _orphans(model: Model, audit: Audit | None) -> Row:
    """Tensors of the files that no module took."""
    if audit is None:
        return {}
    scales = {f"{norm['path']}." for norm in audit.norms}
    norms = [name for name in model.orphans if f"{name.rpartition('.')[0]}." in scales]
    return {"orphan_tensors": sorted(model.orphans), "orphan_norms": sorted(norms)}


def _discovered(model: Model, inputs: Inputs, place: Place) -> Discovery:
    """Discovery over the part that runs, with the paths that the whole module gives them."""
    prefix = next((path for path, child in model.module.named_modules() if child is model.core), "")
    try:
        found = discover(model.core, call_arguments(model.core, moved(inputs.small, *place)))
    except Exception as error:  # the model's own code runs here, so anything can be raised
        raise ModelError(f"{model.name}: its forward pass fails: {type(error).__name__}: {error}") from error
    return found.below(prefix)


def _site_row(site: NormSite, model: Model, tap: NormTap | None, stored: Row | None, solver: str) -> Row:
    probed = site.probe
    facts: Row = {"gamma_source": "none"}
    if probed.gamma_parameter:
        name = f"{site.path}.{probed.gamma_parameter}"
        facts = {"gamma_source": "module"}
        if stored is not None and stored["gamma_source"] == "file":
            kept = ("gamma_source", "gamma_file", "gamma_offset", "gamma_dtype", "gamma_denormal")
            facts = {k: stored[k] for k in kept}
        if name in model.missing:
            facts = {"gamma_source": "missing"}
    if probed.gamma is not None:
        facts |= gamma_columns(probed.gamma, probed.beta, site.kind, model.dtype, site.role == "final")
        facts["predicted_dead_by_dtype"] = _dead_by_dtype(site, facts, stored)
    predicted = facts.get("predicted_dead_dimension") or 1
    measured = {} if tap is None else site_columns(site, tap, model.dtype, predicted, solver)
    return row(
        "norms",
        path=site.path,
        **{"class": site.class_name},
        kind=site.kind,
        kind_agrees=_kind_agrees(site, stored),
        gamma_agrees=_gamma_agrees(facts, stored),
        how="probe",
        role=site.role,
        role_how=site.how,
        stack=site.stack,
        features=site.features,
        eps=probed.eps,
        gamma_convention=probed.convention,
        **facts,
        **measured,
    )


def _odd_ones_out(module: nn.Module, found: Discovery) -> Iterator[tuple[str, nn.Module]]:
    """Modules that are built like the norms that were found, and behave as no norm: something hooked or patched them."""
    known = {site.path: module.get_submodule(site.path) for site in found.norms}
    alike = {(type(norm), site.features) for site, norm in zip(found.norms, known.values(), strict=True)}
    for path, child in module.named_modules():
        sizes = {parameter.numel() for parameter in child.parameters(recurse=False) if parameter.dim() == 1}
        if (
            path not in known
            and len(sizes) == 1
            and (type(child), *sizes) in alike
            and probe_alike(child).kind == "other"
        ):
            yield path, child


def _odd_row(path: str, module: nn.Module) -> Row:
    return row(
        "norms",
        path=path,
        **{"class": type(module).__name__},
        kind="other",
        kind_agrees=False,
        how="probe",
        role="other",
        role_how="of the class of the model's norms",
        gamma_source="module",
    )


def _dead_by_dtype(site: NormSite, columns: Row, stored: Row | None) -> dict[str, int | None] | None:
    """As the files say it, since the module's own scale is rounded to the run's dtype; else of the module's."""
    if stored is not None and stored["kind"] == site.kind and _gamma_agrees(columns, stored):
        return stored["predicted_dead_by_dtype"]
    assert site.probe.gamma is not None
    added = 1.0 if site.probe.convention == "1+w" else 0.0
    return dead_by_dtype(site.probe.gamma - added, site.probe.beta, added=added, centred=site.kind == "layernorm")


def _kind_agrees(site: NormSite, stored: Row | None) -> bool | None:
    """Whether the module is of the kind that its files say, or without files that its shift says: RMSNorms have none."""
    if stored is not None and stored["kind"] != "undecided":
        return bool(stored["kind"] == site.kind)
    return False if site.kind == "rmsnorm" and site.probe.beta_parameter else None


def _gamma_agrees(columns: Row, stored: Row | None) -> bool | None:
    """Whether the scale in use is the stored one: another file, an adapter or a renaming may have come between."""
    profile = ("gamma_min", "gamma_median", "gamma_max")
    if stored is None or any(values.get(name) is None for values in (stored, columns) for name in profile):
        return None
    return all(math.isclose(stored[name], columns[name], rel_tol=0.02, abs_tol=1e-7) for name in profile)
