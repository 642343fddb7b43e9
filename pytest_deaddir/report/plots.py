"""The plots of an audit as SVG. Each stands by itself: it can be copied out of a page, and brings its colours for a light
and a dark background with it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from pytest_deaddir.report.markup import Markup, element
from pytest_deaddir.report.words import counted, number, shown
from pytest_deaddir.tables import Row

#: The same in every plot, so that one hash in a page's Content-Security-Policy allows it.
STYLE = Markup(
    ".dd-paper{fill:#fff}.dd-grid{stroke:#e6e8ec}.dd-axis{stroke:#a3a9b3}"
    ".dd-text,.dd-number{font:11px system-ui,sans-serif;fill:#555c68}.dd-number{font-family:ui-monospace,monospace}"
    ".dd-line{fill:none;stroke:#1f5fa8;stroke-width:1.3}.dd-soft{fill:none;stroke:#a3a9b3}"
    ".dd-a{fill:#1f5fa8;stroke:#1f5fa8}.dd-hollow{fill:#fff;stroke:#1f5fa8}.dd-b{fill:#fff;stroke:#7b828d}"
    ".dd-v{fill:#0f7b6c;stroke:#0f7b6c}.dd-floor{stroke:#0f7b6c;stroke-width:1.5;stroke-dasharray:3 2}"
    ".dd-dead{fill:#b3261e;fill-opacity:.13}.dd-solver{stroke:#555c68;stroke-dasharray:1 3}"
    ".dd-bad{fill:none;stroke:#b3261e;stroke-width:2}.dd-badtext{font:600 11px system-ui,sans-serif;fill:#b3261e;"
    "stroke:#fff;stroke-width:3px;paint-order:stroke}"
    "@media screen and (prefers-color-scheme:dark){"
    ".dd-paper{fill:#171a1f}.dd-grid{stroke:#2a2f37}.dd-axis{stroke:#636b77}"
    ".dd-text,.dd-number{fill:#b4bbc6}.dd-line{stroke:#79b0f2}.dd-soft{stroke:#636b77}"
    ".dd-a{fill:#79b0f2;stroke:#79b0f2}.dd-hollow{fill:#171a1f;stroke:#79b0f2}.dd-b{fill:#171a1f;stroke:#98a1ad}"
    ".dd-v{fill:#4fc4b0;stroke:#4fc4b0}.dd-floor{stroke:#4fc4b0}"
    ".dd-dead{fill:#ff8a80;fill-opacity:.2}.dd-solver{stroke:#b4bbc6}"
    ".dd-bad{stroke:#ff8a80}.dd-badtext{fill:#ff8a80;stroke:#171a1f}}"
)

_WIDTH = 384.0
_LEFT, _RIGHT = 46.0, 376.0
#: Where a plot over sites or blocks begins and ends; the legend is above, the axis' labels below.
_TOP, _BOTTOM = 40.0, 202.0

#: Marks beside which there is room for a word each.
_LABELLED = 3

#: The round-off of the solver, which works in float64, as a part of √d · σ_max.
_SOLVER = 2.0**-52

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


class LogScale:
    """Positive numbers on a logarithmic axis from ``start`` to ``end`` with some ``most`` labels; 0 is at the very start."""

    def __init__(self, values: Iterable[float | None], start: float, end: float, most: int = 6) -> None:
        plotted = [value for value in values if _plottable(value)]
        logs = [math.log10(value) for value in plotted if value] or [0.0]
        self.has_zero = any(value == 0 for value in plotted)
        self.start, self.end, self.most = start, end, most
        margin = max(0.05 * (max(logs) - min(logs)), 0.4 - (max(logs) - min(logs)) / 2)
        self.low, self.high = min(logs) - margin, max(logs) + margin
        self._first = start + 0.09 * (end - start) * self.has_zero

    def at(self, value: float) -> float:
        """The coordinate of a number ≥ 0."""
        if value == 0:
            return self.start
        return self._first + (math.log10(value) - self.low) / (self.high - self.low) * (self.end - self._first)

    def ticks(self) -> Iterator[tuple[float, str]]:
        """Coordinate and label: powers of ten, 1-2-5 between them where the axis is short."""
        if self.has_zero:
            yield self.start, "0"
        step = math.ceil((self.high - self.low) / self.most)
        for power in range(math.floor(self.low), min(math.ceil(self.high), 308) + 1):  # beyond, 10.0**power overflows
            if self.high - self.low > 2.5:
                if self.low <= power <= self.high and power % step == 0:
                    yield self.at(10.0**power), _power(power)
                continue
            for digit in (1, 2, 5):
                if self.low <= math.log10(digit) + power <= self.high:
                    yield self.at(digit * 10.0**power), _power(power, digit)


def _plottable(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _power(power: int, digit: int = 1) -> str:
    if -2 <= power <= 3:
        return f"{digit * 10.0**power:g}"
    return (f"{digit}·" if digit > 1 else "") + "10" + str(power).translate(_SUPERSCRIPTS)


def _places(count: int) -> list[float]:
    """The x of ``count`` sites or blocks, evenly over the plot."""
    width = (_RIGHT - _LEFT) / max(count, 1)
    return [_LEFT + (index + 0.5) * width for index in range(count)]


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _line(class_: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    return element("line", class_=class_, x1=_n(x1), y1=_n(y1), x2=_n(x2), y2=_n(y2))


def _dot(class_: str, x: float, y: float, r: float = 3.5, hint: str | None = None) -> Markup:
    title = None if hint is None else element("title", hint)
    return element("circle", title, class_=class_, cx=_n(x), cy=_n(y), r=_n(r))


def _diamond(class_: str, x: float, y: float, r: float = 5) -> Markup:
    return element("path", class_=class_, d=f"M{_n(x - r)} {_n(y)}l{r} {-r} {r} {r} {-r} {r}z")


def _label(string: str, x: float, y: float, anchor: str = "start", class_: str = "dd-text") -> Markup:
    return element("text", string, class_=class_, x=_n(x), y=_n(y), text_anchor=anchor)


def _svg(name: str, title: str, description: str, height: float, *body: str | None) -> Markup:
    """A whole picture. ``name``: unique in the page; ``description``: what a reader who does not see it needs."""
    return element(
        "svg",
        element("title", title, id=f"{name}-title"),
        element("desc", description, id=f"{name}-desc"),
        element("style", STYLE),
        element("rect", class_="dd-paper", width="100%", height="100%"),
        *body,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {_n(_WIDTH)} {_n(height)}",
        role="img",
        aria_labelledby=f"{name}-title",
        aria_describedby=f"{name}-desc",
    )


def _grid(scale: LogScale) -> Iterator[Markup]:
    """The lines and labels of a vertical axis."""
    for y, label in scale.ticks():
        yield _line("dd-grid", _LEFT, y, _RIGHT, y)
        yield _label(label, _LEFT - 6, y + 4, "end")


def _numbers(numbers: Iterable[Any], places: Sequence[float], what: str) -> Iterator[Markup]:
    """The labels of the horizontal axis, some eight of them at round numbers."""
    step = next((s for s in (1, 2, 5, 10, 20, 50, 100, 200, 500) if len(places) <= 9 * s), 1000)
    for value, x in zip(numbers, places, strict=True):
        if value is not None and value >= 0 and value % step == 0:
            yield _label(str(value), x, _BOTTOM + 20, "middle")
    yield _label(what, _RIGHT, _BOTTOM + 36, "end")


def _legend(*entries: tuple[Markup | None, str], y: float = 12) -> Iterator[Markup]:
    """Marks, drawn at 0, 0, and what they mean, in a line or two."""
    x = _LEFT
    for mark, meaning in entries:
        if mark is not None:
            width = 13 + 5.9 * len(meaning)
            if x + width > _RIGHT + 4:
                x, y = _LEFT, y + 15
            yield element("g", mark, transform=f"translate({_n(x + 4)} {_n(y)})")
            yield _label(meaning, x + 13, y + 4)
            x += width + 12


def _beside(string: str, x: float, y: float, by: float = 11) -> Markup:
    """A word beside a mark, on the side where there is room."""
    where = (x - by, y + 4, "end") if x > 180 else (x + by, y + 4, "start")
    return _label(string, *where, "dd-badtext")


def _cross(class_: str, r: float, x: float = 0, y: float = 0, hint: str | None = None) -> Markup:
    title, size = None if hint is None else element("title", hint), _n(2 * r)
    shape = f"M{_n(x - r)} {_n(y - r)}l{size} {size}m0 -{size}l-{size} {size}"
    return element("path", title, class_=class_, d=shape)


def spectrum(name: str, norm: Row) -> Markup | None:
    """The bottom of a norm's spectrum: σ measured, up to where it would be dead, and predicted of γ; and σ along v."""
    measured, predicted, thresholds = (
        list(filter(_plottable, norm.get(column) or []))
        for column in ("bottom_singular_values", "predicted_bottom", "bottom_thresholds")
    )
    if not measured and not predicted:
        return None
    along = math.sqrt(norm["eigenvalue"]) if _plottable(norm.get("eigenvalue")) else None
    # of one direction alone: for several, the columns hold the largest of each, which need not be the same one's
    floor = (
        along / math.sqrt(norm["noise_ratio"])
        if along and norm.get("noise_ratio") and norm.get("alignment_bottom") is not None
        else None
    )
    solver = _SOLVER * math.sqrt(norm.get("features") or 0) * (norm.get("sigma_max") or 0)
    solver = solver if any(value <= solver for value in measured) else 0
    dead = norm.get("dead_dimension") or 0
    left, right = 62.0, 236.0
    scale = LogScale([*measured, *predicted, *thresholds, along, floor, solver or None], left, right, most=4)
    count = max(len(measured), len(predicted))
    rows = [40 + 27 * index for index in range(count + (along is not None))]
    bottom = rows[-1] + 16
    body: list[Markup] = []
    for y, threshold in zip(rows, thresholds, strict=False):
        width = _n(scale.at(threshold) - left + 8)
        body.append(element("rect", class_="dd-dead", x=_n(left - 8), y=_n(y - 13.5), width=width, height=27))
    for x, label in scale.ticks():
        body += [_line("dd-grid", x, 24, x, bottom), _label(label, x, bottom + 16, "middle")]
    for index, y in enumerate(rows[:count]):
        is_dead = index < min(dead, len(measured))
        body += [
            _label(f"σ{'₁₂₃₄₅₆₇₈₉'[index : index + 1]}" + (" dead" if is_dead else ""), 6, y + 4),
            _line("dd-grid", left, y, right, y),
        ]
        if index < len(predicted):
            body += [
                _dot("dd-b", scale.at(predicted[index]), y, 5.5),
                _label(number(predicted[index]), 376, y + 4, "end", "dd-number"),
            ]
        if index < len(measured):
            body += [
                _dot("dd-a", scale.at(measured[index]), y, 3.2),
                _label(number(measured[index]), 306, y + 4, "end", "dd-number"),
            ]
    if along is not None:
        y = rows[-1]
        body += [_label("along v", 6, y + 4), _diamond("dd-v", scale.at(along), y)]
        body.append(_label(number(along), 306, y + 4, "end", "dd-number"))
        if floor is not None:
            body.append(_line("dd-floor", scale.at(floor), y - 13, scale.at(floor), y + 13))
    if solver:
        body.append(_line("dd-solver", scale.at(solver), 24, scale.at(solver), rows[len(measured) - 1] + 13))
    if measured:
        body += [_dot("dd-a", 246, 12, 3.2), _label("measured", 306, 16, "end")]
    if predicted:
        body += [_dot("dd-b", 317, 12, 4), _label("predicted", 376, 16, "end")]
    body.append(_label("σ of the output", (left + right) / 2, bottom + 33, "middle"))
    body += _legend(
        (
            element("rect", class_="dd-dead", x=-6, y=-6, width=12, height=12) if thresholds else None,
            "dead, up to its edge",
        ),
        (_line("dd-floor", 0, -7, 0, 7) if floor is not None else None, "one rounding along v"),
        (_line("dd-solver", 0, -7, 0, 7) if solver else None, "left of it: the solver’s round-off"),
        y=bottom + 50,
    )
    words = [
        f"σ measured, smallest first: {', '.join(map(number, measured))}; {dead} of them dead" if measured else "",
        f"dead at or below {', '.join(map(number, thresholds))}" if thresholds else "",
        f"at or below {number(solver)} a measured σ is the solver’s round-off" if solver else "",
        f"predicted of γ for a whitened input: {', '.join(map(number, predicted))}" if predicted else "",
        f"σ along v: {number(along)}" if along is not None else "",
        f"one rounding along v: {number(floor)}" if floor is not None else "",
    ]
    title = f"Bottom of the spectrum of {norm['path']}"
    height = bottom + (76 if solver else 62)
    return _svg(name, title, ". ".join(filter(None, words)) + ".", height, *body)


def stream(name: str, blocks: Sequence[Row], found: Iterable[str]) -> Markup | None:
    """σ_min and σ_median of the residual stream, block by block; those of several stacks side by side.

    ``found``: the paths that have findings.
    """
    measured = [block for block in blocks if _plottable(block.get("sigma_min"))]
    if not measured:
        return None
    marked = set(found)
    scale = LogScale((block.get(c) for block in blocks for c in ("sigma_min", "sigma_median")), _BOTTOM, _TOP + 6)
    places = _places(len(blocks))
    body = list(_grid(scale))
    stacks = _stacks(blocks, places)
    for left, right in itertools.pairwise(stacks):
        between = (left[-1][1] + right[0][1]) / 2
        body.append(_line("dd-axis", between, _TOP, between, _BOTTOM))
    for column, class_ in (("sigma_median", "dd-soft"), ("sigma_min", "dd-line")):
        curves = (points for stack in stacks for points in _curves(stack, column, scale))
        body += [element("polyline", class_=class_, points=points) for points in curves]
    for block, x in zip(blocks, places, strict=True):
        body.append(_sigma_mark(block, x, scale, 3.2 if len(blocks) <= 40 else 2.0))
        if block["path"] in marked and _plottable(block.get("sigma_min")):
            y = scale.at(block["sigma_min"])
            body.append(_dot("dd-bad", x, y, 7.5))
            if len(marked.intersection(b["path"] for b in measured)) <= _LABELLED:
                body.append(_beside(f"block {block['index']}", x, y))
    unreadable = [block for block in measured if block.get("readable") is False]
    count = len({block.get("stack") for block in blocks})
    numbers = [block.get("index") for block in blocks] if count == 1 else range(len(blocks))
    body += _numbers(numbers, places, "block" if count == 1 else f"blocks of {count} stacks, in order")
    body += _legend(
        (_dot("dd-a", 0, 0, 3.2), "σ_min"),
        (_dot("dd-hollow", 0, 0, 3.2) if unreadable else None, "below the noise floor"),
        (_line("dd-soft", -6, 0, 6, 0), "σ_median"),
        (_dot("dd-bad", 0, 0, 5) if marked.intersection(b["path"] for b in blocks) else None, "finding"),
        (_cross("dd-soft", 3) if len(measured) < len(blocks) else None, "not measured"),
    )
    least = min(measured, key=lambda block: block["sigma_min"])
    words = [
        f"σ_min at {counted(len(measured), 'place')} of the residual stream",
        f"smallest {number(least['sigma_min'])} after {least['path']}",
        f"{len(unreadable)} below the noise floor",
        f"{len(blocks) - len(measured)} not measured",
    ]
    return _svg(name, "σ_min of the residual stream, block by block", "; ".join(words) + ".", _BOTTOM + 44, *body)


def _stacks(blocks: Sequence[Row], places: Sequence[float]) -> list[list[tuple[Row, float]]]:
    """The blocks of each stack, each block with its x."""
    pairs = zip(blocks, places, strict=True)
    return [list(stack) for _, stack in itertools.groupby(pairs, key=lambda pair: pair[0].get("stack"))]


def _curves(stack: Sequence[tuple[Row, float]], column: str, scale: LogScale) -> Iterator[str]:
    """The points of a column's line through a stack, in pieces where something was not measured."""
    for drawn, piece in itertools.groupby(stack, key=lambda pair: _plottable(pair[0].get(column))):
        points = [f"{_n(x)},{_n(scale.at(block[column]))}" for block, x in piece] if drawn else []
        if len(points) > 1:
            yield " ".join(points)


def _sigma_mark(block: Row, x: float, scale: LogScale, radius: float) -> Markup:
    """A block's σ_min as a dot, or a cross that says why there is none."""
    if not _plottable(block.get("sigma_min")):
        reason = block.get("unmeasured") or block.get("inconclusive") or "not measured"
        return _cross("dd-soft", 3, x, _BOTTOM, f"{block['path']}: {reason}")
    readable = block.get("readable") is not False
    hint = f"{block['path']}: σ_min {number(block['sigma_min'])}" + ("" if readable else ", below the noise floor")
    return _dot("dd-a" if readable else "dd-hollow", x, scale.at(block["sigma_min"]), radius, hint)


def _ring(x: float, y: float, hint: str | None = None) -> Markup:
    return _dot("dd-bad", x, y, 4, hint)


def _red_cross(x: float, y: float, hint: str | None = None) -> Markup:
    return _cross("dd-bad", 4, x, y, hint)


def _square(x: float, y: float, hint: str | None = None) -> Markup:
    title = None if hint is None else element("title", hint)
    return element("rect", title, class_="dd-bad", x=_n(x - 4), y=_n(y - 4), width=8, height=8)


#: The marks of what can be wrong with a norm's γ, and what they are called.
_FAULTS = {_ring: "dead coordinates", _red_cross: "not finite", _square: "not in the files"}


def _fault(norm: Row) -> tuple[Callable[..., Markup], str] | None:
    """The mark of what is wrong with a norm's γ, and what it is in a few words; None where nothing is."""
    if norm.get("gamma_nonfinite"):
        return _red_cross, f"{norm['gamma_nonfinite']} not finite"
    if norm.get("gamma_source") == "missing":
        return _square, "not in the files"
    if norm.get("dead_coordinate_count"):
        return _ring, _dead_words(norm)
    return None


def _dead_words(norm: Row) -> str:
    """The dead coordinates of a norm: their numbers as far as there is room."""
    named, count = (norm.get("predicted_dead_coordinates") or [])[:4], norm["dead_coordinate_count"]
    others = f" and {count - len(named)} more" if count > len(named) else ""
    return f"dead: {', '.join(map(str, named))}{others}" if named else f"{count} dead"


def profile(name: str, norm: Row) -> Markup | None:
    """|γ| of a norm's coordinates by rank, the dead ones marked and named."""
    values = [value for value in norm.get("gamma_profile") or [] if _plottable(value)]
    finite = (norm.get("features") or 0) - (norm.get("gamma_nonfinite") or 0)
    if len(values) < 2 or finite < 2:
        return None
    ranks = [round(finite ** (place / (len(values) - 1))) for place in range(len(values))]
    scale = LogScale(values, _BOTTOM, _TOP + 6)
    across = LogScale(ranks, _LEFT, _RIGHT)
    points = list(
        dict.fromkeys((across.at(rank), scale.at(value), rank) for rank, value in zip(ranks, values, strict=True))
    )
    count = norm.get("dead_coordinate_count") or 0
    body = list(_grid(scale))
    if count:
        edge = across.at(min(count + 0.5, finite))
        body.append(
            element(
                "rect", class_="dd-dead", x=_n(_LEFT), y=_n(_TOP), width=_n(edge - _LEFT), height=_n(_BOTTOM - _TOP)
            )
        )
        where = (edge + 6, "start") if edge < (_LEFT + _RIGHT) / 2 else (edge - 6, "end")
        body.append(_label(_dead_words(norm), where[0], _BOTTOM - 8, where[1], "dd-badtext"))
    body.append(element("polyline", class_="dd-line", points=" ".join(f"{_n(x)},{_n(y)}" for x, y, _ in points)))
    body += [_dot("dd-bad" if rank <= count else "dd-a", x, y, 3 if rank <= count else 2) for x, y, rank in points]
    body += [_label(label, x, _BOTTOM + 20, "middle") for x, label in across.ticks()]
    body.append(_label(f"rank among {finite} coordinates", _RIGHT, _BOTTOM + 36, "end"))
    nonfinite = norm.get("gamma_nonfinite")
    body += _legend(
        (_dot("dd-a", 0, 0, 2), "|γ|, smallest first"),
        (_dot("dd-bad", 0, 0, 3) if count else None, "dead coordinates"),
        (_cross("dd-bad", 4) if nonfinite else None, f"{nonfinite} not finite, left out"),
    )
    words = f"|γ| from {number(values[0])} to {number(values[-1])} in {finite} coordinates; "
    words += _dead_words(norm) if count else "whether any is dead is not known" if nonfinite else "none is dead"
    return _svg(name, f"|γ| profile of {norm['path']}", words + ".", _BOTTOM + 44, *body)


def scales(name: str, norms: Sequence[Row]) -> Markup | None:
    """The smallest, middle and largest |γ| of every norm site."""
    drawn = [norm for norm in norms if _plottable(norm.get("gamma_min")) and _plottable(norm.get("gamma_max"))]
    if not drawn:
        return None
    columns = ("gamma_min", "gamma_median", "gamma_max")
    scale = LogScale((norm.get(c) for norm in drawn for c in columns), _BOTTOM, _TOP + 6)
    places = _places(len(norms))
    body = list(_grid(scale))
    half = min(5.0, 0.35 * (_RIGHT - _LEFT) / len(norms))
    faults = [_fault(norm) for norm in norms]
    room = sum(fault is not None for fault in faults) <= _LABELLED
    for norm, fault, x in zip(norms, faults, places, strict=True):
        if norm.get("role") == "final":
            body.append(element("path", class_="dd-v", d=f"M{_n(x - 3.5)} {_n(_TOP - 6)}h7l-3.5 6z"))
        low = middle = (_TOP + _BOTTOM) / 2
        if norm in drawn:
            low, high = scale.at(norm["gamma_min"]), scale.at(norm["gamma_max"])
            middle = scale.at(norm["gamma_median"]) if _plottable(norm.get("gamma_median")) else (low + high) / 2
            hint = f"{norm['path']}: |γ| {', '.join(number(norm.get(column)) for column in columns)}"
            bar = f"M{_n(x)} {_n(low)}V{_n(high)}M{_n(x - half)} {_n(middle)}h{_n(2 * half)}"
            body.append(element("path", element("title", hint), class_="dd-line", d=bar))
        if fault:
            mark, word = fault
            y = low if mark is _ring else middle
            body.append(mark(x, y, f"{norm['path']}: {word}"))
            if room:  # above those in the middle of a bar, where the bars beside them are lower
                body.append(_beside(word, x, y) if mark is _ring else _beside(word, x, y - 14, by=-8))
    body += _numbers(range(1, len(norms) + 1), places, "norm, in the table’s order")
    body += _legend(
        (element("path", class_="dd-line", d="M0 -6V6M-4 0h8"), "|γ| least, median, most"),
        *((mark(0, 0) if any(f and f[0] is mark for f in faults) else None, words) for mark, words in _FAULTS.items()),
        (element("path", class_="dd-v", d="M-3.5 -3h7l-3.5 6z"), "final")
        if any(norm.get("role") == "final" for norm in norms)
        else (None, ""),
    )
    least, largest = min(drawn, key=lambda n: n["gamma_min"]), max(drawn, key=lambda n: n["gamma_max"])
    words = [
        f"|γ| of {counted(len(drawn), 'norm')}",
        f"smallest {number(least['gamma_min'])} in {least['path']}",
        f"largest {number(largest['gamma_max'])} in {largest['path']}",
        f"{counted(sum(bool(norm.get('dead_coordinate_count')) for norm in norms), 'norm')} with dead coordinates",
    ]
    words += [f"{norm['path']}: {fault[1]}" for norm, fault in zip(norms, faults, strict=True) if fault and room]
    return _svg(name, "Scales |γ| of every norm", "; ".join(words) + ".", _BOTTOM + 44, *body)


def twins(name: str, norms: Sequence[Row]) -> Markup | None:
    """The variance along each kernel, over the largest of any direction: trained, and in the random twin."""
    columns = ("twin_eigenvalue_relative", "eigenvalue_relative")
    drawn = [norm for norm in norms if all(_plottable(norm.get(column)) for column in columns)]
    if not drawn:
        return None
    scale = LogScale((norm[column] for norm in drawn for column in columns), _BOTTOM, _TOP + 6)
    body = list(_grid(scale))
    places = _places(len(drawn))
    radius = min(3.2, max(1.5, 0.3 * (_RIGHT - _LEFT) / len(drawn)))
    for norm, x in zip(drawn, places, strict=True):
        twin, trained = (norm[column] for column in columns)
        hint = (
            f"{norm['path']}: trained {number(trained)}, twin {number(twin)}, depth {shown('depth', norm.get('depth'))}"
        )
        body += [
            _line("dd-soft", x, scale.at(twin), x, scale.at(trained)),
            _dot("dd-b", x, scale.at(twin), radius),
            _dot("dd-a", x, scale.at(trained), radius, hint),
        ]
    body += _numbers(range(1, len(drawn) + 1), places, "norm, of those measured in both")
    body += _legend((_dot("dd-a", 0, 0, 3.2), "trained"), (_dot("dd-b", 0, 0, 3.2), "random twin"))
    depths = [norm["depth"] for norm in drawn if norm.get("depth") is not None]
    kernel = "the kernel" if all(norm.get("kind") == "layernorm" for norm in drawn) else "γ⁻¹"
    words = f"Variance along {kernel} of {counted(len(drawn), 'norm')} over the largest variance of any direction"
    if depths:
        words += (
            f"; training lowered it by {shown('depth', min(depths))} to {shown('depth', max(depths))} orders of ten"
        )
    return _svg(name, "Trained against a random twin", words + ".", _BOTTOM + 44, *body)
