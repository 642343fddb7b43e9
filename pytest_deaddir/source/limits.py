"""What a config may make us build: not much more than its files can fill. A kilobyte of text can describe a model of any size."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from pytest_deaddir.errors import CheckpointError
from pytest_deaddir.source.checkpoint import Checkpoint
from pytest_deaddir.source.safetensors import StoredTensor

#: Layers, blocks or labels at most. Config classes make lists of so many entries before any module is built.
MAX_COUNT = 30_000

#: Numbers in a model for each number in its files, and beside. Copies of an embedding are tied after they are built: of 716
#: architectures at full size the one with the most builds 2.5 times its parameters. No file has masks and tables of
#: positions, and a small one may lack much.
NUMBERS, MORE_NUMBERS = 4, 1 << 25

#: Modules, parameters and buffers for each tensor of the files, and beside. Of the same architectures none has more than 8.7
#: for each parameter, and none more than 7,864 in all; but a file's tensor may be all experts of a layer.
PARTS, MORE_PARTS = 16, 1 << 13

_COUNTS = re.compile(r"layer|depth|block|stage|label")
_SIZES = re.compile(r"dim|size")


@contextmanager
def within_limits(checkpoint: Checkpoint) -> Iterator[None]:
    """Whoever builds the checkpoint's model in here, on the meta device, is stopped where it grows beyond all that the files
    could fill, before it takes memory. Raises :class:`CheckpointError`."""
    import torch
    from torch.nn.modules import module as registration

    path = checkpoint.path if checkpoint.path.suffix == ".gguf" else checkpoint.path / "config.json"
    if problem := excessive_count(checkpoint.config):
        raise CheckpointError(path, f"refused: {problem}")
    stored = sum(map(_capacity, checkpoint.tensors.values()))
    most_parts = PARTS * len(checkpoint.tensors) + MORE_PARTS
    seen: dict[int, torch.Tensor] = {}  # kept, so that no other tensor gets its id
    numbers = parts = 0

    def count(_owner: Any, _name: str, part: Any) -> None:
        nonlocal numbers, parts
        parts += 1
        if isinstance(part, torch.Tensor) and part.is_meta and id(part) not in seen:  # those that are loaded are not
            seen[id(part)] = part
            numbers += part.numel()
        if parts > most_parts:
            held = f"the files have {len(checkpoint.tensors)} tensors"
            raise CheckpointError(path, f"refused: it describes more than {most_parts} modules and tensors, and {held}")
        if numbers > NUMBERS * stored + MORE_NUMBERS and not checkpoint.partial:
            raise CheckpointError(
                path, f"refused: it describes at least {numbers} numbers, and the files hold {stored}"
            )

    with ExitStack() as hooks:
        for kind in ("module", "parameter", "buffer"):
            hooks.callback(getattr(registration, f"register_module_{kind}_registration_hook")(count).remove)
        yield


def excessive_count(config: dict[str, Any]) -> str | None:
    """Which count of layers, blocks or labels no model has, in words."""
    pending: list[tuple[str, Any]] = list(config.items())
    while pending:
        key, value = pending.pop()
        if isinstance(value, dict):
            pending.extend(value.items())
        elif isinstance(value, list):
            pending.extend((key, item) for item in value)
        elif type(value) is int and value > MAX_COUNT and _COUNTS.search(key) and not _SIZES.search(key):
            return f"{key!r} is {value}, and no model has more than {MAX_COUNT}"
    return None


def _capacity(tensor: StoredTensor) -> int:
    """How many numbers a stored tensor may be. Packed weights are integers, with two and more of them in a byte."""
    return tensor.elements if tensor.is_floating else max(tensor.elements, 2 * tensor.length)
