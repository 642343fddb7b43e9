"""Fixtures for people's own tests. Their modules load what they need when a test asks: pytest reads this file in every run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pytest_deaddir.discovery.probe import NormProbe
    from pytest_deaddir.plan import Subject
    from pytest_deaddir.tables import Audit, Row


@pytest.fixture
def deaddir_model(request: pytest.FixtureRequest) -> Subject:
    """The subject of a test: the one of ``@pytest.mark.deaddir(model=…)``, else every ``--deaddir-model`` in turn, else
    those of ``deaddir.toml``. Its ``spec.text`` is what was written, its ``plan`` how it is measured.
    """
    if not hasattr(request, "param"):  # pytest gives none to a unittest.TestCase, nor by request.getfixturevalue
        from pytest_deaddir.visits import only_subject

        return only_subject(request)
    subject: Subject = request.param
    return subject


def _place(request: pytest.FixtureRequest) -> int:
    """Which row a test visits."""
    if not hasattr(request, "param"):
        problem = (
            "visits one row in each test, which needs a parametrized test (no unittest.TestCase, no getfixturevalue)"
        )
        pytest.fail(f"{request.fixturename} {problem}: go through the rows of deaddir_audit instead", pytrace=False)
    place: int = request.param
    return place


@pytest.fixture
def deaddir_audit(deaddir_model: Subject, request: pytest.FixtureRequest) -> Audit:
    """The judged :class:`~pytest_deaddir.Audit` of the subject, measured once per session whoever asks first.

    ::

        def test_nothing_is_dead_in_bfloat16(deaddir_audit):
            assert all(norm["dead_coordinate_count"] == 0 for norm in deaddir_audit.norms)
    """
    import copy

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
    return deaddir_audit.norms[_place(request)]


@pytest.fixture
def residual_block(request: pytest.FixtureRequest, deaddir_audit: Audit) -> Row:
    """One row of the table ``blocks`` per test: the residual stream after one block; the marker's ``stack`` chooses.

    ::

        @pytest.mark.deaddir(level="forward")
        def test_the_stream_keeps_all_directions(residual_block):
            assert residual_block["dead_dimension"] == 0
    """
    return deaddir_audit.blocks[_place(request)]


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
