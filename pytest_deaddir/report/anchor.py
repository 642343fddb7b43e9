"""Where in the user's repository a finding is shown: code scanning and annotations know files and lines, not tensors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

    from pytest_deaddir.source.spec import Spec


def anchor_of(spec: Spec, gate: tuple[Path, int] | None, config: pytest.Config) -> dict[str, Any]:
    """``{"file": …, "line": …}``, the file relative to the repository's root: where the gate file names the model, else
    the checkpoint's config.json or the bare file, else, for what lies elsewhere, where the ini-file names it.

    Code scanning refuses a result without a file, so that where there is none of these it is pyproject.toml, unseen.
    """
    root = _repository(config.rootpath.resolve())
    places = [gate] if gate else []
    if spec.path is not None:
        places.append((spec.path / "config.json" if spec.path.is_dir() else spec.path, 1))
    if config.inipath is not None:
        places.append((config.inipath, _line_that_names(spec.text, config.inipath)))
    for path, line in places:
        file = path.resolve()
        if file.is_relative_to(root):
            return {"file": file.relative_to(root).as_posix(), "line": line}
    return {"file": "pyproject.toml", "line": 1}


def _repository(folder: Path) -> Path:
    """The nearest folder above that git keeps its own in; pytest's root may lie below it."""
    return next((above for above in (folder, *folder.parents) if (above / ".git").exists()), folder)


def _line_that_names(text: str, file: Path) -> int:
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((number for number, line in enumerate(lines, 1) if text in line), 1)
