"""Elements of HTML and SVG. A string becomes harmless where it enters one, so that no caller can forget to escape it."""

from __future__ import annotations

import html
import re

from pytest_deaddir.report.words import escaped

#: Characters that are shown of one text: a header may give a tensor a name of a million.
LONGEST = 1000

#: What HTML closes by itself.
_VOID = frozenset(("meta", "input"))


class Markup(str):
    """A string that is markup already: :func:`element` takes it as it is."""

    __slots__ = ()


def text(string: str) -> Markup:
    """A stranger's text: entities for what markup means, visible escapes for control and invisible characters."""
    return Markup(html.escape(escaped(clipped(string, LONGEST))))


def prose(string: str) -> Markup:
    """The same of a sentence: its numbers do not break at the minus of their exponent."""
    return Markup(re.sub(r"\d[\d.]*e-\d+", r'<span class="number">\g<0></span>', text(string)))


def path(string: str) -> Markup:
    """A dotted name as text that breaks after its dots, slashes and underscores, where it does not fit."""
    return Markup(re.sub(r"([._/])(?=.)", r"\1<wbr>", text(string)))


def clipped(string: str, room: int) -> str:
    """A text with its beginning and its end, where it says the most."""
    return string if len(string) <= room else f"{string[: room // 3]} … {string[-room * 2 // 3 :]}"


def joined(*parts: str | None, between: str = "") -> Markup:
    """Parts one after the other: markup as it is, other strings as text, nothing for None."""
    return Markup(between.join(part if isinstance(part, Markup) else text(part) for part in parts if part is not None))


def element(name: str, /, *children: str | None, **attributes: str | float | None) -> Markup:
    """An element; ``children`` as :func:`joined` takes them. ``class_`` is class, ``aria_label`` is aria-label; an
    attribute that is None is left out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(escaped(str(value)))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{written}>" + ("" if name in _VOID else f"{joined(*children)}</{name}>"))
