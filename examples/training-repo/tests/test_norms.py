"""What the norms and the residual stream of a fresh model must be, with the fixtures of pytest-deaddir."""

import pytest

from tinylm.model import FastNorm


def test_our_norm_is_a_layernorm(norm_probe):
    found = norm_probe(FastNorm(64))
    assert found.kind == "layernorm", found.reason


@pytest.mark.deaddir(kind="layernorm", dtype="bfloat16")
def test_its_kernel_is_dead_in_the_dtype_of_training(norm_site):
    assert norm_site["noise_excess"] < 64


def test_no_block_loses_a_direction(residual_block):
    assert residual_block["dead_dimension"] == 0


def test_the_model_is_what_we_think_it_is(deaddir_audit):
    assert deaddir_audit.model["final_norm"] == "norm"
    assert len(deaddir_audit.norms) == 7
