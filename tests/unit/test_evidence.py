"""The key of what was measured, the digests of files, and the folder that audits are kept in."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from plugin.helpers import EXAMPLE, GPT2
from pytest_deaddir import evidence
from pytest_deaddir.plan import Plan
from pytest_deaddir.source.spec import parse_spec
from pytest_deaddir.tables import Audit, row


@pytest.fixture
def keeper(tmp_path):
    """What keeps audits in a folder of its own."""
    (tmp_path / "kept").mkdir()
    return evidence.Evidence(lambda: tmp_path / "kept")


@pytest.fixture
def model(tmp_path):
    """A checkpoint of our own to change, with its tokenizer."""
    shutil.copytree(EXAMPLE, tmp_path / "m")
    return tmp_path / "m"


def plan_of(spec, **how):
    return Plan(parse_spec(str(spec)), **{"level": "forward", **how})


def flip(path):
    """Change one bit in the middle, in place."""
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
)
def test_a_changed_bit_in_any_file_of_the_checkpoint_is_another_key(keeper, model, name):
    before = keeper.key(plan_of(model), None)
    assert keeper.key(plan_of(model), None) == before is not None
    flip(model / name)
    assert keeper.key(plan_of(model), None) != before


def test_files_that_a_loader_may_open_count_and_others_do_not(keeper, model):
    def key():
        return keeper.key(plan_of(model), None)

    before = key()
    for name in ("README.md", "deaddir.toml", "optimizer.pt", ".gitattributes", "plot.PNG"):
        (model / name).write_text("[models]")
    (model / "onnx").mkdir()
    (model / "audit.json").write_text(
        Audit(row("model", spec="m", level="read")).to_json()
    )  # a report, by the run itself
    assert key() == before
    seen = {before}
    templates = "additional_chat_templates/tools.jinja"
    for name in (
        "added_tokens.json",
        "vocab.txt",
        "spiece.model",
        "other.safetensors",
        "preprocessor_config.json",
        templates,
    ):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text("{}")
        assert key() not in seen
        seen.add(key())


def test_a_config_that_looks_like_a_report_counts(keeper, model):
    disguised = {"schema": "pytest-deaddir/audit/1", "models": []} | json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(disguised))
    before = keeper.key(plan_of(model), None)
    (model / "config.json").write_text(json.dumps(disguised | {"n_layer": 1}))
    assert keeper.key(plan_of(model), None) != before


def test_the_same_content_elsewhere_has_the_same_key(keeper, model, tmp_path):
    shutil.copytree(model, tmp_path / "copy")
    assert keeper.key(plan_of(tmp_path / "copy"), None) == keeper.key(plan_of(model), None)


def test_every_way_to_measure_has_a_key_of_its_own(keeper, model):
    changes = [
        *({}, {"level": "full"}, {"dtype": "bfloat16"}, {"device": "cpu"}, {"samples": 301}, {"samples": 302}),
        *({"batch_size": 301}, {"solver": "svd"}, {"sites": "final"}),
    ]
    keys = [keeper.key(replace(plan_of(model), **change), None) for change in changes]
    assert None not in keys
    assert len(set(keys)) == len(changes)


def test_every_field_of_a_plan_is_in_the_key_but_those_that_change_no_measurement(keeper, model):
    """A field that is added later must not be forgotten."""
    plan = plan_of(model)
    before = keeper.key(plan, None)
    for name in vars(plan):
        changed = plan_of(model)
        object.__setattr__(changed, name, "full" if name == "level" else "said by test")
        if name in ("inputs", "baseline", "stored"):
            assert keeper.key(changed, None) == before
        elif name != "spec":
            assert keeper.key(changed, None) not in (before, None)


def test_the_read_level_has_no_key(keeper, model):
    assert keeper.key(plan_of(model, level="read"), None) is None


def test_inputs_count_by_their_names_and_content(keeper, tmp_path):
    folder = tmp_path / "records"
    (folder / "more").mkdir(parents=True)
    seen = {keeper.key(plan_of(GPT2), None), keeper.key(plan_of(GPT2), folder)}
    for name, text in (("a.jsonl", "1"), ("b.jsonl", "1"), ("a.jsonl", "2"), ("more/a.jsonl", "1")):
        (folder / name).write_text(text)
        key = keeper.key(plan_of(GPT2), folder)
        assert key not in {*seen, None}
        seen.add(key)
    (folder / ".hidden").write_text("not read")
    assert keeper.key(plan_of(GPT2), folder) in seen
    one = keeper.key(plan_of(GPT2), folder / "a.jsonl")
    assert one not in {*seen, None}
    (folder / "a.jsonl").rename(folder / "c.jsonl")
    assert keeper.key(plan_of(GPT2), folder / "c.jsonl") != one, "the audit says what they are called"


def test_another_environment_is_another_key(tmp_path, monkeypatch):
    def key():
        return evidence.Evidence(lambda: tmp_path).key(plan_of(GPT2), None)

    seen = {key()}
    (tmp_path / "fused_norms_for_test-1.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    seen.add(key())
    (tmp_path / "fused_norms_for_test-1.0.dist-info").rename(tmp_path / "fused_norms_for_test-1.1.dist-info")
    seen.add(key())
    monkeypatch.setenv("TRANSFORMERS_FOR_TEST", "1")
    seen.add(key())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    seen.add(key())
    monkeypatch.setattr(evidence, "_own_code", lambda: "of another release")
    seen.add(key())
    assert len(seen) == 6
    assert None not in seen


def test_our_own_code_is_known_by_its_content(tmp_path, monkeypatch):
    package = Path(evidence.__file__).parent
    shutil.copytree(package, tmp_path / "ours", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(evidence, "__file__", str(tmp_path / "ours" / "evidence.py"))
    seen = [evidence._own_code()]
    for name in ("report/words.py", "rules/judge.py", "stages/bottom.py", "api.py", "source/inputs.py"):
        with (tmp_path / "ours" / name).open("a") as file:
            file.write("# said by test\n")
        seen.append(evidence._own_code())
    assert seen[0] == seen[1] == seen[2], "how it is shown and judged changes nothing that was measured"
    assert len(set(seen)) == 4


def test_links_that_lead_out_are_not_followed(keeper, model, tmp_path, monkeypatch):
    (tmp_path / "elsewhere.json").write_text("{}")
    (model / "more.json").symlink_to(tmp_path / "elsewhere.json")
    monkeypatch.setattr(evidence._Digests, "_digest", lambda self, file: pytest.fail("read"))
    assert keeper.key(plan_of(model), None) is None


def test_a_snapshot_of_the_hubs_cache_is_all_links(keeper, model, tmp_path):
    snapshot, blobs = tmp_path / "hub" / "snapshots" / "main", tmp_path / "hub" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(file for file in model.iterdir() if file.is_file())):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(blobs / str(number))
    assert keeper.key(plan_of(snapshot), None) == keeper.key(plan_of(model), None) is not None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_waited_for(keeper, model):
    os.mkfifo(model / "pipe.json")
    assert keeper.key(plan_of(model), None) is None


def test_code_and_names_on_a_hub_have_no_key_and_commits_have(keeper):
    commits = [f"org/name@{digit * 40}" for digit in "ab"]
    known = [
        keeper.key(plan_of(text), None) for text in (*commits, GPT2, f"{GPT2}&seed=1", "timm:vit", "timm:vit?depth=2")
    ]
    assert None not in known
    assert len(set(known)) == len(known)
    for text in (
        "org/name",
        "org/name@main",
        f"org/name@{'a' * 39}",
        "package.module:factory",
        f"timm:vit?path={__file__}",
    ):
        assert keeper.key(plan_of(text), None) is None


def test_what_is_fed_from_memory_has_no_key(keeper):
    assert keeper.key(plan_of(GPT2), [{"input_ids": [1]}]) is None


def test_parts_of_a_gguf_model_and_what_lies_beside_them(keeper, tmp_path):
    parts = [tmp_path / f"m-0000{part}-of-00002.gguf" for part in (1, 2)]
    for part in parts:
        part.write_bytes(b"GGUF" + part.name.encode())
    keys = [keeper.key(plan_of(parts[0]), None)]
    changes = [(parts[1], b"other"), (tmp_path / "tokenizer_config.json", b"{}"), (tmp_path / "other.gguf", b"")]
    for path, content in changes:
        path.write_bytes(content)
        keys.append(keeper.key(plan_of(parts[0]), None))
    assert None not in keys
    assert len(set(keys)) == 3
    assert keys[2] == keys[3], "another model in the same folder"


def test_a_folder_of_too_many_inputs_is_not_hashed(keeper, tmp_path, monkeypatch):
    folder = tmp_path / "inputs"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.jsonl").write_text(name)
    monkeypatch.setattr(evidence, "INPUT_FILES", 3)
    monkeypatch.setattr(evidence, "INPUT_BYTES", 3)
    assert keeper.key(plan_of(GPT2), folder)
    monkeypatch.setattr(evidence, "INPUT_FILES", 2)
    assert keeper.key(plan_of(GPT2), folder) is None
    monkeypatch.setattr(evidence, "INPUT_FILES", 3)
    monkeypatch.setattr(evidence, "INPUT_BYTES", 2)
    assert keeper.key(plan_of(GPT2), folder) is None


# --- digests ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hashed(monkeypatch):
    """The files that were hashed, in order."""
    names = []
    digest = evidence.hashlib.file_digest

    def noting(file, algorithm):
        names.append(file.name)
        return digest(file, algorithm)

    monkeypatch.setattr(evidence.hashlib, "file_digest", noting)
    return names


def digests_of(tmp_path, file):
    digests = evidence._Digests(tmp_path / "digests.json")
    found = digests.of(file.parent, [file])
    digests.keep()
    return found


def test_a_file_is_hashed_once_while_the_file_system_says_that_it_is_the_same(tmp_path, monkeypatch, hashed):
    monkeypatch.setattr(evidence, "TICK", -1)
    file = tmp_path / "weights.bin"
    file.write_bytes(b"0" * 1000)
    first = digests_of(tmp_path, file)
    assert digests_of(tmp_path, file) == first
    assert len(hashed) == 1
    times = file.stat()
    time.sleep(0.02)  # more than a tick of any file system that tests run on
    file.write_bytes(b"1" * 1000)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # as rsync and tar do; the time of change tells
    assert digests_of(tmp_path, file) != first
    assert len(hashed) == 2


def test_a_file_that_was_just_written_is_not_trusted_to_stay(tmp_path, monkeypatch, hashed):
    file = tmp_path / "weights.bin"
    file.write_bytes(b"0" * 1000)
    digests_of(tmp_path, file)
    digests_of(tmp_path, file)
    assert len(hashed) == 2
    later = time.time_ns() + 2 * evidence.TICK
    monkeypatch.setattr(evidence.time, "time_ns", lambda: later)
    digests_of(tmp_path, file)
    digests_of(tmp_path, file)
    assert len(hashed) == 3


def test_a_file_that_changes_under_the_hash_has_no_digest(keeper, model, monkeypatch):
    digest = evidence.hashlib.file_digest

    def overtaken(file, algorithm):
        with Path(file.name).open("ab") as other:
            other.write(b" ")
        return digest(file, algorithm)

    monkeypatch.setattr(evidence.hashlib, "file_digest", overtaken)
    assert keeper.key(plan_of(model), None) is None


@pytest.mark.parametrize("text", ["", "[]", "{", '{"%s": 3}', '{"%s": [1, 2, 3, 4, 5]}', "[" * 100_000, "\udcff"])
def test_damaged_digests_are_made_again(tmp_path, text, hashed):
    file = tmp_path / "weights.bin"
    file.write_bytes(b"0" * 1000)
    right = digests_of(tmp_path, file)
    (tmp_path / "digests.json").write_text(text.replace("%s", str(file)), errors="surrogateescape")
    assert digests_of(tmp_path, file) == right


# --- the folder ---------------------------------------------------------------------------------------------------------

KEY = "0" * 32


def stored(keeper):
    """An audit, and what is kept of it."""
    norm = row("norms", path="ln_f", kind="layernorm", role="final", alignment=1 / 3, predicted_bottom=[1e-300, 0.1])
    audit = Audit(row("model", spec="m", level="forward", seconds={"forward": 0.25}), [norm])
    keeper.store(KEY, audit)
    return audit


def test_an_audit_comes_back_as_it_was(keeper):
    audit = stored(keeper)
    found, measured = keeper.load(KEY)
    assert found == audit
    assert measured[:2] == "20"


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff\xfe", None, "one digit", "one half"])
def test_a_damaged_audit_is_none(keeper, tmp_path, damage):
    stored(keeper)
    file = tmp_path / "kept" / f"{KEY}.json"
    text = file.read_text()
    if damage is None:
        file.unlink()
        file.mkdir()
    elif damage == "one digit":  # still JSON, and a number
        assert "0.25" in text
        file.write_text(text.replace("0.25", "0.75"))
    elif damage == "one half":
        file.write_text(text[: len(text) // 2])
    else:
        file.write_bytes(damage)
    assert keeper.load(KEY) is None
    stored(keeper)
    assert (keeper.load(KEY) is None) == (damage is None)


def test_digests_and_audits_are_bounded(keeper, tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "TICK", -1)
    monkeypatch.setattr(evidence, "DIGESTS", 3)
    monkeypatch.setattr(evidence, "KEPT", 3)
    for number in range(5):
        file = tmp_path / f"{number}.bin"
        file.write_bytes(b"0")
        digests_of(tmp_path, file)
    assert [Path(name).name for name in json.loads((tmp_path / "digests.json").read_text())] == [
        "2.bin",
        "3.bin",
        "4.bin",
    ]
    folder = tmp_path / "kept"
    for number in range(5):
        key = f"{number:032}"
        keeper.store(key, stored(keeper) if number == 0 else Audit(row("model", spec="m", level="forward")))
        os.utime(folder / f"{key}.json", (number, number))
        keeper.load(KEY)  # used at each time, and so it stays
    assert [bool(keeper.load(f"{number:032}")) for number in range(5)] == [True, False, False, True, True]
    assert not list(folder.glob(".*")), "nothing half written is left behind"


def test_a_folder_that_cannot_be_made_or_written_to_keeps_nothing(tmp_path):
    def refuse():
        raise PermissionError

    measured = Audit(row("model", spec="m", level="forward"))
    assert evidence.Evidence(refuse).audit(plan_of(GPT2), None, lambda: measured) == (measured, None)
    nowhere = evidence.Evidence(lambda: tmp_path / "is" / "not" / "there")
    assert nowhere.audit(plan_of(GPT2), None, lambda: measured) == (measured, None)


def test_what_changes_while_it_is_measured_is_not_kept(keeper, model, tmp_path):
    def measure():
        flip(model / "model.safetensors")
        return Audit(row("model", spec="m", level="forward"))

    keeper.audit(plan_of(model), None, measure)
    assert {path.name for path in (tmp_path / "kept").glob("*.json")} <= {"digests.json"}
