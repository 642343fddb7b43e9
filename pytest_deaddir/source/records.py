"""What lies in a file or folder of inputs: text, records, images, sounds or arrays, in order and no further than asked.

Nothing here knows a model, nothing is written, and nothing that is read can run code: tables are parsed by pyarrow, csv
and json, without the scripts and caches of a dataset library; images by a closed list of Pillow's decoders (that of EPS
would start a program); arrays without pickles. Each reader says which file and which line, row or image is wrong.
"""

from __future__ import annotations

import csv
import io
import json
import os
import warnings
import wave
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pytest_deaddir.errors import InputsError

Kind = Literal["text", "tables", "images", "sounds", "arrays"]

#: Tables by suffix, the kind that a folder is taken for first: what ``datasets`` saves, then what it loads.
TABLES = (".arrow", ".parquet", ".jsonl", ".csv", ".json")
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
#: Pillow's decoders for these.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
SOUNDS = (".wav",)
#: JSON files that describe the tables beside them, or the folder.
_DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "metadata.json")

LINE_BYTES = 64 << 20
ARRAY_BYTES = 16 << 30
BLOCK = 1 << 20  # characters of a text file that are tokenised at once
SOUND_SECONDS = 30

#: A record and where it is: a text, the messages of a chat, an image or a sound.
Record = tuple[str, Any]


@dataclass(frozen=True)
class Source:
    """Files of one kind, in the order in which they are read. ``name``: what the audit calls them."""

    name: str
    kind: Kind
    files: tuple[Path, ...]


def find_sources(path: Path) -> list[Source]:
    """What ``path`` can be read as: one kind for a file, every kind that is in it for a folder.

    Folders are searched with those below them; linked folders are not entered and hidden ones are left out. Raises
    :class:`InputsError` where there is nothing to read.
    """
    try:
        is_folder, is_file, name = path.is_dir(), path.is_file(), path.name or path.resolve().name
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL in it, links in a circle
        raise InputsError(f"{str(path)!r} cannot be a path of inputs: {error}") from error
    if is_file:
        return [Source(name, _kind(path), (path,))]
    if not is_folder:
        raise InputsError(f"{path}: no such file or folder of inputs")
    files = _below(path)
    found: list[Source] = []
    kinds: tuple[tuple[Kind, tuple[str, ...]], ...] = (
        *(("tables", (suffix,)) for suffix in TABLES),
        ("images", IMAGES),
        ("sounds", SOUNDS),
    )
    for kind, suffixes in kinds:
        chosen = tuple(file for file in files if file.suffix.lower() in suffixes)
        if chosen and kind not in [source.kind for source in found]:  # one format of tables
            found.append(Source(name, kind, chosen))
    if not found:
        raise InputsError(
            f"{path}: nothing in this folder can be fed: it holds none of {' '.join((*TABLES, *IMAGES, *SOUNDS))}"
        )
    return found


def _kind(path: Path) -> Kind:
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return "arrays"
    if suffix in TABLES:
        return "tables"
    if suffix in IMAGES:
        return "images"
    return "sounds" if suffix in SOUNDS else "text"


def _below(folder: Path) -> list[Path]:
    """The files in and below ``folder``, sorted by their path from it. Of a saved dataset, its data alone."""
    found: list[Path] = []

    def refuse(error: OSError) -> None:
        raise InputsError(f"{error.filename}: {error.strerror}") from error

    for here, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        saved = "state.json" in names  # datasets.save_to_disk; what lies beside its data-….arrow are caches
        for name in names:
            if name.startswith(".") or name in _DESCRIPTIONS:
                continue
            if saved and name.endswith(".arrow") and not name.startswith("data"):
                continue
            found.append(Path(here, name))
    return sorted(found, key=lambda file: file.relative_to(folder).parts)


# --- text -----------------------------------------------------------------------------------------------------------


def text_blocks(path: Path) -> Iterator[str]:
    """A UTF-8 text file, a million characters at a time."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            while block := file.read(BLOCK):
                if "\0" in block:
                    raise InputsError(f"{path}: holds a NUL character, so it is no text file")
                yield block
    except (OSError, UnicodeDecodeError) as error:
        raise InputsError(f"{path}: cannot be read as UTF-8 text: {error}") from error


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of a UTF-8 file with their ends, and where each is."""
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(LINE_BYTES + 1):
                number += 1
                where = f"{path}: line {number}"
                if len(line) > LINE_BYTES:
                    raise InputsError(f"{where}: longer than {LINE_BYTES >> 20} MiB")
                if b"\0" in line:
                    raise InputsError(f"{where}: holds a NUL byte")
                try:
                    yield where, line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise InputsError(f"{where}: not UTF-8: {error}") from error
    except OSError as error:
        raise InputsError(f"{path}: cannot be read: {error}") from error


# --- tables ---------------------------------------------------------------------------------------------------------


def texts(files: Iterable[Path]) -> Iterator[Record]:
    """The text (str) or the messages (list of dict) of each record of tables: ``text``, ``messages``, the only string."""
    readers = {".jsonl": _json_lines, ".json": _json_texts, ".csv": _csv_texts}
    for file in files:
        yield from readers.get(file.suffix.lower(), _arrow_texts)(file)


def table_images(files: Iterable[Path], mode: str) -> Iterator[Record]:
    """The images of tables' records, decoded: the column ``image``, else the only one that holds images."""
    for file in files:
        if file.suffix.lower() not in (".arrow", ".parquet"):
            raise InputsError(f"{file}: holds no images: give them as files, or as a column of parquet or arrow")
        for where, value in _arrow_column(file, _image_column):
            data = value.get("bytes") if isinstance(value, dict) else value
            if not isinstance(data, bytes):  # a path, which could lead anywhere
                raise InputsError(f"{where}: its image is not in the file: save the dataset with its images embedded")
            yield where, _decoded(where, io.BytesIO(data), mode)


def _text_of(where: str, record: Any) -> Record:
    """The text of a parsed JSON record."""
    if isinstance(record, str):
        record = {"text": record}
    if not isinstance(record, dict):
        raise InputsError(f"{where}: neither an object nor a string, but {type(record).__name__}")
    strings = [name for name, value in record.items() if isinstance(value, str)]
    return _checked(where, record[_text_field(where, list(record), strings)])


def _text_field(where: str, names: list[str], strings: list[str]) -> str:
    for name in ("text", "messages"):
        if name in names:
            return name
    if len(strings) != 1:
        held = ", ".join(map(repr, names[:8])) or "nothing"
        raise InputsError(f"{where}: no field 'text' or 'messages', and not one single string: it has {held}")
    return strings[0]


def _checked(where: str, value: Any) -> Record:
    if isinstance(value, list):
        if not value or not all(isinstance(message, dict) and "role" in message for message in value):
            raise InputsError(f"{where}: messages must be a list of objects with role and content")
        return where, value
    if not isinstance(value, str):
        raise InputsError(f"{where}: its text is not a string, but {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, as JSON can write it
        raise InputsError(f"{where}: its text is not Unicode: {error.reason}") from error
    return where, value


def _parsed(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputsError(f"{where}: not JSON: {error}") from error


def _json_lines(path: Path) -> Iterator[Record]:
    for where, line in _lines(path):
        if line.strip():
            yield _text_of(where, _parsed(where, line))


def _json_texts(path: Path) -> Iterator[Record]:
    """A .json file: one list of records, or a record a line."""
    first = next((line for _, line in _lines(path) if line.strip()), "")
    if not first.lstrip().startswith("["):
        yield from _json_lines(path)
        return
    if path.stat().st_size > LINE_BYTES:
        raise InputsError(f"{path}: a list of more than {LINE_BYTES >> 20} MiB: give it as .jsonl, a record a line")
    for index, record in enumerate(_parsed(str(path), "".join(line for _, line in _lines(path)))):
        yield _text_of(f"{path}: record {index}", record)


def _csv_texts(path: Path) -> Iterator[Record]:
    rows = csv.reader(line for _, line in _lines(path))
    try:
        names = next(rows, [])
        column = names.index(_text_field(str(path), names, names))
        for row in rows:
            where = f"{path}: line {rows.line_num}"
            if row and len(row) <= column:
                raise InputsError(f"{where}: has {len(row)} of {len(names)} columns")
            if row:
                yield where, row[column]
    except csv.Error as error:
        raise InputsError(f"{path}: line {rows.line_num}: {error}") from error


def _arrow_texts(path: Path) -> Iterator[Record]:
    for where, value in _arrow_column(path, _text_column):
        yield _checked(where, value)


def _text_column(where: str, schema: Any) -> str:
    def holds_text(kind: Any) -> bool:
        return str(kind).removeprefix("dictionary<values=").startswith(("string", "large_string"))

    return _text_field(where, schema.names, [field.name for field in schema if holds_text(field.type)])


def _image_column(where: str, schema: Any) -> str:
    """``image``, else the only column of bytes, by themselves or in the struct that ``datasets`` saves."""
    if "image" in schema.names:
        return "image"
    held = [field.name for field in schema if str(field.type).startswith(("binary", "large_binary", "struct<bytes"))]
    if len(held) != 1:
        raise InputsError(f"{where}: no column 'image', and not one single column of images: {', '.join(schema.names)}")
    return str(held[0])


def _arrow_column(path: Path, choose: Any) -> Iterator[Record]:
    """One column of an arrow or parquet file, row by row; the others are not read."""
    arrow = _pyarrow()
    row = 0
    try:
        with path.open("rb") as file:
            if path.suffix.lower() == ".parquet":
                table = arrow.parquet.ParquetFile(file)
                column = choose(str(path), table.schema_arrow)
                batches: Any = table.iter_batches(batch_size=64, columns=[column])
            else:
                batches = _arrow_batches(arrow, file)
                column = choose(str(path), batches.schema)
            for batch in batches:
                for value in batch.column(batch.schema.names.index(column)):
                    yield f"{path}: row {row}", value.as_py()
                    row += 1
    except (arrow.lib.ArrowException, OSError, ValueError, MemoryError) as error:
        raise InputsError(f"{path}: cannot be read after row {row}: {type(error).__name__}: {error}") from error


class _ArrowFile:
    """The batches of an arrow file of the random-access format, with their schema."""

    def __init__(self, reader: Any) -> None:
        self.reader, self.schema = reader, reader.schema

    def __iter__(self) -> Iterator[Any]:
        return (self.reader.get_batch(index) for index in range(self.reader.num_record_batches))


def _arrow_batches(arrow: Any, file: Any) -> Any:
    """An arrow file's batches: ``datasets`` writes streams, others the format that begins with ARROW1."""
    magic = file.read(6)
    file.seek(0)
    return _ArrowFile(arrow.ipc.open_file(file)) if magic == b"ARROW1" else arrow.ipc.open_stream(file)


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise InputsError(
            "parquet and arrow files need pyarrow, which datasets brings and which cannot be imported here "
            f"({error}): pip install 'pytest-deaddir[inputs]'"
        ) from error
    if int(pyarrow.__version__.partition(".")[0]) < 15:  # before 14.0.1 a file could run code: CVE-2023-47248
        raise InputsError(f"pyarrow {pyarrow.__version__} is too old to open files with: 15 or later is needed")
    return pyarrow


# --- images and sounds ----------------------------------------------------------------------------------------------


def images(files: Iterable[Path], mode: str) -> Iterator[Record]:
    """Image files, decoded and turned upright, in Pillow's ``mode`` (RGB, or L for models of one channel)."""
    for file in files:
        yield str(file), _decoded(str(file), file, mode)


def _decoded(where: str, data: Any, mode: str) -> Any:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise InputsError(
            f"images need Pillow, which cannot be imported here ({error}): pip install 'pytest-deaddir[inputs]'"
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(data, formats=FORMATS) as image:
                return ImageOps.exif_transpose(image).convert(mode)
        except Exception as error:  # each decoder has errors of its own for a damaged file
            raise InputsError(f"{where}: cannot be read as an image: {type(error).__name__}: {error}") from error


def sounds(files: Iterable[Path], rate: int) -> Iterator[Record]:
    """Mono samples in [-1, 1), float32 (n,), of PCM .wav files at ``rate`` Hz, in pieces of half a minute."""
    for file in files:
        try:
            with wave.open(str(file), "rb") as sound:
                if sound.getframerate() != rate:
                    raise InputsError(
                        f"{file}: {sound.getframerate()} samples a second, and the model takes {rate}: resample it"
                    )
                left, piece = sound.getnframes(), SOUND_SECONDS * rate
                if not left:
                    raise InputsError(f"{file}: holds no sound")
                for start in range(0, left, piece):
                    count = min(piece, left - start)
                    samples = _samples(file, sound, count)
                    if start == 0 or count >= rate:  # a rest of less than a second is left out
                        yield f"{file}: second {start // rate}", samples
        except (wave.Error, EOFError, OSError, ValueError) as error:
            raise InputsError(f"{file}: cannot be read as a PCM .wav file: {error or type(error).__name__}") from error


def _samples(path: Path, sound: wave.Wave_read, count: int) -> np.ndarray:
    width, channels = sound.getsampwidth(), sound.getnchannels()
    if width not in (1, 2, 3, 4):
        raise InputsError(f"{path}: {8 * width} bits a sample")
    data = np.frombuffer(sound.readframes(count), dtype=np.uint8)
    if len(data) != count * width * channels:
        raise InputsError(f"{path}: truncated: its header promises more")
    if width == 1:  # unsigned, alone of all widths
        signed = (data.astype(np.float64) - 128) / 128
    else:
        padded = np.zeros((len(data) // width, 4), dtype=np.uint8)  # little-endian; the value in the upper bytes
        padded[:, 4 - width :] = data.reshape(-1, width)
        signed = padded.view("<i4")[:, 0] / 2.0**31
    return signed.reshape(-1, channels).mean(1).astype(np.float32)


# --- arrays ---------------------------------------------------------------------------------------------------------


def arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file: bool, int64 or floating point."""
    try:
        with zipfile.ZipFile(path) as members:
            size = sum(member.file_size for member in members.infolist())
        if size > ARRAY_BYTES:
            raise InputsError(f"{path}: {size >> 30} GiB of arrays: more than {ARRAY_BYTES >> 30} are not read")
        with np.load(path, allow_pickle=False) as loaded:
            found = {name: _numbers(f"{path}: {name}", loaded[name]) for name in loaded.files}
    except (OSError, ValueError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputsError(f"{path}: cannot be read as .npz: {error or type(error).__name__}") from error
    if not found:
        raise InputsError(f"{path}: holds no arrays")
    return found


def _numbers(where: str, array: Any) -> np.ndarray:
    if not isinstance(array, np.ndarray):
        raise InputsError(f"{where}: not an array: np.savez names them")
    if array.dtype.kind == "b" or (array.dtype.kind == "f" and array.dtype.itemsize <= 8):
        return array.astype(array.dtype.newbyteorder("="))
    if array.dtype.kind not in "iu" or (array.dtype == np.uint64 and array.size and array.max() >= 2**63):
        raise InputsError(f"{where}: {array.dtype} is no dtype of a forward's argument")
    return array.astype(np.int64)
