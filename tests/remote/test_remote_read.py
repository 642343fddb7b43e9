"""What is read from a hub is what the same files give on disk, and the hub is asked for that and nothing else."""

import json
import os
import pty
import subprocess
import sys
import termios
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from pytest_deaddir.errors import SpecError
from pytest_deaddir.source import remote
from pytest_deaddir.source.open import open_checkpoint
from pytest_deaddir.source.remote import MAX_GAP, OVERREAD, SPECULATIVE, coalesce, open_remote
from pytest_deaddir.source.safetensors import read_header
from pytest_deaddir.source.spec import parse_spec
from remote.helpers import (
    INDEX,
    MAIN,
    OTHER,
    SINGLE,
    assert_same,
    environment,
    final_of,
    norms_of,
    tensors_of,
    values_of,
    write_config,
    write_index,
    write_sharded,
    write_single,
)


def header_bytes(folder):
    return sum(8 + len(read_header(file).identity) for file in folder.glob("*.safetensors"))


def length_of(checkpoint, names):
    return sum(checkpoint.tensors[name].length for name in names)


def assert_traffic(checkpoint, hub, *, requests):
    """What the checkpoint counted is what the hub saw."""
    log = hub.log()
    assert checkpoint.traffic.requests == len(log) == requests
    assert checkpoint.traffic.bytes == sum(entry["sent"] for entry in log)


@pytest.fixture
def single(hub, tmp_path):
    return hub.publish("org/model", write_single(tmp_path / "m"))


@pytest.fixture
def sharded(hub, tmp_path):
    return hub.publish("org/model", write_sharded(tmp_path / "m"))


def test_the_final_norm_of_a_single_file_costs_three_requests(hub, single):
    checkpoint = open_remote(parse_spec("org/model"))
    final = final_of(norms_of(checkpoint))
    assert len(final) == 2
    assert_same(checkpoint, single, final)
    assert hub.asked() == [("config.json", "main"), (SINGLE, MAIN), (SINGLE, MAIN)]
    ranges = [entry["range"] for entry in hub.log()]
    first = min(checkpoint.tensors[name].offset for name in final)
    assert ranges == [None, f"bytes=0-{SPECULATIVE - 1}", f"bytes={first}-{first + length_of(checkpoint, final) - 1}"]
    assert_traffic(checkpoint, hub, requests=3)
    assert checkpoint.revision == MAIN
    assert checkpoint.config == json.loads((single / "config.json").read_text())


@pytest.mark.parametrize("sites", ["final", "all"])
def test_the_bytes_stay_within_headers_scales_and_256_kilobytes(hub, tmp_path, sites):
    single = hub.publish("org/model", write_single(tmp_path / "m", filler=100_000))
    checkpoint = open_remote(parse_spec("org/model"))
    names = norms_of(checkpoint) if sites == "all" else final_of(norms_of(checkpoint))
    assert_same(checkpoint, single, names)
    config = (single / "config.json").stat().st_size
    assert checkpoint.traffic.bytes <= config + header_bytes(single) + length_of(checkpoint, names) + OVERREAD
    assert checkpoint.traffic.bytes < (single / SINGLE).stat().st_size / 10


def test_norms_that_came_with_the_header_are_not_asked_for_again(hub, tmp_path):
    """The format sorts by dtype first: float32 norms lie before the bfloat16 or, as here, float16 rest."""
    tensors = {n: a if a.ndim == 1 else a.astype(np.float16) for n, a in tensors_of().items()}
    save_file(tensors, write_config(tmp_path / "m") / SINGLE)
    hub.publish("org/model", tmp_path / "m")
    checkpoint = open_remote(parse_spec("org/model"))
    assert_same(checkpoint, tmp_path / "m", norms_of(checkpoint))
    assert_traffic(checkpoint, hub, requests=2)


def test_a_file_shorter_than_the_first_range(hub, tmp_path):
    hub.publish("org/model", write_single(tmp_path / "m", layers=1, filler=640))
    checkpoint = open_remote(parse_spec("org/model"))
    assert_same(checkpoint, tmp_path / "m", list(checkpoint.tensors))
    assert_traffic(checkpoint, hub, requests=2)


@pytest.mark.parametrize("first", [7, 8, 9, 300, 5000])
def test_a_header_longer_than_the_first_range_takes_one_more(hub, single, monkeypatch, first):
    monkeypatch.setattr(remote, "SPECULATIVE", first)
    if first < 8:
        with pytest.raises(Exception, match="too few for a safetensors header"):
            open_remote(parse_spec("org/model"))
        return
    checkpoint = open_remote(parse_spec("org/model"))
    end = header_bytes(single)
    assert first < end or first == 5000
    extra = [f"bytes={first}-{end - 1}"] if first < end else []
    assert [entry["range"] for entry in hub.log()][2:] == extra
    assert_same(checkpoint, single, norms_of(checkpoint))


def test_neighbouring_norms_share_a_request_and_distant_ones_do_not(hub, tmp_path):
    rng = np.random.default_rng(0)
    tensors = {"a.weight": rng.standard_normal(64)}  # the file's order is the alphabet's
    for letter, gap in (("c", 10_000), ("e", 60_000), ("g", 70_000), ("i", 400_000), ("k", 60_000), ("m", 60_000)):
        tensors[f"{chr(ord(letter) - 1)}.table"] = rng.standard_normal((gap // 4, 1))
        tensors[f"{letter}.weight"] = rng.standard_normal(64)
    tensors["A.table"] = rng.standard_normal((SPECULATIVE // 4, 1))
    save_file({n: a.astype(np.float32) for n, a in tensors.items()}, write_config(tmp_path / "m") / SINGLE)
    hub.publish("org/model", tmp_path / "m")
    checkpoint = open_remote(parse_spec("org/model"))
    names = norms_of(checkpoint)
    assert_same(checkpoint, tmp_path / "m", names)
    # 131 kB of the allowance went into the first range: the gaps of 10 kB and 60 kB fit, the second of 60 kB does not
    starts = sorted(int(entry["range"][6:].split("-")[0]) for entry in hub.log()[2:])
    assert starts == [checkpoint.tensors[f"{letter}.weight"].offset for letter in ("a", "g", "i", "k", "m")]
    wanted = length_of(checkpoint, names) + header_bytes(tmp_path / "m")
    assert checkpoint.traffic.bytes <= (tmp_path / "m" / "config.json").stat().st_size + wanted + OVERREAD


def test_the_final_norm_of_a_sharded_model_touches_one_shard(hub, sharded):
    checkpoint = open_remote(parse_spec("org/model"), final_of)
    names = final_of(norms_of(checkpoint))
    assert len(names) == 2
    assert_same(checkpoint, sharded, names, whole=False)
    last = "model-00003-of-00003.safetensors"
    assert hub.files() == ["config.json", SINGLE, INDEX, last, last]
    assert {revision for _, revision in hub.asked()[1:]} == {MAIN}
    assert_traffic(checkpoint, hub, requests=5)
    files = [sharded / "config.json", sharded / INDEX]
    known = sum(file.stat().st_size for file in files) + 8 + len(read_header(sharded / last).identity)
    assert checkpoint.traffic.bytes <= known + length_of(checkpoint, names) + OVERREAD


def test_all_norms_of_a_sharded_model(hub, sharded):
    checkpoint = open_remote(parse_spec("org/model"))
    names = norms_of(checkpoint)
    assert len(names) == 18
    assert_same(checkpoint, sharded, names)
    shards = {file.name for file in sharded.glob("*.safetensors")}
    assert len(shards) == 3
    assert set(hub.files()) == {"config.json", SINGLE, INDEX, *shards}
    files = [sharded / "config.json", sharded / INDEX]
    known = sum(file.stat().st_size for file in files) + header_bytes(sharded)
    assert checkpoint.traffic.bytes <= known + length_of(checkpoint, names) + OVERREAD


def test_a_choice_that_names_nothing_reads_every_header(hub, sharded):
    checkpoint = open_remote(parse_spec("org/model"), lambda names: [])
    assert_same(checkpoint, sharded, norms_of(checkpoint))


def test_many_shards_are_read_at_once_and_not_all_at_once(hub, tmp_path):
    folder = hub.publish("org/model", write_sharded(tmp_path / "m", shards=14, layers=14, filler=640))
    hub.fails("slow", "model-000", seconds=0.05, times=1000)
    checkpoint = open_remote(parse_spec("org/model"))
    assert_same(checkpoint, folder, norms_of(checkpoint))
    assert 1 < max(entry["at once"] for entry in hub.log()) <= 8
    assert len(hub.log()) == 3 + 14  # the shards are small: their norms came with their headers


def test_one_connection_serves_requests_that_follow_one_another(hub, single):
    checkpoint = open_remote(parse_spec("org/model"))
    values_of(checkpoint, final_of(norms_of(checkpoint)))
    assert len({entry["peer"] for entry in hub.log()}) == 1


@pytest.mark.parametrize("revision", ["main", "v1.0", "refs/pr/1", MAIN])
def test_a_revision_by_any_name_is_held_to_its_commit(hub, tmp_path, revision):
    folder = write_single(tmp_path / "m")
    hub.publish("org/model", folder, revision=revision)
    checkpoint = open_remote(parse_spec(f"org/model@{revision}"))
    assert_same(checkpoint, folder, final_of(norms_of(checkpoint)))
    assert checkpoint.revision == MAIN
    asked = [entry["path"].split("/resolve/")[1].removesuffix(f"/{SINGLE}") for entry in hub.log()]
    assert asked == [f"{revision}/config.json", MAIN, MAIN]


@pytest.mark.parametrize("write", [write_single, write_sharded])
def test_a_push_in_between_mixes_nothing(hub, tmp_path, write):
    old = hub.publish("org/model", write(tmp_path / "old"))
    new = hub.publish("org/model", write(tmp_path / "new", layers=5, seed=1), commit=OTHER, revision="next")
    hub.behave(refs={"org/model": {"main": MAIN, "next": OTHER}}, push={"org/model": {"main": OTHER, "old": MAIN}})
    checkpoint = open_remote(parse_spec("org/model"))
    assert checkpoint.revision == MAIN
    assert_same(checkpoint, old, norms_of(checkpoint))
    assert {revision for _, revision in hub.asked()[1:]} == {MAIN}
    checkpoint = open_remote(parse_spec("org/model"))
    assert checkpoint.revision == OTHER
    assert_same(checkpoint, new, norms_of(checkpoint))


@pytest.mark.parametrize("write", [write_single, write_sharded])
def test_the_token_goes_to_the_hub_and_to_no_store(hub, tmp_path, monkeypatch, write):
    folder = hub.publish("org/model", write(tmp_path / "m"))
    hub.behave(token="hf_secret", redirect="store")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    checkpoint = open_remote(parse_spec("org/model"))
    assert_same(checkpoint, folder, norms_of(checkpoint))
    log = hub.log()
    assert {entry["authorization"] for entry in log if entry["port"] == "hub"} == {"Bearer hf_secret"}
    stored = [entry for entry in log if entry["port"] == "store"]
    assert stored
    assert {entry["authorization"] for entry in stored} == {None}
    assert "hf_secret" not in json.dumps(stored)
    assert all(entry["path"].endswith("?signature=secret") and entry["range"] for entry in stored)
    assert checkpoint.traffic.requests == len(log) - len(stored)
    assert checkpoint.traffic.bytes == sum(entry["sent"] for entry in log)


def test_a_redirect_on_the_hub_itself_keeps_the_token(hub, single, monkeypatch):
    hub.behave(token="hf_secret", redirect="relative")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    checkpoint = open_remote(parse_spec("org/model"))
    assert_same(checkpoint, single, norms_of(checkpoint))
    assert {entry["authorization"] for entry in hub.log()} == {"Bearer hf_secret"}


def test_the_hub_is_told_who_asks(hub, single):
    open_remote(parse_spec("org/model"))
    assert all(entry["agent"].startswith("pytest-deaddir/") for entry in hub.log())
    assert {entry["encoding"] for entry in hub.log()} == {"identity"}


def test_a_proxy_that_does_not_know_the_size(hub, single):
    hub.fails("unknown size", times=99)
    checkpoint = open_remote(parse_spec("org/model"))
    assert_same(checkpoint, single, norms_of(checkpoint))


def test_a_proxy_that_does_not_say_how_long_a_body_is(hub, single):
    hub.fails("no length", times=99)
    checkpoint = open_remote(parse_spec("org/model"))
    assert_same(checkpoint, single, norms_of(checkpoint))


def test_tensors_without_elements(hub, tmp_path):
    tensors = tensors_of() | {
        "transformer.none": np.zeros((0,), np.float32),
        "transformer.nil": np.zeros((3, 0), "<f4"),
    }
    save_file(tensors, write_config(tmp_path / "m") / SINGLE)
    hub.publish("org/model", tmp_path / "m")
    checkpoint = open_remote(parse_spec("org/model"))
    assert_same(checkpoint, tmp_path / "m", [*norms_of(checkpoint), "transformer.nil"])


def test_names_that_need_quoting(hub, tmp_path):
    folder = write_config(tmp_path / "m")
    save_file(tensors_of(), folder / "a b%2f?é#.safetensors")
    write_index(folder, dict.fromkeys(tensors_of(), "a b%2f?é#.safetensors"))
    hub.publish("org/model", folder)
    checkpoint = open_remote(parse_spec("org/model"))
    assert_same(checkpoint, folder, norms_of(checkpoint))


def test_offline_the_cache_is_read_and_nothing_is_asked(hub, single, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(
        SpecError, match=r"org/model: no local path of that name.* HF_HUB_OFFLINE is set, and .* at main"
    ):
        open_remote(parse_spec("org/model"))
    cached = tmp_path / "cache" / "models--org--model"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(MAIN)
    (cached / "snapshots" / MAIN).mkdir(parents=True)
    for file in single.iterdir():
        (cached / "snapshots" / MAIN / file.name).write_bytes(file.read_bytes())
    checkpoint = open_remote(parse_spec("org/model"))
    assert (checkpoint.revision, checkpoint.traffic) == (MAIN, None)
    assert_same(checkpoint, single, norms_of(checkpoint))
    assert hub.log() == []


_READS = """
import sys
from huggingface_hub import constants
from pytest_deaddir.source import remote
from pytest_deaddir.source.spec import parse_spec
remote.BAR_AFTER = 0.2
remote.MAX_GAP = 0
checkpoint = remote.open_remote(parse_spec("org/model"))
list(checkpoint.read(name for name, tensor in checkpoint.tensors.items() if len(tensor.shape) == 1))
assert "torch" not in sys.modules and "requests" not in sys.modules
"""


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_is_for_long_reads_on_a_terminal(hub, tmp_path, terminal):
    hub.publish("org/model", write_single(tmp_path / "m"))
    hub.fails("slow", SINGLE, seconds=0.3, times=99)
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    stderr = slave if terminal else subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-c", _READS], stderr=stderr, env=environment(hub, tmp_path / "home"), cwd=tmp_path
    )
    os.close(slave)
    shown = b""
    while terminal:
        try:
            shown += os.read(master, 4096)
        except OSError:  # the other end is closed
            break
    _, errors = process.communicate(timeout=20)
    os.close(master)
    shown += errors or b""
    assert process.returncode == 0, shown.decode()
    assert (b"org/model" in shown) is terminal, shown.decode()


def test_the_read_is_what_a_snapshot_gives(hub, single):
    """The same bytes whichever way they come: the fingerprint does not tell."""
    names = final_of(norms_of(open_checkpoint(parse_spec(str(single)))))
    prints = []
    for opened in (open_remote(parse_spec("org/model")), open_checkpoint(parse_spec(str(single)))):
        values_of(opened, names)
        prints.append(opened.fingerprint())
    assert prints[0] == prints[1]


_spans = st.lists(st.tuples(st.integers(0, 500_000), st.integers(1, 90_000)).map(lambda s: (s[0], s[0] + s[1])))


@given(st.dictionaries(st.sampled_from([Path("a"), Path("b"), Path("c")]), _spans), st.integers(-10, 400_000))
def test_ranges_cover_the_pieces_and_little_else(pieces, allowance):
    ranges = coalesce(pieces, allowance)
    for file, spans in pieces.items():
        for start, stop in spans:
            assert any(of == file and left <= start and stop <= right for of, left, right in ranges)
    for left, right in pairwise(ranges):
        assert left[0] != right[0] or left[2] < right[1]
    assert len(ranges) <= sum(map(len, pieces.values()))
    covered = sum(right - left for _, left, right in ranges)
    apart = sum(right - left for _, left, right in coalesce(pieces, 0))
    assert apart <= covered <= apart + max(allowance, 0)
    if allowance >= 400_000 and sum(map(len, pieces.values())) < 5:
        gaps = [right[1] - left[2] for left, right in pairwise(ranges) if left[0] == right[0]]
        assert all(gap > MAX_GAP for gap in gaps)
