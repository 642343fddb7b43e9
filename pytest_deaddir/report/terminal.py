"""The terminal: a header, the lines of a failing check, and a summary section of facts, norms and findings."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_deaddir.report.words import (
    checks_line,
    cosine,
    counted,
    dead,
    dead_by_dtype,
    escaped,
    facts,
    limit_words,
    number,
    shown,
    why_open_no_more,
)

if TYPE_CHECKING:
    from pytest_deaddir.session import ModelResult, Results
    from pytest_deaddir.settings import RuleChoice, Settings, Subject
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
        yield f"  measured  {column} = {escaped(shown(column, value))}" + (f", must be {limits}" if limits else "")


def summary_lines(results: Results, verbosity: int) -> list[str]:
    """The section at the end of a run; empty where no check of any model was to run."""
    lines: list[str] = []
    for label, result in results.reported.items():
        if lines:
            lines.append("")
        lines += _model_lines(label, result, verbosity)
    for path in results.settings.reports if lines else ():
        lines += ["", f"report written to {path}"]
    for note in results.notes if lines else ():
        lines += ["", escaped(note)]
    return lines


def _model_lines(label: str, result: ModelResult, verbosity: int) -> Iterator[str]:
    if result.audit is None:
        yield f"{label}: not audited" + (f": {escaped(result.error.splitlines()[0])}" if result.error else "")
        yield checks_line(result.checks, result.error, result.incomplete)
        return
    yield f"{label}: {_facts(result.audit, result.origin)}"
    if verbosity >= 0:
        yield ""
        yield from _norm_lines(result, show_all=verbosity > 0)
        yield from _block_lines(result, show_all=verbosity > 0)
    yield from _baseline_lines(result.audit["model"])
    findings = result.as_dict()["findings"]
    if findings:
        yield ""
        for finding in findings:
            yield f"{finding['code']} {finding['severity']:<7}  {escaped(finding['message'])}"
            if why := why_open_no_more(finding):
                yield f"  {escaped(why)}"
    yield ""
    yield checks_line(result.checks, result.error, result.incomplete)


def _baseline_lines(model: Row) -> Iterator[str]:
    """What the model was compared with, and in what it could not be."""
    if model["baseline"] is None:
        return
    yield ""
    yield f"compared with {escaped(model['baseline'])}"
    for text in model["not_compared"] or ():
        yield f"  not compared: {escaped(text)}"


def _facts(audit: dict[str, Any], origin: str | None) -> str:
    model = audit["model"]
    parts = [escaped(phrase) for _, phrase in facts(audit)]
    if model["requests"] and model["bytes_read"] is not None:
        parts.append(f"{model['bytes_read'] / 1e3:.0f} kB in {counted(model['requests'], 'request')}")
    parts.append(f"{sum((model['seconds'] or {}).values()):.2f} s")
    parts += [escaped(origin)] if origin else []
    return " · ".join(parts)


def _norm_lines(result: ModelResult, show_all: bool) -> Iterator[str]:
    from tabulate import tabulate

    assert result.audit is not None
    norms = result.audit["norms"]
    found = {finding["path"] for finding in result.findings}
    shown = [norm for norm in norms if show_all or norm["role"] == "final" or norm["path"] in found]
    measured = any(norm["samples"] for norm in shown)
    by_dtype = any(dead_by_dtype(norm) for norm in shown)
    room = max(20, shutil.get_terminal_size().columns - (64 if measured else 48) - (18 if by_dtype else 0))
    headers = ["norm", "kind", "role", "|γ| min", "median", "dead"]
    headers += (["fp32/bf16/fp16"] if by_dtype else []) + (["aligned", "noise ratio"] if measured else [])
    rows = [_norm_row(norm, measured, by_dtype, room) for norm in shown]
    yield from tabulate(rows, headers, disable_numparse=True).split("\n")
    if len(shown) < len(norms):
        yield f"({len(norms) - len(shown)} more without findings; -v shows them)"


#: Rows of the table of blocks that are shown where there are no findings.
WORST = 3


def _block_lines(result: ModelResult, show_all: bool) -> Iterator[str]:
    """The residual stream: the blocks that keep the least of σ_min, and those with findings."""
    from tabulate import tabulate

    assert result.audit is not None
    blocks = result.audit["blocks"]
    if not blocks:
        return
    found = {finding["path"] for finding in result.findings}
    ratios = sorted(b["smin_ratio_relative"] for b in blocks if b["smin_ratio_relative"] is not None)
    limit = ratios[min(WORST, len(ratios)) - 1] if ratios else 0.0
    shown = [
        block
        for block in blocks
        if show_all
        or block["path"] in found
        or block["inconclusive"]
        or (block["smin_ratio_relative"] is not None and block["smin_ratio_relative"] <= limit)
    ]
    room = max(20, shutil.get_terminal_size().columns - 48)
    rows = [
        [
            _shortened(block["path"], room),
            number(block["sigma_min"]) + ("" if block["readable"] in (True, None) else " *"),
            number(block["sigma_median"]),
            number(block["smin_ratio"]),
            number(block["smin_ratio_relative"]),
            number(block["dead_dimension"]),
        ]
        for block in shown
    ]
    yield ""
    headers = ["residual stream after", "σ min", "median", "ratio", "relative", "dead"]
    yield from tabulate(rows, headers, disable_numparse=True).split("\n")
    if len(shown) < len(blocks):
        yield f"({len(blocks) - len(shown)} more that keep as much or more; -v shows them)"
    if any(block["readable"] is False for block in shown):
        yield "* below the noise floor of the dtype"
    for block in shown:
        if block["inconclusive"]:
            yield f"{escaped(block['path'])}: {escaped(block['inconclusive'])}"


def _shortened(path: str, room: int) -> str:
    """A path with its end, where it says the most."""
    path = escaped(path)
    return path if len(path) <= room else f"…{path[-room + 1 :]}"


def _norm_row(norm: Row, measured: bool, by_dtype: bool, room: int) -> list[str]:
    cells = [
        _shortened(norm["path"], room),
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
