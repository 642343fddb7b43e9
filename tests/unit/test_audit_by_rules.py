"""audit() in Python: the same rules, chosen in the same way, and the same baselines as in a run of pytest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plugin.helpers import STRICT, write_checkpoint
from pytest_deaddir import Audit, audit
from pytest_deaddir.errors import RuleError, SpecError
from pytest_deaddir.rules import load_rules, shipped_rules


@pytest.fixture
def model(tmp_path):
    (tmp_path / "strict.toml").write_text(STRICT)
    return write_checkpoint(tmp_path / "m", tiny="transformer.ln_f")


def codes(made):
    return [finding["code"] for finding in made.findings]


def test_paths_of_rule_files_are_beside_the_shipped_ones(model, tmp_path):
    file = tmp_path / "strict.toml"
    for rules in (str(file), file, [file], [str(file), *load_rules([shipped_rules()])]):
        assert codes(audit(model, level="read", rules=rules)) == ["ACME001", "DD002"]
    assert codes(audit(model, level="read", rules=load_rules([file]))) == ["ACME001"]
    assert audit(model, level="read", rules=[]).checks["planned"] == 0


def test_rules_are_chosen_as_by_the_options(model, tmp_path):
    rules = tmp_path / "strict.toml"
    assert codes(audit(model, level="read", rules=rules, select="ACME")) == ["ACME001"]
    assert codes(audit(model, level="read", rules=rules, select=["DD001"], extend_select="DD002,DD003")) == ["DD002"]
    assert codes(audit(model, level="read", rules=rules, ignore=["ACME", "DD002"])) == []
    made = audit(model, level="read", severity={"DD0": "error"})
    assert [finding["severity"] for finding in made.findings] == ["error"]
    assert made.checks["failed"] == 1
    assert audit(model, level="read", fail_on="warning").checks["failed"] == 1
    assert audit(model, level="read").checks["warned"] == 1


def test_every_mistake_of_a_choice_is_told_at_once(model):
    with pytest.raises(RuleError) as caught:
        audit(model, level="read", select="DD998", ignore=["dd0"], severity={"DD0": "fatal"}, fail_on="warn")
    told = list(caught.value.args)
    assert told[0].startswith("select: DD998: no rule")
    assert told[1].startswith("ignore: dd0: no rule")
    assert told[1].endswith("did you mean DD0?")
    assert told[2].startswith("severity of DD0 'fatal' is not one of error, warning, info")
    assert told[3].startswith("fail_on 'warn' is not one of error, warning, did you mean warning?")
    with pytest.raises(RuleError, match="no rule to judge by"):
        audit(model, level="read", ignore="DD")
    with pytest.raises(RuleError, match="cannot be read"):
        audit(model, level="read", rules="gone.toml")


def test_a_report_is_a_baseline(model, tmp_path):
    file = tmp_path / "base.json"
    first = audit(model, level="read")
    file.write_text(first.to_json())
    for baseline in (file, str(file)):
        made = audit(model, level="read", baseline=baseline)
        assert [finding["known"] for finding in made.findings] == [True]
        assert made.findings == audit(model, level="read", baseline=Audit.from_json(file.read_text())).findings
    with pytest.raises(SpecError, match="level read, which cannot be compared with level forward"):
        audit(model, level="forward", baseline=file)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "no such file"),
        ("{", "no report that can be compared with"),
        ("[]", "no report that can be compared with"),
        ('{"schema": "other", "models": [{}]}', "not a report of schema"),
        ('{"schema": "pytest-deaddir/audit/1", "models": []}', "0 of its 0 audits are of"),
        ('{"schema": "pytest-deaddir/audit/1", "models": [3]}', "no report that can be compared with"),
    ],
)
def test_what_is_no_report_is_told(model, tmp_path, content, told):
    if content is not None:
        (tmp_path / "nope.json").write_text(content)
    with pytest.raises(SpecError, match=told):
        audit(model, level="read", baseline=tmp_path / "nope.json")


def test_a_report_of_several_gives_the_one_of_the_same_spec(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    documents = [json.loads(audit(spec, level="read").to_json()) for spec in ("m", Path("m").resolve())]
    both = documents[0] | {"models": [entry for document in documents for entry in document["models"]]}
    (tmp_path / "base.json").write_text(json.dumps(both))
    assert audit("m", level="read", baseline="base.json").model["baseline"] == "m"
    with pytest.raises(SpecError, match=r"0 of its 2 audits are of \./m"):
        audit("./m", level="read", baseline="base.json")
