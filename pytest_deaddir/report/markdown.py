"""The audit as Markdown, short enough for a pull request or a model card."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pytest_deaddir.report.words import (
    COMPARISON,
    checks_line,
    closed_because,
    closing_norm,
    comparison_cells,
    cosine,
    dead,
    dead_by_dtype,
    escaped,
    facts,
    first_line,
    incomplete,
    label_of,
    number,
    urgency,
    verdict,
)

if TYPE_CHECKING:
    from pytest_deaddir.report.words import Entry
    from pytest_deaddir.rules import Rule

#: Findings of one model that are shown.
MOST_FINDINGS = 20


def render(models: Sequence[Entry], rules: Sequence[Rule] = ()) -> str:
    """Where there are several models, a table that compares them; then each with its facts, closing norm and findings."""
    if not models:
        return "Nothing was audited.\n"
    parts = [_comparison(models)] if len(models) > 1 else []
    parts += ["\n".join(_model_lines(entry)) for entry in models]
    return "\n\n".join(parts) + "\n"


def _comparison(models: Sequence[Entry]) -> str:
    headers = ["model", *COMPARISON, "verdict"]
    rows = [[_code(label_of(entry)), *comparison_cells(entry)] for entry in models]
    note = "dead: predicted/measured. σ_min ratio: of the block that keeps the least, relative to the median σ."
    return f"{_table(headers, rows)}\n\n{note}"


def _model_lines(entry: Entry) -> Iterator[str]:
    yield f"### {_code(label_of(entry))}: {verdict(entry)}"
    yield ""
    if len(entry["model"]) > 1:
        yield _table(["", ""], [[name, _prose(phrase)] for name, phrase in _card(entry)])
        yield ""
        yield from _norm_lines(entry)
        norm = closing_norm(entry)
        if norm is not None and (reason := norm["unmeasured"] or norm["inconclusive"]):
            yield f"{_code(norm['path'])}: {_prose(reason)}"
            yield ""
    findings = sorted(entry["findings"], key=urgency)
    for finding in findings[:MOST_FINDINGS]:
        why = closed_because(finding)
        yield f"* **{finding['code']}** {finding['severity']}: {_prose(finding['message'])}" + (
            f" ({_prose(why)})" if why else ""
        )
    if len(findings) > MOST_FINDINGS:
        yield f"* and {len(findings) - MOST_FINDINGS} more"
    for rule in entry.get("broken", ()):
        yield f"* **{rule['code']}** raised an error: {_prose(first_line(rule['error']))}"
    if findings or entry.get("broken"):
        yield ""
    if entry.get("error"):
        yield f"The audit ended in an error: {_prose(entry['error'].splitlines()[0])}"
    elif entry["checks"]:
        yield checks_line(entry["checks"], unreported=incomplete(entry))


def _card(entry: Entry) -> Iterator[tuple[str, str]]:
    yield from facts(entry)
    for name in ("revision", "fingerprint"):
        if entry["model"][name]:
            yield name, entry["model"][name]
    yield "versions", ", ".join(f"{name} {version}" for name, version in (entry["model"]["versions"] or {}).items())


def _norm_lines(entry: Entry) -> Iterator[str]:
    """The final norms; what is wrong with others is among the findings."""
    norms = [norm for norm in entry["norms"] if norm["role"] == "final"]
    if not norms:
        return
    columns = {
        "final norm": [_code(norm["path"]) for norm in norms],
        "kind": [norm["kind"] for norm in norms],
        "|γ| min": [number(norm["gamma_min"]) for norm in norms],
        "median": [number(norm["gamma_median"]) for norm in norms],
        "dead": [dead(norm) for norm in norms],
        "fp32/bf16/fp16": [dead_by_dtype(norm) for norm in norms],
        "alignment": [cosine(norm["alignment"]) for norm in norms],
        "noise ratio": [_measured(norm["noise_ratio"]) for norm in norms],
    }
    shown = {header: cells for header, cells in columns.items() if any(cells)}
    yield _table(list(shown), list(zip(*shown.values(), strict=True)))
    yield ""


def _measured(value: float | None) -> str:
    return "" if value is None else number(value)


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


#: What Markdown or GitHub would make something of: markup, mentions, references, addresses, emphasis, emoji, commits.
_ACTIVE = re.compile(
    r"[\\`*{}\[\]<>#@&~^$]|://|www\.|(?<![^\W_])_|_(?![^\W_])|:.*:|\bgh-\d|\b[0-9a-f]{7,}\b",
    re.IGNORECASE,
)


def _prose(text: str) -> str:
    """A text that may hold names of a checkpoint's making: words that could be markup become code."""
    return " ".join(_code(word) if _ACTIVE.search(word) else word for word in escaped(text).split(" "))


def _code(text: str) -> str:
    """A code span, between more backticks than there are in it. GitHub looks for no mention and no reference inside."""
    text = escaped(text) or " "
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    padding = " " if text.startswith(("`", " ")) or text.endswith(("`", " ")) else ""
    return f"{fence}{padding}{text}{padding}{fence}"
