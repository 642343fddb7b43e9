"""Rules in Python, for what a limit cannot say: a function of one row. Their files run only where the user named them."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pytest_deaddir.errors import RuleError
from pytest_deaddir.rules.definition import Example, Rule
from pytest_deaddir.rules.row import RowView
from pytest_deaddir.rules.vocabulary import REQUIRED, TEXTS, problems
from pytest_deaddir.tables import Row


def rule(
    code: str,
    *,
    table: str,
    severity: str,
    name: str | None = None,
    where: dict[str, Any] | None = None,
    level: str = "read",
    confidence: str = "heuristic",
    summary: str | None = None,
    why: str = "",
    how: str = "",
    limits: str = "",
    remedy: str = "",
    references: Iterable[str] = (),
    examples: Iterable[tuple[Row, str]] = (),
) -> Callable[[Callable[[RowView], str | None]], Rule]:
    """Make a rule of a function that takes one row and returns None, or the message of a finding.

    ::

        @rule("ACME001", table="norms", severity="warning")
        def gamma_outlier(row):
            "One coordinate carries this norm."
            if row.gamma_max > 50 * row.gamma_median:
                return f"max/median of |γ| is {row.gamma_max / row.gamma_median:.0f}"

    ``where``: column → a value or a list of values that a row must have to be judged. ``level``: the lowest that fills
    the columns which the function reads. ``name``: by default the function's, with dashes. ``summary`` and ``why``: by
    default the first paragraph of the docstring, and the rest of it. ``examples``: rows, of which only what matters is
    given, each with ``"pass"``, ``"finding"`` or ``"skip"``. What is wrong with any of this is told when it is loaded.
    """

    def decorate(check: Callable[[RowView], str | None]) -> Rule:
        if not inspect.isfunction(check):
            raise TypeError(f"@rule({code!r}) must decorate a function, not {check!r}")
        first, _, rest = inspect.cleandoc(check.__doc__ or "").partition("\n\n")
        place = check.__code__
        conditions = {} if where is None else where
        return Rule(
            code=code,
            name=check.__name__.replace("_", "-").lower() if name is None else name,
            severity=severity,
            confidence=confidence,
            table=table,
            where={column: tuple(v) if isinstance(v, (list, tuple)) else (v,) for column, v in conditions.items()},
            check=check,
            lowest=level,  # type: ignore[arg-type]  # checked in problems_of, with all else
            summary=" ".join(first.split()) if summary is None else summary,
            why=why or rest,
            how=how,
            limits=limits,
            remedy=remedy,
            references=tuple(references),
            examples=tuple(Example(row, expect) for row, expect in examples),  # type: ignore[arg-type]
            source=place.co_filename,
            line=place.co_firstlineno,
        )

    return decorate


_REQUIRED = tuple(key for key in REQUIRED if key not in ("require", "message"))
_OPTIONAL = ("confidence", "where", "level", *TEXTS, "references", "example")


def problems_of(made: Rule) -> list[str]:
    """What is wrong with a rule in Python, each as ``file:line: problem``."""
    document = {key: getattr(made, key) for key in (*_REQUIRED, "confidence", "where", "references", *TEXTS)}
    document["level"] = made.lowest
    document["example"] = [{"row": example.row, "expect": example.expect} for example in made.examples]
    found = [problem for _, problem in problems(document, _REQUIRED, _OPTIONAL)]
    if not made.summary:
        found.append("no summary: give the function a docstring")
    return [f"{made.place}: {made.code}: {problem}" for problem in found]


def message_of(made: Rule, row: RowView) -> str | None:
    """What a rule in Python says of a row, or None.

    Raises :class:`Unmeasured` where the row is not to be judged, :class:`RuleError` where the function returns what is
    neither, and whatever the function raises.
    """
    assert made.check is not None
    said = made.check(row)
    if said is not None and not (isinstance(said, str) and said):
        raise RuleError(f"{made.place}: {made.code} returned {said!r}: it must return None, or the text of a finding")
    return said


def broke(made: Rule, error: Exception) -> str:
    """What a rule in Python raised: where and on which row."""
    what = str(error) if isinstance(error, RuleError) else located(error, made.source)
    return "\n".join([what, *getattr(error, "__notes__", ())])


def located(error: BaseException, file: str | None = None) -> str:
    """An error of somebody's code as ``file:line: what``; with ``file``, the last of that file's lines that led to it."""
    what = f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return f"{error.filename}:{error.lineno}: {what}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if file in (None, frame.filename)]
    own = Path(__file__).parent
    if frames and Path(frames[-1].filename).parent != own:
        return f"{frames[-1].filename}:{frames[-1].lineno}: {what}"
    return f"{file}: {what}" if file else what
