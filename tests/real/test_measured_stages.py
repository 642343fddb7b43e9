"""The residual stream and the twin on trained checkpoints, against the figures measured by hand."""

import pytest

from pytest_deaddir import audit


def codes(audited):
    return [finding["code"] for finding in audited.findings if finding["severity"] != "info"]


def test_minilms_stream_collapses_in_its_last_block_and_is_pinned_to_its_norm(minilm):
    audited = audit(minilm, samples=6000)
    before, *blocks = audited.blocks
    assert before["deflated"] == "the kernel of embeddings.LayerNorm"
    sigma = [row["sigma_min"] for row in [before, *blocks[:-1]]]
    assert sigma == pytest.approx([0.06, 0.06, 0.09, 0.10, 0.10, 0.07], rel=0.35)
    last = blocks[-1]
    assert last["sigma_min"] < 3e-9
    assert (last["readable"], last["dead_dimension"]) == (False, 2)  # beside the kernel
    assert last["pinpoint_site"] == "encoder.layer.5.output.LayerNorm"
    assert last["pinpoint_coordinates"] == [127, 223, 319]
    assert last["pinpoint_overlap"] == pytest.approx(1, abs=1e-3)
    assert [f["path"] for f in audited.findings if f["code"] == "DD301"] == ["encoder.layer.5"]
    others = [norm for norm in audited.norms if norm["role"] != "final"]
    assert len(others) == 12
    assert all(norm["noise_excess"] < 64 and norm["alignment"] > 0.9999 for norm in others)


def test_iglms_inputs_are_rank_deficient_and_its_kernel_deepened(iglm):
    audited = audit(iglm, level="full")
    before, *blocks = audited.blocks
    assert "the inputs span" in before["inconclusive"]
    assert 33 <= 512 - before["dead_dimension"] < 512
    assert blocks[0]["smin_ratio"] is None
    assert all(row["readable"] for row in blocks)
    assert codes(audited) == []
    assert audited.model["depth"] == pytest.approx(1.3, abs=0.5)
    assert all(norm["twin_alignment"] > 0.9999 and norm["dead_directions_opened"] == 0 for norm in audited.norms)


def test_iglms_redundant_parameters_and_what_moving_them_does(iglm):
    audited = audit(iglm, level="full", dtype="float64", samples=600)
    inner = [norm for norm in audited.norms if norm["role"] == "block"]
    assert len(inner) == 8
    assert all(norm["invariance_error"] <= 1e-13 and norm["random_change"] >= 0.1 for norm in inner)
    assert all(norm["fisher_dead"] < 1e-20 < 1e-4 < norm["fisher_random"] for norm in inner)
    # one direction for each output of c_attn and c_fc in four blocks; the head is tied to the embedding
    assert audited.model["redundant_parameters"] == 4 * (3 * 512 + 2048)


def test_training_opened_two_more_dead_directions_in_minilm(minilm):
    audited = audit(minilm, level="full", samples=800)
    [final] = [norm for norm in audited.norms if norm["role"] == "final"]
    assert (final["twin_dead_dimension"], final["dead_directions_opened"]) == (1, 2)
