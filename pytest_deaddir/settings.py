"""What the options of a run come to: Settings, with every mistake told before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_deaddir.baseline import baseline_of
from pytest_deaddir.given import Given
from pytest_deaddir.options import DEVICES, DTYPES, GATE, SITES, SOLVERS, TP_PLANS
from pytest_deaddir.plan import Plan, RuleChoice, Subject
from pytest_deaddir.report import FORMATS
from pytest_deaddir.stages.ranks import world
from pytest_deaddir.tables import LEVELS

if TYPE_CHECKING:
    from pytest_deaddir.source.spec import Spec
    from pytest_deaddir.tables import Level


@dataclass(frozen=True)
class Settings:
    """What one run audits. ``subjects``: of the command line and the ini-file, by label, in the order given; ``start``:
    where pytest was called; ``how``: what is asked for of whatever is measured, as :func:`measuring` gives it; ``formats``:
    what renders reports that are not ours, by suffix."""

    subjects: dict[str, Subject]
    how: Mapping[str, Any]
    rules: RuleChoice
    reports: tuple[Path, ...]
    formats: Mapping[str, Callable[..., str]]
    junit_properties: bool
    only: bool
    cache: bool
    start: Path


def choose_rules(config: pytest.Config | None, given: Given) -> RuleChoice:
    """Load the rules of every source and choose; what is wrong is added to the problems of ``given``.

    ``config``: None outside of pytest, where no hook gives rules.
    """
    from pytest_deaddir.errors import RuleError
    from pytest_deaddir.rules import Source, entry_points, load_rules, shipped_rules
    from pytest_deaddir.rules.select import no_such_rule, select, with_severities
    from pytest_deaddir.rules.vocabulary import SEVERITIES, did_you_mean

    problems: list[str] = []
    before, given = given.problems, Given(given.layers, problems)
    fail_on = given.one_of("fail-on", SEVERITIES[:2]) or "error"
    paths = given.all_paths("rules")
    hooked = (
        []
        if config is None
        else [
            Source(
                "the hook pytest_deaddir_register_rules",
                lambda: config.hook.pytest_deaddir_register_rules(config=config),
            )
        ]
    )
    words = {name: given.words(name) for name in ("select", "extend-select", "ignore", "severity")}
    options = [("rules", str(path.value)) for path in paths.values()]
    options += [(name, ",".join(entries)) for name, entries in words.items() if entries]
    options += [("fail-on", fail_on)] if fail_on != "error" else []
    try:
        named = [Source(written, path.value, path.base) for written, path in paths.items()]
        rules = load_rules([shipped_rules(), *named, *entry_points(), *hooked])
    except RuleError as error:
        wheres = {str(path.value): path.name for path in paths.values()}
        files = [(problem, wheres.get(problem.partition(": ")[0])) for problem in error.args]
        before += [*problems, *(f"{where} {problem}" if where else problem for problem, where in files)]
        return RuleChoice([], [], fail_on, ())

    severities: dict[str, str] = {}
    for word, where in words.pop("severity").items():
        entry, _, severity = word.partition("=")
        if unknown := no_such_rule(entry, rules):
            problems.append(f"{where} {unknown}")
        if severity not in SEVERITIES:
            hint = did_you_mean(severity, SEVERITIES)
            problems.append(f"{where} {word}: write {entry}=SEVERITY, one of {', '.join(SEVERITIES)}{hint}")
        severities[entry] = severity
    for entries in words.values():
        missing = ((where, no_such_rule(entry, rules)) for entry, where in entries.items())
        problems += [f"{where} {problem}" for where, problem in missing if problem]
    if problems:
        before += problems
        return RuleChoice(rules, [], fail_on, ())
    rules = with_severities(rules, severities)
    chosen = select(rules, *words.values())
    if not chosen:
        before.append(f"{given.value('select').name} and {given.value('ignore').name} leave no rule to judge by")
    written = Given(given.layers[1:], [])
    own = select(rules, *(written.words(name) for name in words))
    return RuleChoice(rules, chosen, fail_on, tuple(options), own)


def measuring(given: Given) -> dict[str, Any]:
    """The fields of a :class:`Plan` beside its spec, as far as they were given."""
    dtype = given.one_of("dtype", ("auto", *DTYPES))
    inputs = None
    written, start, where = given.value("inputs")
    if written is not None:
        inputs = start / written
        if not _exists(inputs):
            given.problems.append(f"{where} {written}: no such file or folder")
    return {
        "level": given.one_of("level", LEVELS),
        "sites": given.one_of("sites", SITES),
        "solver": given.one_of("solver", SOLVERS),
        "device": given.one_of("device", DEVICES) or "auto",
        "dtype": None if dtype == "auto" else dtype,
        "inputs": inputs,
        "samples": given.number("samples"),
        "batch_size": given.number("batch-size"),
        "max_memory": given.memory("max-memory"),
        "tp_plan": given.one_of("tp-plan", TP_PLANS),
    }


def plan_of(text: str, base: Path, how: Mapping[str, Any]) -> Plan:
    """How the subject that ``text`` names is measured; nothing is opened. ``how``: as :func:`measuring` gives it.

    Raises SpecError for what names nothing, or cannot be audited at its level with what is installed.
    """
    from pytest_deaddir.api import check_level, check_placing
    from pytest_deaddir.source.spec import parse_spec

    spec = parse_spec(text, base)
    level: Level = how["level"] or default_level(spec)
    check_level(spec, level)
    check_placing(spec, level, how["device"], how["max_memory"], how["tp_plan"])
    return Plan(spec, **{**how, "level": level})


def default_level(spec: Spec) -> Level:
    """The level that a subject is audited at where none is asked for."""
    return "read" if spec.highest_level == "read" else "forward"


def naming_layer(given: Given) -> Given:
    """The first layer that names models, by --deaddir-model or --deaddir-from. It replaces those of all others."""
    named = [layer for layer in given.layers if layer.get("model") or layer.get("from")]
    return Given([*named, *given.layers][:1], given.problems)


def stored_plans(given: Given, level: Level | None) -> Iterator[Plan]:
    """The models of earlier reports; what is wrong with a file is added to the problems. ``level``: that was asked for."""
    from pytest_deaddir.report.reading import read_stored
    from pytest_deaddir.source.spec import Spec

    _, start, where = given.value("from")
    once = {path.resolve(): (written, path) for written, path in given.paths("from").items() if "\0" not in written}
    for written, path in once.values():
        try:
            found = read_stored(path)
        except OSError as error:
            given.problems.append(f"{where} {written}: cannot be read: {error.strerror}")
            continue
        except ValueError as error:
            given.problems.append(f"{where} {written}: no report that can be judged again: {error}")
            continue
        for stored in found:
            if level in LEVELS and stored.audit is not None and LEVELS.index(stored.level) < LEVELS.index(level):
                given.problems.append(
                    f"{where} {written}: {stored.spec} was audited at level {stored.level}: level {level} must be measured"
                )
            home = start / stored.spec
            yield Plan(Spec(stored.spec, "stored", home if _exists(home) else None), stored.level, stored=stored)


#: Options that say how something is measured.
_HOW = ("sites", "solver", "device", "dtype", "inputs", "samples", "batch-size", "max-memory", "tp-plan")


def _measuring_nothing(given: Given, subjects: Collection[Subject], gated: bool) -> str | None:
    """What to say where the command line asks how to measure and all that there is was measured before; None elsewhere.

    ``gated``: whether there may be a gate file, whose models are measured beside the earlier report's.
    """
    options = [f"--deaddir-{name}" for name in _HOW if given.layers[0].get(name) is not None]
    other = given.value("baseline").value
    measures = gated or (other is not None and not other.endswith(".json"))
    if not options or not subjects or measures or any(subject.plan.stored is None for subject in subjects):
        return None
    named = " and ".join(filter(None, (", ".join(options[:-1]), options[-1])))
    return f"--deaddir-from: nothing is measured, so that {named} {'say' if len(options) > 1 else 'says'} nothing"


def _exists(path: Path) -> bool:
    return os.path.exists(path)  # noqa: PTH110, since Path.exists raises for what cannot be a path


def with_baseline(subject: Subject, given: Given, how: Mapping[str, Any], alone: bool) -> Subject:
    """The subject with what it is compared with. ``how``: as :func:`measuring` gives it; ``alone``: the only one."""
    baseline = baseline_of(
        subject, given, alone, lambda text, base, level: plan_of(text, base, {**how, "level": level})
    )
    return replace(subject, plan=replace(subject.plan, baseline=baseline))


def check_baseline(given: Given, how: Mapping[str, Any]) -> None:
    """The same where no subject can be made: what is wrong with its baseline is added to the problems all the same."""
    baseline_of(None, given, False, lambda text, base, _: plan_of(text, base, how))


def read_settings(config: pytest.Config) -> Settings:
    """The options and their ini twins, checked. Raises pytest.UsageError (exit 4) with every problem at once."""
    problems: list[str] = []
    given = Given.of(config, problems)
    reports = list(given.paths("report").values())
    formats: dict[str, Any] = {}
    for more in config.hook.pytest_deaddir_report_formats(config=config):
        if not isinstance(more, Mapping):
            problems.append(
                f"the hook pytest_deaddir_report_formats gave a {type(more).__name__}, not {{'.suffix': render}}"
            )
            continue
        formats = {**more, **formats}
    problems += _report_problems(reports, {**FORMATS, **formats})
    if world()[1] > 1 and getattr(config.option, "dist", "no") != "no":
        problems.append("torchrun's processes measure together, and xdist's by themselves: give one of -n and torchrun")
    how = measuring(given)
    rules = choose_rules(config, given)
    subjects = _named_subjects(config, given, how, rules)
    asks = any(given.value(name).value for name in ("only", "report", "baseline"))
    if asks and not subjects and not problems and not _may_hold_a_gate(config):
        problems.append(f"no model to audit: give --deaddir-model=SPEC or --deaddir-from=PATH.json, or write a {GATE}")
    if not problems:
        unjudged = ((label, subject.unjudged) for label, subject in subjects.items())
        problems += [f"{label}: {problem}" for label, problem in unjudged if problem]
    refuse(problems)
    return Settings(
        subjects,
        how,
        rules,
        reports=tuple(reports),
        formats=formats,
        junit_properties=bool(given.value("junit-properties").value),
        only=bool(given.value("only").value),
        cache=not given.value("no-cache").value,
        start=config.invocation_params.dir,
    )


def _report_problems(reports: Sequence[Path], formats: Collection[str]) -> Iterator[str]:
    """What is wrong with the paths of reports. ``formats``: the suffixes that can be written."""
    for report in reports:
        if report.suffix not in formats:
            yield f"--deaddir-report {report.name}: the suffix must be one of {', '.join(formats)}"
        elif report.is_dir():
            yield f"--deaddir-report {report}: is a folder"
        elif not report.parent.is_dir():
            yield f"--deaddir-report {report}: no such folder"


def _named_subjects(
    config: pytest.Config, given: Given, how: Mapping[str, Any], rules: RuleChoice
) -> dict[str, Subject]:
    """The models that the options or the ini-file name, by label; what is wrong is added to the problems of ``given``."""
    subjects: dict[str, Subject] = {}
    naming = naming_layer(given)
    for plan in (*_measured_plans(naming, how), *stored_plans(naming, given.layers[0].get("level"))):
        label = _label(plan.spec, config.rootpath)
        while label in subjects:
            label += "-2"
        subjects[label] = Subject(label, plan, rules)
    if unmeant := _measuring_nothing(given, subjects.values(), _may_hold_a_gate(config)):
        given.problems.append(unmeant)
    alone = len(subjects) == 1
    return {label: with_baseline(subject, given, how, alone) for label, subject in subjects.items()}


def _measured_plans(naming: Given, how: Mapping[str, Any]) -> Iterator[Plan]:
    """The models that are to be measured, each once; what is wrong with a spec is added to the problems."""
    from pytest_deaddir.errors import SpecError

    written, start, _ = naming.value("model")
    known: list[Spec] = []
    for text in written or ():
        try:
            plan = plan_of(text, start, how)
        except SpecError as error:
            naming.problems.append(str(error))
            continue
        if not any(same_subject(plan.spec, spec) for spec in known):
            known.append(plan.spec)
            yield plan


def refuse(problems: Sequence[str]) -> None:
    """Raise pytest.UsageError with every problem, where there is one. They may name a stranger's files and keys."""
    from pytest_deaddir.report.words import escaped

    if problems:
        told = ["deaddir: " + "\n".join(map(escaped, text.splitlines())) for text in problems]
        raise pytest.UsageError("\nERROR: ".join(told))  # of several arguments pytest leaves a line free after each


def _may_hold_a_gate(config: pytest.Config) -> bool:
    """Whether what pytest is called on names a gate file or a folder with one."""
    places = [config.rootpath, *(config.invocation_params.dir / word.split("::")[0] for word in config.args)]
    return any(place.name == GATE or (place / GATE).exists() for place in places)


def same_subject(spec: Spec, other: Spec) -> bool:
    """Whether two specs name one subject, however they are written."""
    if spec.path is not None and other.path is not None:
        return spec.path.resolve() == other.path.resolve()
    return spec == other


def _label(spec: Spec, root: Path) -> str:
    """A short name for a model's items: its path from the root where it lies below, else the end of it.

    ``[``, ``]`` and ``@`` have a meaning of their own to --lf and xdist inside an item's name, and ``::`` to pytest.
    """
    text = spec.text
    if spec.path is not None:
        path = spec.path.resolve()
        inside = path.is_relative_to(root.resolve())
        text = path.relative_to(root.resolve()).as_posix() if inside else "/".join(path.parts[-2:])
    elif spec.form == "stored" and Path(text).is_absolute():  # it lies elsewhere now, or on another machine
        text = "/".join(Path(text).parts[-2:])
    return "".join("-" if c in "[]@\\" or c.isspace() or not c.isprintable() else c for c in text).replace("::", "-")
