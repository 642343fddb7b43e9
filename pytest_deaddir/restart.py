"""Where pytest mistook an option's value for the user's project, the run is started again with another command line."""

from __future__ import annotations

from pathlib import Path

import pytest


def in_one_word(config: pytest.Config, parser: pytest.Parser) -> list[str] | None:
    """The command line to start the run again with, each option and its value in one word; None where that is not needed.

    pytest chooses its ini-file and its root directory before it knows the options of plugins, by looking beside every word
    of the command line that could be a path. With ``--deaddir-model DIR``, DIR is such a word: the pytest.ini in a
    stranger's checkpoint becomes the configuration (its addopts can name a file to run), and pytest writes a .pytest_cache
    into DIR. The single word ``--deaddir-model=DIR`` is no path. A restart is not needed where the configuration lies at or
    above the working directory or a path of tests on the command line, as it should.
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
