"""What the options of a run come to: Settings, with every mistake told before anything is loaded."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_deaddir.baseline import Baseline, baseline_of
from pytest_deaddir.given import Given
from pytest_deaddir.options import DEVICES, DTYPES, GATE, SITES, SOLVERS, TP_PLANS
from pytest_deaddir.report import FORMATS
from pytest_deaddir.stages.ranks import world
from pytest_deaddir.tables import LEVELS

if TYPE_CHECKING:
    from pytest_deaddir.report.reading import Stored
    from pytest_deaddir.rules import Rule
    from pytest_deaddir.rules.suppress import Suppression
    from pytest_deaddir.source.spec import Spec
    from pytest_deaddir.tables import Level


@dataclass(frozen=True)
class Plan:
    """What is measured, and how; None where the stages choose by themselves. ``samples``: rows of activations."""

    spec: Spec
    level: Level
    sites: str | None = None
    solver: str | None = None
    device: str = "auto"
    dtype: str | None = None
    inputs: Path | None = None
    samples: int | None = None
    batch_size: int | None = None
    max_memory: str | None = None
    tp_plan: str | None = None
    baseline: Baseline | None = None
    stored: Stored | None = None  # an earlier report's audit, which is judged again in place of measuring

    @property
    def options(self) -> list[tuple[str, Any]]:
        """What was asked for, name and value, for another command line."""
        names = ("sites", "solver", "dtype", "inputs", "samples")
        given = [(name, getattr(self, name)) for name in names]
        given += [("batch-size", self.batch_size), ("max-memory", self.max_memory), ("tp-plan", self.tp_plan)]
        given += [("device", None if self.device == "auto" else self.device)]
        given += [("baseline", self.baseline and self.baseline.written)]
        return [(name, value) for name, value in given if value is not None]


@dataclass(frozen=True)
class RuleChoice:
    """The rules of a run. ``loaded``: all there are; ``chosen``: those to judge by; both with the severities asked for.
    ``options``: what chose them, name and value, for another command line."""

    loaded: list[Rule]
    chosen: list[Rule]
    fail_on: str
    options: tuple[tuple[str, str], ...]

    def at(self, level: Level, compared: bool) -> list[Rule]:
        """The chosen rules that an audit at ``level`` can answer. ``compared``: whether it has a baseline."""
        return [rule for rule in self.chosen if rule.applies_at(level, compared)]


@dataclass(frozen=True)
class Subject:
    """One model of a run. ``label``: the node id of its items; ``gate``: the deaddir.toml that names it, and the line."""

    label: str
    plan: Plan
    rules: RuleChoice
    suppressions: tuple[Suppression, ...] = ()
    gate: tuple[Path, int] | None = None

    @property
    def spec(self) -> Spec:
        """What the user named."""
        return self.plan.spec

    @property
    def name(self) -> str | None:
        """What the gate file calls it."""
        return self.label.rpartition("::")[2] if self.gate is not None else None

    @property
    def applicable(self) -> list[Rule]:
        """The rules that it is judged by."""
        compared = self.plan.baseline is not None and self.plan.baseline.compares
        earlier = None if self.plan.stored is None else self.plan.stored.audit
        return self.rules.at(
            self.plan.level, compared or (earlier is not None and earlier.model["baseline"] is not None)
        )

    @property
    def unjudged(self) -> str | None:
        """Why no chosen rule could be answered for it, so that its audit would be green whatever it is; None if one can."""
        if self.applicable or not self.rules.chosen:
            return None
        level = self.plan.level
        if self.rules.at(level, compared=True):
            return "every rule that was selected compares with a baseline: give --deaddir-baseline"
        lowest = min((rule.level for rule in self.rules.chosen), key=LEVELS.index)
        return f"no rule that was selected can be answered at level {level}, only from level {lowest} on"

    def rerun(self, code: str, start: Path) -> str:
        """The command line that runs one check again from the folder ``start``."""
        if self.gate is not None:
            file = os.path.relpath(self.gate[0], start)
            return command(["pytest", f"{Path(file).as_posix()}::{self.label.rpartition('::')[2]}::{code}"])
        text = self.spec.text
        if (
            self.spec.path is not None and (start / text).resolve() != self.spec.path.resolve()
        ):  # relative to an ini-file
            text = str(self.spec.path.resolve())
        named = [("model", text), ("level", self.plan.level)]
        if self.plan.stored is not None:
            named = [("from", str(self.plan.stored.path.resolve()))]
        asked = [*named, *self.plan.options, *self.rules.options]
        given = [f"--deaddir-{name}={value}" for name, value in asked]
        return command(["pytest", "--deaddir-only", "-k", f"only:{code}", *given])


def command(words: Sequence[str]) -> str:
    """A command line to copy. What does something to a terminal or a log is written as a shell's $'…' takes it."""

    def quoted(word: str) -> str:
        if word.isprintable():
            return shlex.quote(word)
        safe = (c if c.isprintable() else f"\\U{ord(c):08x}" for c in re.sub(r"(['\\])", r"\\\1", word))
        return f"$'{''.join(safe)}'"

    return " ".join(map(quoted, words))


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


def choose_rules(config: pytest.Config, given: Given) -> RuleChoice:
    """Load the rules of every source and choose; what is wrong is added to the problems of ``given``."""
    from pytest_deaddir.errors import RuleError
    from pytest_deaddir.rules import Source, entry_points, load_rules, shipped_rules
    from pytest_deaddir.rules.select import no_such_rule, select, with_severities
    from pytest_deaddir.rules.vocabulary import SEVERITIES, did_you_mean

    problems: list[str] = []
    before, given = given.problems, Given(given.layers, problems)
    fail_on = given.one_of("fail-on", SEVERITIES[:2]) or "error"
    paths = given.all_paths("rules")
    hooked = Source(
        "the hook pytest_deaddir_register_rules",
        lambda: config.hook.pytest_deaddir_register_rules(config=config),
    )
    words = {name: given.words(name) for name in ("select", "extend-select", "ignore", "severity")}
    options = [("rules", str(path)) for path in paths.values()]
    options += [(name, ",".join(entries)) for name, entries in words.items() if entries]
    options += [("fail-on", fail_on)] if fail_on != "error" else []
    try:
        named = [Source(written, path) for written, path in paths.items()]
        rules = load_rules([shipped_rules(), *named, *entry_points(), hooked])
    except RuleError as error:
        before += [*problems, *error.args]
        return RuleChoice([], [], fail_on, ())

    severities: dict[str, str] = {}
    where = given.value("severity").name
    for word in words.pop("severity"):
        entry, _, severity = word.partition("=")
        if unknown := no_such_rule(entry, rules):
            problems.append(f"{where} {unknown}")
        if severity not in SEVERITIES:
            hint = did_you_mean(severity, SEVERITIES)
            problems.append(f"{where} {word}: write {entry}=SEVERITY, one of {', '.join(SEVERITIES)}{hint}")
        severities[entry] = severity
    for name, entries in words.items():
        missing = filter(None, (no_such_rule(entry, rules) for entry in entries))
        problems += [f"{given.value(name).name} {problem}" for problem in missing]
    if problems:
        before += problems
        return RuleChoice(rules, [], fail_on, ())
    rules = with_severities(rules, severities)
    chosen = select(rules, words["select"], words["extend-select"], words["ignore"])
    if not chosen:
        before.append(f"{given.value('select').name} and {given.value('ignore').name} leave no rule to judge by")
    return RuleChoice(rules, chosen, fail_on, tuple(options))


def measuring(given: Given) -> dict[str, Any]:
    """The fields of a :class:`Plan` beside its spec, as far as they were given."""
    dtype = given.one_of("dtype", ("auto", *DTYPES))
    inputs = None
    written, start, where = given.value("inputs")
    if written is not None:
        inputs = start / written
        if not os.path.exists(inputs):  # noqa: PTH110, since Path.exists raises for what cannot be a path
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
    level: Level = how["level"] or ("read" if spec.highest_level == "read" else "forward")
    check_level(spec, level)
    check_placing(spec, level, how["device"], how["max_memory"], how["tp_plan"])
    return Plan(spec, **{**how, "level": level})


def naming_layer(given: Given) -> Given:
    """The first place that names models, to be measured or of earlier reports: others that it replaces are not looked at."""
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


def _exists(path: Path) -> bool:
    return os.path.exists(path)  # noqa: PTH110, since Path.exists raises for what cannot be a path


def with_baseline(subject: Subject, given: Given, how: Mapping[str, Any], alone: bool) -> Subject:
    """The subject with what it is compared with. ``how``: as :func:`measuring` gives it; ``alone``: the only one."""
    baseline = baseline_of(
        subject, given, alone, lambda text, base, level: plan_of(text, base, {**how, "level": level})
    )
    return replace(subject, plan=replace(subject.plan, baseline=baseline))


def read_settings(config: pytest.Config) -> Settings:
    """The options and their ini twins, checked. Raises pytest.UsageError (exit 4) with every problem at once."""
    from pytest_deaddir.errors import SpecError

    problems: list[str] = []
    given = Given.of(config, problems)
    reports = list(given.paths("report").values())
    formats: dict[str, Any] = {}
    for more in config.hook.pytest_deaddir_report_formats(config=config):
        formats = {**more, **formats}
    for report in reports:
        if report.suffix not in {*FORMATS, *formats}:
            known = ", ".join({**FORMATS, **formats})
            problems.append(f"--deaddir-report {report.name}: the suffix must be one of {known}")
        elif report.is_dir():
            problems.append(f"--deaddir-report {report}: is a folder")
        elif not report.parent.is_dir():
            problems.append(f"--deaddir-report {report}: no such folder")

    if world()[1] > 1 and getattr(config.option, "dist", "no") != "no":
        problems.append("torchrun's processes measure together, and xdist's by themselves: give one of -n and torchrun")
    how = measuring(given)
    rules = choose_rules(config, given)
    subjects: dict[str, Subject] = {}

    def add(plan: Plan) -> None:
        label = _label(plan.spec, config.rootpath)
        while label in subjects:
            label += "-2"
        subjects[label] = Subject(label, plan, rules)

    naming = naming_layer(given)
    written, start, _ = naming.value("model")
    for text in written or ():
        try:
            plan = plan_of(text, start, how)
        except SpecError as error:
            problems.append(str(error))
            continue
        if any(_same(plan.spec, known.spec) for known in subjects.values()):
            continue
        add(plan)
    for plan in stored_plans(naming, given.layers[0].get("level")):
        add(plan)
    alone = len(subjects) == 1
    subjects = {label: with_baseline(subject, given, how, alone) for label, subject in subjects.items()}
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


def refuse(problems: Sequence[str]) -> None:
    """Raise pytest.UsageError with every problem, where there is one. They may name a stranger's files and keys."""
    from pytest_deaddir.report.words import escaped

    if problems:
        raise pytest.UsageError(*("deaddir: " + "\n".join(map(escaped, text.splitlines())) for text in problems))


def _may_hold_a_gate(config: pytest.Config) -> bool:
    """Whether what pytest is called on names a gate file or a folder with one."""
    places = [config.rootpath, *(config.invocation_params.dir / word.split("::")[0] for word in config.args)]
    return any(place.name == GATE or (place / GATE).exists() for place in places)


def _same(spec: Spec, other: Spec) -> bool:
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
