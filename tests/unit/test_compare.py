"""Audits beside each other: rows by hand, an audit beside itself, and trained models with one planted defect each."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_deaddir import Audit, audit
from pytest_deaddir.report.reading import read_report
from pytest_deaddir.rules import judge, load_rules, shipped_rules
from pytest_deaddir.stages.compare import compare
from pytest_deaddir.tables import COMPARED, row

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny-gpt2"
RULES = load_rules([shipped_rules()])


def norm(path, role="block", stack="h", kind="layernorm", **values):
    """A healthy norm of width 16 that was measured in float32."""
    by_dtype = {"float32": 1, "bfloat16": 1, "float16": 1}
    facts = {"features": 16, "gamma_source": "file", "gamma_median": 1.0, "gamma_max": 2.0, "dtype": "float32"}
    measured = {"samples": 64, "unmeasured": "", "inconclusive": "", "dead_dimension": 1}
    facts |= measured | {"predicted_dead_by_dtype": by_dtype, "role": role, "kind": kind}
    return row("norms", path=path, stack=stack if role == "block" else None, **facts | values)


def block(index, stack="h", **values):
    facts = {"samples": 64, "dtype": "float32", "unmeasured": "", "inconclusive": "", "dead_dimension": 0}
    facts |= {"sigma_min": 0.1, "sigma_median": 1.0, "readable": True, "deflated_dimension": 0}
    return row("blocks", stack=stack, index=index, path=f"{stack}.{index}", **facts | values)


def audit_of(norms, blocks=(), level="forward", findings=(), **values):
    facts = {"dtype": "float32", "inputs": "text", "inputs_source": "own", "samples": 64}
    model = row("model", spec="m", level=level, **facts | values)
    return Audit(model, list(norms), list(blocks), list(findings))


HEALTHY = [norm("h.0.ln_1"), norm("h.0.ln_2"), norm("h.1.ln_1"), norm("ln_f", "final")]
STREAM = [block(-1), block(0), block(1)]


def compared_codes(result):
    """The findings of the rules that compare, of an audit that was compared."""
    codes = {rule.code for rule in RULES if rule.compares}
    return [(f["code"], f["path"]) for f in judge(result, RULES).findings if f["code"] in codes]


# --- which rows belong together ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ours", "theirs"), [("", ""), ("model.", ""), ("", "model."), ("bert.", "model.bert.")])
def test_norms_are_matched_under_one_prefix_whatever_else_is_there(ours, theirs):
    here = [norm(ours + n["path"]) for n in HEALTHY] + [norm("cls.norm", "other")]
    there = [norm(theirs + n["path"]) for n in HEALTHY]
    result = compare(audit_of(here), audit_of(there))
    assert [n["baseline_path"] for n in result.norms] == [*(n["path"] for n in there), None]
    assert result.model["lost_sites"] == []
    assert result.model["new_sites"] == ["cls.norm"]
    assert result.model["not_compared"] == ["cls.norm: not among the baseline's norms"]


def test_where_the_names_tell_nothing_block_and_scale_do():
    theirs = [
        norm("model.layers.0.input_layernorm", stack="model.layers", gamma_median=0.1),
        norm("model.layers.0.post_layernorm", stack="model.layers", gamma_median=0.7),
        norm("model.layers.1.input_layernorm", stack="model.layers", gamma_median=0.7),
        norm("model.norm", "final"),
    ]
    ours = [
        norm("blk.0.attn_norm", stack="blk", gamma_median=0.7003),
        norm("blk.0.zzz_norm", stack="blk", gamma_median=0.1001),
        norm("blk.1.attn_norm", stack="blk", gamma_median=0.7),
        norm("output_norm", "final"),
    ]
    result = compare(audit_of(ours), audit_of(theirs))
    assert [n["baseline_path"] for n in result.norms] == [
        "model.layers.0.post_layernorm",
        "model.layers.0.input_layernorm",
        "model.layers.1.input_layernorm",
        "model.norm",
    ]
    ours[1]["gamma_median"] = 0.5  # the scales are others: what is left is the order
    result = compare(audit_of(ours), audit_of(theirs))
    assert result.norms[0]["baseline_path"] == "model.layers.0.input_layernorm"
    assert result.model["lost_sites"] == []


def test_one_name_that_both_have_does_not_make_the_others_lost():
    theirs = [norm("layers.0.a", stack="layers"), norm("layers.1.a", stack="layers"), norm("norm", "final")]
    ours = [norm("blk.0.x", stack="blk"), norm("blk.1.x", stack="blk"), norm("norm", "final")]
    result = compare(audit_of(ours), audit_of(theirs))
    assert [n["baseline_path"] for n in result.norms] == ["layers.0.a", "layers.1.a", "norm"]


def test_two_more_norms_in_every_block_are_not_guessed_at():
    theirs = [norm(f"layers.{i}.{name}", stack="layers") for i in range(2) for name in ("a", "b", "c", "d")]
    ours = [norm(f"blk.{i}.{name}", stack="blk") for i in range(2) for name in ("x", "y")]
    result = compare(audit_of(ours), audit_of(theirs))
    assert [n["baseline_path"] for n in result.norms] == [None] * 4
    assert len(result.model["lost_sites"]) == 8
    assert result.norms[0]["kind_change"] is result.norms[0]["baseline_findings"] is None


def test_a_norm_that_is_gone_is_lost_although_another_came_to_its_block():
    ours = [norm("h.0.ln_1"), norm("h.0.extra"), norm("h.1.ln_1"), norm("ln_f", "final")]
    result = compare(audit_of(ours), audit_of(HEALTHY))
    assert result.model["lost_sites"] == ["h.0.ln_2"]
    assert result.model["new_sites"] == ["h.0.extra"]
    assert compared_codes(result) == [("DD601", "m")]


def test_level_read_is_not_blamed_for_norms_without_tensors():
    there = [*HEALTHY, norm("h.0.q_norm", gamma_source="none", kind="rmsnorm")]
    result = compare(audit_of(HEALTHY, level="read"), audit_of(there))
    assert (result.model["lost_sites"], result.model["normalisation_change"]) == ([], "")
    assert result.model["not_compared"] == ["what only level forward measures: this audit is of level read"]


def test_looking_at_the_final_norm_alone_loses_none():
    alone = audit_of([norm("ln_f", "final")], level="read")
    for one, other in ((alone, audit_of(HEALTHY, level="read")), (audit_of(HEALTHY, level="read"), alone)):
        result = compare(one, other)
        assert (result.model["lost_sites"], result.model["new_sites"]) == ([], [])
        assert "norms other than the final one: one of the two looked at that alone" in result.model["not_compared"]


def test_a_norm_that_the_architecture_never_had_is_not_lost():
    there = audit_of([*HEALTHY, norm("old.ln")], level="read")
    here = audit_of(HEALTHY, orphan_norms=["old.ln.weight"])
    assert compare(here, there).model["lost_sites"] == []


def test_blocks_are_matched_by_their_stacks_and_those_by_their_order():
    there = audit_of(HEALTHY, [block(-1, "model.layers"), block(0, "model.layers", sigma_min=1.0)])
    for stack in ("layers", "blk"):
        here = audit_of(HEALTHY, [block(-1, stack), block(0, stack)])
        result = compare(here, there)
        assert [b["sigma_min_moved"] for b in result.blocks] == [0.0, -1.0]
        assert result.blocks[1]["baseline_path"] == "model.layers.0"
    longer = compare(audit_of(HEALTHY, [block(i, "blk") for i in (-1, 0, 1)]), there)
    assert [b["baseline_path"] for b in longer.blocks] == [None] * 3
    assert longer.model["not_compared"] == ["the stream after blk.-1, blk.0, blk.1: not among the baseline's blocks"]


# --- what changed, by hand --------------------------------------------------------------------------------------------


def changed(norms=(), blocks=(), there=None, **model):
    """HEALTHY with some rows replaced, beside itself or ``there``."""
    by_path = {n["path"]: n for n in norms}
    here = [by_path.get(n["path"], n) for n in HEALTHY]
    stream = {b["index"]: b for b in blocks}
    stream = [stream.get(b["index"], b) for b in STREAM]
    return compare(audit_of(here, stream, **model), there or audit_of(HEALTHY, STREAM))


def test_another_kind():
    result = changed([norm("h.0.ln_2", kind="rmsnorm")])
    assert result.norms[1]["kind_change"] == "layernorm → rmsnorm"
    assert result.model["normalisation_change"] == "layernorm → mixed"
    assert compared_codes(result) == [("DD602", "h.0.ln_2"), ("DD603", "m")]
    undecided = changed([norm("h.0.ln_2", kind="undecided")])
    assert undecided.norms[1]["kind_change"] is undecided.model["normalisation_change"] is None
    assert compared_codes(undecided) == []


@pytest.mark.parametrize(
    ("dtype", "there", "grown"),
    [("float32", "float32", 1), ("bfloat16", "float32", 2), ("float32", "bfloat16", 2), ("float64", "float64", 1)],
)
def test_predictions_are_compared_in_the_coarser_dtype(dtype, there, grown):
    by_dtype = {"float32": 2, "bfloat16": 3, "float16": None}
    worse = norm("ln_f", "final", predicted_dead_by_dtype=by_dtype)
    result = changed([worse], there=audit_of(HEALTHY, STREAM, dtype=there), dtype=dtype)
    assert [n["predicted_dead_grown"] for n in result.norms] == [0, 0, 0, grown]
    assert compared_codes(result) == [("DD604", "ln_f")]


@pytest.mark.parametrize(
    ("here", "there", "grown"),
    [
        ({}, {}, 2),
        ({"dtype": "float64"}, {}, 2),
        ({"dtype": "bfloat16"}, {}, None),
        ({"inconclusive": "too few rows"}, {}, None),
        ({}, {"unmeasured": "not finite"}, None),
        ({}, {"samples": None}, None),
        ({}, {"dead_dimension": None}, None),
    ],
)
def test_measured_dead_directions_are_compared_where_both_could_see_them(here, there, grown):
    other = [*HEALTHY[:-1], norm("ln_f", "final", **there)]
    result = changed([norm("ln_f", "final", **{"dead_dimension": 3, **here})], there=audit_of(other, STREAM))
    assert result.norms[-1]["dead_dimension_grown"] == grown
    assert compared_codes(result) == ([("DD605", "ln_f")] if grown else [])


@pytest.mark.parametrize(
    ("here", "there", "moved"),
    [
        ({"sigma_min": 1e-3}, {}, -2.0),
        ({"sigma_min": 1e-3, "sigma_median": 0.01}, {}, 0.0),  # a rescaling is none
        ({"sigma_min": 0.0, "readable": False, "dead_dimension": 1}, {}, -29.0),
        ({"sigma_min": 1e-9}, {"readable": False}, None),  # nothing to lose
        ({"sigma_min": 1e-3, "deflated_dimension": 2}, {}, None),
        ({"sigma_min": 1e-3, "samples": 31}, {}, None),
        ({"sigma_min": 1e-3, "samples": 32}, {}, -2.0),
        ({"sigma_min": 1e-3, "inconclusive": "?"}, {}, None),
        ({"sigma_min": 1e-3, "dtype": "bfloat16"}, {}, -2.0),
    ],
)
def test_a_block_that_loses_sigma_min(here, there, moved):
    result = changed(blocks=[block(1, **here)], there=audit_of(HEALTHY, [*STREAM[:-1], block(1, **there)]))
    found = result.blocks[-1]["sigma_min_moved"]
    assert found == moved or math.isclose(found, moved)
    lost = bool(moved and moved < -1) or "deflated_dimension" in here
    assert compared_codes(result) == ([("DD606", "h.1")] if lost else [])


def test_directions_that_were_taken_out_first_count_as_dead():
    before = audit_of(HEALTHY, [*STREAM[:-1], block(1, dead_dimension=2, deflated_dimension=1, readable=False)])
    result = changed(blocks=[block(1, dead_dimension=0, deflated_dimension=3)], there=before)
    assert result.blocks[-1]["dead_dimension_grown"] == 0


def test_depth_moves_either_way_and_in_one_dtype():
    for moved, dtype, expected in ((0.6, "float32", 0.6), (-0.6, "float32", -0.6), (0.6, "bfloat16", None)):
        other = [*HEALTHY[:-1], norm("ln_f", "final", depth=2.0)]
        here = norm("ln_f", "final", depth=2.0 + moved, dtype=dtype)
        result = changed([here], there=audit_of(other, STREAM, level="full"), level="full")
        assert result.norms[-1]["depth_moved"] == (None if expected is None else pytest.approx(expected))
        assert compared_codes(result) == ([("DD607", "ln_f")] if expected else [])


def test_other_inputs_are_not_compared_and_that_is_said():
    worse = {"norms": [norm("ln_f", "final", dead_dimension=9)], "blocks": [block(1, sigma_min=1e-9)]}
    result = changed(**worse, inputs="uniform token ids", inputs_source="synthetic")
    assert compared_codes(result) == []
    assert result.model["not_compared"] == [
        "what depends on the inputs: uniform token ids (synthetic) here, text (own) in the baseline"
    ]


def test_what_was_measured_and_is_no_more_is_said():
    result = changed(blocks=[block(1, inconclusive="too few rows")])
    assert result.model["not_compared"] == ["the stream after h.1: measured in the baseline, and not here"]
    coarser = changed(dtype="bfloat16")
    assert coarser.model["not_compared"] == [
        "dead coordinates, and measured dead dimensions: bfloat16 hides more than the baseline's float32"
    ]


# --- findings that the baseline holds ---------------------------------------------------------------------------------


def finding(code="DD002", path="model.ln_f", table="norms", suppressed=None, **measured):
    return {"code": code, "table": table, "path": path, "measured": measured, "suppressed": suppressed}


def known(here, *held, **column):
    """Whether DD002, which finds ``here`` dead coordinates, is known where the baseline holds ``held``."""
    theirs = [norm("model." + n["path"], n["role"]) for n in HEALTHY]
    ours = [*HEALTHY[:-1], norm("ln_f", "final", dead_coordinate_count=here, **column)]
    result = judge(compare(audit_of(ours), audit_of(theirs, findings=held)), RULES)
    [found] = [f for f in result.findings if f["code"] == "DD002"]
    assert result.checks["known"] == found["known"]
    assert result.checks["warned"] == (not found["known"])
    return found["known"]


def test_a_finding_of_the_baseline_is_known_under_its_path_there():
    assert known(3, finding(dead_coordinate_count=3))
    assert known(2, finding(dead_coordinate_count=3))
    assert not known(3)
    assert not known(3, finding(path="model.h.0.ln_1", dead_coordinate_count=3))
    assert not known(3, finding(code="DD001", dead_coordinate_count=3))


def test_a_finding_that_grew_or_was_accepted_is_new():
    assert not known(4, finding(dead_coordinate_count=3))
    assert not known(3, finding(gamma_min=0.0))  # by another column
    assert not known(3, finding(dead_coordinate_count=3, suppressed="until 2027"))


def test_a_list_may_hold_nothing_more():
    def known_orphans(*orphans):
        held = finding("DD009", "m", "model", orphan_tensors=["a", "b"])
        here = audit_of(HEALTHY, orphan_tensors=list(orphans))
        result = judge(compare(here, audit_of(HEALTHY, findings=[held])), RULES)
        return next(f["known"] for f in result.findings if f["code"] == "DD009")

    assert known_orphans("b")
    assert not known_orphans("a", "c")


def test_a_change_since_one_baseline_is_no_known_finding_of_the_next():
    held = finding("DD604", "ln_f", predicted_dead_grown=1)
    worse = norm("ln_f", "final", predicted_dead_by_dtype={"float32": 2})
    result = judge(changed([worse], there=audit_of(HEALTHY, findings=[held])), RULES)
    assert [(f["code"], f["known"]) for f in result.findings if f["path"] == "ln_f"] == [("DD604", False)]


# --- beside itself ----------------------------------------------------------------------------------------------------

_RATIO = st.floats(1e-12, 10)
_NORMS = st.lists(
    st.builds(
        lambda number, name, **values: norm(f"h.{number}.{name}", **values),
        st.integers(0, 3),
        st.sampled_from(["ln_1", "ln_2", "q_norm"]),
        kind=st.sampled_from(["layernorm", "rmsnorm", "other", "undecided"]),
        gamma_median=st.none() | _RATIO,
        gamma_source=st.sampled_from(["file", "none", "missing", "module"]),
        dtype=st.sampled_from([None, "float16", "float32", "float8"]),
        samples=st.none() | st.integers(1, 99),
        dead_dimension=st.none() | st.integers(0, 16),
        depth=st.none() | st.floats(-9, 9),
        inconclusive=st.sampled_from([None, "", "why"]),
        predicted_dead_by_dtype=st.none() | st.dictionaries(st.sampled_from(["float32", "float16"]), st.integers(0, 9)),
    ),
    max_size=6,
    unique_by=lambda made: made["path"],
)
_BLOCKS = st.lists(
    st.builds(
        lambda index, **values: block(index, **values),
        st.integers(-1, 4),
        sigma_min=st.none() | st.just(0.0) | _RATIO,
        sigma_median=st.none() | st.just(0.0) | _RATIO,
        readable=st.sampled_from([None, True, False]),
        dead_dimension=st.none() | st.integers(0, 9),
        deflated_dimension=st.none() | st.integers(0, 3),
        samples=st.none() | st.integers(1, 99),
    ).filter(lambda made: made["sigma_min"] is not None or not made["readable"]),
    max_size=4,
    unique_by=lambda made: made["index"],
)
_AUDITS = st.builds(
    audit_of,
    _NORMS,
    _BLOCKS,
    level=st.sampled_from(["read", "forward", "full"]),
    dtype=st.sampled_from(["float32", "F8"]),
)


@given(_AUDITS)
@settings(max_examples=60, deadline=None)
def test_an_audit_beside_itself_has_changed_in_nothing(made):
    judged = judge(made, RULES)
    before = copy.deepcopy(judged)
    result = compare(judged, judged)
    assert judged == before
    assert compared_codes(result) == []
    assert (result.model["lost_sites"], result.model["new_sites"]) == ([], [])
    assert result.model["not_compared"] == []
    for table in COMPARED:
        for here, there in zip(result.table(table), judged.table(table), strict=True):
            assert {c: v for c, v in here.items() if c not in COMPARED[table]} == {
                c: v for c, v in there.items() if c not in COMPARED[table]
            }
    assert all(f["known"] for f in judge(result, RULES).findings)
    assert Audit.from_json(result.to_json()) == result


@given(_AUDITS, _AUDITS)
@settings(max_examples=60, deadline=None)
def test_any_two_audits_can_be_compared(one, other):
    judge(compare(one, judge(other, RULES)), RULES)


# --- real ones --------------------------------------------------------------------------------------------------------


def test_an_audit_of_an_earlier_release_lacks_columns():
    here = audit(EXAMPLE, level="read")
    old = copy.deepcopy(here)
    for table in ("model", "norms", "blocks"):
        for each in old.table(table):
            for column in (*COMPARED[table], "predicted_dead_by_dtype", "deflated_dimension"):
                each.pop(column, None)
    [back] = read_report(old.to_json())
    for baseline in (old, back):
        result = compare(here, baseline)
        assert result.model["lost_sites"] == []
        assert result.norms[0]["predicted_dead_grown"] is None


def test_the_same_model_in_another_dtype_and_with_other_rows_is_quiet():
    pytest.importorskip("transformers", reason="needs pytest-deaddir[torch]")
    first = audit(EXAMPLE, level="full", samples=300)
    for options in ({"dtype": "bfloat16"}, {"seed": 3, "samples": 500}):
        result = audit(EXAMPLE, level="full", baseline=first, **{"samples": 300, **options})
        assert compared_codes(result) == []
        assert result.checks["failed"] == 0
        assert [n["predicted_dead_grown"] for n in result.norms] == [0] * 7
        assert all(n["depth_moved"] is not None for n in result.norms) == ("seed" in options)


def test_a_baseline_may_be_a_spec_that_is_audited_in_the_same_way():
    result = audit(EXAMPLE, level="read", baseline=f"{EXAMPLE.parent}/tiny-llama")
    assert result.model["baseline"] == f"{EXAMPLE.parent}/tiny-llama"
    assert [path for code, path in compared_codes(result) if code == "DD602"] == [n["path"] for n in result.norms]


def test_planted_defects_are_found_where_they_are():
    """What DD301 lets pass as too little, and what a scale did to a norm that no rule looks at by itself."""
    torch = pytest.importorskip("torch", reason="needs pytest-deaddir[torch]")
    transformers = pytest.importorskip("transformers", reason="needs pytest-deaddir[torch]")
    module = transformers.AutoModelForCausalLM.from_pretrained(EXAMPLE)

    def lose(module, arguments, output):
        stream = (output[0] if isinstance(output, tuple) else output).clone()
        stream[..., 5] *= 3e-3
        return (stream, *output[1:]) if isinstance(output, tuple) else stream

    module.transformer.h[1].register_forward_hook(lose)
    with torch.no_grad():
        norm = module.transformer.h[2].ln_1
        norm.weight[[7, 9]] = norm.bias[[7, 9]] = 0
    tokens = transformers.AutoTokenizer.from_pretrained(EXAMPLE)
    text = (Path(__file__).parents[2] / "docs" / "explanation.md").read_text(encoding="utf-8")
    ids = tokens(text, return_tensors="pt").input_ids[0, : 64 * 6].reshape(6, 64)
    clean = transformers.AutoModelForCausalLM.from_pretrained(EXAMPLE)
    baseline = audit(clean, inputs={"input_ids": ids})
    result = audit(module, inputs={"input_ids": ids}, baseline=baseline)
    found = compared_codes(result)
    first = dict(reversed(found))
    assert first == {
        "DD604": "transformer.h.2.ln_1",
        "DD605": "transformer.h.2.ln_1",
        "DD606": "transformer.h.1",
    }
    [norm] = [n for n in result.norms if n["path"] == "transformer.h.2.ln_1"]
    assert (norm["new_dead_coordinates"], norm["predicted_dead_grown"], norm["dead_dimension_grown"]) == ([7, 9], 1, 1)
    assert not [f for f in result.findings if f["code"] == "DD301"]
    assert compared_codes(audit(clean, inputs={"input_ids": ids}, baseline=baseline)) == []
