"""What goes wrong for people: each error says what, where, and what to do. Anything else that escapes is our own bug."""

from __future__ import annotations

import importlib.util
import os


class DeaddirError(Exception):
    """Base of every error that this package raises about its input."""


class SpecError(DeaddirError):
    """A subject's spec cannot be understood, or names nothing."""


class CheckpointError(DeaddirError):
    """A checkpoint's file is missing, damaged or refused. ``path`` is the file."""

    def __init__(self, path: str | os.PathLike[str], problem: str) -> None:
        super().__init__(f"{os.fspath(path)}: {problem}")
        self.path = os.fspath(path)


class ModelError(DeaddirError):
    """The model cannot be built, loaded or run."""


class InputsError(DeaddirError):
    """The inputs do not fit the model, or are too few."""


class RuleError(DeaddirError):
    """Rules that cannot be used; each argument is one problem, and all of every file are there at once."""

    def __str__(self) -> str:
        """A line for each."""
        return "\n".join(map(str, self.args))


def require_torch(what: str) -> None:
    """Raise :class:`SpecError` naming the extra where torch or transformers is not installed (neither is imported)."""
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        raise SpecError(
            f"{what} needs {' and '.join(missing)}, not installed here: pip install 'pytest-deaddir[torch]', "
            "or read the parameters only with --deaddir-level read"
        )
