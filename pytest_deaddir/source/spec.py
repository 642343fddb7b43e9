"""The text of ``--deaddir-model`` → a Spec. Looks at paths, opens nothing, imports nothing heavy: it runs at collection."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pytest_deaddir.errors import SpecError

#: ``stored``: whatever an earlier report is about.
Form = Literal["directory", "safetensors", "gguf", "random", "timm", "factory", "hub", "stored"]

#: What a directory must hold, one of, to be a checkpoint; safetensors first, as transformers prefers them.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

_FORMS = """\
  path/to/checkpoint                     a directory with config.json and its weights
  path/to/file.safetensors               a bare file (read level only); .gguf files too
  random:gpt2?n_layer=4&n_embd=128       random init from a transformers config
  timm:vit_tiny_patch16_224?depth=4      random init of a timm architecture
  package.module:factory                 a callable returning a module or (module, inputs)
  org/name or org/name@revision          a model on the hub"""

_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
_RANDOM = re.compile(r"(?P<form>random|timm):(?P<type>[\w.-]+)(\?(?P<query>.*))?")


@dataclass(frozen=True)
class Spec:
    """What a spec's text names. ``text`` is what the user wrote; the field that belongs to ``form`` is set."""

    text: str
    form: Form
    path: Path | None = None
    model_type: str | None = None
    overrides: tuple[tuple[str, Any], ...] = field(default=(), hash=False)  # lists and tables among them
    seed: int | None = None
    repository: str | None = None
    revision: str | None = None

    @property
    def highest_level(self) -> Literal["read", "full"]:
        """A bare safetensors file has no architecture to run."""
        return "read" if self.form == "safetensors" else "full"

    @property
    def can_be_limited(self) -> bool:
        """Whether it can be loaded within a limit of memory."""
        return self.form in ("directory", "hub", "random")

    @property
    def can_be_tensor_parallel(self) -> bool:
        """Whether transformers can load it in parts, one for each of several processes."""
        return self.form in ("directory", "hub")

    @property
    def has_files(self) -> bool:
        """Whether γ comes from a file, so that it can be missing from one."""
        return self.form in ("directory", "safetensors", "gguf", "hub")


def parse_spec(text: str, base: Path | None = None) -> Spec:
    """Understand a spec. Relative paths start at ``base`` (default: the working directory).

    Raises :class:`SpecError` for what names nothing, with the forms that exist.
    """
    text = text.strip()
    if match := _RANDOM.fullmatch(text):
        overrides = _query(text, match["query"] or "")
        seed = overrides.pop("seed", 0)
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise SpecError(f"{text}: seed must be a whole number, not {seed!r}")
        form: Form = "random" if match["form"] == "random" else "timm"
        return Spec(text, form, model_type=match["type"], overrides=tuple(overrides.items()), seed=seed)

    try:
        path = (base or Path()) / Path(text).expanduser()
        exists = bool(text) and path.exists()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL in it, no such home
        raise SpecError(f"{text!r} cannot be a path: {error}") from None
    if exists:
        return _local(text, path)
    if _FACTORY.fullmatch(text):
        return Spec(text, "factory")
    if _HUB.fullmatch(text) and not text.endswith((".safetensors", ".gguf", ".bin")):
        repository, _, revision = text.partition("@")
        return Spec(text, "hub", repository=repository, revision=revision or None)
    raise SpecError(f"no such model: {text!r} is no existing path and none of the other forms\n{_FORMS}")


def _local(text: str, path: Path) -> Spec:
    if path.is_file():
        if path.suffix in (".safetensors", ".gguf"):
            return Spec(text, "safetensors" if path.suffix == ".safetensors" else "gguf", path=path)
        raise SpecError(
            f"{text}: not a checkpoint: a single file must be .safetensors or .gguf; else give its directory"
        )
    if not path.is_dir():
        raise SpecError(f"{text}: neither a file nor a directory")
    names = sorted(entry.name for entry in path.iterdir())
    if not names:
        raise SpecError(f"{text}: the directory is empty")
    held = f"it holds {', '.join(names[:6])}{', …' if len(names) > 6 else ''}"
    if "config.json" not in names:
        raise SpecError(f"{text}: not a checkpoint: no config.json ({held})")
    if not any(name in names for name in WEIGHTS):
        raise SpecError(f"{text}: not a checkpoint: none of {', '.join(WEIGHTS)} ({held})")
    return Spec(text, "directory", path=path)


def _query(text: str, query: str) -> dict[str, Any]:
    """``n_layer=4&tie=false`` → {"n_layer": 4, "tie": False}: JSON values, and bare words as strings."""
    overrides: dict[str, Any] = {}
    for part in filter(None, query.split("&")):
        key, equals, value = part.partition("=")
        if not equals or not key.isidentifier():
            raise SpecError(f"{text}: {part!r} is not name=value")
        if key in overrides:
            raise SpecError(f"{text}: {key} is given twice")
        try:
            overrides[key] = json.loads(value)
        except ValueError:
            overrides[key] = value
    return overrides
