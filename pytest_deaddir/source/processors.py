"""Images and sounds → arguments, through the checkpoint's own processor."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import torch

from pytest_deaddir.errors import InputsError
from pytest_deaddir.source.load import Model, quiet
from pytest_deaddir.source.records import Record

#: Arguments by which a forward takes images, and sounds.
IMAGE_ARGUMENTS = ("pixel_values", "flattened_patches")
SOUND_ARGUMENTS = ("input_features", "input_values")

#: One record's arguments, each with a first axis of its own: 1, or as many patches as the image has.
Prepare = Callable[[Record], dict[str, torch.Tensor]]


def image_mode(model: Model) -> str:
    """Pillow's mode of the images that the model takes."""
    config = model.config
    for part in (config, getattr(config, "vision_config", None)):
        if getattr(part, "num_channels", None) == 1:
            return "L"
    return "RGB"


def image_preparation(model: Model, accepted: Collection[str]) -> Prepare:
    """Images through AutoImageProcessor; where they stand in the text as a token, through AutoProcessor with that token."""
    placeholder = any(getattr(model.config, name, None) is not None for name in ("image_token_id", "image_token_index"))
    with_text = placeholder and model.tokenizer is not None and "input_ids" in accepted
    processor = _loaded(model, "AutoProcessor" if with_text else "AutoImageProcessor")
    extra = {}
    if with_text:
        token = getattr(processor, "image_token", None)
        if token is None:
            raise InputsError(f"{model.name}: its processor does not say which token stands for an image")
        extra["text"] = str(token)
    return lambda record: _processed(processor, record, accepted, images=record[1], **extra)


def sound_preparation(model: Model, accepted: Collection[str]) -> tuple[Prepare, int]:
    """Sounds through AutoFeatureExtractor, and the samples a second that it takes."""
    extractor = _loaded(model, "AutoFeatureExtractor")
    rate = getattr(extractor, "sampling_rate", None)
    if not isinstance(rate, int) or rate < 1:
        raise InputsError(f"{model.name}: its feature extractor does not say how many samples a second it takes")

    def prepare(record: Record) -> dict[str, torch.Tensor]:
        arguments = _processed(extractor, record, accepted, record[1], sampling_rate=rate)  # named by each as it likes
        mask = arguments.get("attention_mask")
        if mask is not None and bool(mask.all()):  # over samples or frames, and not over rows of activations
            del arguments["attention_mask"]
        return arguments

    return prepare, rate


def stacked(prepared: Iterable[dict[str, torch.Tensor]], size: int) -> Iterator[tuple[dict[str, torch.Tensor], int]]:
    """Batches of up to ``size`` neighbours of the same shapes, and how many each holds."""
    waiting: list[dict[str, torch.Tensor]] = []
    for arguments in prepared:
        if waiting and (len(waiting) == size or _shapes(arguments) != _shapes(waiting[0])):
            yield _joined(waiting), len(waiting)
            waiting = []
        waiting.append(arguments)
    if waiting:
        yield _joined(waiting), len(waiting)


def _shapes(arguments: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in arguments.items()}


def _joined(waiting: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.cat([arguments[name] for arguments in waiting]) for name in waiting[0]}


def _loaded(model: Model, auto: str) -> Any:
    import transformers

    assert model.processor is not None
    with quiet():
        try:
            return getattr(transformers, auto).from_pretrained(**model.processor)
        except Exception as error:  # a damaged file, a class that is not known, a library that it needs
            path = model.processor["pretrained_model_name_or_path"]
            raise InputsError(f"{path}: its processor does not load: {type(error).__name__}: {error}") from error


def _processed(
    processor: Any, record: Record, accepted: Collection[str], *data: Any, **given: Any
) -> dict[str, torch.Tensor]:
    with quiet():
        try:
            made = processor(*data, return_tensors="pt", **given)
        except Exception as error:  # sizes, channels or lengths that it does not take, in its own words
            raise InputsError(
                f"{record[0]}: the processor does not take it: {type(error).__name__}: {error}"
            ) from error
    arguments = {name: value for name, value in made.items() if name in accepted and isinstance(value, torch.Tensor)}
    if not arguments:
        raise InputsError(f"{record[0]}: the processor makes {', '.join(made)}, and the model takes none of these")
    return arguments
