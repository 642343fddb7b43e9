"""The public functions under the plugin. Each imports what its level needs and no more."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_deaddir.errors import SpecError, require_torch
from pytest_deaddir.progress import Step, tell
from pytest_deaddir.source.spec import Spec, parse_spec
from pytest_deaddir.tables import LEVELS, Audit, Level

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from pytest_deaddir.discovery.discover import Discovery
    from pytest_deaddir.discovery.probe import NormProbe
    from pytest_deaddir.rules import Rule
    from pytest_deaddir.source.load import Model


def audit(
    subject: str | Path | nn.Module,
    *,
    level: Level = "forward",
    inputs: Any = None,
    device: str | None = None,
    dtype: str | None = None,
    rules: str | Path | Sequence[Rule | str | Path] | None = None,
    select: str | Sequence[str] = (),
    extend_select: str | Sequence[str] = (),
    ignore: str | Sequence[str] = (),
    severity: Mapping[str, str] | None = None,
    fail_on: str = "error",
    seed: int = 0,
    samples: int | None = None,
    batch_size: int | None = None,
    solver: str = "inverse",
    baseline: Audit | str | Path | nn.Module | None = None,
    max_memory: str | None = None,
    tp_plan: str | None = None,
) -> Audit:
    """Measure a subject and judge it.

    ``subject``: a spec as for ``--deaddir-model``, a path, or an ``nn.Module``. ``inputs``: a path as for
    ``--deaddir-inputs``, or the arguments of a forward pass (mapping, tuple or tensor; a list of these as batches).
    ``device``: auto, cpu, cuda or mps; a module stays where it is by default. ``dtype``: float64, float32, bfloat16 or
    float16; default the checkpoint's own. ``rules``: Rule objects, these and no others; or paths of rule files and folders,
    beside the shipped ones as for ``--deaddir-rules``; default the shipped ones. ``select``, ``extend_select``, ``ignore``,
    ``severity`` (a mapping) and ``fail_on``: as the options of these names. ``seed``: of made-up inputs, and at level full of
    the random twin and the random moves. ``samples``: rows of activations, default 4 × width. ``batch_size``: sequences of
    one forward pass, default as many as make about 2000 rows. ``solver``: inverse, or svd for full decompositions of every
    tap. ``max_memory``: what the weights may take, as for ``--deaddir-max-memory``: 2GB, or cpu=2GB,0=20GB. ``tp_plan``: auto
    where the processes of torchrun share the weights, as for ``--deaddir-tp-plan``. ``baseline``: an earlier audit to compare
    with, the ``.json`` file of a report that holds one, or another subject to audit in the same way first; findings that it
    holds are marked ``known`` and fail no check.
    Raises a :class:`~pytest_deaddir.errors.DeaddirError` that says what is wrong with the subject, the inputs, the rules or
    the baseline.
    """
    from pytest_deaddir.rules import judge

    chosen = _chosen(rules, select, extend_select, ignore, severity or {}, fail_on)
    is_report = isinstance(baseline, (str, Path)) and str(baseline).endswith(".json")
    earlier = _reported(Path(str(baseline)), subject, level) if is_report else baseline
    measured_alike = partial(
        measure,
        level=level,
        inputs=inputs,
        device=device,
        dtype=dtype,
        seed=seed,
        samples=samples,
        batch_size=batch_size,
        solver=solver,
        max_memory=max_memory,
        tp_plan=tp_plan,
    )
    measured = measured_alike(subject)
    if earlier is not None:
        from pytest_deaddir.stages.compare import compare

        if not isinstance(earlier, Audit):
            earlier = judge(measured_alike(earlier), chosen)
        measured = compare(measured, earlier)
    return judge(measured, chosen, fail_on)


def _chosen(
    rules: str | Path | Sequence[Rule | str | Path] | None,
    select: str | Sequence[str],
    extend_select: str | Sequence[str],
    ignore: str | Sequence[str],
    severity: Mapping[str, str],
    fail_on: str,
) -> list[Rule]:
    """The rules to judge by. Raises RuleError with all that is wrong with them and with what chooses among them."""
    from pytest_deaddir.rules import Rule, Source, load_rules, shipped_rules
    from pytest_deaddir.rules.select import choose

    given = [rules] if isinstance(rules, (str, Path)) else list(rules or ())
    loaded = [rule for rule in given if isinstance(rule, Rule)]
    if rules is None or len(loaded) < len(given):
        loaded = load_rules([shipped_rules(), *(Source(str(rule), rule) for rule in given)])
    return choose(loaded, _codes(select), _codes(extend_select), _codes(ignore), severity, fail_on)


def _codes(words: str | Sequence[str]) -> list[str]:
    return [code.strip() for text in ([words] if isinstance(words, str) else words) for code in text.split(",")]


def _reported(file: Path, subject: Any, level: Level) -> Audit:
    """The audit in a report to compare with: the only one, else the one of this subject. Raises SpecError."""
    spec = str(subject) if isinstance(subject, (str, Path)) else type(subject).__name__
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        models = document["models"]
        own = [entry for entry in models if len(models) == 1 or entry["model"]["spec"] == spec]
        audits = [Audit.from_json(json.dumps(document | {"models": [entry]})) for entry in own]
    except FileNotFoundError:
        raise SpecError(f"baseline {file}: no such file") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise SpecError(f"baseline {file}: no report that can be compared with: {error}") from error
    if len(audits) != 1:
        raise SpecError(f"baseline {file}: {len(audits)} of its {len(models)} audits are of {spec}")
    if LEVELS.index(lower := audits[0].model["level"]) < LEVELS.index(level):
        raise SpecError(f"baseline {file}: audited at level {lower}, which cannot be compared with level {level}")
    return audits[0]


def measure(
    subject: str | Path | Spec | nn.Module,
    *,
    level: Level = "forward",
    inputs: Any = None,
    device: str | None = None,
    dtype: str | None = None,
    seed: int = 0,
    samples: int | None = None,
    batch_size: int | None = None,
    sites: str | None = None,
    solver: str | None = None,
    max_memory: str | None = None,
    tp_plan: str | None = None,
) -> Audit:
    """:func:`audit` without the judging: the tables are filled, ``findings`` and ``checks`` are empty."""
    if level not in LEVELS:
        raise SpecError(f"no level {level!r}: {', '.join(LEVELS)}")
    if isinstance(subject, (str, Path)):
        subject = parse_spec(str(subject))
    if isinstance(subject, Spec):
        check_level(subject, level)
        check_placing(subject, level, device, max_memory, tp_plan)
        if level == "read":
            return read(subject, dtype=dtype, sites=sites)
    else:
        require_torch("a module")
        if level == "read":
            raise SpecError("a module has no files to read: use level forward")
        if max_memory is not None or tp_plan is not None:
            raise SpecError("a module is loaded already: max_memory and tp_plan are for what a spec names")

    from pytest_deaddir.stages.forward import forward_stage
    from pytest_deaddir.stages.full import full_stage
    from pytest_deaddir.stages.ranks import Ranks
    from pytest_deaddir.stages.read import read_stage

    spec = subject if isinstance(subject, Spec) else None
    solver = solver or "inverse"
    with Ranks().together(type(subject).__name__ if spec is None else spec.text):
        started = time.perf_counter()
        parameters = read_stage(spec, dtype, download=True) if spec is not None and spec.has_files else None
        model = _loaded(subject, device, dtype, max_memory, tp_plan)
        loading = round(time.perf_counter() - started, 4)
        with closing(model):
            result, done = forward_stage(
                model,
                parameters,
                spec=model.name if spec is None else spec.text,
                inputs=inputs,
                samples=samples,
                seed=seed,
                sites=sites or "all",
                solver=solver,
                batch_size=batch_size,
            )
            if level == "full":
                full_stage(model, result, done, seed=seed, solver=solver)
    if spec is not None:
        result.model["seconds"]["load"] = loading
        result.model["seed"] = seed if spec.seed is None else spec.seed
    return result


def _loaded(
    subject: Spec | nn.Module, device: str | None, dtype: str | None, max_memory: str | None, tp_plan: str | None
) -> Model:
    from pytest_deaddir.source.load import load, placed, wrap

    if isinstance(subject, Spec):
        tell(Step("loading"))
        return load(subject, device or "auto", dtype, max_memory, tp_plan)
    if device is None and dtype is None:
        return wrap(subject)
    return placed(wrap(copy.deepcopy(subject)), device, dtype)  # the caller's stays as it is


def batches(
    spec: Spec,
    *,
    inputs: Any,
    device: str,
    dtype: str | None,
    samples: int | None,
    batch_size: int | None,
    max_memory: str | None,
    tp_plan: str | None,
    **_unused: Any,
) -> list[Mapping[str, Any]]:
    """What :func:`measure` feeds ``spec`` at the level forward: the arguments of each batch by name, where the model ran.

    A forward pass is made to see how many batches are taken. Arguments and errors are those of :func:`measure`, of which
    some do not change what is fed.
    """
    check_level(spec, "forward")
    from pytest_deaddir.source.inputs import prepare
    from pytest_deaddir.source.load import load
    from pytest_deaddir.stages.forward import batches_fed

    model = load(spec, device, dtype, max_memory, tp_plan)
    return batches_fed(model, prepare(model, inputs, 0, batch_size), samples)


def read(spec: str | Path | Spec, *, dtype: str | None = None, sites: str | None = None) -> Audit:
    """What a checkpoint's parameters say, without torch (safetensors) and without a forward pass.

    ``sites``: all, or final for the closing norm alone (default: all, and final where they lie on a hub).
    ``dtype``: what the model is to run in, default what it is stored in; it decides which coordinates are dead.
    Raises a :class:`~pytest_deaddir.errors.DeaddirError` naming the file that is wrong.
    """
    from pytest_deaddir.stages.read import read_stage

    spec = spec if isinstance(spec, Spec) else parse_spec(str(spec))
    return read_stage(spec, dtype, sites or ("final" if spec.form == "hub" else "all"))


def check_level(spec: Spec, level: Level) -> None:
    """Raise :class:`SpecError` where ``spec`` cannot be audited at ``level``, for itself or for what is not installed."""
    if level == "read" and not spec.has_files:
        raise SpecError(f"{spec.text}: has no files to read: use --deaddir-level forward")
    if level != "read" and spec.highest_level == "read":
        raise SpecError(f"{spec.text}: a bare safetensors file has no architecture to run: use --deaddir-level read")
    if level != "read":
        require_torch(f"{spec.text}: --deaddir-level {level}")


def check_placing(spec: Spec, level: Level, device: str | None, max_memory: str | None, tp_plan: str | None) -> None:
    """Raise :class:`SpecError` where ``spec`` cannot be loaded within a limit of memory, or in parts, as it is asked."""
    from pytest_deaddir.stages.ranks import world

    if level == "read":  # nothing is loaded
        return
    if max_memory is not None and not spec.can_be_limited:
        raise SpecError(f"{spec.text}: a limit of memory is only for directories, models on the hub and random:TYPE")
    if tp_plan is None:
        return
    if tp_plan != "auto":
        raise SpecError(f"no tp_plan {tp_plan!r}: auto")
    refused = {
        "is only for directories and models on the hub": not spec.can_be_tensor_parallel,
        "needs several processes: torchrun --nproc-per-node=2 -m pytest …": world()[1] == 1,
        "and --deaddir-max-memory cannot be given together": max_memory is not None,
        "chooses the device by itself: leave --deaddir-device out": device not in (None, "auto"),
        "is for the levels read and forward: full moves weights of which no process has the whole": level == "full",
    }
    for problem, applies in refused.items():
        if applies:
            raise SpecError(f"{spec.text}: --deaddir-tp-plan {problem}")


def probe(
    module: nn.Module, features: int | None = None, shape: tuple[int, ...] | None = None, arguments: Any = None
) -> NormProbe:
    """Decide what norm a module is by running a copy of it; see :func:`pytest_deaddir.discovery.probe.probe`."""
    require_torch("probe()")
    from pytest_deaddir.discovery.probe import probe as probe_module

    return probe_module(module, features, shape, arguments)


def discover(module: nn.Module, inputs: Mapping[str, Any] | tuple[Any, ...] | None = None) -> Discovery:
    """Find every norm of a module; see :func:`pytest_deaddir.discovery.discover.discover`."""
    require_torch("discover()")
    from pytest_deaddir.discovery.discover import discover as discover_norms

    return discover_norms(module, inputs)
