"""Write the golden files: python tests/report/golden.py, with tests/ on the path. Look at the difference before keeping it."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

from pytest_deaddir import __version__
from pytest_deaddir.report import FORMATS
from pytest_deaddir.report.github import annotation_lines
from report.entries import RULES, all_entries

FOLDER = Path(__file__).parents[1] / "data" / "golden"


def golden():
    """File → its text. The version of this package is left out, so that a release changes none, and of the HTML page its
    style and its script, which are files of their own; there is one element to a line."""
    texts = {
        f"report{suffix}": importlib.import_module(f"pytest_deaddir.report.{module}").render(all_entries(), RULES)
        for suffix, module in FORMATS.items()
    }
    page = re.sub(r"<(style|script)>.*?</\1>", r"<\1></\1>", texts["report.html"], flags=re.DOTALL)
    texts["report.html"] = re.sub(r"><(?!/)", ">\n<", re.sub(r"sha256-[\w+/=]+", "sha256-…", page))
    texts["annotations.txt"] = "\n".join(annotation_lines(all_entries())) + "\n"
    return {FOLDER / name: text.replace(f'ersion": "{__version__}"', 'ersion": "…"') for name, text in texts.items()}


if __name__ == "__main__":
    for path, text in golden().items():
        path.write_bytes(text.encode())
