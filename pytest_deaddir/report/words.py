"""The words and numbers that a person is shown: one place, so that every format says the same of one audit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pytest_deaddir.rules.vocabulary import SEVERITIES

if TYPE_CHECKING:
    from pytest_deaddir.tables import Row

#: One entry of a report: the tables, findings and checks of one subject, see :meth:`pytest_deaddir.Audit.as_dict`.
Entry = dict[str, Any]

#: Columns whose values are cosines.
_COSINES = ("alignment", "alignment_bottom", "twin_alignment", "pinpoint_overlap")

_OPERATOR_SIGNS = {"min": "≥", "max": "≤", "equal": "=", "not": "≠", "in": "in"}


def label_of(entry: Entry) -> str:
    """What the run calls a model; outside of a run, its spec."""
    label: str = entry.get("label") or entry["model"]["spec"]
    return label


def number(value: Any) -> str:
    """Three digits of a float, an integer as it is, ``?`` for what was not measured."""
    if value is None:
        return "?"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def cosine(value: float | None) -> str:
    """An alignment: what matters is how near to 1 it is."""
    return "" if value is None else f"{value:.4f}"


def decades(value: float | None) -> str:
    """A depth."""
    return "" if value is None else f"{value:.2f}"


def shown(column: str, value: Any) -> str:
    """A value of any column."""
    if isinstance(value, float) and column in _COSINES:
        return cosine(value)
    if isinstance(value, float) and column == "depth":
        return decades(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(number, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {number(entry)}" for key, entry in value.items())
    return number(value)


def dead(norm: Row) -> str:
    """The dead dimension of a norm, ``predicted/measured`` where it was measured."""
    predicted, seen = norm["predicted_dead_dimension"], norm["dead_dimension"]
    return number(predicted) if seen is None else f"{number(predicted)}/{seen}"


def dead_by_dtype(norm: Row) -> str:
    """The dimensions predicted dead in each dtype; empty where they are the same in all."""
    predicted = (norm["predicted_dead_by_dtype"] or {}).values()
    return "/".join(map(number, predicted)) if len(set(predicted)) > 1 else ""


def facts(entry: Entry) -> Iterator[tuple[str, str]]:
    """What was audited and how, each fact with its name and as a phrase that needs none."""
    model = entry["model"]
    yield "architecture", model["architecture"] or "no architecture named"
    yield "size", f"{model['parameters'] / 1e6:.3g}M parameters" if model["parameters"] else "parameters not counted"
    yield "width", f"d = {number(model['width'])}"
    yield "norms", f"{counted(len(entry['norms']), 'norm')} ({number(model['normalisation'])})"
    how = f"{number(model['level'])} in {number(model['dtype'])}"
    yield "level", how + (f" on {model['device']}" if model["device"] else "")
    held = ", ".join(f"{size / 1e9:.3g} GB on {place}" for place, size in (model["placement"] or {}).items())
    if model["max_memory"]:
        yield "memory", f"weights within {model['max_memory']}: {held}"
    if model["tp_plan"]:
        yield "memory", f"weights shared by {model['processes']} processes: in the first {held}"
    elif (model["processes"] or 1) > 1:
        yield "processes", f"inputs shared by {model['processes']} processes"
    if model["samples"]:
        synthetic = ", synthetic" if model["inputs_source"] == "synthetic" else ""
        per_width = f"(N/d {number(model['samples_per_width'])})"
        yield "inputs", f"{model['samples']} rows of {model['inputs']}{synthetic} {per_width}"
    if model["depth"] is not None:
        yield "depth", f"depth {decades(model['depth'])}"
    if model["twin_note"]:
        yield "twin", f"no twin: {model['twin_note']}"
    notes = {norm["invariance_note"] for norm in entry["norms"]}
    if len(notes) == 1 and (note := notes.pop()):  # what is said of some norms alone stands beside them
        yield "parameter space", f"parameter space: {note}"
    if model["redundant_parameters"]:
        yield "redundancy", f"{model['redundant_parameters']} redundant parameters"


def open_findings(entry: Entry) -> list[Row]:
    """The findings that nobody has accepted, and that no baseline holds."""
    return [finding for finding in entry["findings"] if not closed_because(finding)]


def urgency(finding: Row) -> tuple[Any, ...]:
    """By what findings are put in order: what is accepted last, the gravest first, numbers in a path by their value."""
    place = [(int(part), "") if part.isdecimal() else (-1, part) for part in str(finding["path"]).split(".")]
    return bool(closed_because(finding)), SEVERITIES.index(finding["severity"]), finding["code"], place


def closed_because(finding: Row) -> str:
    """Why a finding fails no check whatever its severity; empty where it may."""
    if finding["suppressed"] is not None:
        return f"accepted: {finding['suppressed']}"
    return "known since the baseline" if finding.get("known") else ""


def closing_norm(entry: Entry) -> Row | None:
    """The norm whose output the model returns: where none was traced, the first that the names say is final."""
    final = entry["model"].get("final_norm")
    finals = [norm for norm in entry["norms"] if norm["path"] == final or (final is None and norm["role"] == "final")]
    return finals[0] if finals else None


def worst_ratio(entry: Entry) -> float | None:
    """The least that a block keeps of σ_min, relative to the median σ, of those that decide something."""
    ratios = [block["smin_ratio_relative"] for block in entry["blocks"] if not block["inconclusive"]]
    return min((ratio for ratio in ratios if ratio is not None), default=None)


#: The columns of the comparison of several models, the paper's table: each heading, and a shorter one for a terminal.
COMPARISON = {
    "kind": "kind",
    "d": "d",
    "alignment": "aligned",
    "noise ratio": "noise",
    "depth": "depth",
    "dead": "dead",
    "worst σ_min ratio": "σ min",
}


def comparison(entry: Entry) -> list[tuple[str, Any]]:
    """A model's values under :data:`COMPARISON`, each with the column of the tables that it is of."""
    model, norm = entry["model"], closing_norm(entry) or {}
    return [
        ("kind", norm.get("kind") or model.get("normalisation")),
        ("width", model.get("width")),
        ("alignment", norm.get("alignment")),
        ("noise_ratio", norm.get("noise_ratio")),
        ("depth", model.get("depth")),
        ("dead_dimension", dead(norm) if norm else None),
        ("smin_ratio_relative", worst_ratio(entry)),
    ]


def comparison_cells(entry: Entry) -> list[str]:
    """The same as texts, and the verdict."""
    return [*("" if value is None else shown(column, value) for column, value in comparison(entry)), verdict(entry)]


#: The verdict on a model whose checks passed, some of them with warnings.
WARNED = "passed with warnings"


def verdict(entry: Entry) -> str:
    """What came of a model's checks, in one or two words. Only ``passed`` and ``passed with warnings`` are a pass."""
    checks = entry["checks"]
    if entry.get("error"):
        return "not audited"
    if checks.get("failed"):
        return "failed"
    if incomplete(entry) or entry.get("broken"):
        return "incomplete"
    if not entry["norms"] or not checks.get("run"):
        return "nothing judged"
    return WARNED if checks["warned"] else "passed"


def incomplete(entry: Entry) -> bool:
    """Whether planned checks never reported: a crashed worker, -x, an interrupt."""
    checks = entry["checks"]
    return bool(checks) and checks["run"] + checks["skipped"] < checks["planned"]


def checks_line(checks: dict[str, int], error: str | None = None, unreported: bool = False) -> str:
    """The counts of a model's checks. ``unreported``: whether planned ones never reported."""
    if error:
        return f"0 of {checks['planned']} checks ran: the audit ended in an error"
    parts = [f"{checks['passed']} passed", f"{checks['failed']} failed"]
    kinds = [("warned", "with warnings"), ("known", "known since the baseline")]
    if remarks := [f"{checks[kind]} {words}" for kind, words in kinds if checks.get(kind)]:
        parts[0] += f" ({', '.join(remarks)})"
    if checks["skipped"]:
        parts.append(f"{checks['skipped']} with nothing to judge")
    ran = f"{checks['run'] + checks['skipped']} of {checks['planned']} checks ran"
    return f"{ran}: {', '.join(parts)}" + (". NOT A PASS: some never reported" if unreported else "")


def limit_words(operator: str, limit: Any) -> str:
    """A condition as it is read after its column: ``≤ 64``."""
    if operator == "empty":
        return "empty" if limit else "not empty"
    return f"{_OPERATOR_SIGNS[operator]} {limit}"


def counted(count: int, noun: str) -> str:
    """``1 rule``, ``2 rules``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def escaped(text: str) -> str:
    """Text of a checkpoint's making, harmless to whoever reads it: control and invisible characters shown as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def first_line(text: str) -> str:
    """Of an error, which may have several lines."""
    return text.partition("\n")[0]


def escaped_lines(text: str) -> str:
    """The same of an error, which may have several lines."""
    return "\n".join(map(escaped, text.splitlines()))
