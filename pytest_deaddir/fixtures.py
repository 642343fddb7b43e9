"""Fixtures for people's own tests. Their modules load what they need when a test asks."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_deaddir.options import DTYPES, GATE

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pytest_deaddir.discovery.probe import NormProbe
    from pytest_deaddir.session import State
    from pytest_deaddir.settings import Subject
    from pytest_deaddir.tables import Audit, Row

_SUBJECT = "deaddir_model"

#: Fixtures that visit the rows of a table, one in each test: the table, and the columns that the marker chooses them by.
_VISITORS = {"norm_site": ("norms", ("kind", "role", "stack")), "residual_block": ("blocks", ("stack",))}

#: What a marker may say as any text: a spec, paths of stacks, codes of rules or beginnings of them.
_TEXTS = ("model", "stack", "rules")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for an audit runs once per model, one that asks for a row of a table once per row of each."""
    if _SUBJECT not in metafunc.fixturenames:  # which all that need one ask for
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
    visitors = [name for name in _VISITORS if name in metafunc.fixturenames]
    if visitors:
        state.measurements.expect(subject.plan for subject in subjects.values())
    cases = []
    for label, subject in subjects.items():
        rows = {visitor: _rows(state, subject, visitor, wanted) for visitor in visitors}
        for chosen in itertools.product(*rows.values()):
            paths = [path for path, _ in chosen]
            name = "-".join(paths if visitors and len(subjects) == 1 else [label, *paths])
            cases.append(pytest.param(subject, *(place for _, place in chosen), id=name))
        if empty := [visitor for visitor in visitors if not rows[visitor]]:
            reason = (
                f"{label} has no {' and no '.join(empty)} as the deaddir marker wants it, at level {subject.plan.level}"
            )
            cases.append(
                pytest.param(subject, *[None] * len(visitors), id=label, marks=pytest.mark.skip(reason=reason))
            )
    metafunc.parametrize((_SUBJECT, *visitors), cases, indirect=True)


class _MarkerError(Exception):
    """A ``deaddir`` marker that says what cannot be."""


def _marker_arguments(node: Any) -> dict[str, Any]:
    """The keyword arguments of the ``deaddir`` markers, the closest winning."""
    from pytest_deaddir.tables import CHOICES

    among = {name: CHOICES[name] for name in ("level", "kind", "role")} | {"dtype": DTYPES}
    wanted: dict[str, Any] = {}
    for marker in node.iter_markers("deaddir"):
        if marker.args or marker.kwargs.keys() - {*_TEXTS, *among}:
            raise _MarkerError(f"the deaddir marker takes {', '.join((*_TEXTS, *among))}, by name")
        wanted = {**marker.kwargs, **wanted}
    if not isinstance(wanted.get("model", ""), str):
        raise _MarkerError(f"the deaddir marker's model must be a spec, not {wanted['model']!r}")
    for name in ("stack", "rules"):
        if not all(isinstance(value, str) for value in _listed(wanted.get(name, ""))):
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
            from pytest_deaddir.settings import Subject, plan_of

            how = state.settings.how
            plan = plan_of(text, config.rootpath, {**how, "level": wanted.get("level", how["level"])})
            found = {text.replace("::", "-"): Subject(text, plan, state.settings.rules)}
    else:
        found = state.settings.subjects or named
    return {label: _narrowed(subject, wanted) for label, subject in found.items()}


def _narrowed(subject: Subject, wanted: dict[str, Any]) -> Subject:
    """The subject as the marker wants it measured and judged."""
    how = {name: wanted[name] for name in ("level", "dtype") if name in wanted}
    if "rules" not in wanted:
        return replace(subject, plan=replace(subject.plan, **how))
    from pytest_deaddir.rules.select import no_such_rule, select

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


@pytest.fixture
def norm_site(request: pytest.FixtureRequest, deaddir_audit: Audit) -> Row:
    """One row of the table ``norms`` per test; the marker's ``kind``, ``role`` and ``stack`` choose which.

    ::

        @pytest.mark.deaddir(kind="rmsnorm")
        def test_scales_are_tame(norm_site):
            assert norm_site["gamma_max"] < 10
    """
    return deaddir_audit.norms[request.param]


@pytest.fixture
def residual_block(request: pytest.FixtureRequest, deaddir_audit: Audit) -> Row:
    """One row of the table ``blocks`` per test: the residual stream after one block; the marker's ``stack`` chooses.

    ::

        @pytest.mark.deaddir(level="forward")
        def test_the_stream_keeps_all_directions(residual_block):
            assert residual_block["dead_dimension"] == 0
    """
    return deaddir_audit.blocks[request.param]


@pytest.fixture
def deaddir_inputs(deaddir_model: Subject, request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """What the subject is fed at the level ``forward``: the arguments of each batch, on its device and in its dtype.

    ::

        def test_the_logits_are_finite(deaddir_inputs, my_model):
            for batch in deaddir_inputs:
                assert my_model(**batch).logits.isfinite().all()
    """
    from pytest_deaddir.errors import DeaddirError
    from pytest_deaddir.session import state_of

    try:
        batches = state_of(request.config).measurements.batches(deaddir_model.plan)
    except DeaddirError as error:
        problem = str(error)
    else:
        return [dict(batch) for batch in batches]
    pytest.fail(problem, pytrace=False)


@pytest.fixture(scope="session")
def deaddir_device(request: pytest.FixtureRequest) -> torch.device:
    """The torch device of ``--deaddir-device``; ``auto`` is the accelerator that is there, else the CPU.

    ::

        def test_my_kernel_on_the_device_of_the_run(deaddir_device):
            x = torch.randn(4, 64, device=deaddir_device)
    """
    from pytest_deaddir.errors import DeaddirError, require_torch
    from pytest_deaddir.session import state_of

    device = state_of(request.config).settings.how["device"]
    try:
        require_torch("deaddir_device")
        from pytest_deaddir.source.load import resolve_device

        return resolve_device(device)
    except DeaddirError as error:
        problem = str(error)
    pytest.fail(problem, pytrace=False)


@pytest.fixture(scope="session")
def norm_probe(request: pytest.FixtureRequest) -> Callable[..., NormProbe]:
    """:func:`pytest_deaddir.probe`, to screen a normalisation layer in a unit test.

    What the hook ``pytest_deaddir_probe_arguments`` gives for a layer is passed to it beside the tensor. ::

        def test_my_norm_subtracts_the_mean(norm_probe):
            found = norm_probe(MyNorm(64))
            assert found.kind == "layernorm", found.reason
    """
    from pytest_deaddir.api import probe

    def probe_with_arguments(
        module: nn.Module, features: int | None = None, shape: tuple[int, ...] | None = None, arguments: Any = None
    ) -> NormProbe:
        if arguments is None:
            arguments = request.config.hook.pytest_deaddir_probe_arguments(config=request.config, module=module)
        return probe(module, features, shape, arguments)

    return probe_with_arguments
