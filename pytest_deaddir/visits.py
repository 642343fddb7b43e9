"""Which models and rows a test visits: what its marker, the options and the gate file say, as pytest's parameters."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_deaddir.errors import DeaddirError
from pytest_deaddir.gate import GateError
from pytest_deaddir.options import DTYPES, GATE
from pytest_deaddir.plan import Subject
from pytest_deaddir.rules.select import no_such_rule, select
from pytest_deaddir.session import state_of
from pytest_deaddir.settings import plan_of, same_subject
from pytest_deaddir.tables import CHOICES

if TYPE_CHECKING:
    from pytest_deaddir.session import State

#: Fixtures that visit the rows of a table, one in each test: the table, and the columns that the marker chooses them by.
_VISITORS = {"norm_site": ("norms", ("kind", "role", "stack")), "residual_block": ("blocks", ("stack",))}

#: Arguments of the marker that may be any text: a spec, paths of stacks, codes of rules or beginnings of codes.
_TEXTS = ("model", "stack", "rules")


def parametrize(metafunc: pytest.Metafunc) -> None:
    """The test runs once per model, and once per row of each where it asks for rows.

    Where an audit that is needed to know the rows ends in an error, the test runs once for that model, and fails with it.

    Raises:
        pytest.Collector.CollectError: the marker or the gate file says what cannot be.
    """
    try:
        _parametrize(metafunc)
    except (DeaddirError, _MarkerError, GateError) as error:
        problem = f"{metafunc.definition.nodeid}: {error}"
    else:
        return
    raise pytest.Collector.CollectError(problem)


def _parametrize(metafunc: pytest.Metafunc) -> None:
    wanted = _marker_arguments(metafunc.definition)
    state = state_of(metafunc.config)
    subjects = _subjects(state, metafunc.config, wanted)
    visitors = [name for name in _VISITORS if name in metafunc.fixturenames]
    if visitors:
        state.measurements.expect(subject.plan for subject in subjects.values())
    cases = []
    for label, subject in subjects.items():
        try:
            rows = {visitor: _rows(state, subject, visitor, wanted) for visitor in visitors}
        except DeaddirError:  # which deaddir_audit fails with: the other models are none the worse
            cases.append(pytest.param(subject, *[None] * len(visitors), id=label))
            continue
        turns: Counter[str] = Counter()
        for chosen in itertools.product(*rows.values()):
            paths = [path for path, _ in chosen]
            name = "-".join(paths if visitors and len(subjects) == 1 else [label, *paths])
            turns[name] += 1
            if turns[name] > 1:  # a layer that runs several times is several blocks
                name += f"-{turns[name]}"
            cases.append(pytest.param(subject, *(place for _, place in chosen), id=name))
        if empty := [visitor for visitor in visitors if not rows[visitor]]:
            reason = (
                f"{label} has no {' and no '.join(empty)} as the deaddir marker wants it, at level {subject.plan.level}"
            )
            cases.append(
                pytest.param(subject, *[None] * len(visitors), id=label, marks=pytest.mark.skip(reason=reason))
            )
    if not cases:
        cases = [pytest.param(*[None] * (1 + len(visitors)), id="no-model", marks=pytest.mark.skip(reason=NO_MODEL))]
    metafunc.parametrize(("deaddir_model", *visitors), cases, indirect=True)


def only_subject(request: pytest.FixtureRequest) -> Subject:
    """The subject of a test that has no parameters, where there is no choice."""
    try:
        wanted = _marker_arguments(request.node)
        subjects = list(_subjects(state_of(request.config), request.config, wanted).values())
    except (DeaddirError, _MarkerError, GateError) as error:
        problem = str(error)
    else:
        if len(subjects) == 1:
            return subjects[0]
        problem = f"it is one of {len(subjects)} models here: say which with @pytest.mark.deaddir(model=…)"
        problem = problem if subjects else NO_MODEL
    pytest.fail(f"deaddir_model: {problem}", pytrace=False)


#: Why a test without a model does not run.
NO_MODEL = f"no model to audit: give --deaddir-model=SPEC, or name it in {GATE} or in the deaddir marker"


class _MarkerError(Exception):
    """A ``deaddir`` marker that says what cannot be."""


def _marker_arguments(node: Any) -> dict[str, Any]:
    """The keyword arguments of the ``deaddir`` markers, the closest winning."""
    among = {name: CHOICES[name] for name in ("level", "kind", "role")} | {"dtype": DTYPES}
    wanted: dict[str, Any] = {}
    for marker in node.iter_markers("deaddir"):
        if marker.args or marker.kwargs.keys() - {*_TEXTS, *among}:
            raise _MarkerError(f"the deaddir marker takes {', '.join((*_TEXTS, *among))}, by name")
        wanted = {**marker.kwargs, **wanted}
    wanted = {name: value for name, value in wanted.items() if value is not None}
    if not isinstance(wanted.get("model", ""), str):
        raise _MarkerError(f"the deaddir marker's model must be a spec, not {wanted['model']!r}")
    for name in ("level", "dtype"):
        if not isinstance(wanted.get(name, ""), str):
            raise _MarkerError(
                f"the deaddir marker's {name} must be one of {', '.join(among[name])}, not {wanted[name]!r}"
            )
    for name in ("stack", "rules"):
        values = _listed(wanted.get(name, ""))
        if not values or not all(isinstance(value, str) for value in values):
            raise _MarkerError(f"the deaddir marker's {name} must be text or a list of it, not {wanted[name]!r}")
    for name, choices in among.items():
        for value in _listed(wanted.get(name, choices)):
            if value not in choices:
                raise _MarkerError(f"the deaddir marker's {name} {value!r} is not one of {', '.join(choices)}")
    return wanted


def _subjects(state: State, config: pytest.Config, wanted: dict[str, Any]) -> dict[str, Subject]:
    """The subjects that a test visits, by their short names: those of the marker, else of the options, else of the gate
    file in pytest's root."""
    gate = config.rootpath / GATE
    gated = state.gate(gate) if gate.exists() else []
    named = {subject.label.rpartition("::")[2]: subject for subject in gated}
    if "model" in wanted:
        text = wanted["model"]
        if text in named:
            found = {text: named[text]}
        else:
            how = state.settings.how
            plan = plan_of(text, config.rootpath, {**how, "level": wanted.get("level", how["level"])})
            same = [one for one in state.settings.subjects.values() if same_subject(one.spec, plan.spec)]
            if same:  # however it is written there: it is measured once
                plan = replace(plan, spec=same[0].spec)
            found = {text.replace("::", "-"): Subject(text, plan, state.settings.rules)}
    else:
        found = state.settings.subjects or named
    return {label: _narrowed(subject, wanted) for label, subject in found.items()}


def _narrowed(subject: Subject, wanted: dict[str, Any]) -> Subject:
    """The subject as the marker wants it measured and judged."""
    how = {name: wanted[name] for name in ("level", "dtype") if name in wanted}
    if "rules" not in wanted:
        return replace(subject, plan=replace(subject.plan, **how))
    loaded = subject.rules.loaded
    entries = [entry.strip() for text in _listed(wanted["rules"]) for entry in text.split(",")]
    if unknown := [problem for entry in entries if (problem := no_such_rule(entry, loaded))]:
        raise _MarkerError(f"the deaddir marker's rules: {'; '.join(unknown)}")
    rules = replace(subject.rules, chosen=select(loaded, entries, [], []))
    return replace(subject, plan=replace(subject.plan, **how), rules=rules)


def _rows(state: State, subject: Subject, visitor: str, wanted: dict[str, Any]) -> list[tuple[str, int]]:
    """Path and place of each row that a test visits. An audit is needed to know them, so it is made now, and kept."""
    table, columns = _VISITORS[visitor]
    return [
        (row["path"], place)
        for place, row in enumerate(state.measurements.audit(subject.plan).table(table))
        if row.get("index") != -1  # the stream before a first block, which no block gave
        and all(row[column] in _listed(wanted[column]) for column in columns if column in wanted)
    ]


def _listed(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (list, tuple, set)) else (value,)
