"""What a model is fed: text through its own tokenizer, else made-up inputs of the right kind, and then marked synthetic."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pytest_deaddir.errors import InputsError
from pytest_deaddir.source.load import Model, quiet
from pytest_deaddir.source.synthetic import synthetic_inputs

#: Rows of activations per unit of width that are aimed at: the smallest singular value of N × d noise is
#: 1 − √(d/N) of the largest, and at N = 4d half of it is left.
SAMPLES_PER_WIDTH = 4
LENGTH = 256
BATCH_ROWS = 2048

#: The arguments of one forward pass: by keyword, or by position.
Arguments = Mapping[str, Any] | tuple[Any, ...]


@dataclass(frozen=True)
class Inputs:
    """``source``: ``own`` where the model's tokenizer or its owner made them, else ``synthetic``.

    ``small``: arguments enough to trace a forward. ``batches``: gives the arguments of each batch, for as many rows of
    activations as are asked for where that can be told, else without end.
    """

    name: str
    source: str
    small: Arguments
    batches: Callable[[int], Iterable[Arguments]]


def samples_wanted(samples: int | None, width: int) -> int:
    """How many rows to feed. Raises :class:`InputsError` where ``samples`` cannot span ``width`` dimensions."""
    if samples is None:
        return SAMPLES_PER_WIDTH * width
    require_samples(samples, width)
    return samples


def require_samples(samples: int, width: int) -> None:
    """N rows have at most N − 1 centred dimensions, so N ≤ d makes directions look dead that are only unseen."""
    if samples <= width:
        raise InputsError(
            f"too few samples: N = {samples} rows for width d = {width}; at least {width + 1} are needed, "
            f"{SAMPLES_PER_WIDTH * width} are advised: --deaddir-samples={SAMPLES_PER_WIDTH * width}"
        )


def prepare(model: Model, given: Any, seed: int) -> Inputs:
    """The inputs of one audit.

    ``given``: None, a text file's path, or ready arguments (a mapping, a tuple or a tensor, or a list of these as
    batches). Raises :class:`InputsError` where they do not fit.
    """
    if given is None:
        given = model.inputs
    if given is not None and not isinstance(given, (str, Path)):
        batches = [_arguments(batch) for batch in (given if isinstance(given, list) else [given])]
        return Inputs("given", "own", batches[0], lambda rows: batches)
    if model.tokenizer is None:
        if given is not None:
            raise InputsError(f"{given}: the model has no tokenizer to read a text file with")
        return _made_up(model, seed)
    return _text_inputs(model, model.tokenizer, given, seed)


def _made_up(model: Model, seed: int) -> Inputs:
    if model.config is None and not hasattr(model.core, "pretrained_cfg"):  # timm's
        raise InputsError(
            f"{model.name} has no transformers config, so its inputs cannot be made up: "
            "let a factory (package.module:factory) return (module, inputs), with inputs a mapping or tuple of tensors"
        )
    length = LENGTH if model.config is None else _length(model.config)
    small = synthetic_inputs(model.core, seed=seed)
    names = sorted(small)

    def batches(rows: int) -> Iterator[Arguments]:
        each = max(1, min(BATCH_ROWS, rows) // length)
        for batch in itertools.count():
            yield synthetic_inputs(model.core, batch=each, length=length, seed=seed + batch)

    return Inputs(
        "uniform token ids" if names == ["input_ids"] else f"random {', '.join(names)}", "synthetic", small, batches
    )


def _text_inputs(model: Model, tokenizer: dict[str, Any], given: str | Path | None, seed: int) -> Inputs:
    """Batches of tokenised text. What the forward needs beside token ids is made up, and then they count as synthetic."""
    name = "pydoc_data.topics" if given is None else Path(given).name
    length = _length(model.config)
    ids = _tokenised(tokenizer, _text(given), length)
    if not len(ids):
        raise InputsError(f"{name}: the text gives no whole sequence of {length} tokens: give more of it")
    small = dict(synthetic_inputs(model.core, seed=seed))
    token_names = [key for key in small if key.endswith("input_ids")]  # an encoder-decoder takes two
    if not token_names:
        return _made_up(model, seed)

    def filled(rows: torch.Tensor) -> Arguments:
        if len(token_names) == len(small):
            return dict.fromkeys(token_names, rows)
        made = synthetic_inputs(model.core, batch=len(rows), length=rows.shape[1], seed=seed)
        return {**made, **dict.fromkeys(token_names, rows)}

    def batches(rows: int) -> Iterator[Arguments]:
        sequences = ids[: -(-rows // ids.shape[1])]
        yield from map(filled, sequences.split(max(1, BATCH_ROWS // ids.shape[1])))

    source = "own" if len(token_names) == len(small) else "synthetic"
    return Inputs(name, source, filled(ids[:2, :16]), batches)


def _text(given: str | Path | None) -> str:
    if given is None:  # English prose that every CPython carries
        from pydoc_data.topics import topics

        return "\n\n".join(topics.values())
    try:
        return Path(given).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputsError(f"{given}: cannot be read as UTF-8 text: {error}") from error


def _tokenised(tokenizer_source: dict[str, Any], text: str, length: int) -> torch.Tensor:
    """Sequences of exactly ``length`` tokens, (n, length), each with the special tokens that the tokenizer adds."""
    from transformers import AutoTokenizer

    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(**tokenizer_source)
        except Exception as error:  # a damaged tokenizer file, a library that it needs …
            raise InputsError(
                f"{tokenizer_source['pretrained_model_name_or_path']}: its tokenizer does not load: {error}"
            ) from error
    longest = tokenizer.model_max_length
    if not isinstance(longest, (int, float)) or longest < 4:
        raise InputsError(f"its tokenizer says that {longest!r} tokens are the longest sequence")
    length = int(min(length, longest))
    if not tokenizer.is_fast:
        stream = tokenizer(text, add_special_tokens=False)["input_ids"]
        whole = len(stream) // length * length
        return torch.tensor(stream[:whole]).view(-1, length)
    encoded = tokenizer(text, truncation=True, max_length=length, return_overflowing_tokens=True)["input_ids"]
    rows = [row for row in encoded if len(row) == length]
    return torch.tensor(rows, dtype=torch.long).view(-1, length)


def _length(config: Any) -> int:
    text = config.get_text_config()
    limits = (getattr(text, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len"))
    # RoBERTa's positions start behind the padding id, so two of them cannot be used
    return min(LENGTH, *(limit - 2 for limit in limits if isinstance(limit, int) and limit > 4), LENGTH)


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

    if isinstance(batch, Mapping):
        return {name: move(value) for name, value in batch.items()}
    return tuple(move(value) for value in batch)
