"""The table of norms as CSV (RFC 4180): a row for each norm of every model, its model first."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pytest_deaddir.report.words import escaped, label_of
from pytest_deaddir.tables import COLUMNS

if TYPE_CHECKING:
    from pytest_deaddir.report.words import Entry
    from pytest_deaddir.rules import Rule

#: What a spreadsheet takes for the beginning of a formula.
_FORMULA = tuple("=+-@＝＋－＠")


def render(models: Sequence[Entry], rules: Sequence[Rule] = ()) -> str:
    """The header and the rows. Numbers in full, lists and objects as JSON, and nothing for what was not measured."""
    file = io.StringIO()
    lines = csv.writer(file)  # ends lines with CRLF, and quotes where it must
    lines.writerow(["model", *COLUMNS["norms"]])
    for entry in models:
        label = _cell(label_of(entry))
        lines.writerows([label, *(_cell(norm[column]) for column in COLUMNS["norms"])] for norm in entry["norms"])
    return file.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        return json.dumps(value, allow_nan=False)
    text = escaped(value)
    return f"'{text}" if text.startswith(_FORMULA) else text  # as a spreadsheet writes text that looks like one
