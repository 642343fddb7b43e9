"""What the options of a run come to: Settings, with every mistake told before anything is loaded."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_deaddir.options import DEVICES, DTYPES, SOLVERS
from pytest_deaddir.tables import LEVELS

if TYPE_CHECKING:
    from pytest_deaddir.rules import Rule
    from pytest_deaddir.source.spec import Spec
    from pytest_deaddir.tables import Level

#: --deaddir-report's suffixes.
FORMATS = (".json",)


@dataclass(frozen=True)
class Settings:
    """What one run audits and how. ``models``: label → spec, in the order given; ``start``: where pytest was called."""

    models: dict[str, Spec]
    level: Level | None
    sites: str | None
    solver: str | None
    device: str
    dtype: str | None
    inputs: Path | None
    samples: int | None
    batch_size: int | None
    rules: RuleChoice
    reports: tuple[Path, ...]
    only: bool
    start: Path

    def level_of(self, spec: Spec) -> Level:
        """The level asked for; where none was, forward, or read for a bare file, which cannot do more."""
        return self.level or ("read" if spec.highest_level == "read" else "forward")

    def rules_at(self, level: Level) -> list[Rule]:
        """The rules that an audit at ``level`` can answer."""
        return [rule for rule in self.rules.chosen if rule.applies_at(level)]

    def unjudged(self) -> list[str]:
        """The models that no chosen rule could be answered for, so that their audit would be green whatever they are."""
        levels = sorted({rule.level for rule in self.rules.chosen}, key=LEVELS.index)
        return [
            f"{label}: no rule that was selected can be answered at level {self.level_of(spec)}, only from level {levels[0]} on"
            for label, spec in self.models.items()
            if not self.rules_at(self.level_of(spec))
        ]

    def rerun(self, spec: Spec, code: str) -> str:
        """The command line that runs one check again."""
        text = spec.text
        if spec.path is not None and (self.start / text).resolve() != spec.path.resolve():  # relative to an ini-file
            text = str(spec.path.resolve())
        options: list[tuple[str, Any]] = [("model", text)]
        options += [(name, getattr(self, name)) for name in ("level", "sites", "solver", "dtype", "inputs", "samples")]
        options += [("batch-size", self.batch_size), ("device", None if self.device == "auto" else self.device)]
        options += self.rules.options
        given = [f"--deaddir-{name}={value}" for name, value in options if value is not None]
        return shlex.join(["pytest", "--deaddir-only", "-k", f"only:{code}", *given])


class _Given:
    """What the command line and the ini-file say; ``problems`` takes what cannot be meant."""

    def __init__(self, config: pytest.Config, problems: list[str]) -> None:
        self.config = config
        self.problems = problems
        self.base = config.inipath.parent if config.inipath else config.rootpath

    def value(self, name: str) -> tuple[Any, Path]:
        """An option, else its ini twin, and the folder that its relative paths start at."""
        dest = f"deaddir_{name.replace('-', '_')}"
        given = self.config.getoption(dest)
        if given is not None:
            return given, self.config.invocation_params.dir
        return self.config.getini(dest) or None, self.base

    def one_of(self, name: str, allowed: Sequence[str]) -> Any:
        given = self.value(name)[0]
        if given is not None and given not in allowed:
            self.problems.append(f"--deaddir-{name} {given}: not one of {', '.join(allowed)}")
            return None
        return given

    def number(self, name: str) -> int | None:
        given = self.value(name)[0]
        if given is not None and not (str(given).isdecimal() and int(given) > 0):
            self.problems.append(f"--deaddir-{name} {given}: not a positive whole number")
            return None
        return None if given is None else int(given)

    def paths(self, name: str) -> dict[str, Path]:
        """Paths as they were written, and from where they start."""
        given, start = self.value(name)
        return {path: start / path for path in given or ()}

    def words(self, name: str) -> list[str]:
        """What stands between commas, of all times that an option was given."""
        given = self.value(name)[0]
        words = [word.strip() for text in given or () for word in text.split(",")]
        if given is not None and not all(words):
            self.problems.append(f"--deaddir-{name} {','.join(given)}: a code is missing")
        return [word for word in words if word]


@dataclass(frozen=True)
class RuleChoice:
    """The rules of a run. ``loaded``: all there are; ``chosen``: those to judge by; both with the severities asked for.
    ``options``: what chose them, name and value, for another command line."""

    loaded: list[Rule]
    chosen: list[Rule]
    fail_on: str
    options: tuple[tuple[str, str], ...]


def read_rules(config: pytest.Config, problems: list[str]) -> RuleChoice:
    """Load the rules of every source and choose among them; what is wrong is added to ``problems``."""
    from pytest_deaddir.errors import RuleError
    from pytest_deaddir.rules import Source, entry_points, load_rules, shipped_rules
    from pytest_deaddir.rules.select import no_such_rule, select, with_severities
    from pytest_deaddir.rules.vocabulary import SEVERITIES, did_you_mean

    given = _Given(config, problems)
    fail_on = given.one_of("fail-on", SEVERITIES[:2]) or "error"
    paths = given.paths("rules")
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
        problems += error.args
        return RuleChoice([], [], fail_on, ())

    severities: dict[str, str] = {}
    for word in words.pop("severity"):
        entry, _, severity = word.partition("=")
        if unknown := no_such_rule(entry, rules):
            problems.append(f"--deaddir-severity {unknown}")
        if severity not in SEVERITIES:
            hint = did_you_mean(severity, SEVERITIES)
            problems.append(f"--deaddir-severity {word}: write {entry}=SEVERITY, one of {', '.join(SEVERITIES)}{hint}")
        severities[entry] = severity
    for name, entries in words.items():
        missing = filter(None, (no_such_rule(entry, rules) for entry in entries))
        problems += [f"--deaddir-{name} {problem}" for problem in missing]
    if problems:
        return RuleChoice(rules, [], fail_on, ())
    rules = with_severities(rules, severities)
    chosen = select(rules, words["select"], words["extend-select"], words["ignore"])
    if not chosen:
        problems.append("--deaddir-select and --deaddir-ignore leave no rule to judge by")
    return RuleChoice(rules, chosen, fail_on, tuple(options))


def read_settings(config: pytest.Config) -> Settings:
    """The options and their ini twins, checked. Raises pytest.UsageError (exit 4) with every problem at once."""
    from pytest_deaddir.errors import SpecError

    problems: list[str] = []
    options = _Given(config, problems)
    value, one_of = options.value, options.one_of

    level = one_of("level", LEVELS)
    device = one_of("device", DEVICES) or "auto"
    dtype = one_of("dtype", ("auto", *DTYPES))
    sites = one_of("sites", ("all", "final"))
    solver = one_of("solver", SOLVERS)

    samples, batch_size = options.number("samples"), options.number("batch-size")
    inputs = None
    given, start = value("inputs")
    if given is not None:
        inputs = start / given
        if not os.path.exists(inputs):  # noqa: PTH110, since Path.exists raises for what cannot be a path
            problems.append(f"--deaddir-inputs {given}: no such file or folder")

    reports = list(options.paths("report").values())
    for report in reports:
        if report.suffix not in FORMATS:
            problems.append(f"--deaddir-report {report.name}: the suffix must be {' or '.join(FORMATS)}")
        elif report.is_dir():
            problems.append(f"--deaddir-report {report}: is a folder")
        elif not report.parent.is_dir():
            problems.append(f"--deaddir-report {report}: no such folder")

    mistakes: list[str] = []
    rules = read_rules(config, mistakes)
    problems += mistakes

    models: dict[str, Spec] = {}
    given, start = value("model")
    for text in given or ():
        try:
            spec = resolve_spec(text, start, level)
        except SpecError as error:
            problems.append(str(error))
            continue
        if any(_same(spec, known) for known in models.values()):
            continue
        label = _label(spec, config.rootpath)
        while label in models:
            label += "-2"
        models[label] = spec
    if not models and not problems and any(value(name)[0] for name in ("only", "report")):
        problems.append("no model to audit: give --deaddir-model=SPEC")
    settings = Settings(
        models=models,
        level=level,
        sites=sites,
        solver=solver,
        device=device,
        dtype=None if dtype == "auto" else dtype,
        inputs=inputs,
        samples=samples,
        batch_size=batch_size,
        rules=rules,
        reports=tuple(reports),
        only=bool(value("only")[0]),
        start=config.invocation_params.dir,
    )
    if not problems:
        problems += settings.unjudged()
    refuse(problems)
    return settings


def refuse(problems: Sequence[str]) -> None:
    """Raise pytest.UsageError with every problem, where there is one. They may name a stranger's files and keys."""
    from pytest_deaddir.report.terminal import escaped

    if problems:
        raise pytest.UsageError(*("deaddir: " + "\n".join(map(escaped, text.splitlines())) for text in problems))


def resolve_spec(text: str, base: Path, level: Level | None) -> Spec:
    """The spec, if it can be audited at ``level`` with what is installed; nothing is opened. Raises SpecError."""
    from pytest_deaddir.api import check_level
    from pytest_deaddir.source.spec import parse_spec

    spec = parse_spec(text, base)
    check_level(spec, level or ("read" if spec.highest_level == "read" else "forward"))
    return spec


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
    return "".join("-" if c in "[]@\\" or c.isspace() or not c.isprintable() else c for c in text).replace("::", "-")
