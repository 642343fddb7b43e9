"""How a run keeps its own configuration, where pytest took an option's value for the place of the user's project."""

from __future__ import annotations

from pathlib import Path

import pytest


def in_one_word(config: pytest.Config, parser: pytest.Parser) -> list[str] | None:
    """The command line to start again with, where pytest took an option's value for the place of the user's project.

    pytest looks for its ini-file and its root beside every path-like word of the command line, and at that moment it does
    not know a plugin's options: with ``--deaddir-model DIR``, DIR/pytest.ini of a stranger's checkpoint becomes the
    configuration (its addopts can name a file to run) and DIR gets a .pytest_cache. ``--deaddir-model=DIR`` is no such
    word. None where the configuration is above the working directory or a word that is a test's path, as it should be.
    """
    raw = [str(word) for word in config.invocation_params.args]
    here = config.invocation_params.dir
    known, _ = parser.parse_known_and_unknown_args(raw)
    if known.inifilename is not None or known.rootdir is not None:
        return None
    meant = [here, *(here / word.split("::")[0] for word in known.file_or_dir)]
    found = config.rootpath if config.inipath is None else config.inipath.parent
    if any(_lies_in(path, found) for path in meant):
        return None
    if any(word.startswith("-p") for word in config.getini("addopts")):  # pytest has imported that plugin already
        raise pytest.UsageError(
            f"deaddir: refused: pytest began with the configuration in {found}, whose addopts load a plugin; "
            "write options and values in one word, --deaddir-model=PATH"
        )
    joined: list[str] = []
    words = iter(raw)
    for word in words:
        value = next(words, None) if word in _VALUED else None
        joined.append(word if value is None else f"{word}={value}")
    return None if joined == raw else joined


_VALUED = tuple(
    f"--deaddir-{name}" for name in ("model", "from", "inputs", "rules", "report", "baseline", "check-rules")
)


def _lies_in(path: Path, folder: Path) -> bool:
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError):  # a word too long for a path, or with a NUL in it, lies nowhere
        return False
