"""A spec → a module that runs: transformers' own classes with the checkpoint's weights, random init, or a user's factory."""

from __future__ import annotations

import dataclasses
import difflib
import errno
import functools
import importlib
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pytest_deaddir.errors import CheckpointError, ModelError, SpecError
from pytest_deaddir.source import timm
from pytest_deaddir.source.checkpoint import check_entries
from pytest_deaddir.source.limits import within_limits
from pytest_deaddir.source.offload import Limit, built, limit_of
from pytest_deaddir.source.open import open_checkpoint
from pytest_deaddir.source.safetensors import dtype_name
from pytest_deaddir.source.spec import Spec

DTYPES = {name: getattr(torch, name) for name in ("float64", "float32", "bfloat16", "float16")}

#: transformers' style of norms that follow a matrix of which each process has some heads.
_SPLIT = "replicated_with_grad_allreduce"

#: What the plans call the matrices that are split by heads, and what configs call the number of those.
_HEADS = {
    "q_proj": "num_attention_heads",
    "query_key_value": "num_attention_heads",
    "k_proj": "num_key_value_heads",
}

#: The files that say how images and sounds are prepared.
PROCESSORS = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class TensorParallel:
    """How several processes share a model's weights, each with its part of the matrices and all of the norms.

    ``plan``: as it was asked for. ``split``: modules that run on a part of the activations in each process, norms of queries
    and keys; all others take and give the same in all.
    """

    plan: str
    split: frozenset[str]


@dataclass
class Model:
    """A module on its device.

    ``core`` is what is called: the module itself, or under a transformers head the base model, which saves the logits.
    ``missing``: parameters that the architecture has and the files lack; ``orphans``: the other way round.
    ``inputs``: what a factory returned beside it.
    ``tokenizer``: keyword arguments for AutoTokenizer.from_pretrained, None where the subject has no files of its own;
    ``processor``: the same for what prepares its images or sounds.
    ``limit``: of the memory that its weights may take, None where there is none. ``tensor_parallel``: None where this
    process has all weights.
    """

    module: nn.Module
    core: nn.Module
    name: str
    missing: frozenset[str] = frozenset()
    orphans: frozenset[str] = frozenset()
    inputs: Any = None
    tokenizer: dict[str, Any] | None = None
    processor: dict[str, Any] | None = None
    limit: Limit | None = None
    tensor_parallel: TensorParallel | None = None

    def close(self) -> None:
        """Remove what a limit of memory has made it write. It can no longer run then."""
        if self.limit is not None:
            self.limit.close()

    @property
    def config(self) -> Any:
        """The transformers config, or None."""
        config = getattr(self.core, "config", None)
        return config if hasattr(config, "get_text_config") else None  # others have a config of their own making

    @property
    def dtype(self) -> str:
        """The dtype of most parameters, by name."""
        counts: dict[str, int] = {}
        for parameter in self.module.parameters():
            name = dtype_name(parameter.dtype)
            if name in DTYPES:  # packed and 8-bit weights are computed in something else
                counts[name] = counts.get(name, 0) + parameter.numel()
        return max(counts, key=lambda name: counts[name], default="float32")


def load(
    spec: Spec,
    device: str = "auto",
    dtype: str | None = None,
    max_memory: str | None = None,
    tp_plan: str | None = None,
) -> Model:
    """Load what ``spec`` names. ``dtype``: a name in :data:`DTYPES`, None for the checkpoint's own.

    ``max_memory``: what the weights may take of each device's memory, as for ``--deaddir-max-memory``; the model must then
    be closed after use. ``tp_plan``: as for ``--deaddir-tp-plan``; the processes of torchrun must all load then.
    Raises :class:`CheckpointError` and :class:`ModelError` with what was wrong. No remote code is run.
    """
    limit = None if max_memory is None else limit_of(max_memory, resolve_device(device))
    try:
        if spec.form == "random":
            model = _random(spec, dtype, limit)
        elif spec.form == "timm":
            model = wrap(timm.create(spec))
        elif spec.form == "factory":
            model = _from_factory(spec)
        else:
            model = _pretrained(spec, dtype, limit, tp_plan)
    except BaseException:
        if limit is not None:
            limit.close()
        raise
    if limit is not None or model.tensor_parallel is not None:  # it is where it has to be
        return _able(dataclasses.replace(model, limit=limit))
    return placed(model, device, dtype)


def placed(model: Model, device: str | None, dtype: str | None) -> Model:
    """The model on its device and in its dtype; ``device`` None leaves it where it is."""
    where = None if device is None else resolve_device(device)
    model.module.to(device=where, dtype=DTYPES[dtype] if dtype else None)
    return _able(model)


def _able(model: Model) -> Model:
    """The model, able to compute in its dtype: torch's grouped product, which transformers takes for experts, has no float64."""
    choose: Any = getattr(model.module, "set_experts_implementation", None)
    if choose is not None and model.dtype == "float64":
        choose("eager")
    return model


def resolve_device(device: str) -> torch.device:
    """``auto`` → the accelerator that is there, else cpu. Raises :class:`ModelError` for one that is not."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    name = next(name for name, there in available.items() if there) if device == "auto" else device
    if not available.get(name.partition(":")[0], False):
        raise ModelError(f"--deaddir-device {device}: torch {torch.__version__} sees no such device here")
    if name == "cuda" and "LOCAL_RANK" in os.environ:  # of several processes each takes one
        name = f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
    return torch.device(name)


def wrap(module: nn.Module, inputs: Any = None, name: str | None = None) -> Model:
    """A module that exists already, as a Model."""
    core = getattr(module, "base_model", None)
    return Model(module, core if isinstance(core, nn.Module) else module, name or type(module).__name__, inputs=inputs)


def _random(spec: Spec, dtype: str | None, limit: Limit | None) -> Model:
    from transformers import CONFIG_MAPPING, AutoConfig, AutoModel

    kind, overrides = spec.model_type or "", dict(spec.overrides)
    if kind not in CONFIG_MAPPING:
        close = difflib.get_close_matches(kind, CONFIG_MAPPING, n=3)
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise SpecError(f"{spec.text}: transformers has no model type {kind!r}{hint}")
    with quiet():
        known = AutoConfig.for_model(kind)
        # hasattr raises where layers differ in a value, such as gemma 4's head_dim
        settable = {*dir(known), *known.attribute_map}
        for name in overrides:
            if name not in settable:
                close = difflib.get_close_matches(name, vars(known), n=3)
                raise SpecError(
                    f"{spec.text}: the {kind} config has no {name!r}"
                    + (f"; did you mean {', '.join(close)}?" if close else "")
                )
        try:
            config = AutoConfig.for_model(kind, **overrides)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(spec.seed or 0)
                make = functools.partial(AutoModel.from_config, config)
                module = make() if limit is None else built(make, limit, DTYPES[dtype] if dtype else None)
        except Exception as error:  # a config's own checks, a class without AutoModel, shapes that do not fit …
            raise ModelError(f"{spec.text}: transformers cannot build it: {type(error).__name__}: {error}") from error
    return wrap(module)


def _from_factory(spec: Spec) -> Model:
    module_name, _, attribute = spec.text.partition(":")
    here = str(Path.cwd())
    added = here not in sys.path
    if added:  # as python -m, uvicorn and celery do: pytest's console script does not
        sys.path.insert(0, here)
    try:
        factory: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            factory = getattr(factory, part)
    except ModuleNotFoundError as error:
        raise SpecError(f"{spec.text}: {error}") from error
    except AttributeError as error:
        raise SpecError(f"{spec.text}: {error}") from error
    finally:
        if added:
            sys.path.remove(here)
    made = factory() if callable(factory) and not isinstance(factory, nn.Module) else factory
    module, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(module, nn.Module):
        raise ModelError(f"{spec.text}: returned a {type(made).__name__}, not an nn.Module or (module, inputs)")
    return wrap(module, inputs)


def _pretrained(spec: Spec, dtype: str | None, limit: Limit | None, tp_plan: str | None) -> Model:
    import transformers

    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    placing: dict[str, Any] = {}
    if limit is not None:
        placing = {"device_map": "auto", "max_memory": limit.memory, "offload_folder": limit.folder}
    elif tp_plan is not None:
        placing = {"distributed_config": _distributed(tp_plan)}
    checkpoint = open_checkpoint(spec)  # validates every header and every index entry before anything maps them
    path = checkpoint.path
    if spec.form == "gguf":
        path, options["gguf_file"] = path.parent, path.name
        chosen: Any = transformers.AutoModelForCausalLM
        dtype = dtype or "float32"  # what transformers dequantises to
    else:
        check_entries(path)
        named = getattr(transformers, checkpoint.architecture or "", None)
        is_model = isinstance(named, type) and issubclass(named, transformers.PreTrainedModel)
        chosen = named if is_model else transformers.AutoModel
    with quiet():
        try:
            with within_limits(checkpoint):
                module, report = chosen.from_pretrained(
                    path, dtype=DTYPES[dtype] if dtype else "auto", output_loading_info=True, **options, **placing
                )
        except CheckpointError:
            raise
        except Exception as error:  # every library below has errors of its own for a file it cannot use
            problem = f"transformers cannot load it: {type(error).__name__}: {error}"
            if tp_plan is not None:
                problem += " (without --deaddir-tp-plan each process loads all weights)"
            if limit is not None and os.strerror(errno.ENOSPC) in str(error):  # safetensors' own errors have no errno
                problem += f"; it is written to {limit.folder}; another folder is named by the environment's TMPDIR"
            raise CheckpointError(checkpoint.path, problem) from error
    model = wrap(module)
    own = {"pretrained_model_name_or_path": path, **options}
    return dataclasses.replace(
        model,
        missing=frozenset(report["missing_keys"]),
        orphans=frozenset(report["unexpected_keys"]),
        tokenizer=own if _has_tokenizer(spec, path) else None,
        processor=own if spec.form != "gguf" and any((path / name).is_file() for name in PROCESSORS) else None,
        tensor_parallel=None if tp_plan is None else _tensor_parallel(module, tp_plan),
    )


def _distributed(tp_plan: str) -> Any:
    from transformers import __version__
    from transformers.distributed.configuration_utils import DistributedConfig

    if "tp_plan" not in DistributedConfig.__dataclass_fields__:
        raise ModelError(
            f"--deaddir-tp-plan: transformers {__version__} has no such plan in its DistributedConfig: upgrade"
        )
    return DistributedConfig(tp_plan=tp_plan)  # type: ignore[arg-type]  # auto: what options allow


def _tensor_parallel(module: nn.Module, tp_plan: str) -> TensorParallel:
    """Which modules run on a part, by transformers' plan: their styles are by names in which a number is a star.

    They lose the forward that transformers gives each of them, which is for gradients alone: it belongs to the module and
    not to a copy of it, and copies are what is probed.
    """
    styles: dict[str, str] = getattr(module, "_tp_plan", None) or {}
    config: Any = module.config.get_text_config()  # type: ignore[operator,union-attr]
    for projection, name in _HEADS.items():
        heads = vars(config).get(config.attribute_map.get(name, name))
        planned = any(key.endswith(f".{projection}") and "colwise" in style for key, style in styles.items())
        processes = torch.distributed.get_world_size()
        if planned and heads and heads % processes:
            raise ModelError(
                f"--deaddir-tp-plan: {heads} heads ({name}) cannot be shared by {processes} processes: "
                "give torchrun a number of processes that divides them"
            )
    split = {
        name: child
        for name, child in module.named_modules()
        if styles.get(re.sub(r"\.\d+(?=\.|$)", ".*", name)) == _SPLIT
    }
    for child in split.values():
        vars(child).pop("forward", None)
    return TensorParallel(tp_plan, frozenset(split))


def _has_tokenizer(spec: Spec, path: Path) -> bool:
    names = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")
    return spec.form == "gguf" or any((path / name).is_file() for name in names)


@contextmanager
def quiet() -> Iterator[None]:
    """transformers without its load report and progress bars; what they say is in the audit."""
    from transformers.utils import logging as theirs

    verbosity, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    dispatching = logging.getLogger("accelerate.big_modeling")  # tells that weights are offloaded
    level = dispatching.level
    dispatching.setLevel(logging.ERROR)
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        dispatching.setLevel(level)
        theirs.set_verbosity(verbosity)
        if bars:
            theirs.enable_progress_bar()
