"""What is audited and how, as plain values: a Subject is one model with its Plan, its rules and its baseline."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_deaddir.errors import DeaddirError, ModelError
from pytest_deaddir.tables import LEVELS, Audit, Level

if TYPE_CHECKING:
    from pytest_deaddir.report.reading import Stored
    from pytest_deaddir.rules import Rule
    from pytest_deaddir.rules.suppress import Suppression
    from pytest_deaddir.source.spec import Spec


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
    def how(self) -> dict[str, Any]:
        """How it is measured: the arguments of :func:`pytest_deaddir.api.measure` beside the spec and the inputs."""
        others = ("spec", "inputs", "baseline", "stored")
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in others}

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
    ``options``: what chose them, name and value, for another command line; ``own``: those chosen where the command line
    says nothing."""

    loaded: list[Rule]
    chosen: list[Rule]
    fail_on: str
    options: tuple[tuple[str, str], ...]
    own: Sequence[Rule] = ()

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
        return self.rules.at(self.plan.level, self._compared)

    @property
    def expected(self) -> list[Rule]:
        """The rules that it is judged by where the command line leaves none out."""
        return [rule for rule in self.rules.own if rule.applies_at(self.plan.level, self._compared)]

    @property
    def _compared(self) -> bool:
        compared = self.plan.baseline is not None and self.plan.baseline.compares
        earlier = None if self.plan.stored is None else self.plan.stored.audit
        return compared or (earlier is not None and earlier.model["baseline"] is not None)

    @property
    def unjudged(self) -> str | None:
        """Why none of the chosen rules can judge this model, so that it would pass without being judged; None if one can."""
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


@dataclass(frozen=True, eq=False)
class Baseline:
    """What one model is compared with.

    ``written``: as another command line would say it. ``plan``: of another model, which ``rules`` judge as they do this
    one. Else ``file``, with all the audits ``held`` in it and the ``number`` of this model's, None where it is still to be
    written. ``update``: one of :data:`~pytest_deaddir.baseline.UPDATES`, None where the file stays as it is.
    """

    written: str
    plan: Plan | None = None
    rules: Sequence[Rule] = ()
    file: Path | None = None
    held: tuple[Audit, ...] = ()
    number: int | None = None
    update: str | None = None

    @property
    def compares(self) -> bool:
        """Whether there is something to compare with."""
        return self.plan is not None or self.number is not None

    @property
    def takes_all(self) -> bool:
        """Whether new findings are accepted into the file, so that they fail no check."""
        return self.update == "all"

    def beside(self, audit: Audit, measure: Callable[[Plan], Audit]) -> Audit:
        """The audit with the columns of the comparison. ``measure``: audits another model.

        Raises ModelError where that fails.
        """
        if not self.compares:
            return audit
        from pytest_deaddir.rules import judge
        from pytest_deaddir.stages.compare import compare

        if self.number is not None:
            return compare(audit, self.held[self.number])
        assert self.plan is not None
        try:
            other = measure(self.plan)
        except DeaddirError as error:
            raise ModelError(f"the baseline {self.written}: {error}") from error
        return compare(audit, judge(other, self.rules))


def command(words: Sequence[str]) -> str:
    """A command line to copy. What does something to a terminal or a log is written as a shell's $'…' takes it."""

    def quoted(word: str) -> str:
        if word.isprintable():
            return shlex.quote(word)
        safe = (c if c.isprintable() else f"\\U{ord(c):08x}" for c in re.sub(r"(['\\])", r"\\\1", word))
        return f"$'{''.join(safe)}'"

    return " ".join(map(quoted, words))
