"""What a model is fed: text through its own tokenizer, else uniform token ids, and then marked synthetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pytest_deaddir.errors import InputsError
from pytest_deaddir.source.load import Model, quiet

#: Rows of activations per unit of width that are aimed at: the smallest singular value of N × d noise is
#: 1 − √(d/N) of the largest, and at N = 4d half of it is left.
SAMPLES_PER_WIDTH = 4
LENGTH = 256
BATCH_ROWS = 2048


@dataclass(frozen=True)
class Inputs:
    """Batches of arguments. ``source``: ``own`` where the model's tokenizer or its owner made them, else ``synthetic``."""

    name: str
    source: str
    batches: Sequence[Mapping[str, Any] | tuple[Any, ...]]


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
            f"{SAMPLES_PER_WIDTH * width} are advised: --deaddir-samples {SAMPLES_PER_WIDTH * width}"
        )


def prepare(model: Model, given: Any, width: int, samples: int | None, seed: int) -> Inputs:
    """The inputs for one audit.

    ``given``: None, a text file's path, or ready arguments (a mapping, a tuple or a tensor, or a list of these as
    batches). Raises :class:`InputsError` where they do not fit or are too few.
    """
    if given is None:
        given = model.inputs
    if given is not None and not isinstance(given, (str, Path)):
        batches = given if isinstance(given, list) else [given]
        return Inputs("given", "own", [_arguments(batch) for batch in batches])
    wanted = samples_wanted(samples, width)
    if model.config is None:
        raise InputsError(
            f"{model.name} has no transformers config, so its inputs cannot be made up: "
            "let the factory return (module, inputs), with inputs a mapping or tuple of tensors"
        )
    length = _length(model.config)
    if model.tokenizer is None:
        if given is not None:
            raise InputsError(f"{given}: the model has no tokenizer to read a text file with")
        ids = _uniform_ids(model.config, -(-wanted // length), length, seed)
        return Inputs("uniform token ids", "synthetic", _batched(ids))
    name = "pydoc_data.topics" if given is None else Path(given).name
    ids = _tokenised(model.tokenizer, _text(given), length)
    if ids.numel() <= width:
        raise InputsError(
            f"{name} gives {ids.numel()} tokens in sequences of {length}, not more than the width d = {width}: "
            f"at least {width + 1} are needed, {SAMPLES_PER_WIDTH * width} are advised"
        )
    return Inputs(name, "own", _batched(ids[: -(-wanted // length)]))


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
    length = min(length, tokenizer.model_max_length)
    if not tokenizer.is_fast:
        stream = tokenizer(text, add_special_tokens=False)["input_ids"]
        whole = len(stream) // length * length
        return torch.tensor(stream[:whole]).view(-1, length)
    encoded = tokenizer(text, truncation=True, max_length=length, return_overflowing_tokens=True)["input_ids"]
    rows = [row for row in encoded if len(row) == length]
    return torch.tensor(rows, dtype=torch.long).view(-1, length)


def _uniform_ids(config: Any, rows: int, length: int, seed: int) -> torch.Tensor:
    vocabulary = getattr(config.get_text_config(), "vocab_size", None)
    if not vocabulary:
        raise InputsError(
            f"inputs for a {config.model_type} cannot be made up yet: pass them as package.module:factory "
            "returning (module, inputs)"
        )
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocabulary, (rows, length), generator=generator)


def _length(config: Any) -> int:
    text = config.get_text_config()
    limits = (getattr(text, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len"))
    # RoBERTa's positions start behind the padding id, so two of them cannot be used
    return min(LENGTH, *(limit - 2 for limit in limits if isinstance(limit, int) and limit > 4), LENGTH)


def _batched(ids: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    return [{"input_ids": part} for part in ids.split(max(1, BATCH_ROWS // ids.shape[1]))]


def _arguments(batch: Any) -> Mapping[str, Any] | tuple[Any, ...]:
    if isinstance(batch, torch.Tensor):
        return (batch,)
    if isinstance(batch, (Mapping, tuple)):
        return batch
    raise InputsError(f"inputs must be a mapping, a tuple or a tensor, not a {type(batch).__name__}")


def moved(batch: Mapping[str, Any] | tuple[Any, ...], device: torch.device, dtype: torch.dtype) -> Any:
    """The batch on ``device``, floating point in ``dtype``."""

    def move(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(device, dtype if value.is_floating_point() else None)
        return value

    if isinstance(batch, Mapping):
        return {name: move(value) for name, value in batch.items()}
    return tuple(move(value) for value in batch)


def small(inputs: Inputs) -> Mapping[str, Any] | tuple[Any, ...]:
    """The first batch, cut to two sequences of 16 where it is token ids: enough to trace."""
    first = inputs.batches[0]
    if isinstance(first, Mapping) and set(first) == {"input_ids"}:
        return {"input_ids": first["input_ids"][:2, :16]}
    return first
