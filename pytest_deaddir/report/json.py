"""The audit as JSON, in the schema that tables.py names."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pytest_deaddir.tables import report_document


def write(path: Path, models: list[dict[str, Any]]) -> None:
    """Write the report whole or not at all: a reader never sees half a file."""
    text = json.dumps(report_document(models), indent=2, allow_nan=False) + "\n"
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
