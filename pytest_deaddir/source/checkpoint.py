"""A checkpoint's config and tensors, from whichever files it has; no code of the checkpoint's, and no torch for safetensors."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_deaddir.errors import CheckpointError, SpecError, require_torch
from pytest_deaddir.source.safetensors import TORCH_NAMES, Header, StoredTensor, dtype_name, read_header, read_tensors
from pytest_deaddir.source.spec import WEIGHTS, Spec

if TYPE_CHECKING:
    import torch

MAX_CONFIG = 64_000_000


Reader = Callable[[Iterable[StoredTensor]], Iterator[tuple[StoredTensor, np.ndarray, bytes]]]

#: Chooses the tensors that will be read by the names of all, where an index gives names and no shapes.
Choice = Callable[[list[str]], Iterable[str]]


@dataclass
class Traffic:
    """Requests made of a server, and bytes received."""

    requests: int = 0
    bytes: int = 0


@dataclass
class Checkpoint:
    """Tensors by name, where they are and what config.json says of them.

    ``reader``: gives the values and the bytes of stored tensors. ``revision``: the hub's commit, if any. ``traffic``: what
    was asked of a server, where one was. ``duplicates``: names of tensors that the files hold more than once.
    ``differing``: other sets of weights in the directory that are not the same as the one that is read; ``uncompared``:
    those that would take torch to open; both None where nobody looked.
    ``partial``: whether there are shards whose headers were not read.
    """

    path: Path
    config: dict[str, Any]
    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    reader: Reader = read_tensors
    revision: str | None = None
    traffic: Traffic | None = None
    duplicates: list[str] = field(default_factory=list)
    differing: list[str] | None = field(default_factory=list)
    uncompared: list[str] | None = field(default_factory=list)
    partial: bool = False
    _digest: Any = field(default_factory=hashlib.sha256, repr=False)

    def add(self, header: Header) -> None:
        """Take a file's tensors. One that another file has already is a duplicate."""
        self._digest.update(header.identity)
        self.duplicates += [*header.duplicates, *(name for name in header.tensors if name in self.tensors)]
        self.tensors.update(header.tensors)

    def floating_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the floating-point tensors by name."""
        return {name: tensor.shape for name, tensor in self.tensors.items() if tensor.is_floating}

    @property
    def architecture(self) -> str | None:
        """The class that config.json names."""
        names = self.config.get("architectures")
        return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None

    @property
    def parameters(self) -> int | None:
        """Numbers in all tensors of the files; None where not all headers were read."""
        return None if self.partial else sum(tensor.elements for tensor in self.tensors.values())

    @property
    def dtype(self) -> str:
        """The dtype that most of the numbers are stored in, by torch's name."""
        counts: dict[str, int] = {}
        for tensor in filter(lambda tensor: tensor.is_floating, self.tensors.values()):  # packed weights are integers
            name = TORCH_NAMES.get(tensor.dtype, tensor.dtype.lower())
            counts[name] = counts.get(name, 0) + tensor.elements
        return max(counts, key=lambda name: counts[name], default="float32")

    def fingerprint(self) -> str:
        """sha256 over the headers and the tensors read so far: the same norms in the same layout, the same fingerprint."""
        return self._digest.hexdigest()

    def read(self, names: Iterable[str]) -> Iterator[tuple[StoredTensor, np.ndarray]]:
        """The values of the named tensors in float64, one at a time, in the order of the files."""
        for tensor, values, raw in self.reader([self.tensors[name] for name in names]):
            self._digest.update(raw)
            yield tensor, values


def open_local(spec: Spec) -> Checkpoint:
    """Open the files that a spec of the form directory, safetensors or gguf names: configs and headers, no values yet.

    Raises :class:`CheckpointError` naming the file, and :class:`SpecError` where the form needs what is not installed.
    """
    path = spec.path
    if path is None:
        raise SpecError(f"{spec.text}: has no files to read; it can be audited at --deaddir-level forward")
    if spec.form == "safetensors":
        return _from_safetensors(path, {}, [path])
    if spec.form == "gguf":
        return _from_gguf(path)

    config = read_json(_own(path, "config.json"))
    if "transformers_weights" in config:
        raise CheckpointError(
            path / "config.json", "refused: transformers_weights names other weights than are read here"
        )
    weights = next((path / name for name in WEIGHTS if (path / name).is_file()), None)
    if weights is None:
        raise CheckpointError(path, f"none of {', '.join(WEIGHTS)} is there")
    checkpoint = _from_weights(weights, config)
    differing: list[str] = []
    uncompared: list[str] = []
    for other in _others(path, weights):
        differs = _differs(checkpoint, path / other)
        if differs is None:
            uncompared.append(other)
        elif differs:
            differing.append(other)
    checkpoint.differing, checkpoint.uncompared = differing, uncompared
    return checkpoint


def open_snapshot(spec: Spec, path: Path) -> Checkpoint:
    """Open a hub model where huggingface_hub's cache holds it: in a folder that its commit names."""
    checkpoint = open_local(replace(spec, form="directory", path=path))
    checkpoint.revision = path.name
    return checkpoint


def _others(path: Path, weights: Path) -> list[str]:
    """The other sets of weights that a loader might have taken: single beside sharded, .bin beside safetensors."""
    return [name for name in WEIGHTS if (path / name).is_file() and name != weights.name]


def _differs(checkpoint: Checkpoint, other: Path) -> bool | None:
    """Whether another set of weights holds other tensors or other vectors, or cannot be opened.

    None for a .bin at the read level: opening it would import torch, which the read level does without.
    """
    if ".bin" in other.name and "torch" not in sys.modules:
        return None
    try:
        second = _from_weights(other, {})
        if {n: t.shape for n, t in second.tensors.items()} != {n: t.shape for n, t in checkpoint.tensors.items()}:
            return True
        vectors = [name for name, shape in checkpoint.floating_shapes().items() if len(shape) == 1]
        pairs = zip(_in_order(checkpoint, vectors), _in_order(second, vectors), strict=True)
        return not all(np.array_equal(mine, theirs, equal_nan=True) for mine, theirs in pairs)
    except (CheckpointError, SpecError, ValueError):
        return True


def _in_order(checkpoint: Checkpoint, names: list[str]) -> list[np.ndarray]:
    """The values of the named tensors in the order of the names."""
    values = {tensor.name: array for tensor, array, _ in checkpoint.reader([checkpoint.tensors[n] for n in names])}
    return [values[name] for name in names]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises :class:`CheckpointError` naming the file and the line."""
    try:
        if path.stat().st_size > MAX_CONFIG:
            raise CheckpointError(path, f"larger than {MAX_CONFIG} bytes")
        raw = path.read_bytes()
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror or error}") from error
    return parse_json(raw, path)


def parse_json(raw: bytes, path: Path) -> dict[str, Any]:
    """A JSON object from a file's bytes."""
    try:
        document = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, f"not JSON: {error}") from None
    if not isinstance(document, dict):
        raise CheckpointError(path, "not a JSON object")
    return document


def check_entries(directory: Path) -> None:
    """Check everything that a loader might open in a directory, before it does; an adapter would be applied silently."""
    for entry in sorted(directory.iterdir()):
        if entry.is_symlink() or not entry.is_dir():
            _own(directory, entry.name)
    if (directory / "adapter_config.json").exists():
        raise CheckpointError(directory / "adapter_config.json", "refused: merge the adapter first, or remove it")


def _own(directory: Path, name: str) -> Path:
    """A checkpoint's file. A link may lead to the blobs of the hub's cache and nowhere else outside the directory."""
    file = directory / name
    target, home = file.resolve(), directory.resolve()
    blobs = home.parent.parent / "blobs"
    if target.exists() and not target.is_file():
        raise CheckpointError(file, "refused: not a regular file")
    if target.is_relative_to(home) or (home.parent.name == "snapshots" and target.is_relative_to(blobs)):
        return file
    raise CheckpointError(file, "refused: a link to outside the checkpoint; give the directory that it leads to")


def _shards(index: Path) -> list[Path]:
    """The files that an index names."""
    names = shard_names(read_json(_own(index.parent, index.name)), index)
    for name in names:
        if not _is_there(index.parent / name):
            raise CheckpointError(index, f"weight_map names {name[:120]!r}, which is not there")
    return [_own(index.parent, name) for name in names]


def _is_there(file: Path) -> bool:
    try:
        return file.is_file()
    except OSError:  # a name too long for the file system
        return False


def shard_names(document: dict[str, Any], index: Path) -> list[str]:
    """The file names in an index. One that is not a plain name would be read from outside the checkpoint: refused."""
    weight_map = document.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise CheckpointError(index, "weight_map is not an object of tensor names and file names")
    names = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name or "\\" in name or name in ("", ".", ".."):
            raise CheckpointError(index, f"refused: weight_map names {name!r}, not a file beside the index")
    return names


def _from_weights(weights: Path, config: dict[str, Any]) -> Checkpoint:
    """A set of weights by its first file: a single one, or the index of shards."""
    files = _shards(weights) if weights.suffix == ".json" else [_own(weights.parent, weights.name)]
    opened = _from_safetensors if files[0].suffix == ".safetensors" else _from_pickles
    return opened(weights.parent, config, files)


def _from_safetensors(path: Path, config: dict[str, Any], files: list[Path]) -> Checkpoint:
    checkpoint = Checkpoint(path, config)
    for file in files:
        checkpoint.add(read_header(file))
    return checkpoint


def _from_gguf(path: Path) -> Checkpoint:
    """One file, or all parts of a model, whichever of them is named; the first part has the metadata."""
    from pytest_deaddir.source.gguf import gguf_config, gguf_parts, read_gguf

    named = read_gguf(path)
    checkpoint = Checkpoint(path, {})
    for name in gguf_parts(path, named[1]):
        tensors, metadata, digest = named if name == path.name else read_gguf(_own(path.parent, name))
        checkpoint.config = checkpoint.config or gguf_config(metadata)
        checkpoint.add(Header(tensors, digest, ()))
    return checkpoint


def _from_pickles(path: Path, config: dict[str, Any], files: list[Path]) -> Checkpoint:
    """.bin files through torch.load(weights_only=True): tensors only, no code runs."""
    require_torch(f"{files[0].name} (a pickle)")
    import torch

    loaded: dict[str, torch.Tensor] = {}
    checkpoint = Checkpoint(path, config, reader=partial(_read_loaded, loaded))
    safetensors_names = {torch_name: name for name, torch_name in TORCH_NAMES.items()}
    for file in files:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=_is_zip(file))
        except Exception as error:  # torch raises UnpicklingError, RuntimeError, EOFError, ValueError …
            raise CheckpointError(file, f"refused by torch.load(weights_only=True): {first_line(error)}") from error
        if not isinstance(state, dict):
            raise CheckpointError(file, f"holds a {type(state).__name__}, not a state dict")
        for name, value in state.items():
            if not isinstance(name, str) or not isinstance(value, torch.Tensor):
                continue
            if value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise CheckpointError(file, f"refused: tensor {name!r} claims more elements than its storage holds")
            dtype = dtype_name(value.dtype)
            length = value.numel() * value.element_size()
            stored = safetensors_names.get(dtype, dtype)
            checkpoint.tensors[name] = StoredTensor(
                name, file, stored, tuple(value.shape), int(value.storage_offset()) * value.element_size(), length
            )
            checkpoint._digest.update(f"{name} {dtype} {tuple(value.shape)}".encode())
            loaded[name] = value
    return checkpoint


def _read_loaded(
    loaded: dict[str, torch.Tensor], tensors: Iterable[StoredTensor]
) -> Iterator[tuple[StoredTensor, np.ndarray, bytes]]:
    for tensor in tensors:
        values = loaded[tensor.name].double().numpy()
        yield tensor, values, values.tobytes()


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def first_line(error: Exception) -> str:
    """The first sentence: torch's go on to advise loading with weights_only=False."""
    return re.split(r"\.\s|\n", str(error).strip())[0][:200] or type(error).__name__
