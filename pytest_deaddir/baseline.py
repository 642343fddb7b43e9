"""Baselines: earlier audits in a report, or other models that are audited in the same way. Finding them, and writing the
former."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pytest_deaddir.errors import SpecError
from pytest_deaddir.given import Given
from pytest_deaddir.plan import Baseline, Plan, Subject
from pytest_deaddir.tables import COMPARED, LEVELS, is_comparison

if TYPE_CHECKING:
    from pytest_deaddir.report.words import Entry
    from pytest_deaddir.tables import Audit, Level, Row

#: What --deaddir-baseline-update may be: without a word, nothing new is taken in.
UPDATES = ("held", "all")

#: Findings and models that a sentence names, at most.
MOST_NAMED = 5


def baseline_of(
    subject: Subject | None, given: Given, alone: bool, plan_of: Callable[[str, Path, Level | None], Plan]
) -> Baseline | None:
    """What a model is compared with, None where nothing is; what is wrong is added to the problems of ``given``.

    ``subject``: None for a model that cannot be audited. ``alone``: whether no other model is asked for. ``plan_of``: how
    another is audited that starts at a folder.
    """
    text, base, where = given.value("baseline")
    update = given.layers[0].get("baseline-update")
    problems = []
    if update not in (None, *UPDATES):
        problems.append(
            f"--deaddir-baseline-update {update}: write it without a value, or --deaddir-baseline-update=all"
        )
    if update is not None and text is None:
        problems.append("--deaddir-baseline-update: nothing to update: give --deaddir-baseline=PATH.json")
    if update is not None and text is not None and not text.endswith(".json"):
        problems.append(
            f"--deaddir-baseline-update: {where} {text} is a model: a file PATH.json can be updated, no model"
        )
    baseline = None
    try:
        if text is not None and text.endswith(".json"):
            baseline = _of_a_file(text, base / text, update, subject, alone)
        elif text is not None:
            plan = plan_of(text, base, subject.plan.level if subject else None)
            written = str(plan.spec.path.resolve()) if plan.spec.path else text
            baseline = Baseline(written, plan, subject.rules.chosen if subject else ())
    except SpecError as error:
        problems.append(f"{where} {error}")
    given.problems += [problem for problem in problems if problem not in given.problems]
    return baseline


def _of_a_file(text: str, file: Path, update: str | None, subject: Subject | None, alone: bool) -> Baseline:
    """Raises SpecError for what cannot be read, holds no such model, or looked less far; fine where it is to be written."""
    from pytest_deaddir.report.reading import read_report

    baseline = Baseline(str(file.resolve()), file=file, update=update)
    if update is not None and not file.exists():
        if not file.parent.is_dir():
            raise SpecError(f"{text}: no such folder")
        return baseline
    try:
        held = read_report(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError(f"{text}: no such file: --deaddir-baseline-update writes it") from None
    except (OSError, ValueError, RecursionError) as error:  # ValueError: also no JSON, and no UTF-8
        raise SpecError(f"{text}: no baseline: {error}; a report of --deaddir-report=PATH.json is one") from None
    if subject is None:
        return baseline
    level = subject.plan.level
    number = _number_of(subject, held, alone)
    if update is None and number is None:
        names = ", ".join(other.model["spec"] for other in held[:MOST_NAMED]) + (
            ", …" if len(held) > MOST_NAMED else ""
        )
        raise SpecError(f"{text}: holds no audit of {subject.spec.text}, only of {names or 'no model'}")
    if (
        update is None
        and number is not None
        and LEVELS.index(lower := held[number].model["level"]) < LEVELS.index(level)
    ):
        raise SpecError(
            f"{text}: {held[number].model['spec']} was audited at level {lower}, which cannot be compared with level {level}: "
            f"use --deaddir-level={lower}, or --deaddir-baseline-update"
        )
    return replace(baseline, held=tuple(held), number=number)


def _number_of(subject: Subject, held: Sequence[Audit], alone: bool) -> int | None:
    """Which of a file's audits is the model's own: by its name in the gate file, by its spec, by the end of its path, or as
    the only one of both."""
    names = [audit.model["name"] for audit in held]
    if subject.name is not None and names.count(subject.name) == 1:
        return names.index(subject.name)
    specs = [audit.model["spec"] for audit in held]
    same = [number for number, spec in enumerate(specs) if spec == subject.spec.text]
    alike = [number for number, spec in enumerate(specs) if _ends_alike(spec, subject.spec.text)]
    for found in (same, alike, range(len(held)) if alone else ()):
        if len(found) == 1:
            return found[0]
    return None


def _ends_alike(spec: str, other: str) -> bool:
    """Whether one path is the end of the other; revisions of one model on a hub are alike."""
    parts, others = (PurePosixPath(text.partition("@")[0].replace("\\", "/")).parts for text in (spec, other))
    shorter = min(len(parts), len(others))
    return shorter > 0 and parts[-shorter:] == others[-shorter:]


def update_files(results: Sequence[tuple[Subject, Entry, set[str]]]) -> Iterator[tuple[bool, str]]:
    """Write the baselines that are to be updated: for each file whether it was, and what to say of it.

    ``results``: the models of a run with their entries in its report and the codes of the rules that judged them. A file
    is left as it is where a model's audit has an error or is incomplete, where a rule that was to judge it did not, and
    where a finding is new.
    """
    from pytest_deaddir.report import write
    from pytest_deaddir.report.words import counted

    files: dict[Path, list[tuple[Subject, Baseline, Entry, set[str]]]] = {}
    for subject, entry, judged in results:
        baseline = subject.plan.baseline
        if baseline is not None and baseline.file is not None and baseline.update is not None:
            files.setdefault(baseline.file, []).append((subject, baseline, entry, judged))
    for file, models in files.items():
        if refusals := [text for model in models for text in _refusals(*model)]:
            yield False, f"baseline {file} left as it is: {'; '.join(refusals)}"
            continue
        entries = _merged(models)
        try:
            write(file, entries)
        except OSError as error:
            yield False, f"baseline {file} cannot be written: {error.strerror}"
            continue
        count = sum(len(entry["findings"]) for entry in entries)
        yield True, f"baseline written to {file}: {counted(len(entries), 'model')}, {counted(count, 'finding')}"


def _refusals(subject: Subject, baseline: Baseline, entry: Entry, judged: set[str]) -> Iterator[str]:
    """Why a model's audit is no baseline. What no rule has judged would be in order from then on: the rules that compare
    see a change once."""
    from pytest_deaddir.report.words import incomplete

    name = entry["label"]
    if entry.get("error") or not entry["norms"]:
        yield f"{name} could not be audited"
    elif incomplete(entry):
        yield f"some checks of {name} never reported"
    elif broken := [rule["code"] for rule in entry.get("broken", ())]:
        yield f"{name} could not be judged by {', '.join(broken)}, which raised an error"
    elif not baseline.takes_all:
        yield from _taken_in_only_when_told(subject, baseline, entry, judged)


def _taken_in_only_when_told(subject: Subject, baseline: Baseline, entry: Entry, judged: set[str]) -> Iterator[str]:
    from pytest_deaddir.report.words import open_findings

    name, level = entry["label"], entry["model"]["level"]
    if missing := [rule.code for rule in subject.expected if rule.code not in judged]:
        yield (
            f"{name} was not judged by {_first(missing)}: run all of its rules "
            "(--deaddir-baseline-update=all takes it in as it is)"
        )
    if baseline.number is not None:
        held = baseline.held[baseline.number].model["level"]
        if LEVELS.index(held) > LEVELS.index(level):
            yield (
                f"{name} is held at level {held}, of which level {level} measures a part: use --deaddir-level={held} "
                "(--deaddir-baseline-update=all takes it in as it is)"
            )
    if new := [f"{finding['code']} {finding['path']}" for finding in open_findings(entry)]:
        yield (
            f"{name} has findings that it does not hold: {_first(new)} (--deaddir-baseline-update=all takes them in)"
        )


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:MOST_NAMED]) + (f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else "")


def _merged(models: Sequence[tuple[Subject, Baseline, Entry, set[str]]]) -> list[Entry]:
    """What the file is to hold: the models that it held, in their order, with these in their places or at the end.

    Findings of rules that did not judge this time stay. Those that came of the comparison go: it was with what is replaced.
    """
    entries: list[Entry] = [audit.as_dict() for audit in models[0][1].held]
    for _, baseline, entry, judged in models:
        place = slice(len(entries), None) if baseline.number is None else slice(baseline.number, baseline.number + 1)
        stay = [finding for old in entries[place] for finding in old["findings"] if finding["code"] not in judged]
        fresh = [finding | {"known": False} for finding in entry["findings"] if not is_comparison(finding)]
        findings = sorted([*stay, *fresh], key=lambda finding: (finding["code"], finding["path"]))
        alone = {
            "model": _uncompared("model", entry["model"]),
            "norms": [_uncompared("norms", row) for row in entry["norms"]],
            "blocks": [_uncompared("blocks", row) for row in entry["blocks"]],
        }
        entries[place] = [alone | {"findings": findings, "checks": entry["checks"]}]
    return entries


def _uncompared(table: str, row: Row) -> Row:
    return row | dict.fromkeys(COMPARED[table])
