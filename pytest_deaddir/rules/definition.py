"""What a rule is: one judgement on the rows of one table, together with its page and its examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pytest_deaddir.rules.row import RowView
from pytest_deaddir.tables import COLUMNS, COMPARED, LEVELS, Level, Row

Expectation = Literal["pass", "finding", "skip"]


@dataclass(frozen=True)
class Example:
    """A row, of which only what matters is given, and what the rule must make of it. ``line``: in the rule's file."""

    row: Row
    expect: Expectation
    line: int = 0


@dataclass(frozen=True)
class Rule:
    """One judgement on the rows of one table.

    ``where``: column → the values that a row must have to be judged. ``require``: column → operator → limit; a row that
    fails any is a finding. A rule in Python has ``check`` in place of ``require`` and ``message``. ``source`` and
    ``line``: the file that it stands in; ``origin``: what brought it in, for people.
    """

    code: str
    name: str
    severity: str
    table: str
    summary: str
    source: str
    where: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    require: dict[str, dict[str, Any]] = field(default_factory=dict)
    message: str = ""
    check: Callable[[RowView], str | None] | None = None
    lowest: Level = "read"  # of a rule in Python, which names its columns nowhere else
    confidence: str = "heuristic"
    why: str = ""
    how: str = ""
    limits: str = ""
    remedy: str = ""
    references: tuple[str, ...] = ()
    examples: tuple[Example, ...] = ()
    line: int = 1
    origin: str = ""

    @property
    def level(self) -> Level:
        """The lowest level that fills every column which the rule judges by."""
        columns = COLUMNS[self.table]
        return max([self.lowest, *(columns[c] for c in (*self.where, *self.require))], key=LEVELS.index)

    @property
    def compares(self) -> bool:
        """Whether it judges by what only a comparison with a baseline fills."""
        return not COMPARED[self.table].isdisjoint((*self.where, *self.require))

    def applies_at(self, level: Level, compared: bool) -> bool:
        """Whether an audit at ``level`` fills what the rule needs. ``compared``: whether it has a baseline."""
        return LEVELS.index(self.level) <= LEVELS.index(level) and (compared or not self.compares)

    def selects(self, row: Row) -> bool:
        """Whether a row is one that it judges."""
        return all(row[column] in values for column, values in self.where.items())

    @property
    def place(self) -> str:
        """Where the rule stands: its file, and the line of a rule in Python."""
        return f"{self.source}:{self.line}" if self.check else self.source


def shipped_rules() -> Path:
    """The catalogue: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).parent.parent
    packaged = package / "catalogue"
    return packaged if packaged.is_dir() else package.parent / "rules"
