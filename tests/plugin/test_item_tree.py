"""The virtual tree: which items there are, what they are called, and how they live beside ordinary tests."""

from __future__ import annotations

import pytest

from plugin.helpers import FORWARD_ITEMS, GPT2, READ_ITEMS, collected, failed, outcomes, write_checkpoint


def ids(label, names=READ_ITEMS):
    return [f"{label}::{name}" for name in names]


def test_a_model_has_a_discovery_item_and_one_per_rule_that_its_level_can_answer(audit, checkpoint):
    checkpoint()
    read = audit("--collect-only", "-q")
    forward = audit("--collect-only", "-q", level="forward")
    assert collected(read) == ids("m")
    assert {"m::discovery", "m::DD001", "m::DD002", "m::DD003"} <= set(collected(read))
    assert collected(forward) == ids("m", FORWARD_ITEMS)
    assert {"m::DD101", "m::DD201", "m::DD901"} <= set(collected(forward)) - set(collected(read))


def test_a_bare_file_is_read_and_a_directory_is_run_where_no_level_is_given(pytester, checkpoint):
    checkpoint()
    models = ["--deaddir-model=m/model.safetensors", "--deaddir-model=m"]
    result = pytester.runpytest_inprocess("--collect-only", "-q", *models)
    assert collected(result) == ids("m/model.safetensors") + ids("m", FORWARD_ITEMS)


def test_a_random_model_keeps_its_spec_as_its_name(audit):
    result = audit("--collect-only", "-q", models=[GPT2], level="forward")
    assert collected(result) == ids(GPT2, FORWARD_ITEMS)


def test_no_character_with_a_meaning_for_pytest_or_xdist_reaches_an_id(audit, checkpoint):
    name = "m[1]@x y::z"
    checkpoint(name)
    result = audit("--deaddir-report=out.json", models=[name])
    assert result.ret == 0
    labels = {nodeid.rpartition("::")[0] for nodeid in outcomes(result)}
    assert len(labels) == 1
    assert not set("[]@ ") & set(labels.pop())
    assert all(nodeid.count("::") == 1 for nodeid in outcomes(result))


def test_several_models_are_audited_in_the_order_given(audit, checkpoint):
    checkpoint("b")
    checkpoint("a")
    result = audit(models=["b", "a"])
    assert list(outcomes(result)) == ids("b") + ids("a")


def test_directories_of_one_name_are_told_apart(audit, checkpoint):
    checkpoint("x/m")
    checkpoint("y/m", nan="transformer.ln_f")
    result = audit(models=["x/m", "y/m"])
    assert list(outcomes(result)) == ids("x/m") + ids("y/m")
    assert failed(result) == ["y/m::DD001"]


def test_directories_outside_of_the_root_whose_paths_end_alike_are_told_apart(audit, tmp_path_factory):
    base = tmp_path_factory.mktemp("elsewhere")
    healthy, broken = write_checkpoint(base / "x/a/m"), write_checkpoint(base / "y/a/m", nan="transformer.ln_f")
    result = audit(models=[healthy, broken])
    assert len(outcomes(result)) == 2 * len(READ_ITEMS)
    assert len(failed(result)) == 1


def test_the_same_spec_twice_is_audited_once(audit, checkpoint):
    checkpoint()
    assert collected(audit("--collect-only", "-q", models=["m", "m"])) == ids("m")


def test_the_same_spec_twice_is_audited_once_beside_another_whose_path_ends_alike(audit, tmp_path_factory):
    base = tmp_path_factory.mktemp("elsewhere")
    models = [write_checkpoint(base / "x/a/m"), write_checkpoint(base / "y/a/m"), base / "y/a/m"]
    result = audit("--collect-only", "-q", models=models)
    assert len(collected(result)) == 2 * len(READ_ITEMS)


def test_the_same_directory_spelt_in_two_ways_is_audited_once(audit, checkpoint):
    folder = checkpoint()
    result = audit("--collect-only", "-q", models=["m", "m/", "./m", folder])
    assert collected(result) == ids("m")


def test_an_audit_in_an_empty_directory_is_a_run_with_tests(audit, tmp_path_factory):
    model = write_checkpoint(tmp_path_factory.mktemp("elsewhere") / "m")
    result = audit(models=[model])
    assert result.ret == pytest.ExitCode.OK


def test_ordinary_tests_run_beside_the_audit(pytester, checkpoint):
    checkpoint()
    pytester.makepyfile(test_mine="def test_one(): pass")
    result = pytester.runpytest_inprocess("--deaddir-model=m", "--deaddir-level=read")
    assert outcomes(result) == dict.fromkeys(["test_mine.py::test_one", *ids("m")], "passed")


def test_a_chosen_test_file_does_not_turn_the_audit_off(pytester, checkpoint):
    checkpoint()
    pytester.makepyfile(test_mine="def test_one(): pass", test_other="def test_two(): pass")
    result = pytester.runpytest_inprocess("test_mine.py", "--deaddir-model=m", "--deaddir-level=read")
    assert outcomes(result) == dict.fromkeys(["test_mine.py::test_one", *ids("m")], "passed")


def test_only_leaves_the_other_tests_out_without_importing_them(audit, pytester, checkpoint):
    checkpoint()
    pytester.makepyfile(test_mine="raise RuntimeError('imported')")
    result = audit()
    assert result.ret == 0
    assert list(outcomes(result)) == ids("m")


def test_items_are_found_below_their_model_in_the_tree(audit, checkpoint):
    checkpoint()
    result = audit("--collect-only")
    tree = [line.strip() for line in result.outlines if line.strip().startswith("<")]
    assert tree == ["<ModelCollector m>", "<DiscoveryItem discovery>", *(f"<RuleItem {n}>" for n in READ_ITEMS[1:])]


def test_collecting_only_opens_no_checkpoint_and_writes_no_report(audit, pytester, checkpoint):
    checkpoint(truncated=True)
    result = audit("--collect-only", "-q", "--deaddir-report=out.json")
    assert result.ret == 0
    assert collected(result) == ids("m")
    assert not (pytester.path / "out.json").exists()


def test_collecting_only_does_not_speak_of_checks_that_did_not_run(audit, checkpoint):
    checkpoint()
    result = audit("--collect-only", "-q")
    result.stdout.no_fnmatch_line("*checks ran*")
    result.stdout.no_fnmatch_line("*NOT A PASS*")
