"""Fixtures for people's own tests. Their modules load what they need when a test asks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_deaddir.options import GATE

if TYPE_CHECKING:
    from pytest_deaddir.discovery.probe import NormProbe
    from pytest_deaddir.session import State
    from pytest_deaddir.settings import Subject
    from pytest_deaddir.tables import Audit, Level, Row

_OURS = {"deaddir_model", "deaddir_audit", "norm_site"}


#: What a marker may say; ``model`` may be any text.
_CHOICES = {
    "kind": ("layernorm", "rmsnorm", "undecided"),
    "role": ("final", "block", "qk", "embedding", "pooler", "other"),
    "level": ("read", "forward", "full"),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for an audit runs once per model, one that asks for ``norm_site`` once per norm of each."""
    if not _OURS & set(metafunc.fixturenames):
        return
    from pytest_deaddir.errors import DeaddirError
    from pytest_deaddir.gate import GateError

    try:
        _parametrize(metafunc)
    except (DeaddirError, _MarkerError, GateError) as error:
        problem = f"{metafunc.definition.nodeid}: {error}"
    else:
        return
    raise pytest.Collector.CollectError(problem)


def _parametrize(metafunc: pytest.Metafunc) -> None:
    from pytest_deaddir.session import state_of

    wanted = _marker_arguments(metafunc.definition)
    state = state_of(metafunc.config)
    subjects = _subjects(state, metafunc.config, wanted)
    if "norm_site" not in metafunc.fixturenames:
        metafunc.parametrize("deaddir_model", list(subjects.values()), ids=list(subjects), indirect=True)
        return
    state.measurements.expect(subject.plan for subject in subjects.values())
    cases = []
    for label, subject in subjects.items():
        for path in _site_paths(state, subject, wanted):
            name = path if len(subjects) == 1 else f"{label}-{path}"
            cases.append(pytest.param(subject, path, id=name))
    metafunc.parametrize(("deaddir_model", "norm_site"), cases, indirect=True)


class _MarkerError(Exception):
    """A ``deaddir`` marker that says what cannot be."""


def _marker_arguments(node: Any) -> dict[str, Any]:
    """The keyword arguments of the ``deaddir`` markers, the closest winning."""
    wanted: dict[str, Any] = {}
    for marker in node.iter_markers("deaddir"):
        if marker.args or marker.kwargs.keys() - {"model", *_CHOICES}:
            raise _MarkerError("the deaddir marker takes model, kind, role and level by name")
        wanted = {**marker.kwargs, **wanted}
    if not isinstance(wanted.get("model", ""), str):
        raise _MarkerError(f"the deaddir marker's model must be a spec, not {wanted['model']!r}")
    for name, choices in _CHOICES.items():
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
            from pytest_deaddir.settings import Subject, plan_of

            how = state.settings.how
            plan = plan_of(text, config.rootpath, {**how, "level": wanted.get("level", how["level"])})
            found = {text.replace("::", "-"): Subject(text, plan, state.settings.rules)}
    else:
        found = state.settings.subjects or named
    level = wanted.get("level")
    return {label: _at(subject, level) if level else subject for label, subject in found.items()}


def _at(subject: Subject, level: Level) -> Subject:
    return replace(subject, plan=replace(subject.plan, level=level))


def _site_paths(state: State, subject: Subject, wanted: dict[str, Any]) -> Iterator[str]:
    """The norms that a ``norm_site`` test visits. An audit is needed to know them, so it is made now, and kept."""
    audit = state.measurements.audit(subject.plan)
    for norm in audit.norms:
        if all(norm[column] in _listed(wanted[column]) for column in ("kind", "role") if column in wanted):
            yield norm["path"]


def _listed(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (list, tuple, set)) else (value,)


@pytest.fixture
def deaddir_model(request: pytest.FixtureRequest) -> Subject:
    """The subject of a test: the one of ``@pytest.mark.deaddir(model=…)``, else every ``--deaddir-model`` in turn, else
    those of ``deaddir.toml``. Its ``spec.text`` is what was written, its ``plan`` how it is measured.
    """
    subject: Subject = request.param
    return subject


@pytest.fixture
def deaddir_audit(deaddir_model: Subject, request: pytest.FixtureRequest) -> Audit:
    """The judged :class:`~pytest_deaddir.Audit` of the subject, measured once per session whoever asks first.

    ::

        def test_nothing_is_dead_in_bfloat16(deaddir_audit):
            assert all(norm["dead_coordinate_count"] == 0 for norm in deaddir_audit.norms)
    """
    from pytest_deaddir.errors import DeaddirError
    from pytest_deaddir.rules import judge
    from pytest_deaddir.session import state_of

    state = state_of(request.config)
    try:
        audit = state.measurements.audit(deaddir_model.plan)
    except DeaddirError as error:
        problem = str(error)
    else:  # a copy: what one test does to it must not reach the next, nor the report
        return judge(copy.deepcopy(audit), deaddir_model.rules.chosen, deaddir_model.rules.fail_on)
    pytest.fail(problem, pytrace=False)


@pytest.fixture(scope="session")
def norm_probe() -> Callable[..., NormProbe]:
    """:func:`pytest_deaddir.probe`, to screen a normalisation layer in a unit test.

    ::

        def test_my_norm_subtracts_the_mean(norm_probe):
            found = norm_probe(MyNorm(64))
            assert found.kind == "layernorm", found.reason
    """
    from pytest_deaddir.api import probe

    return probe


@pytest.fixture
def norm_site(request: pytest.FixtureRequest, deaddir_audit: Audit) -> Row:
    """One row of the table ``norms`` per test; the marker's ``kind`` and ``role`` choose which.

    ::

        @pytest.mark.deaddir(kind="rmsnorm")
        def test_scales_are_tame(norm_site):
            assert norm_site["gamma_max"] < 10
    """
    return next(norm for norm in deaddir_audit.norms if norm["path"] == request.param)
