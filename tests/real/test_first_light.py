"""The figures that were measured by hand on these checkpoints, met by the code."""

import pytest

from pytest_deaddir import audit, read

DEAD = [127, 223, 319]


def final(audited):
    [norm] = [norm for norm in audited.norms if norm["role"] == "final"]
    return norm


def codes(audited):
    """Errors and warnings. (IgLM's file also holds the attention masks that old versions saved: DD009, information.)"""
    return [(finding["code"], finding["path"]) for finding in audited.findings if finding["severity"] != "info"]


def test_minilm_read_says_which_coordinates_are_dead(minilm):
    audited = read(minilm)
    norm = final(audited)
    assert norm["path"] == "encoder.layer.5.output.LayerNorm"
    assert norm["predicted_dead_coordinates"] == DEAD
    assert norm["predicted_dead_dimension"] == 3
    assert norm["predicted_dead_by_dtype"] == {
        "float32": 3,
        "bfloat16": 3,
        "float16": 3,
    }  # underflown there: k, not k + 1
    sigma = norm["predicted_bottom"]
    assert sigma[0] == 0
    assert sigma[1:] == pytest.approx([5.4e-33, 1.2e-9, 0.056], rel=0.03)
    others = [other for other in audited.norms if other is not norm]
    assert len(others) == 12
    assert all(other["gamma_min"] > 0.14 and other["predicted_dead_dimension"] == 1 for other in others)
    assert (norm["gamma_file"], norm["gamma_dtype"]) == ("model.safetensors", "F32")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_minilm_is_aligned_with_a_subspace_where_one_vector_is_not(minilm, dtype):
    audited = audit(minilm, dtype=dtype)
    norm = final(audited)
    assert norm["alignment"] >= 0.9999
    assert norm["bottom_singular_values"][2] == pytest.approx(2.2e-10, rel=0.5)
    assert 5e-3 < norm["bottom_singular_values"][3] < 5e-2
    assert norm["noise_ratio"] <= 64
    assert not audited.checks["failed"]
    assert audited.model["inputs_source"] == "own"
    if dtype == "float32":
        assert norm["dead_dimension"] == 3
        assert codes(audited) == [("DD002", "encoder.layer.5.output.LayerNorm"), ("DD301", "encoder.layer.5")]


def test_minilm_in_float16_has_scales_that_underflow(minilm):
    audited = audit(minilm, dtype="float16", samples=500)
    norm = final(audited)
    assert norm["gamma_min"] == 0
    assert norm["alignment"] >= 0.9999
    assert norm["alignment_bottom"] is None  # there is no γ⁻¹
    assert norm["dead_dimension"] == 3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_iglm_passes(iglm_small, dtype):
    audited = audit(iglm_small, dtype=dtype)
    assert codes(audited) == []
    assert audited.checks["failed"] == audited.checks["warned"] == 0
    limits = {"float32": (1, 30), "bfloat16": (0.05, 1), "float16": (0.05, 1)}[dtype]
    assert limits[0] < final(audited)["noise_ratio"] < limits[1]
    assert audited.model["inputs_source"] == "synthetic"


def test_the_larger_iglm_passes_from_a_pickle(iglm):
    audited = audit(iglm)
    norm = final(audited)
    assert codes(audited) == []
    assert norm["path"] == "transformer.ln_f"
    assert norm["eigenvalue_relative"] == pytest.approx(2.2e-16, rel=0.5)
    assert norm["gamma_file"] == "pytorch_model.bin"


def test_smollm2_has_no_kernel_and_keeps_its_stream_through_thirty_blocks(smollm2):
    audited = audit(smollm2, samples=1200)
    norm = final(audited)
    assert norm["kind"] == "rmsnorm"
    assert norm["noise_ratio"] > 1e12
    assert norm["dead_dimension"] == 0
    assert audited.model["normalisation"] == "rmsnorm"
    assert [code for code, _ in codes(audited)] == ["DD901"]  # 1200 rows for a width of 576, to save time here
    _, first, *others = audited.blocks
    assert first["readable"]  # before it, 1200 tokens of text need not span 576 dimensions
    assert len(others) == 29
    assert all(row["readable"] and row["smin_ratio"] > 0.2 for row in others)
