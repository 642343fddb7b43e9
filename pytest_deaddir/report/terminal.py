"""The terminal: a header, the lines of a failing check, and a summary section of facts, norms and findings."""

from __future__ import annotations

import os
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_deaddir.report.words import (
    COMPARISON,
    WARNED,
    checks_line,
    closed_because,
    comparison_cells,
    cosine,
    counted,
    dead,
    dead_by_dtype,
    escaped,
    escaped_lines,
    facts,
    first_line,
    label_of,
    limit_words,
    number,
    shown,
    urgency,
)

if TYPE_CHECKING:
    from pytest_deaddir.plan import RuleChoice, Subject
    from pytest_deaddir.results import ModelResult, Results
    from pytest_deaddir.settings import Settings
    from pytest_deaddir.tables import Row


def header(settings: Settings) -> list[str]:
    """What is about to be audited, and by which rules."""
    subjects = list(settings.subjects.values())
    levels = sorted({subject.plan.level for subject in subjects})
    files = {subject.plan.stored.path.name: None for subject in subjects if subject.plan.stored is not None}
    how = f"device {settings.how['device']}, dtype {settings.how['dtype'] or 'as stored'}"
    if all(subject.plan.stored is not None for subject in subjects):
        how = "nothing is measured"
    how += f", judged again from {escaped(', '.join(files))}" if files else ""
    return [
        f"deaddir: {counted(len(subjects), 'model')}, level {'/'.join(levels) or 'none'}, {how}",
        f"deaddir rules: {_rules_in_words(settings.rules)}",
        *_baselines_in_words(subjects),
    ]


def gate_header(path: Path, subjects: Sequence[Subject]) -> Iterator[str]:
    """The models of a gate file, and by which rules each is judged."""
    yield f"deaddir: {counted(len(subjects), 'model')} of {escaped(path.name)}"
    choices: dict[str, list[str]] = {}
    for subject in subjects:
        choices.setdefault(_rules_in_words(subject.rules), []).append(subject.label.rpartition("::")[2])
    for rules, names in choices.items():
        yield "deaddir rules" + (f" of {', '.join(names)}" if len(choices) > 1 else "") + f": {rules}"
    yield from _baselines_in_words(subjects)


def _baselines_in_words(subjects: Sequence[Subject]) -> Iterator[str]:
    written = {subject.plan.baseline.written: None for subject in subjects if subject.plan.baseline}
    if written:
        yield f"deaddir baseline: {', '.join(map(escaped, written))}"


def _rules_in_words(rules: RuleChoice) -> str:
    origins: dict[str, int] = {}
    for rule in rules.loaded:
        origins[rule.origin] = origins.get(rule.origin, 0) + 1
    loaded = ", ".join(f"{count} from {escaped(origin)}" for origin, count in origins.items())
    left_out = len(rules.loaded) - len(rules.chosen)
    return loaded + (f"; {left_out} not selected" if left_out else "")


def finding_lines(finding: Row) -> Iterator[str]:
    """One finding: what, where, measured against which limit."""
    yield f"{finding['code']} {finding['name']} ({finding['severity']}): {escaped(finding['message'])}"
    yield f"  site      {escaped(finding['path'])}"
    for column, value in finding["measured"].items():
        limits = " and ".join(limit_words(op, limit) for op, limit in finding["limit"].get(column, {}).items())
        cut = value[:MOST_VALUES] if isinstance(value, list) else value
        more = f", … ({len(value)} in all)" if cut is not value and len(value) > MOST_VALUES else ""
        measured = escaped(shown(column, cut)) + more
        yield f"  measured  {column} = {measured}" + (f", must be {limits}" if limits else "")


class Coloured(str):
    """A line with a colour of pytest's terminal writer; plain text to everybody else."""

    colour: str

    @classmethod
    def of(cls, text: str, colour: str) -> Coloured:
        """``text`` in ``colour``."""
        line = cls(text)
        line.colour = colour
        return line


_COLOURS = {"error": "red", "warning": "yellow", "info": "cyan"}


def write_lines(writer: Any, lines: Iterable[str]) -> None:
    """Write lines to pytest's terminal reporter, which leaves colours out where there are none."""
    plain = "CI" in os.environ  # whose logs are read as text, whatever they can show
    for line in lines:
        writer.write_line(line, **({line.colour: True} if isinstance(line, Coloured) and not plain else {}))


def summary_lines(results: Results, verbosity: int) -> list[str]:
    """The section at the end of a run; empty where no check of any model was to run."""
    lines: list[str] = []
    if len(results.reported) > 1:
        lines += _comparison_lines(results.entries)
    for label, result in results.reported.items():
        if lines:
            lines.append("")
        lines += _model_lines(label, result, verbosity)
    if lines and results.settings.reports:
        lines.append("")
    for path in results.settings.reports if lines else ():
        problem = results.unwritten.get(path)
        told = f"report NOT written to {escaped(str(path))}: {escaped_lines(problem)}" if problem else ""
        lines.append(Coloured.of(told, "red") if told else f"report written to {escaped(str(path))}")
    for problem in results.problems:
        lines += ["", *(Coloured.of(escaped(line), "red") for line in problem.splitlines())]
    for note in results.notes if lines else ():
        lines += ["", escaped(note)]
    return lines


def _comparison_lines(entries: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The models of a run beside one another, as far as the terminal is wide."""
    headers = ["model", *COMPARISON.values(), "verdict"]
    rows = [[label_of(entry), *comparison_cells(entry)] for entry in entries]
    warned = any(row[-1] == WARNED for row in rows)
    for row in rows:
        row[-1] = "passed *" if row[-1] == WARNED else row[-1]
    used = [0, *(column for column in range(1, len(headers)) if any(row[column] for row in rows))]
    cells = [[row[column] for column in used] for row in rows]
    yield from _fitted([headers[column] for column in used], cells, ("d", "kind", "depth", "noise"))
    worst = "; σ min: the worst block's ratio to the one before, relative to the median" if 7 in used else ""
    yield from _wrapped(f"dead: predicted/measured{worst}" + ("; *: with warnings" if warned else ""))


def _model_lines(label: str, result: ModelResult, verbosity: int) -> Iterator[str]:
    if result.audit is None:
        told = f": {escaped(result.error.splitlines()[0])}" if result.error else ""
        yield from _wrapped(f"{label}: not audited{told}", "red")
        yield from _wrapped(checks_line(result.checks, result.error, result.unreported))
        return
    yield from _wrapped(f"{label}: {_facts(result.audit, result.origin)}")
    if verbosity >= 0:
        yield ""
        yield from _norm_lines(result, show_all=verbosity > 0)
        yield from _block_lines(result, show_all=verbosity > 0)
    yield from _baseline_lines(result.audit["model"])
    findings = sorted(result.findings, key=urgency)
    most = len(findings) if verbosity > 0 else MOST_FINDINGS
    if findings:
        yield ""
        for finding in findings[:most]:
            why = closed_because(finding)
            text = f"{finding['code']} {finding['severity']:<7}  {escaped(finding['message'])}"
            yield from _wrapped(text, None if why else _COLOURS[finding["severity"]])
            if why:
                yield from _wrapped(f"  {escaped(why)}")
        if len(findings) > most:
            yield f"({len(findings) - most} more; -v shows them)"
    yield from _broken_lines(result)
    yield ""
    passed = not result.unreported and not result.checks["failed"]
    yield from _wrapped(checks_line(result.checks, result.error, result.unreported), "green" if passed else "red")


def _broken_lines(result: ModelResult) -> Iterator[str]:
    """The rules in Python that raised, in this run or in the one whose report is judged again."""
    origin = (result.origin or "the report").rpartition(" ")[2]
    told = [(rule, f" when {origin} was written, and does not judge now") for rule in result.broken_earlier]
    told += [(rule, "") for rule in result.broken_now]
    for rule, when in told:
        yield ""
        yield from _wrapped(f"{rule['code']} raised an error{when}: {escaped(first_line(rule['error']))}", "red")


def _wrapped(text: str, colour: str | None = None) -> Iterator[str]:
    """The text in lines that the terminal holds, the later ones indented."""
    width = shutil.get_terminal_size().columns
    look: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False, "subsequent_indent": "    "}
    for line in textwrap.wrap(text, width, drop_whitespace=True, **look):
        yield Coloured.of(line, colour) if colour else line


def _fitted(headers: Sequence[str], rows: Sequence[Sequence[str]], spare: Sequence[str] = ()) -> list[str]:
    """A table that the terminal holds: its first column, of paths or names, is cut, and then ``spare`` columns are left out
    in this order, which a line below says."""
    from tabulate import tabulate

    width = shutil.get_terminal_size().columns

    def lines(without: Sequence[str], room: int) -> list[str]:
        kept = [column for column, header in enumerate(headers) if header not in without]
        cut = [[_shortened(row[0], room), *row[1:]] for row in rows]
        cells = [[row[column] for column in kept] for row in (headers, *cut)]
        rule = ["-" * max(map(len, column)) for column in zip(*cells, strict=True)]
        # with headers of its own, tabulate would make each column two characters wider
        return tabulate([cells[0], rule, *cells[1:]], tablefmt="plain", disable_numparse=True).split("\n")

    longest = max([len(headers[0]), *(len(escaped(row[0])) for row in rows)])
    given = [header for header in spare if header in headers]
    for count in range(len(given) + 1):
        whole = lines(given[:count], longest)
        excess = max(map(len, whole)) - width
        if excess <= 0:
            break
        whole = lines(given[:count], max(_LEAST_NAME, longest - excess))
        if max(map(len, whole)) <= width:
            break
    note = f"({width} columns hold no more: {', '.join(given[:count])} left out)" if count else ""
    return [*whole, *(_wrapped(note) if note else ())]


def _baseline_lines(model: Row) -> Iterator[str]:
    """What the model was compared with, and in what it could not be."""
    if model["baseline"] is None:
        return
    yield ""
    yield f"compared with {escaped(model['baseline'])}"
    for text in model["not_compared"] or ():
        yield from _wrapped(f"  not compared: {escaped(text)}")


def _facts(audit: dict[str, Any], origin: str | None) -> str:
    model = audit["model"]
    parts = [escaped(phrase) for _, phrase in facts(audit)]
    if model["requests"] and model["bytes_read"] is not None:
        parts.append(f"{model['bytes_read'] / 1e3:.0f} kB in {counted(model['requests'], 'request')}")
    parts.append(f"{sum((model['seconds'] or {}).values()):.2f} s")
    parts += [escaped(origin)] if origin else []
    return " · ".join(parts)


def _norm_lines(result: ModelResult, show_all: bool) -> Iterator[str]:
    assert result.audit is not None
    norms = result.audit["norms"]
    found = {finding["path"] for finding in result.findings}
    listed = [norm for norm in norms if show_all or norm["role"] == "final" or norm["path"] in found]
    measured = any(norm["samples"] for norm in listed)
    by_dtype = any(dead_by_dtype(norm) for norm in listed)
    headers = ["norm", "kind", "role", "|γ| min", "median", "dead"]
    headers += (["fp32/bf16/fp16"] if by_dtype else []) + (["aligned", "noise"] if measured else [])
    yield from _fitted(headers, [_norm_row(norm, measured, by_dtype) for norm in listed], ("kind", "median", "role"))
    if len(listed) < len(norms):
        yield f"({len(norms) - len(listed)} more without findings; -v shows them)"
    for norm in listed:
        reason = norm["unmeasured"] or norm["inconclusive"]
        if reason and norm["path"] not in found:  # a finding says it too
            yield from _wrapped(f"{escaped(norm['path'])}: {escaped(reason)}")


#: Entries of a list that was measured.
MOST_VALUES = 8

#: Characters that a path or a name has in any case.
_LEAST_NAME = 16

#: Findings that are shown where not all are asked for.
MOST_FINDINGS = 20

#: Rows of the table of blocks that are shown where there are no findings.
WORST = 3


def _block_lines(result: ModelResult, show_all: bool) -> Iterator[str]:
    """The residual stream: the blocks that keep the least of σ_min, and those with findings."""
    assert result.audit is not None
    blocks = result.audit["blocks"]
    if not blocks:
        return
    found = {finding["path"] for finding in result.findings}
    ratios = sorted(b["smin_ratio_relative"] for b in blocks if b["smin_ratio_relative"] is not None)
    limit = ratios[min(WORST, len(ratios)) - 1] if ratios else 0.0
    listed = [
        block
        for block in blocks
        if show_all
        or block["path"] in found
        or block["inconclusive"]
        or (block["smin_ratio_relative"] is not None and block["smin_ratio_relative"] <= limit)
    ]
    rows = [
        [
            block["path"],
            number(block["sigma_min"]) + ("" if block["readable"] in (True, None) else " *"),
            number(block["sigma_median"]),
            number(block["smin_ratio"]),
            number(block["smin_ratio_relative"]),
            number(block["dead_dimension"]),
        ]
        for block in listed
    ]
    yield ""
    headers = ["residual stream", "σ min", "median", "ratio", "relative", "dead"]
    yield from _fitted(headers, rows, ("median", "ratio"))
    if len(listed) < len(blocks):
        yield f"({len(blocks) - len(listed)} more that keep as much or more; -v shows them)"
    if any(block["readable"] is False for block in listed):
        yield "* below the noise floor of the dtype"
    for block in listed:
        if block["inconclusive"]:
            yield from _wrapped(f"{escaped(block['path'])}: {escaped(block['inconclusive'])}")


def _shortened(path: str, room: int) -> str:
    """A path in ``room`` characters: names on the way to its last become their first letters, from the left on and as many as
    need be, since numbers and the end say the most; what is still too long, and what is no path, loses its middle."""
    path = escaped(path)
    parts = path.split(".")
    if all(part.isidentifier() or part.isdecimal() for part in parts):
        for place, part in enumerate(parts[:-1]):
            if len(".".join(parts)) <= room:
                break
            parts[place] = part if part.isdecimal() else part[0]
        path = ".".join(parts)
    if len(path) <= room:
        return path
    head = (room - 1) // 2
    return f"{path[:head]}…{path[len(path) - (room - 1 - head) :]}"


def _norm_row(norm: Row, measured: bool, by_dtype: bool) -> list[str]:
    cells = [
        norm["path"],
        norm["kind"],
        norm["role"],
        number(norm["gamma_min"]),
        number(norm["gamma_median"]),
        dead(norm),
    ]
    if by_dtype:
        cells.append(dead_by_dtype(norm))
    if measured:
        cells += [cosine(norm["alignment"]), number(norm["noise_ratio"])]
    return cells
