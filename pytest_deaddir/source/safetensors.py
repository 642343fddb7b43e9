"""The part of the safetensors format that the read level needs: a header, and single tensors by plain reads.

The library maps the file, so a truncation while it is open kills the process (SIGBUS), and its numpy framework cannot
decode BF16 or F8; reading γ needs neither. Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np

from pytest_deaddir.errors import CheckpointError

if TYPE_CHECKING:
    import torch

#: Enough for about 100,000 tensors in one file. The format allows 100 MB, which costs a parser 3 s and 800 MB.
MAX_HEADER = 16_000_000

#: Bytes per element of every dtype that the format knows.
ITEMSIZE = {
    "F64": 8, "I64": 8, "U64": 8, "C64": 8,
    "F32": 4, "I32": 4, "U32": 4,
    "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1, "I8": 1, "U8": 1, "BOOL": 1,
    "F4": 0.5, "F6_E2M3": 0.75, "F6_E3M2": 0.75,
}  # fmt: skip

#: Names by which torch knows the dtypes that a norm's parameters have.
TORCH_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}


def dtype_name(dtype: torch.dtype) -> str:
    """The name by which torch knows a dtype: ``float32``."""
    return str(dtype).removeprefix("torch.")


class StoredTensor(NamedTuple):
    """A tensor as a file holds it: where its bytes are and how to read them. ``offset`` counts from the file's start.

    A tuple, since a header makes hundreds of thousands of them.
    """

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int

    @property
    def elements(self) -> int:
        """How many numbers the tensor has."""
        return math.prod(self.shape)

    @property
    def is_floating(self) -> bool:
        """Whether :func:`decode` knows its numbers; integers and packed weights are no scales."""
        return self.dtype in TORCH_NAMES


@dataclass(frozen=True)
class Header:
    """A file's tensors by name.

    ``identity``: what goes into the checkpoint's fingerprint, the header's own bytes or a digest of them. ``duplicates``:
    names that it gives more than once, of which the last counts, as for the library.
    """

    tensors: dict[str, StoredTensor]
    identity: bytes
    duplicates: tuple[str, ...]


def read_header(path: Path) -> Header:
    """The header of a safetensors file. Reads nothing else.

    Raises :class:`CheckpointError` where the file is shorter than its header says, or the header is not one.
    """
    with _opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = header_length(file.read(8), path)
        if 8 + length > size:
            raise CheckpointError(path, f"truncated: the header needs {8 + length} bytes and the file has {size}")
        raw = file.read(length)
    return parse_header(raw, path, size)


def header_length(prefix: bytes, path: Path) -> int:
    """The header's length from a file's first 8 bytes."""
    if len(prefix) < 8:
        raise CheckpointError(path, f"truncated: {len(prefix)} bytes are too few for a safetensors header")
    length = int.from_bytes(prefix[:8], "little")
    if length > MAX_HEADER:
        raise CheckpointError(path, f"refused: its header would be {length} bytes long (the limit is {MAX_HEADER})")
    return length


def parse_header(raw: bytes, path: Path, size: int | None) -> Header:
    """The header from its bytes, those behind the 8 of its length. ``size``: the file's, None where nobody said."""
    try:
        header = json.loads(str(raw, "utf-8"))  # of bytes alone json would guess the encoding
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, f"not safetensors: its header is not JSON ({error})") from None
    if not isinstance(header, dict):
        raise CheckpointError(path, "not safetensors: its header is not an object")
    metadata = header.pop("__metadata__", None)
    start = end = 8 + len(raw)
    in_order = True
    tensors = {}
    for name, entry in header.items():
        tensor = tensors[name] = _entry(path, name, entry, start)
        in_order = in_order and tensor.offset == end
        end = tensor.offset + tensor.length
    if not in_order:
        end = _checked_end(tensors.values(), raw, path)
    if size is not None and end != size:
        if end > size:
            raise CheckpointError(path, f"truncated: the tensors need {end} bytes and the file has {size}")
        raise _uncovered(f"the last {size - end} bytes belong to no tensor", raw, path)
    # every entry says "dtype" once: more of them than entries, and some name may stand twice
    # (and a backslash may spell any of it otherwise)
    suspected = (
        b"\\" in raw or raw.count(b'"dtype"') > len(tensors) or raw.count(b'"__metadata__"') > (metadata is not None)
    )
    return Header(tensors, raw, _duplicates(raw) if suspected else ())


def _checked_end(tensors: Iterable[StoredTensor], raw: bytes, path: Path) -> int:
    """Where the data of tensors in any order ends. As the library does, refuses tensors that overlap and bytes that belong
    to none; an empty tensor may lie between any two others."""
    end, before = 8 + len(raw), ""
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.length)):
        if tensor.offset != end:
            gap = tensor.offset - end
            where = f"between {before!r} and {tensor.name!r}" if before else f"in front of {tensor.name!r}"
            overlap = f"tensors {before!r} and {tensor.name!r} overlap by {-gap} bytes"
            raise _uncovered(f"{gap} bytes {where} belong to no tensor" if gap > 0 else overlap, raw, path)
        end, before = tensor.offset + tensor.length, tensor.name
    return end


def _uncovered(problem: str, raw: bytes, path: Path) -> CheckpointError:
    """Tensors must cover the data, each byte once. A name that is given twice leaves the first one's bytes to none."""
    twice = ", ".join(map(repr, _duplicates(raw)[:3]))
    return CheckpointError(path, f"refused: {problem}" + (f"; given more than once: {twice}" if twice else ""))


def _duplicates(raw: bytes) -> tuple[str, ...]:
    """Names that stand more than once in one object of a JSON text; the library's parser and ours take the last."""
    found: set[str] = set()

    def note(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found.update(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        return dict(pairs)

    json.loads(raw, object_pairs_hook=note)
    return tuple(sorted(found))


def _entry(path: Path, name: str, entry: Any, start: int) -> StoredTensor:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        length = math.prod(shape) * ITEMSIZE[dtype]
        sound = type(begin) is type(end) is int and 0 <= begin <= end and length == end - begin
        if sound and all(type(n) is int and n >= 0 for n in shape):
            return StoredTensor(name, path, dtype, tuple(shape), start + begin, end - begin)
    except (TypeError, KeyError, ValueError):
        pass
    raise CheckpointError(path, f"tensor {name!r}: a header entry that contradicts itself: {str(entry)[:120]}")


def read_tensors(tensors: Iterable[StoredTensor]) -> Iterator[tuple[StoredTensor, np.ndarray, bytes]]:
    """Each tensor with its values in float64 and its bytes, in the order of the files; each file is opened once."""
    by_file: dict[Path, list[StoredTensor]] = {}
    for tensor in tensors:
        by_file.setdefault(tensor.file, []).append(tensor)
    for path, members in by_file.items():
        with _opened(path) as file:
            for tensor in sorted(members, key=lambda member: member.offset):
                file.seek(tensor.offset)
                raw = file.read(tensor.length)
                if len(raw) != tensor.length:
                    raise CheckpointError(path, f"truncated within tensor {tensor.name!r}")
                yield tensor, decode(raw, tensor.dtype).reshape(tensor.shape), raw


def decode(raw: bytes, dtype: str) -> np.ndarray:
    """Little-endian bytes of a float dtype, by its safetensors name → float64. Raises ValueError for other dtypes."""
    with np.errstate(invalid="ignore"):  # widening a signalling NaN raises the flag; it stays a NaN, which rules report
        match dtype:
            case "F64" | "F32" | "F16":
                return np.frombuffer(raw, f"<f{ITEMSIZE[dtype]}").astype(np.float64)
            case "BF16":  # the upper half of a float32
                return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64)
            case "F8_E5M2":  # the upper half of a float16
                return (np.frombuffer(raw, "u1").astype(np.uint16) << 8).view(np.float16).astype(np.float64)
            case "F8_E4M3":
                return _e4m3_values()[np.frombuffer(raw, "u1")]
    raise ValueError(f"cannot decode {dtype} as floating point")


def _e4m3_values() -> np.ndarray:
    """All 256 values of float8_e4m3fn: exponent bias 7, no infinities, NaN at S.1111.111 (arXiv 2209.05433)."""
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    magnitude = np.where(exponent, (8 + mantissa) * 2.0 ** (exponent - 10.0), mantissa * 2.0**-9)
    magnitude[code & 127 == 127] = np.nan
    return np.where(code & 128, -magnitude, magnitude)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror or error}") from error
