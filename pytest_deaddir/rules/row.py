"""One row of a table as a rule in Python sees it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from pytest_deaddir.rules.vocabulary import did_you_mean
from pytest_deaddir.tables import Row


class Unmeasured(Exception):  # noqa: N818
    """A row lacks what a rule judges by, so that it is not judged. ``columns``: what it lacks."""

    def __init__(self, *columns: str) -> None:
        super().__init__(f"{', '.join(columns)} not measured")
        self.columns = columns


class RowView(Mapping[str, Any]):
    """One row as a rule in Python sees it: its columns as attributes or items. A copy, so that a rule changes nothing.

    ``row.gamma_max`` of a row in which that was not measured ends the judging of the row: no finding, and no pass.
    ``row["gamma_max"]`` and ``row.get("gamma_max")`` give None. A column that the table does not have is an error.
    """

    def __init__(self, table: str, row: Row) -> None:
        self._table = table
        self._row = copy.deepcopy(row)
        self._read: dict[str, Any] = {}

    def __getattr__(self, column: str) -> Any:
        """The value, where it was measured."""
        if column.startswith("_"):  # copy and pickle ask for these before there is a row
            raise AttributeError(column)
        try:
            value = self[column]
        except LookupError as error:
            raise AttributeError(str(error)) from None
        if value is None:
            raise Unmeasured(column)
        return value

    def __getitem__(self, column: str) -> Any:
        """The value, or None."""
        if column not in self._row:  # no KeyError, which get() would turn into the None of what was not measured
            raise LookupError(f"table {self._table} has no column {column!r}{did_you_mean(column, self._row)}")
        self._read[column] = self._row[column]
        return self._row[column]

    def __contains__(self, column: object) -> bool:
        """Whether the table has this column."""
        return column in self._row

    def __iter__(self) -> Iterator[str]:
        """The columns."""
        return iter(self._row)

    def __len__(self) -> int:
        """How many columns there are."""
        return len(self._row)

    def __repr__(self) -> str:
        """As a traceback shows it."""
        return f"<row {self._row.get('path') or self._row.get('spec')!r} of {self._table}>"

    @property
    def measured(self) -> Row:
        """What the rule looked at, in its order: what a finding shows beside its message."""
        return {column: value for column, value in self._read.items() if value is not None and column != "path"}
