"""What a model is fed: text, records, images, sounds or arrays of its owner's, else made-up inputs, marked synthetic.

Text goes through the checkpoint's own tokenizer, images and sounds through its own processor, arrays as they are.
"""

from __future__ import annotations

import difflib
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pytest_deaddir.errors import InputsError
from pytest_deaddir.source import records
from pytest_deaddir.source.load import Model
from pytest_deaddir.source.processors import (
    IMAGE_ARGUMENTS,
    SOUND_ARGUMENTS,
    Prepare,
    image_mode,
    image_preparation,
    sound_preparation,
    stacked,
)
from pytest_deaddir.source.records import Record, Source
from pytest_deaddir.source.synthetic import PACKED, synthetic_inputs
from pytest_deaddir.source.tokens import LENGTH, Tokens, require_known, sequence_length, vocabulary

#: Rows of activations per unit of width that are aimed at: the smallest singular value of N × d noise is
#: 1 − √(d/N) of the largest, and at N = 4d half of it is left.
SAMPLES_PER_WIDTH = 4
#: Rows of activations of one forward pass, where they can be told.
BATCH_ROWS = 2048
#: Images of one forward pass; how many rows each of them makes is the model's affair.
BATCH_IMAGES = 8

#: The arguments of one forward pass: by keyword, or by position.
Arguments = Mapping[str, Any] | tuple[Any, ...]


@dataclass(frozen=True)
class Inputs:
    """``source``: ``own`` where the model's tokenizer or its owner made them, else ``synthetic``.

    ``small``: arguments enough to trace a forward. ``batches``: gives the arguments of each batch, for as many rows of
    activations as are asked for where that can be told; where it cannot, ``open_ended``, whoever runs them must stop.
    Wherever a batch is padded it has an ``attention_mask`` (sequences, length), 0 there, and padding is no sample.
    """

    name: str
    source: str
    small: Arguments
    batches: Callable[[int], Iterable[Arguments]]
    open_ended: bool = False


def samples_wanted(samples: int | None, width: int) -> int:
    """How many rows to feed. Raises :class:`InputsError` where ``samples`` cannot span ``width`` dimensions."""
    if samples is None:
        return SAMPLES_PER_WIDTH * width
    require_samples(samples, width)
    return samples


def require_samples(samples: int, width: int, name: str | None = None) -> None:
    """N rows have at most N − 1 centred dimensions, so N ≤ d makes directions look dead that are only unseen.

    ``name``: of the inputs that gave no more.
    """
    if samples <= width:
        enough = SAMPLES_PER_WIDTH * width
        remedy = f"--deaddir-samples={enough}" if name is None else f"{name} gives no more; give longer or more inputs"
        raise InputsError(
            f"too few samples: N = {samples} rows for width d = {width}; at least {width + 1} are needed, "
            f"{enough} are advised: {remedy}"
        )


def prepare(model: Model, given: Any, seed: int, batch_size: int | None = None) -> Inputs:
    """The inputs of one audit.

    ``given``: None, the path of a file or folder, or ready arguments (a mapping, a tuple or a tensor, or a list of these
    as batches). ``batch_size``: sequences, images or sounds of one forward pass; None for as many as make BATCH_ROWS,
    and ready arguments as they are. Raises :class:`InputsError` where they do not fit.
    """
    if batch_size is not None and batch_size < 1:
        raise InputsError(f"batch_size is {batch_size}: at least one sequence must be fed at once")
    if given is None:
        given = model.inputs
    if isinstance(given, (str, Path)):
        return _from_path(model, Path(given), seed, batch_size)
    if given is not None:
        batches = [_arguments(batch) for batch in (given if isinstance(given, list) else [given])]
        if batch_size is not None:
            batches = [part for batch in batches for part in split(batch, batch_size) or [batch]]
        return Inputs("given", "own", batches[0], lambda rows: batches)
    if model.tokenizer is None:
        return _made_up(model, seed, batch_size)
    return _text_inputs(model, None, seed, batch_size)


def _made_up(model: Model, seed: int, batch_size: int | None) -> Inputs:
    if model.config is None and not hasattr(model.core, "pretrained_cfg"):  # timm's
        raise InputsError(
            f"{model.name} has no transformers config, so its inputs cannot be made up: "
            "let a factory (package.module:factory) return (module, inputs), with inputs a mapping or tuple of tensors"
        )
    length = LENGTH if model.config is None else sequence_length(model.config)
    small = synthetic_inputs(model.core, seed=seed)
    names = sorted(small)

    def batches(rows: int) -> Iterator[Arguments]:
        each = batch_size or max(1, min(BATCH_ROWS, rows) // length)
        for batch in itertools.count():
            yield synthetic_inputs(model.core, batch=each, length=length, seed=seed + batch)

    name = "uniform token ids" if names == ["input_ids"] else f"random {', '.join(names)}"
    return Inputs(name, "synthetic", small, batches, open_ended=True)


# --- from files -----------------------------------------------------------------------------------------------------


def _from_path(model: Model, path: Path, seed: int, batch_size: int | None) -> Inputs:
    """The first of what lies there that the model takes: of a folder, images and sounds before tables."""
    problems = []
    kinds = ("arrays", "images", "sounds", "tables", "text")
    for source in sorted(records.find_sources(path), key=lambda source: kinds.index(source.kind)):
        problem = _unfit(model, source)
        if problem is None:
            return _READERS[source.kind](model, source, seed, batch_size)
        problems.append(problem)
    raise InputsError(f"{path}: {'; '.join(problems)}")


def _unfit(model: Model, source: Source) -> str | None:
    """Why the model cannot be fed a source of this kind, None where it can."""
    takes = forward_arguments(model.core)
    images, sounds = (any(name in takes for name in names) for names in (IMAGE_ARGUMENTS, SOUND_ARGUMENTS))
    if source.kind == "images" and not images:
        return "the model takes no images"
    if source.kind == "sounds" and not sounds:
        return "the model takes no sounds"
    if source.kind in ("images", "sounds") and model.processor is None:
        return f"the model has no processor (preprocessor_config.json) for {source.kind}"
    if source.kind == "text" and model.tokenizer is None:
        return "the model has no tokenizer to read a text file with"
    if source.kind == "tables" and model.tokenizer is None and not (images and model.processor is not None):
        return "the model has no tokenizer for the texts of a table, and no processor for its images"
    return None


def _text_inputs(model: Model, source: Source | None, seed: int, batch_size: int | None) -> Inputs:
    """Batches of packed text. What the forward needs beside token ids is made up, and then they count as synthetic."""
    needs = _Needs(model.core, seed)
    if not needs.token_names and source is None:
        return _made_up(model, seed, batch_size)
    tokens = Tokens(model)
    name = "pydoc_data.topics" if source is None else source.name

    def blocks() -> Iterator[str]:
        return iter([_prose()]) if source is None else records.text_blocks(source.files[0])

    first = tokens.packed(next(blocks(), ""))
    if not len(first):
        raise InputsError(f"{name}: the text gives no whole sequence of {tokens.length} tokens: give more of it")
    needs.require_tokens(name)
    each = batch_size or max(1, BATCH_ROWS // tokens.length)

    def filled(ids: torch.Tensor) -> Arguments:
        return needs.completed(dict.fromkeys(needs.token_names, ids), len(ids), ids.shape[1])

    def batches(rows: int) -> Iterator[Arguments]:
        for sequences in itertools.chain([first], map(tokens.packed, itertools.islice(blocks(), 1, None))):
            wanted = sequences[: -(-rows // tokens.length)]
            yield from map(filled, wanted.split(each) if len(wanted) else ())
            rows -= wanted.numel()
            if rows <= 0:
                return

    return Inputs(name, needs.source(needs.token_names), filled(first[:2, :16]), batches)


def _prose() -> str:
    """English that every CPython carries."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics.values())


def _record_inputs(model: Model, source: Source, seed: int, batch_size: int | None) -> Inputs:
    """Batches of records, each a sequence of its own as it is in use: cut at the longest, padded to its batch's longest."""
    needs = _Needs(model.core, seed)
    needs.require_tokens(source.name)
    tokens = Tokens(model)
    takes = forward_arguments(model.core)
    each = batch_size or max(1, BATCH_ROWS // tokens.length)

    def sequences() -> Iterator[dict[str, list[int]]]:
        encoded = map(tokens.sequence, records.texts(source.files))
        return (sequence for sequence in encoded if sequence["input_ids"])  # of an empty text there may be nothing

    def filled(chosen: list[dict[str, list[int]]]) -> Arguments:
        own = tokens.padded(chosen, takes)
        ids = own["input_ids"]
        if "input_ids" not in needs.token_names:
            del own["input_ids"]
        own |= dict.fromkeys(needs.token_names, ids)
        if "attention_mask" in own and "decoder_input_ids" in own and "decoder_attention_mask" in takes:
            own["decoder_attention_mask"] = own["attention_mask"]
        return needs.completed(own, len(ids), ids.shape[1])

    def batches(rows: int) -> Iterator[Arguments]:
        chosen: list[dict[str, list[int]]] = []
        for sequence in sequences():
            uneven = (
                chosen and "attention_mask" not in takes and len(sequence["input_ids"]) != len(chosen[0]["input_ids"])
            )
            if len(chosen) == each or uneven:
                yield filled(chosen)
                chosen = []
            chosen.append(sequence)
            rows -= len(sequence["input_ids"])
            if rows <= 0:
                break
        if chosen:
            yield filled(chosen)

    some = list(itertools.islice(sequences(), each))
    if not some:
        raise InputsError(f"{source.name}: no record in it gives a token")
    longest = max(some, key=lambda sequence: len(sequence["input_ids"]))
    small = filled([{name: values[:16] for name, values in longest.items()}] * 2)
    return Inputs(source.name, needs.source(needs.token_names), small, batches)


def _table_inputs(model: Model, source: Source, seed: int, batch_size: int | None) -> Inputs:
    """A table's texts, or where the model reads none its images."""
    if model.tokenizer is not None:
        return _record_inputs(model, source, seed, batch_size)
    mode = image_mode(model)
    prepare = image_preparation(model, forward_arguments(model.core))
    return _processed_inputs(
        model, source, seed, prepare, lambda: records.table_images(source.files, mode), batch_size or BATCH_IMAGES
    )


def _image_inputs(model: Model, source: Source, seed: int, batch_size: int | None) -> Inputs:
    mode = image_mode(model)
    prepare = image_preparation(model, forward_arguments(model.core))
    return _processed_inputs(
        model, source, seed, prepare, lambda: records.images(source.files, mode), batch_size or BATCH_IMAGES
    )


def _sound_inputs(model: Model, source: Source, seed: int, batch_size: int | None) -> Inputs:
    prepare, rate = sound_preparation(model, forward_arguments(model.core))
    return _processed_inputs(model, source, seed, prepare, lambda: records.sounds(source.files, rate), batch_size or 1)


def _processed_inputs(
    model: Model, source: Source, seed: int, prepare: Prepare, read: Callable[[], Iterator[Record]], each: int
) -> Inputs:
    """Batches of what a processor makes of each record; neighbours of the same shapes go together."""
    needs = _Needs(model.core, seed)

    def batches(size: int) -> Iterator[Arguments]:
        for own, count in stacked(map(prepare, read()), size):
            yield needs.completed(own, count)

    own, count = next(stacked(map(prepare, read()), 2))
    small = needs.completed(own, count)
    return Inputs(source.name, needs.source(own), small, lambda rows: batches(each), open_ended=True)


def _array_inputs(model: Model, source: Source, seed: int, batch_size: int | None) -> Inputs:
    """Arrays by argument name, as they are, a part of the first axis at a time."""
    [path] = source.files
    arguments: dict[str, Any] = {name: torch.from_numpy(array) for name, array in records.arrays(path).items()}
    _require_arguments(model.core, list(arguments), path)
    if "input_ids" in arguments:
        require_known(arguments["input_ids"], vocabulary(model), f"{path}: input_ids holds")
    count = sequence_count(arguments)
    if count is None and not any(name in _PACKING for name in arguments):
        shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in arguments.items())
        raise InputsError(f"{path}: the first axis must be the same of all arrays, or 1: {shapes}")
    if not all(value.numel() for value in arguments.values()):
        raise InputsError(f"{path}: holds an empty array")
    each = batch_size or _usual_size(arguments)
    parts = split(arguments, each) or [arguments]
    small = (split(parts[0], 2) or parts)[0]
    return Inputs(source.name, "own", small, lambda rows: parts)


def _usual_size(arguments: Mapping[str, Any]) -> int:
    """Sequences of BATCH_ROWS rows; of images, whose arrays have four axes, BATCH_IMAGES."""
    shapes = [value.shape for value in arguments.values()]
    if max(map(len, shapes)) > 3:
        return BATCH_IMAGES
    return max(1, BATCH_ROWS // max((shape[1] for shape in shapes if len(shape) > 1), default=1))


_READERS: dict[records.Kind, Callable[[Model, Source, int, int | None], Inputs]] = {
    "text": _text_inputs,
    "tables": _table_inputs,
    "images": _image_inputs,
    "sounds": _sound_inputs,
    "arrays": _array_inputs,
}


# --- arguments ------------------------------------------------------------------------------------------------------


class _Needs:
    """What a forward must be given; what the inputs do not bring of it is made up, and then they count as synthetic."""

    def __init__(self, core: nn.Module, seed: int) -> None:
        self._core, self._seed = core, seed
        try:
            self._names = set(synthetic_inputs(core, seed=seed))
        except InputsError as error:  # then the inputs have to bring everything
            self._names, self._error = set(), error
        self.token_names = sorted(
            name for name in self._names if name.endswith("input_ids")
        )  # two: encoder and decoder

    def require_tokens(self, name: str) -> None:
        """Raise :class:`InputsError` where the forward takes no token ids."""
        if not self._names:
            raise self._error
        if not self.token_names:
            raise InputsError(f"{name}: text cannot be fed: the model takes {', '.join(sorted(self._names))}")

    def source(self, own: Iterable[str]) -> str:
        """``own`` where these arguments are all that the forward must be given."""
        return "own" if self._names <= set(own) else "synthetic"

    def completed(self, own: dict[str, torch.Tensor], batch: int, length: int = 16) -> Arguments:
        """``own`` and what it lacks, of ``batch`` sequences."""
        if self._names <= own.keys():
            return own
        return {**synthetic_inputs(self._core, batch=batch, length=length, seed=self._seed), **own}


def forward_arguments(module: nn.Module) -> dict[str, inspect.Parameter]:
    """What a forward takes by name."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(module.forward).parameters
    return {name: parameter for name, parameter in parameters.items() if parameter.kind in named}


def _require_arguments(core: nn.Module, names: list[str], path: Path) -> None:
    """Raise :class:`InputsError` for a name that the forward does not take, and for one that it must have."""
    takes = forward_arguments(core)
    parameters = inspect.signature(core.forward).parameters.values()
    anything = not takes and any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    for name in names:
        if name not in takes and not anything:
            close = difflib.get_close_matches(name, takes, n=1)
            hint = f"; did you mean {close[0]}?" if close else f": it takes {', '.join(takes) or 'none by name'}"
            raise InputsError(f"{path}: the forward of {type(core).__name__} has no argument {name!r}{hint}")
    missing = [name for name, parameter in takes.items() if parameter.default is parameter.empty and name not in names]
    if missing:
        raise InputsError(f"{path}: lacks {', '.join(missing)}, which the forward of {type(core).__name__} must have")


def _arguments(batch: Any) -> Arguments:
    if isinstance(batch, torch.Tensor):
        return (batch,)
    if isinstance(batch, (Mapping, tuple)):
        return batch
    raise InputsError(f"inputs must be a mapping, a tuple or a tensor, not a {type(batch).__name__}")


def moved(batch: Arguments, device: torch.device, dtype: torch.dtype) -> Arguments:
    """The batch on ``device``, floating point in ``dtype``."""

    def move(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(device, dtype if value.is_floating_point() else None)
        return value

    return _each(batch, move)


def _each(batch: Arguments, change: Callable[[Any], Any]) -> Arguments:
    if isinstance(batch, Mapping):
        return {name: change(value) for name, value in batch.items()}
    return tuple(change(value) for value in batch)


#: Arguments that say how several images or sounds share one row.
_PACKING = (*PACKED, "feature_lens", "cu_seqlens")
#: Arguments whose first axis is the batch for certain, the surest first.
_BATCHED = ("attention_mask", "input_ids", "inputs_embeds", *IMAGE_ARGUMENTS, *SOUND_ARGUMENTS)


def sequence_count(batch: Arguments) -> int | None:
    """How many sequences (or images, or sounds) a batch holds; None where its tensors do not tell.

    The first axis of all of them must be that, or 1 for what they share. Arguments that pack images into one row do not.
    """
    named = batch if isinstance(batch, Mapping) else dict(enumerate(batch))
    if any(name in _PACKING for name in named):
        return None
    if any(not isinstance(value, (torch.Tensor, bool, int, float, str, type(None))) for value in named.values()):
        return None
    tensors = {name: value for name, value in named.items() if isinstance(value, torch.Tensor) and value.ndim}
    surest = next((name for name in (*_BATCHED, *tensors) if name in tensors), None)
    if surest is None:
        return None
    count = len(tensors[surest])
    return count if all(len(value) in (1, count) for value in tensors.values()) else None


def split(batch: Arguments, size: int) -> list[Arguments] | None:
    """The batch in parts of at most ``size`` sequences, in order; None where it cannot be told how many it holds.

    Tensors whose first axis is the batch are cut (views, no copies), anything else goes with every part.
    """
    count = sequence_count(batch)
    if count is None:
        return None

    def part(start: int) -> Arguments:
        def cut(value: Any) -> Any:
            batched = isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) == count
            return value[start : start + size] if batched else value

        return _each(batch, cut)

    return [part(start) for start in range(0, count, size)]


def halved(batch: Arguments) -> tuple[Arguments, Arguments] | None:
    """The batch in two halves, in order; None where it holds one sequence or does not tell how many."""
    count = sequence_count(batch)
    if count is None or count < 2:
        return None
    parts = split(batch, -(-count // 2)) or []
    return parts[0], parts[1]
