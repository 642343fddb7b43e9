"""The audit as JSON, in the schema that tables.py names: docs/schemas/report.schema.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pytest_deaddir.tables import report_document

if TYPE_CHECKING:
    from pytest_deaddir.report.words import Entry
    from pytest_deaddir.rules import Rule

_OF_THE_RUN = ("label", "anchor")  # say nothing about the model


def render(models: Sequence[Entry], rules: Sequence[Rule] = ()) -> str:
    """The document, in ASCII. Raises ValueError for NaN and infinity, which are no JSON."""
    entries = [{key: value for key, value in entry.items() if key not in _OF_THE_RUN} for entry in models]
    return json.dumps(report_document(entries), indent=2, allow_nan=False) + "\n"
