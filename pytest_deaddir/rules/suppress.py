"""Findings that somebody has looked at and accepts: for a reason, and until a day if they say so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from fnmatch import fnmatchcase

from pytest_deaddir.tables import Row


@dataclass(frozen=True)
class Suppression:
    """``site``: a glob of the findings' paths (``*``, ``?``, ``[seq]``); ``expires``: the last day on which it holds;
    ``place``: where it is written, for people."""

    code: str
    reason: str
    site: str = "*"
    expires: date | None = None
    place: str = ""

    def covers(self, finding: Row) -> bool:
        """Whether it is about this finding, expired or not."""
        return bool(finding["code"] == self.code and fnmatchcase(finding["path"], self.site))


def suppress(findings: Sequence[Row], suppressions: Sequence[Suppression], today: date) -> list[Row]:
    """The findings, each with the reason for which it is accepted in ``suppressed``; None where it is not."""
    holding = [s for s in suppressions if s.expires is None or today <= s.expires]
    return [
        finding | {"suppressed": next((s.reason for s in holding if s.covers(finding)), None)} for finding in findings
    ]


def outdated(findings: Sequence[Row], suppressions: Sequence[Suppression], today: date) -> Iterator[str]:
    """What is wrong with suppressions of one rule: those that expired, and those that no finding is left of."""
    for suppression in suppressions:
        what = f"{suppression.place}: the suppression of {suppression.code} at {suppression.site}"
        if suppression.expires is not None and today > suppression.expires:
            yield f"{what} expired on {suppression.expires}: {suppression.reason}"
        elif not any(map(suppression.covers, findings)):
            yield f"{what} is stale: there is no such finding any more, delete it ({suppression.reason})"
