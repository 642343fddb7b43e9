"""What this repository's own tests say of its rules and its models."""

import pytest
from acme import one_coordinate_carries_the_kernel

from pytest_deaddir import check_rule


def test_a_kernel_in_few_coordinates_is_a_finding():
    row = {"kind": "layernorm", "features": 128, "path": "h.0.ln_1"}
    rows = [
        row | {"participation_ratio": 12.7},
        row | {"participation_ratio": 12.8},
        row | {"kind": "rmsnorm", "participation_ratio": 1.0},
    ]
    found = [checked.outcome for checked in check_rule(one_coordinate_carries_the_kernel, rows)]
    assert found == ["finding", "pass", "pass"]


@pytest.mark.deaddir(role="final")
def test_the_last_scale_is_tame(norm_site):
    assert norm_site["gamma_max"] < 10
