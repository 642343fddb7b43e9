"""Audits kept between runs: a model that has not changed is not measured again, so that judging it takes milliseconds.

An audit is kept under a key made of all that it depends on: the bytes of the checkpoint's files and of the inputs, how it is
measured, this package's measuring code, and what is installed. A model's ``fingerprint`` would not do as a key, since it
covers the norms alone. A file is hashed again only when the file system shows that it may have changed. Where anything is
unknown or damaged, the model is measured.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_deaddir.errors import CheckpointError
from pytest_deaddir.files import write_whole
from pytest_deaddir.tables import Audit

if TYPE_CHECKING:
    from pytest_deaddir.plan import Plan
    from pytest_deaddir.source.spec import Spec

#: Audits that are kept: those used last. A GPT-2's takes 15 kB, that of a model of a hundred blocks 300.
KEPT = 50

#: How many digests are remembered; and of how many files and bytes a folder of inputs is hashed, beyond which measuring again
#: costs less.
DIGESTS = 20_000
INPUT_FILES = 10_000
INPUT_BYTES = 8 << 30

#: Nanoseconds. The digest of a file that changed later than this ago is not remembered: another change of the same size
#: might come within one tick of the file system's clock (FAT's is two seconds), and would not show.
TICK = 2_000_000_000

#: Files of a checkpoint's directory that no loader opens: pages, pictures, other frameworks' weights, optimizers' states.
_UNREAD = frozenset(
    (
        *(".md", ".html", ".sarif", ".csv", ".toml", ".py", ".ipynb", ".pdf", ".png", ".jpg", ".jpeg", ".gif", ".svg"),
        *(".h5", ".msgpack", ".ot", ".onnx", ".tflite", ".pt", ".pth", ".log"),
    )
)
#: The folder in it that a tokenizer reads.
_TEMPLATES = "additional_chat_templates"
#: What a loader may open beside a GGUF file.
_BESIDE = (".json", ".txt", ".model", ".jinja")

_COMMIT = re.compile(r"[0-9a-f]{40}")
_PART = re.compile(r"(?P<stem>.*)-\d{5}-of-(?P<count>\d{5})\.gguf", re.DOTALL)

#: The parts of this package that measure.
_MEASURING = ("api.py", "tables.py", "source", "discovery", "algebra", "stages")

#: Devices by which ``auto`` is decided, and beginnings of variables that change how torch and transformers compute.
_ACCELERATORS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
_VARIABLES = ("CUDA_", "HIP_", "NVIDIA_", "PYTORCH_", "TORCH_", "TRANSFORMERS_", "USE_HUB_")


class _UnknownError(Exception):
    """Content that cannot be identified, or only at more cost than measuring again."""


class Evidence:
    """The kept audits. ``folder``: creates the folder that they lie in, if need be, and returns its path."""

    def __init__(self, folder: Callable[[], Path]) -> None:
        self._make_folder = folder

    def audit(self, plan: Plan, inputs: Any, measure: Callable[[], Audit]) -> tuple[Audit, str | None]:
        """The audit of ``plan``, and where it comes from if it was not measured now. ``inputs``: what the model is fed."""
        key = self.key(plan, inputs)
        kept = None if key is None else self.load(key)
        if kept is not None:
            audit, measured = kept
            audit.model["spec"] = plan.spec.text  # it may lie elsewhere now, or be written otherwise
            return audit, f"measured {measured}, from the cache"
        audit = measure()
        if key is not None and self.key(plan, inputs) == key:  # no file was changed meanwhile
            self.store(key, audit)
        return audit, None

    def key(self, plan: Plan, inputs: Any) -> str | None:
        """One digest of all that the audit depends on; None where that is unknown, or reading is faster than hashing."""
        if plan.level == "read":
            return None
        try:
            digests = _Digests(self._folder / "digests.json")
            what = {
                "how": plan.how,
                "model": _model_content(plan.spec, digests),
                "inputs": _inputs_content(inputs, digests),
                "surroundings": self._surroundings,
            }
        except (OSError, _UnknownError, CheckpointError):  # measuring will tell what is wrong with a file
            return None
        digests.keep()
        return hashlib.sha256(json.dumps(what, default=str, sort_keys=True).encode()).hexdigest()[:32]

    def load(self, key: str) -> tuple[Audit, str] | None:
        """The audit under a key and when it was measured; None where there is none, or a damaged one."""
        path = self._folder / f"{key}.json"
        try:
            digest, _, text = path.read_text(encoding="utf-8").partition("\n")
            if digest != hashlib.sha256(text.encode()).hexdigest():
                return None
            entry = json.loads(text)
            os.utime(path)  # used last
            return Audit(**entry["audit"]), entry["measured"]
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def store(self, key: str, audit: Audit) -> None:
        """Keep an audit, and drop those that were not used for the longest. Where it cannot be written, nothing is kept."""
        entry = {"measured": f"{datetime.now():%Y-%m-%d %H:%M}", "audit": audit.as_dict()}
        text = json.dumps(entry, allow_nan=False)
        _keep(self._folder / f"{key}.json", f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")
        kept = (path for path in self._folder.glob("*.json") if len(path.stem) == len(key))
        for path in sorted(kept, key=_last_used, reverse=True)[KEPT:]:
            path.unlink(missing_ok=True)

    @cached_property
    def _folder(self) -> Path:
        return self._make_folder()

    @cached_property
    def _surroundings(self) -> dict[str, Any]:
        """What the measurement runs with. Of installed distributions the names, which hold their versions: of all of them,
        since any may bring a kernel that a model then uses."""
        found = {entry.name for folder in {*sys.path} if Path(folder).is_dir() for entry in os.scandir(folder or ".")}
        return {
            "code": _own_code(),
            "installed": sorted(name for name in found if name.endswith((".dist-info", ".egg-info"))),
            "python": [sys.version, sys.platform, platform.machine()],
            "accelerators": [path for path in _ACCELERATORS if Path(path).exists()],
            "variables": {name: value for name, value in os.environ.items() if name.startswith(_VARIABLES)},
        }


def _last_used(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:  # another process has dropped it
        return 0


def _own_code() -> str:
    """A digest of the modules that measure, which change more often than the package's version."""
    package = Path(__file__).parent
    digest = hashlib.sha256()
    for name in _MEASURING:
        for file in sorted((package / name).rglob("*.py")) or [package / name]:
            digest.update(file.read_bytes() if file.is_file() else b"")
    return digest.hexdigest()


def _model_content(spec: Spec, digests: _Digests) -> Any:
    """What identifies the model, in words or digests.

    Raises _UnknownError for a factory, whose code may return anything, and for a hub's model without a commit, since its name
    may lead to another one tomorrow.
    """
    if spec.form in ("random", "timm"):
        if any(isinstance(value, str) and Path(value).exists() for _, value in spec.overrides):
            raise _UnknownError
        return spec.text
    if spec.form == "hub" and spec.revision and _COMMIT.fullmatch(spec.revision):
        return [spec.repository, spec.revision]
    if spec.path is None:
        raise _UnknownError
    files = list(model_files(spec.path))
    if spec.path.is_dir():
        return ["directory", *digests.of(spec.path, files)]
    return ["file", spec.path.name, *digests.of(spec.path.parent, files)]


def model_files(path: Path) -> Iterator[Path]:
    """The files that a loader of the checkpoint at ``path`` may open. Raises CheckpointError for links that lead out."""
    return _entries(path) if path.is_dir() else _gguf_files(path)


def _entries(directory: Path) -> Iterator[Path]:
    """The files of a checkpoint's directory that a loader may open."""
    _check_links(directory)
    templates = directory / _TEMPLATES
    for file in sorted([*directory.iterdir(), *(templates.iterdir() if templates.is_dir() else ())]):
        read = not file.name.startswith(".") and file.suffix.lower() not in _UNREAD
        if read and not file.is_dir() and not _is_report(file):
            yield file


def _gguf_files(path: Path) -> Iterator[Path]:
    """A GGUF file or all parts of the model that it is one of, and what a loader may open beside it."""
    _check_links(path.parent)
    part = _PART.fullmatch(path.name)
    for file in sorted(path.parent.iterdir()):
        other = _PART.fullmatch(file.name)
        belongs = file == path or (part and other and part.groupdict() == other.groupdict())
        if belongs or (file.suffix in _BESIDE and not file.is_dir() and not _is_report(file)):
            yield file


def _check_links(directory: Path) -> None:
    """Raise CheckpointError for links that lead out: a loader refuses them, and nothing behind them is read here either."""
    if any(entry.is_symlink() for entry in directory.iterdir()):
        from pytest_deaddir.source.checkpoint import check_entries

        check_entries(directory)


def _is_report(file: Path) -> bool:
    """Whether a file is one of our reports, which this run itself may be about to overwrite."""
    if file.suffix != ".json" or not file.is_file():
        return False
    with file.open("rb") as opened:
        if b'"pytest-deaddir/audit/' not in opened.read(100):
            return False
    try:
        return set(json.loads(file.read_bytes())) == {"schema", "models"}
    except (ValueError, RecursionError):
        return False


def _inputs_content(inputs: Any, digests: _Digests) -> Any:
    """What identifies the inputs, in digests. Raises _UnknownError for what is no file, or too much to hash."""
    if inputs is None:
        return None
    if not isinstance(inputs, Path):
        raise _UnknownError
    if not inputs.is_dir():
        return [inputs.name, *digests.of(inputs.parent, [inputs])]
    files: list[Path] = []
    size = 0
    for here, folders, names in os.walk(inputs):
        folders[:] = sorted(name for name in folders if not name.startswith("."))  # as source.records reads it
        files += [Path(here, name) for name in sorted(names) if not name.startswith(".")]
        size += sum(Path(here, name).stat().st_size for name in names)
        if len(files) > INPUT_FILES or size > INPUT_BYTES:
            raise _UnknownError
    return [inputs.name or inputs.resolve().name, *digests.of(inputs, files)]


class _Digests:
    """Digests of files, remembered by path and by what the file system says of each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = _read_known(path)
        self._asked: dict[str, list[Any]] = {}

    def of(self, folder: Path, files: Sequence[Path]) -> list[tuple[str, str]]:
        """Name in the folder and digest of each file. Raises _UnknownError for what is no regular file."""
        from concurrent.futures import ThreadPoolExecutor

        if not all(file.is_file() for file in files):
            raise _UnknownError
        with ThreadPoolExecutor() as pool:  # hashing holds no lock, so shards are hashed side by side
            digests = list(pool.map(self._digest, files))
        return [(file.relative_to(folder).as_posix(), digest) for file, digest in zip(files, digests, strict=True)]

    def _digest(self, file: Path) -> str:
        name, before = os.path.abspath(file), _identity(file)  # noqa: PTH100, resolving links takes longer than it all
        known = self._known.get(name)
        if isinstance(known, list) and known[:-1] == before and isinstance(known[-1], str):
            self._asked[name] = known
            return known[-1]
        with file.open("rb") as opened:
            digest = hashlib.file_digest(
                opened, "sha256"
            ).hexdigest()  # the fastest: processors have instructions for it
        if _identity(file) != before:
            raise _UnknownError
        if time.time_ns() - max(before[1:3]) > TICK:
            self._asked[name] = [*before, digest]
        return digest

    def keep(self) -> None:
        """Remember the digests that were asked for. Where two processes do so at once, the later wins, and the other's files are
        hashed once more."""
        if any(self._known.get(name) != entry for name, entry in self._asked.items()):
            others = {name: entry for name, entry in _read_known(self._path).items() if name not in self._asked}
            merged = [*others.items(), *self._asked.items()][-DIGESTS:]
            _keep(self._path, json.dumps(dict(merged)))


def _identity(file: Path) -> list[int]:
    """What changes when a file's content does: its size, times of change in nanoseconds, and inode."""
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _read_known(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}


def _keep(path: Path, text: str) -> None:
    """Write a file whole, since another process may read it meanwhile, which pytest's own Cache.set does not see to. A folder
    that cannot be written to keeps nothing."""
    with suppress(OSError):
        write_whole(path, text)
