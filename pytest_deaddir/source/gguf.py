"""The part of the GGUF format that the read level needs: the header, by plain reads, without ggml's own library.

Norms are F32 in any GGUF file, however few bits its matrices have, so their scales are read as from safetensors. The
gguf package maps the file, hangs on an array that claims 2^40 elements and overflows the stack on arrays in arrays; here
every length is checked against what the file has left before anything is read or reserved.

Format: ggml's docs/gguf.md; where it leaves a choice, or llama.cpp's ggml/src/gguf.cpp is stricter, that reader decides,
since no model that it refuses is in use. A norm that computes with 1 + w in the original (Gemma, Qwen3-Next, Nemotron) is
stored with the 1 added: all of a GGUF file's scales are what is multiplied.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import struct
from pathlib import Path
from typing import Any, BinaryIO

from pytest_deaddir.errors import CheckpointError
from pytest_deaddir.source.safetensors import StoredTensor

#: Bytes of header at most. The largest tokenizers in use (262,144 tokens with their merges) take 20 MB of it.
MAX_HEADER = 64_000_000

#: Entries at most; models in use have about a thousand tensors and fifty metadata entries.
MAX_TENSORS, MAX_ENTRIES = 100_000, 4_096

#: Bytes of a tensor's name (the format says 64, some writers more), of a key, and of a string that is kept.
MAX_NAME, MAX_KEY, MAX_STRING = 256, 1_024, 1_024

#: Bytes that tensors are aligned to, at most: a large page.
MAX_ALIGNMENT = 1 << 21

#: ggml's number of a tensor type → its name (safetensors' where it has one), the numbers in a block, a block's bytes.
TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2), 28: ("F64", 1, 8),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8),
    2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    29: ("IQ1_M", 256, 56), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
}  # fmt: skip

#: The format's number of a metadata type → how to unpack it; strings (8) and arrays (9) have lengths of their own.
_SCALARS = {kind: struct.Struct(f"<{code}") for kind, code in enumerate("BbHhIif?  Qqd") if code != " "}
_STRING, _ARRAY = 8, 9
_U32, _U64, _ARRAY_HEAD = struct.Struct("<I"), struct.Struct("<Q"), struct.Struct("<IQ")
_WINDOW = 1 << 18


def read_gguf(path: Path) -> tuple[dict[str, StoredTensor], dict[str, Any], bytes]:
    """The tensors of a GGUF file by name, its metadata, and the sha256 of its header. Reads no tensor.

    Arrays and strings of more than MAX_STRING bytes (tokenizers, chat templates) are passed over: their value is None.
    Shapes are in the order of numpy and torch, which is the reverse of ggml's.
    Raises :class:`CheckpointError` where the file is not GGUF, is cut off, or contradicts itself.
    """
    try:
        with path.open("rb") as file:
            return parse_gguf(file, os.fstat(file.fileno()).st_size, path)
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror or error}") from error


def parse_gguf(file: BinaryIO, size: int, path: Path) -> tuple[dict[str, StoredTensor], dict[str, Any], bytes]:
    """:func:`read_gguf` on an open file of ``size`` bytes, which is read from its start and in order."""
    header = _Header(file, size, path)
    if size < 24:
        raise CheckpointError(path, f"truncated: {size} bytes are too few for a GGUF header")
    if (magic := header.take(4)) != b"GGUF":
        raise CheckpointError(path, f"not GGUF: it begins with {magic!r}")
    version = header.unpack(_U32)
    if version & 0xFFFF == 0:  # the one way to tell: a version has never needed its upper half
        raise CheckpointError(path, "refused: a big-endian GGUF file; convert it with gguf_convert_endian.py")
    if version not in (2, 3):
        raise CheckpointError(path, f"GGUF version {version}: versions 2 and 3 can be read")
    tensors, entries = header.unpack(_U64), header.unpack(_U64)
    for count, most, what in ((tensors, MAX_TENSORS, "tensors"), (entries, MAX_ENTRIES, "metadata entries")):
        if count > most:
            raise CheckpointError(path, f"refused: it claims {count} {what} (the limit is {most})")
    metadata = _metadata(header, entries)
    stored = _tensors(header, tensors, metadata, size)
    return stored, metadata, header.digest()


def gguf_config(metadata: dict[str, Any]) -> dict[str, Any]:
    """What a config.json would say of the norms and of the size: architecture, width, layers and eps.

    The architecture's and the eps' own keys are kept beside: the first says that this is GGUF, so that all scales are stored
    as they are multiplied; the others, unlike an eps in config.json, what kind the norms without a shift are.
    """
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        return {}
    config: dict[str, Any] = {"general.architecture": architecture, "architectures": [architecture]}
    for name, ours in (("embedding_length", "hidden_size"), ("block_count", "num_hidden_layers")):
        if type(size := metadata.get(f"{architecture}.{name}")) is int:
            config[ours] = size
    for name, ours in (("layer_norm_rms_epsilon", "rms_norm_eps"), ("layer_norm_epsilon", "layer_norm_eps")):
        key = f"{architecture}.attention.{name}"
        if isinstance(eps := metadata.get(key), float):
            config[ours] = config[key] = eps
    return config


def gguf_parts(path: Path, metadata: dict[str, Any]) -> list[str]:
    """The names of all files of the model that ``path`` is a part of, in order; of a model in one file, its own.

    They are made from the file's own name, as llama.cpp's gguf-split gives it, so none can lead out of its directory.
    """
    count = metadata.get("split.count", 0)
    if type(count) is not int or count < 2:
        return [path.name]
    match = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})\.gguf", path.name, re.DOTALL)
    if match is None or int(match[2]) != count:
        raise CheckpointError(path, f"one of {count} parts, whose name should end in -00001-of-{count:05}.gguf")
    return [f"{match[1]}-{part:05}-of-{match[2]}.gguf" for part in range(1, count + 1)]


class _Header:
    """The header's bytes in order, through a window: never more in memory, and none that the file does not have."""

    def __init__(self, file: BinaryIO, size: int, path: Path) -> None:
        self.path = path
        self._file, self._size = file, size
        self._window, self._start, self._at = b"", 0, 0
        self._hash = hashlib.sha256()

    @property
    def position(self) -> int:
        """Bytes taken or skipped so far."""
        return self._start + self._at

    def digest(self) -> bytes:
        """sha256 of the bytes taken or skipped so far."""
        hashed = self._hash.copy()
        hashed.update(self._window[: self._at])
        return hashed.digest()

    def take(self, count: int) -> bytes:
        self._reach(count)
        self._at += count
        return self._window[self._at - count : self._at]

    def unpack(self, code: struct.Struct) -> Any:
        return code.unpack(self.take(code.size))[0]

    def text(self, most: int, what: str) -> str:
        """A name: a length and that many bytes of UTF-8."""
        length = self.unpack(_U64)
        if length > most:
            raise CheckpointError(self.path, f"refused: {what} of {length} bytes (the limit is {most})")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise CheckpointError(self.path, f"not GGUF: {what} that is not UTF-8") from None

    def skip(self, count: int) -> None:
        self.check(count)
        while count:
            self._reach(1)
            step = min(count, len(self._window) - self._at)
            self._at += step
            count -= step

    def skip_strings(self, count: int) -> None:
        """A tokenizer has half a million of them, one after another: as little as can be is done for each."""
        self.check(8 * count)
        length_at = _U64.unpack_from
        while count:
            self._reach(8)
            window, at, last = self._window, self._at, len(self._window) - 8
            while count and at <= last:
                at += 8 + length_at(window, at)[0]
                count -= 1
            self.skip(at - self._at)

    def check(self, count: int) -> None:
        """Raise unless the file has ``count`` more bytes, and the header may."""
        end = self.position + count
        if end > self._size:
            raise CheckpointError(self.path, f"truncated: the header needs {end} bytes and the file has {self._size}")
        if end > MAX_HEADER:
            raise CheckpointError(self.path, f"refused: a header of {end} bytes (the limit is {MAX_HEADER})")

    def _reach(self, count: int) -> None:
        """Have ``count`` bytes in the window, all of them checked."""
        if self._at + count <= len(self._window):
            return
        self.check(count)
        self._hash.update(self._window[: self._at])
        rest = self._window[self._at :]
        self._start, self._at = self.position, 0
        self._window = rest + self._file.read(max(count, _WINDOW) - len(rest))
        if len(self._window) < count:
            raise CheckpointError(self.path, "truncated while it was read")


def _metadata(header: _Header, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(count):
        key = header.text(MAX_KEY, "a metadata key")
        if key in metadata:
            raise CheckpointError(header.path, f"metadata key {key!r} is there twice")
        metadata[key] = _value(header, key)
    return metadata


def _value(header: _Header, key: str) -> Any:
    kind = header.unpack(_U32)
    if kind in _SCALARS:
        return header.unpack(_SCALARS[kind])
    if kind == _STRING:
        length = header.unpack(_U64)
        if length <= MAX_STRING:
            return header.take(length).decode(errors="replace")
        header.skip(length)
    elif kind == _ARRAY:
        _skip_array(header, key)
    else:
        raise CheckpointError(header.path, f"metadata {key!r} is of type {kind}, which there is not")
    return None


def _skip_array(header: _Header, key: str) -> None:
    kind, count = _ARRAY_HEAD.unpack(header.take(_ARRAY_HEAD.size))
    if kind in _SCALARS:
        header.skip(count * _SCALARS[kind].size)
    elif kind == _STRING:
        header.skip_strings(count)
    elif kind == _ARRAY:  # gguf.md allows them; gguf.cpp refuses them, so no model that runs has them
        raise CheckpointError(header.path, f"refused: metadata {key!r} is an array of arrays")
    else:
        raise CheckpointError(header.path, f"metadata {key!r} is an array of type {kind}, which there is not")


def _tensors(header: _Header, count: int, metadata: dict[str, Any], size: int) -> dict[str, StoredTensor]:
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        problem = f"general.alignment is {alignment!r}, not a power of two up to {MAX_ALIGNMENT}"
        raise CheckpointError(header.path, problem)
    found: dict[str, StoredTensor] = {}
    for _ in range(count):
        tensor = _tensor(header, alignment)
        if tensor.name in found:
            raise CheckpointError(header.path, f"tensor {tensor.name!r} is there twice")
        found[tensor.name] = tensor
    start = end = header.position + -header.position % alignment
    before = ""
    for tensor in sorted(found.values(), key=lambda tensor: (tensor.offset, tensor.length)):
        name, offset = tensor.name, start + tensor.offset
        if offset < end:
            raise CheckpointError(header.path, f"tensor {name!r} lies over {before!r}")
        found[name] = StoredTensor(name, header.path, tensor.dtype, tensor.shape, offset, tensor.length)
        end, before = offset + tensor.length, name
    if found and end > size:
        raise CheckpointError(header.path, f"truncated: the tensors need {end} bytes and the file has {size}")
    return found


def _tensor(header: _Header, alignment: int) -> StoredTensor:
    """The next tensor of the header, its offset still from where the data starts."""
    name = header.text(MAX_NAME, "a tensor's name")

    def wrong(problem: str) -> CheckpointError:
        return CheckpointError(header.path, f"tensor {name!r}: {problem}")

    if (dimensions := header.unpack(_U32)) > 4:
        raise wrong(f"{dimensions} dimensions (ggml has 4)")
    shape = tuple(reversed([header.unpack(_U64) for _ in range(dimensions)]))
    if math.prod(max(n, 1) for n in shape) >= 1 << 63:  # signed in ggml: a negative one is here too
        raise wrong(f"a shape that cannot be: {shape}")
    if (kind := header.unpack(_U32)) not in TYPES:
        raise wrong(f"of type {kind}, which is none of ggml's that this release knows")
    dtype, block, block_bytes = TYPES[kind]
    if (shape[-1] if shape else 1) % block:
        raise wrong(f"rows of {shape[-1] if shape else 1} numbers are no whole blocks of {dtype}")
    if (offset := header.unpack(_U64)) % alignment:
        raise wrong(f"offset {offset} is not a multiple of {alignment}")
    return StoredTensor(name, header.path, dtype, shape, offset, math.prod(shape) // block * block_bytes)
