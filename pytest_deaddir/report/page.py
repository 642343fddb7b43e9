"""The page of a rule, from its file: in a terminal, in Markdown, and as a line of a catalogue."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pytest_deaddir.report.words import counted, escaped, limit_words

if TYPE_CHECKING:
    from pytest_deaddir.rules import Rule

#: The parts of a page in their order: the rule's key, and the heading.
PARTS = (
    ("why", "Why it matters"),
    ("how", "How it is measured"),
    ("limits", "When it is wrong"),
    ("remedy", "What to do"),
)

_WIDTH = 80


def terminal_page(rule: Rule) -> Iterator[str]:
    """The lines of a page, 80 columns wide."""
    yield f"{rule.code} {rule.name}"
    yield f"{rule.severity} · {rule.confidence} · level {level_words(rule)} · table {rule.table}"
    yield ""
    yield from _wrapped(rule.summary)
    yield ""
    for heading, text in conditions(rule):
        yield from _wrapped(text, f"{heading:<10}", " " * 10)
    for key, heading in PARTS:
        if text := getattr(rule, key):
            yield from ("", heading)
            yield from _indented(text)
    if rule.references:
        yield from ("", "References", *(f"  {escaped(reference)}" for reference in rule.references))
    yield ""
    yield from _wrapped(f"Loaded from {_where(rule)}")


def level_words(rule: Rule) -> str:
    """The least level at which a rule can be answered, and whether it takes a baseline."""
    return f"{rule.level}, baseline" if rule.compares else rule.level


def _wrapped(text: str, first: str = "", others: str = "") -> list[str]:
    return textwrap.wrap(
        escaped(" ".join(text.split())),
        _WIDTH,
        initial_indent=first,
        subsequent_indent=others or first,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _indented(text: str) -> Iterator[str]:
    """Paragraphs, wrapped; a line that is indented in the file stays as it is."""
    for number, paragraph in enumerate(text.strip("\n").split("\n\n")):
        if number:
            yield ""
        if paragraph.startswith(" "):
            yield from (f"  {escaped(line)}" for line in paragraph.split("\n"))
        else:
            yield from _wrapped(paragraph, "  ")


def conditions(rule: Rule) -> Iterator[tuple[str, str]]:
    """What a rule judges, what it requires there and what it says, in words."""
    wanted = " and ".join(f"{column} is {_either(values)}" for column, values in rule.where.items())
    yield "judges", f"rows of {rule.table}" + (f" where {wanted}" if wanted else "")
    if rule.check is None:
        yield "requires", " and ".join(_required(column, limits) for column, limits in rule.require.items())
        yield "says", rule.message
    else:
        yield "requires", f"what the function at {_where(rule)} does"


def _either(values: Sequence[Any]) -> str:
    return " or ".join("empty" if value == "" else str(value) for value in values)


def _required(column: str, limits: dict[str, Any]) -> str:
    return " and ".join(f"{column} {limit_words(operator, limit)}" for operator, limit in limits.items())


def _where(rule: Rule) -> str:
    """Where a rule was loaded from: as near to what the user wrote as can be."""
    place = os.path.relpath(rule.place) if os.path.isabs(rule.place) else rule.place  # noqa: PTH117
    shorter = min(place, rule.place, key=len)
    return f"{shorter} ({rule.origin})" if rule.origin.startswith(("the entry point ", "the hook ")) else shorter


def catalogue_lines(loaded: Sequence[Rule], chosen: Sequence[Rule]) -> Iterator[str]:
    """A line for each rule there is, with where it was loaded from; those not selected are off."""
    from tabulate import tabulate

    on = {rule.code for rule in chosen}
    rows = [
        [
            rule.code,
            rule.name,
            rule.severity if rule.code in on else "off",
            rule.confidence,
            level_words(rule),
            _where(rule),
        ]
        for rule in loaded
    ]
    headers = ["code", "name", "severity", "confidence", "level", "loaded from"]
    yield from (escaped(line) for line in tabulate(rows, headers, disable_numparse=True).split("\n"))
    off = len(loaded) - len(chosen)
    yield ""
    not_selected = f", {off} of them not selected" if off else ""
    yield f"{counted(len(loaded), 'rule')}{not_selected}; --deaddir-explain=CODE explains one"


def markdown_page(rule: Rule) -> str:
    """The page for docs/rules."""
    lines = [
        f"# {rule.code} {rule.name}",
        "",
        rule.summary,
        "",
        "| severity | confidence | level | table |",
        "|---|---|---|---|",
        f"| {rule.severity} | {rule.confidence} | {level_words(rule)} | `{rule.table}` |",
        "",
        *(f"* **{heading}** {text}" for heading, text in _markdown_conditions(rule)),
    ]
    for key, heading in PARTS:
        if text := getattr(rule, key):
            lines += ["", f"## {heading}", "", text.strip("\n")]
    if rule.examples:
        lines += ["", "## Examples", "", "| a row of which | is |", "|---|---|"]
        lines += [f"| {_cell(example.row)} | {_OUTCOME_WORDS[example.expect]} |" for example in rule.examples]
    if rule.references:
        lines += ["", "## References", "", *(f"* <{reference}>" for reference in rule.references)]
    return "\n".join([*lines, ""])


_OUTCOME_WORDS = {"pass": "fine", "finding": "a **finding**", "skip": "not judged"}


def _markdown_conditions(rule: Rule) -> Iterator[tuple[str, str]]:
    for heading, text in conditions(rule):
        yield heading, f"`{text}`" if heading == "says" else text


def _cell(row: dict[str, Any]) -> str:
    shown = ", ".join(f"`{column}` = {_value(value)}" for column, value in row.items())
    return shown.replace("|", "\\|")


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "empty" if value == "" else str(value).lower() if isinstance(value, bool) else str(value)


def markdown_table(rules: Sequence[Rule], folder: str) -> str:
    """The catalogue as a table; ``folder``: where its pages are, seen from the page that holds the table."""
    lines = ["| rule | severity | confidence | level | fires where |", "|---|---|---|---|---|"]
    for rule in rules:
        facts = f"{rule.severity} | {rule.confidence} | {level_words(rule)} | {rule.summary}"
        lines.append(f"| [{rule.code}]({folder}{rule.code}.md) {rule.name} | {facts} |")
    return "\n".join(lines)
