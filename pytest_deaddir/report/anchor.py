"""Where in the user's repository a finding is shown: code scanning and annotations know files and lines, not tensors."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

    from pytest_deaddir.source.spec import Spec


def anchor_of(spec: Spec, gate: tuple[Path, int] | None, name: str | None, config: pytest.Config) -> dict[str, Any]:
    """``{"file": …, "line": …, "subject": …}``, the file relative to the repository's root: where the gate file names the
    model, else the checkpoint's config.json or the bare file, else, for what lies elsewhere or is not committed, where the
    ini-file names it, else a file that most repositories have.

    ``subject``: what the model is called from run to run, by whoever starts pytest wherever and at whatever revision: by the
    gate file (``name``), by its place in the repository, or by its spec. Code scanning tells alerts apart by it.
    """
    root = _repository(config.rootpath.resolve())
    own = None if spec.path is None else (spec.path / "config.json" if spec.path.is_dir() else spec.path)
    places = [gate] if gate else []
    places += [(own, 1)] if own else []
    places += [(config.inipath, _line_that_names(spec.text, config.inipath))] if config.inipath else []
    places += [(root / usual, 1) for usual in USUAL]
    found = next(((path, line) for path, line in places if _is_committed(path, root)), (root / USUAL[0], 1))
    subject = spec.text.partition("@")[0] if spec.form == "hub" else spec.text
    if spec.path is not None:
        path = spec.path.resolve()
        subject = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
    return {"file": found[0].resolve().relative_to(root).as_posix(), "line": found[1], "subject": name or subject}


#: Files of a repository that results may be shown at where nothing in it names the model: code scanning refuses those without.
USUAL = ("pyproject.toml", "README.md", "setup.py", "setup.cfg", ".gitignore")


def _is_committed(path: Path, root: Path) -> bool:
    """Whether a file is of the repository, and not only beside its files. Where git cannot be asked, what is there is."""
    file = path.resolve()
    if not file.is_relative_to(root) or not file.is_file():
        return False
    if not (root / ".git").exists():
        return True
    asked = ["git", "-C", str(root), "-c", "core.fsmonitor=false", "ls-files", "--error-unmatch", "--", str(file)]
    try:
        return subprocess.run(asked, capture_output=True, timeout=10).returncode != 1  # more than 1: it cannot tell
    except (OSError, subprocess.SubprocessError):
        return True


def _repository(folder: Path) -> Path:
    """The nearest folder above that git keeps its own in; pytest's root may lie below it."""
    return next((above for above in (folder, *folder.parents) if (above / ".git").exists()), folder)


def _line_that_names(text: str, file: Path) -> int:
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((number for number, line in enumerate(lines, 1) if text in line), 1)
