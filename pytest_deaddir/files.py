"""Writing a file so that nobody ever reads half of it."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all, as UTF-8 and with the line ends of ``text``; what cannot be written leaves nothing.

    Raises OSError.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(text.encode("utf-8"))  # write_text would turn CSV's line ends into the system's
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
