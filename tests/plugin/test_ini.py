"""The ini twin of every option."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer

from plugin.helpers import EXAMPLE, GPT2, READ_ITEMS, RULE, assert_refused, collected, outcomes, report_of, rerun_lines


def ini(pytester, **settings):
    lines = [f"deaddir_{name} = {value}" for name, value in settings.items()]
    return pytester.makeini("\n".join(["[pytest]", *lines]))


def test_model_level_and_only_come_from_the_ini_file(pytester, checkpoint):
    checkpoint()
    pytester.makepyfile(test_mine="def test_one(): pass")
    ini(pytester, model="m", level="read", only="true")
    assert list(outcomes(pytester.runpytest_inprocess())) == [f"m::{name}" for name in READ_ITEMS]


def test_several_models_are_a_line_each(pytester, checkpoint):
    checkpoint("a")
    checkpoint("b")
    ini(pytester, model="\n    a\n    b", level="read")
    result = pytester.runpytest_inprocess("--collect-only", "-q")
    assert collected(result) == [f"{label}::{name}" for label in "ab" for name in READ_ITEMS]


def test_report_and_rules_come_from_the_ini_file(pytester, checkpoint):
    checkpoint()
    (pytester.path / "rule.toml").write_text(RULE)
    ini(pytester, model="m", level="read", report="out.json", rules="rule.toml")
    result = pytester.runpytest_inprocess()
    assert result.ret == 1
    assert outcomes(result)["m::ACME001"] == "failed"
    (model,) = report_of("out.json")
    assert {finding["code"] for finding in model["findings"]} == {"ACME001"}


def test_relative_paths_start_at_the_ini_file_wherever_pytest_is_called(pytester, checkpoint, monkeypatch):
    checkpoint()
    (pytester.path / "rule.toml").write_text(RULE)
    ini(pytester, model="m", level="read", report="out.json", rules="rule.toml")
    (pytester.path / "below").mkdir()
    monkeypatch.chdir(pytester.path / "below")
    result = pytester.runpytest_inprocess()
    assert outcomes(result)["m::ACME001"] == "failed"
    assert report_of(pytester.path / "out.json")


def test_the_command_line_wins(pytester, checkpoint):
    checkpoint("a")
    checkpoint("b")
    ini(pytester, model="a", level="forward", report="ini.json")
    options = ["--deaddir-model=b", "--deaddir-level=read", "--deaddir-report=given.json"]
    result = pytester.runpytest_inprocess(*options)
    assert list(outcomes(result)) == [f"b::{name}" for name in READ_ITEMS]
    assert (pytester.path / "given.json").exists()
    assert not (pytester.path / "ini.json").exists()


def test_samples_and_dtype_come_from_the_ini_file(pytester, with_torch):
    ini(pytester, model=GPT2, samples="40", dtype="bfloat16", device="cpu", report="out.json")
    assert pytester.runpytest_inprocess().ret == 0
    (model,) = report_of("out.json")
    assert model["model"]["dtype"] == "bfloat16"
    assert model["model"]["samples"] < 4 * 32
    assert [finding["code"] for finding in model["findings"]] == ["DD901"]


def test_inputs_and_batch_size_come_from_the_ini_file(pytester, with_torch):
    """Records of 10 to 29 tokens: what is counted and measured is those, and none of their padding."""
    lengths = [10 + index % 20 for index in range(40)]
    lines = [json.dumps({"text": "word " * length}) for length in lengths]
    (pytester.path / "data").mkdir()
    (pytester.path / "data" / "a.jsonl").write_text("\n".join(lines))
    encode = Tokenizer.from_file(str(EXAMPLE / "tokenizer.json")).encode
    tokens = sum(len(encode("word " * length).ids) for length in lengths)
    ini(pytester, model=EXAMPLE, samples=100_000, inputs="data", batch_size="7", report="out.json")
    assert pytester.runpytest_inprocess().ret == 0
    (model,) = report_of("out.json")
    assert (model["model"]["inputs"], model["model"]["inputs_source"]) == ("data", "own")
    assert model["model"]["samples"] == tokens


def test_the_command_that_runs_a_check_again_names_the_inputs_and_the_batch_size(pytester, with_torch):
    (pytester.path / "rule.toml").write_text(RULE)
    (pytester.path / "a.jsonl").write_text('"one"')
    ini(pytester, model=EXAMPLE, inputs="a.jsonl", batch_size="7")
    [command] = rerun_lines(pytester.runpytest_inprocess("--deaddir-only"))
    assert "--deaddir-batch-size=7" in command
    assert f"--deaddir-inputs={pytester.path / 'a.jsonl'}" in command


def test_inputs_come_from_the_ini_file(pytester, checkpoint):
    checkpoint()
    ini(pytester, model="m", level="read", inputs="nothing.txt")
    assert_refused(pytester.runpytest_inprocess(), "nothing.txt", "no such file")


@pytest.mark.parametrize(("name", "value"), [("level", "deep"), ("device", "abacus"), ("dtype", "int8")])
def test_a_wrong_value_in_the_ini_file_is_a_usage_error(pytester, checkpoint, name, value):
    checkpoint()
    ini(pytester, model="m", **{name: value})
    assert_refused(pytester.runpytest_inprocess(), name, value)


def test_an_ini_file_without_our_settings_adds_nothing(pytester):
    pytester.makeini("[pytest]")
    pytester.makepyfile(test_mine="def test_one(): pass")
    result = pytester.runpytest_inprocess("--strict-config")
    assert list(outcomes(result)) == ["test_mine.py::test_one"]
    result.stdout.no_fnmatch_line("deaddir*")
