"""The command line and ini options, and what they come to: Settings, checked before anything is loaded."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_deaddir.rules import Rule
    from pytest_deaddir.source.spec import Spec
    from pytest_deaddir.tables import Level

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("float64", "float32", "bfloat16", "float16")
SOLVERS = ("inverse", "svd")
#: --deaddir-report's suffixes.
FORMATS = (".json",)


def add_options(parser: pytest.Parser) -> None:
    """Every option, each with an ini twin of the same name (deaddir_level for --deaddir-level)."""
    group = parser.getgroup("deaddir", "audit of transformer checkpoints (pytest-deaddir)")

    def add(name: str, metavar: str | None, text: str, ini: Any = "string", action: str = "store") -> None:
        extra = {} if metavar is None else {"metavar": metavar}
        twin = f"deaddir_{name}".replace("-", "_")
        group.addoption(f"--deaddir-{name}", dest=twin, default=None, action=action, help=text, **extra)
        parser.addini(twin, f"{text} (the option's default)", type=ini, default=None)

    add(
        "model",
        "SPEC",
        "Audit SPEC: a checkpoint's path, random:TYPE?…, module:factory, org/name. Repeatable.",
        "linelist",
        "append",
    )
    add("level", "LEVEL", "How far to look: read (parameters only), forward (one pass; the default), full.")
    add("device", "DEVICE", f"Where the model runs: {', '.join(DEVICES)}.")
    add("dtype", "DTYPE", f"What the model runs in: auto (its own), {', '.join(DTYPES)}.")
    add("sites", "SITES", "Which norms to look at: all, final (default: all; at the level read on a hub final).")
    add("solver", "SOLVER", "Of the measured spectra: inverse (the default), svd (full decompositions).")
    add("inputs", "PATH", "What to feed the model: text, .jsonl, tables, images, .wav, .npz (default: English text).")
    add("samples", "N", "Rows of activations to measure (default: 4 for each dimension of the width).")
    add("batch-size", "N", "Sequences of one forward pass (default: as many as make about 2000 rows).")
    add("rules", "PATH", "Rule file or folder, beside the shipped rules. Repeatable.", "linelist", "append")
    add("report", "PATH", "Write the audit to PATH (.json). Repeatable.", "linelist", "append")
    add("only", None, "Run the audit and none of the other tests.", "bool", "store_true")


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
    rules: tuple[Rule, ...]
    rule_paths: tuple[Path, ...]
    reports: tuple[Path, ...]
    only: bool
    start: Path

    def level_of(self, spec: Spec) -> Level:
        """The level asked for; where none was, forward, or read for a bare file, which cannot do more."""
        return self.level or ("read" if spec.highest_level == "read" else "forward")

    def rules_at(self, level: Level) -> list[Rule]:
        """The rules that an audit at ``level`` can answer."""
        return [rule for rule in self.rules if rule.applies_at(level)]

    def rerun(self, spec: Spec, code: str) -> str:
        """The command line that runs one check again."""
        text = spec.text
        if spec.path is not None and (self.start / text).resolve() != spec.path.resolve():  # relative to an ini-file
            text = str(spec.path.resolve())
        options: list[tuple[str, Any]] = [("model", text)]
        options += [(name, getattr(self, name)) for name in ("level", "sites", "solver", "dtype", "inputs", "samples")]
        options += [("batch-size", self.batch_size), ("device", None if self.device == "auto" else self.device)]
        options += [("rules", path) for path in self.rule_paths]
        given = [f"--deaddir-{name}={value}" for name, value in options if value is not None]
        return shlex.join(["pytest", "--deaddir-only", "-k", f"only:{code}", *given])


def read_settings(config: pytest.Config) -> Settings:
    """The options and their ini twins, checked. Raises pytest.UsageError (exit 4) with every problem at once."""
    from pytest_deaddir.errors import RuleError, SpecError
    from pytest_deaddir.rules import load_rules, shipped_rules
    from pytest_deaddir.tables import LEVELS

    problems: list[str] = []
    base = config.inipath.parent if config.inipath else config.rootpath

    def value(name: str) -> tuple[Any, Path]:
        """An option, else its ini twin, and the folder that its relative paths start at."""
        twin = f"deaddir_{name}".replace("-", "_")
        given = config.getoption(twin)
        if given is not None:
            return given, config.invocation_params.dir
        return config.getini(twin) or None, base

    def one_of(name: str, allowed: Sequence[str]) -> Any:
        given = value(name)[0]
        if given is not None and given not in allowed:
            problems.append(f"--deaddir-{name} {given}: not one of {', '.join(allowed)}")
            return None
        return given

    def number(name: str) -> int | None:
        given = value(name)[0]
        if given is not None and not (str(given).isdecimal() and int(given) > 0):
            problems.append(f"--deaddir-{name} {given}: not a positive whole number")
            return None
        return None if given is None else int(given)

    def paths(name: str) -> list[Path]:
        given, start = value(name)
        return [start / path for path in given or ()]

    level = one_of("level", LEVELS)
    device = one_of("device", DEVICES) or "auto"
    dtype = one_of("dtype", ("auto", *DTYPES))
    sites = one_of("sites", ("all", "final"))
    solver = one_of("solver", SOLVERS)

    samples, batch_size = number("samples"), number("batch-size")
    inputs = None
    given, start = value("inputs")
    if given is not None:
        inputs = start / given
        if not os.path.exists(inputs):  # noqa: PTH110, since Path.exists raises for what cannot be a path
            problems.append(f"--deaddir-inputs {given}: no such file or folder")

    reports = paths("report")
    for report in reports:
        if report.suffix not in FORMATS:
            problems.append(f"--deaddir-report {report.name}: the suffix must be {' or '.join(FORMATS)}")
        elif report.is_dir():
            problems.append(f"--deaddir-report {report}: is a folder")
        elif not report.parent.is_dir():
            problems.append(f"--deaddir-report {report}: no such folder")

    rules: list[Rule] = []
    rule_paths = paths("rules")
    try:
        rules = load_rules([shipped_rules(), *rule_paths])
    except RuleError as error:
        problems.append(str(error))

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
    if problems:
        raise pytest.UsageError(*(f"deaddir: {problem}" for problem in problems))
    return Settings(
        models=models,
        level=level,
        sites=sites,
        solver=solver,
        device=device,
        dtype=None if dtype == "auto" else dtype,
        inputs=inputs,
        samples=samples,
        batch_size=batch_size,
        rules=tuple(rules),
        rule_paths=tuple(rule_paths),
        reports=tuple(reports),
        only=bool(value("only")[0]),
        start=config.invocation_params.dir,
    )


def in_one_word(config: pytest.Config, parser: pytest.Parser) -> list[str] | None:
    """The command line to start again with, where pytest took an option's value for the place of the user's project.

    pytest looks for its ini-file and its root beside every path-like word of the command line, and at that moment it does
    not know a plugin's options: with ``--deaddir-model DIR``, DIR/pytest.ini of a stranger's checkpoint becomes the
    configuration (its addopts can name a file to run) and DIR gets a .pytest_cache. ``--deaddir-model=DIR`` is no such
    word. None where the configuration is above the working directory or a word that is a test's path, as it should be.
    """
    raw = [str(word) for word in config.invocation_params.args]
    here = config.invocation_params.dir
    known, _ = parser.parse_known_and_unknown_args(raw)
    if known.inifilename is not None or known.rootdir is not None:
        return None
    meant = [here, *(here / word.split("::")[0] for word in known.file_or_dir)]
    found = config.rootpath if config.inipath is None else config.inipath.parent
    if any(_lies_in(path, found) for path in meant):
        return None
    if any(word.startswith("-p") for word in config.getini("addopts")):  # pytest has imported that plugin already
        raise pytest.UsageError(
            f"deaddir: refused: pytest began with the configuration in {found}, whose addopts load a plugin; "
            "write options and values in one word, --deaddir-model=PATH"
        )
    joined: list[str] = []
    words = iter(raw)
    for word in words:
        value = next(words, None) if word in _VALUED else None
        joined.append(word if value is None else f"{word}={value}")
    return None if joined == raw else joined


_VALUED = tuple(f"--deaddir-{name}" for name in ("model", "inputs", "rules", "report"))


def _lies_in(path: Path, folder: Path) -> bool:
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError):  # a word too long for a path, or with a NUL in it, lies nowhere
        return False


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
