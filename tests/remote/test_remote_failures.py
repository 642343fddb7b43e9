"""A hub that fails, lies or stalls: tried again, or told in words and soon; and never a part of a result."""

import json
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from huggingface_hub import close_session, constants
from safetensors.numpy import save_file

from formats.bounds import patience
from pytest_deaddir.errors import CheckpointError, SpecError
from pytest_deaddir.source import remote
from pytest_deaddir.source.remote import TRIES, open_remote
from pytest_deaddir.source.spec import parse_spec
from remote.helpers import (
    INDEX,
    SINGLE,
    assert_same,
    final_of,
    norms_of,
    tensors_of,
    values_of,
    write_config,
    write_index,
    write_sharded,
    write_single,
)

#: A range that does not start at the file's beginning: of scales, not of headers.
SCALES = r"bytes=[1-9]"


def read_all(spec="org/model"):
    """The values of every norm, and what was given out before an error."""
    given = {}
    checkpoint = open_remote(parse_spec(spec))
    try:
        for tensor, array in checkpoint.read(norms_of(checkpoint)):
            given[tensor.name] = array
    except Exception as error:
        error.given = given
        raise
    return checkpoint, given


def assert_fails(error, *says):
    """Reading comes to its end in ``error``, saying all of ``says``, with nothing given out before."""
    with patience(60), pytest.raises(error) as caught:
        read_all()
    assert getattr(caught.value, "given", {}) == {}
    message = str(caught.value)
    for part in says:
        assert part in message, message
    for secret in ("signature", "hf_", "/resolve/", "/store/"):
        assert secret not in message, message
    assert "\n" not in message
    assert message.isprintable()
    return message


@pytest.fixture
def model(hub, tmp_path, request):
    return hub.publish("org/model", request.param(tmp_path / "m"))


@pytest.fixture
def single(hub, tmp_path):
    return hub.publish("org/model", write_single(tmp_path / "m"))


PASSING = [
    {"kind": "cut", "times": 2},
    {"kind": "stall", "times": 1},
    {"kind": "stalls midway", "times": 1},
    {"kind": "status", "times": 2, "status": 429, "headers": {"Retry-After": "0"}},
    {"kind": "status", "times": 2, "status": 429, "headers": {"RateLimit": '"resolvers";r=0;t=0'}},
    {"kind": "status", "times": 2, "status": 500},
    {"kind": "status", "times": 2, "status": 503, "headers": {"Retry-After": "Wed, 21 Oct 2099 07:28:00 GMT"}},
]
PLACES = [
    pytest.param(write_single, "config.json", "", id="config"),
    pytest.param(write_single, "safetensors$", "bytes=0-", id="header"),
    pytest.param(write_sharded, "safetensors$", "bytes=0-", id="a shard's header"),
    pytest.param(write_single, "safetensors$", SCALES, id="scales"),
    pytest.param(write_sharded, "safetensors$", SCALES, id="a shard's scales"),
]


def named(fault):
    return f"{fault['kind']} {fault.get('status', '')}{''.join(fault.get('headers', ''))}"


@pytest.mark.parametrize(("model", "file", "where"), PLACES, indirect=["model"])
@pytest.mark.parametrize("fault", PASSING, ids=named)
def test_what_fails_once_is_tried_again(hub, model, monkeypatch, fault, file, where):
    stalls = "stall" in fault["kind"]
    if stalls:
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    hub.behave(faults=[{"file": file, "range": where, **fault}])
    checkpoint, values = read_all()
    tries = len(hub.log())
    assert_same(checkpoint, model, list(values), whole=False)
    hub.behave(faults=[])
    read_all()
    assert tries == len(hub.log()) + fault["times"] or (stalls and tries > len(hub.log()))
    assert checkpoint.traffic.requests >= tries


@pytest.mark.parametrize(("model", "file", "where"), PLACES, indirect=["model"])
@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ({"kind": "cut"}, "the connection to"),
        ({"kind": "stall"}, "no answer from"),
        ({"kind": "stalls midway"}, "no answer from"),
        ({"kind": "short"}, ""),
        ({"kind": "status", "status": 429, "headers": {"Retry-After": "0"}}, "429 (who is logged in"),
        ({"kind": "status", "status": 500}, "the hub answers 500"),
        ({"kind": "status", "status": 504}, "the hub answers 504"),
    ],
    ids=lambda value: named(value) if isinstance(value, dict) else "",
)
def test_what_fails_always_is_told_and_gives_nothing(hub, model, monkeypatch, fault, says, file, where):
    if "stall" in fault["kind"]:
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    hub.behave(faults=[{"file": file, "range": where, "times": 1000, **fault}])
    if fault["kind"] == "short" and file == "config.json":
        assert_fails(CheckpointError, "org/model/config.json: not JSON")
        return
    message = assert_fails(CheckpointError, "org/model/", says)
    assert f"(tried {TRIES} times)" in message or "(given up)" in message
    assert len(hub.log()) <= 3 + 8 * TRIES


def test_one_shard_that_fails_stops_the_others(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_WAIT", 100)
    monkeypatch.setattr(remote, "LONGEST_WAIT", 1000)
    hub.publish("org/model", write_sharded(tmp_path / "m", shards=20, layers=20, filler=640))
    hub.behave(
        faults=[
            {"kind": "status", "status": 403, "file": "model-00004"},
            {"kind": "status", "status": 500, "file": "model-000", "times": 1000},
        ]
    )
    assert_fails(CheckpointError, "model-00004-of-00020.safetensors: the hub refuses it with 403")
    assert len(hub.log()) < 3 + 20


def test_a_trickle_counts_as_a_stall(hub, single, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    monkeypatch.setattr(remote, "SLOWEST", 10_000_000)
    hub.fails("trickles", SINGLE, times=1000)
    assert_fails(CheckpointError, "org/model/model.safetensors: stalled after", f"(tried {TRIES} times)")


@pytest.fixture
def waits(monkeypatch):
    """The seconds of each wait between two tries; nothing is waited for."""
    seconds = []

    class Event(threading.Event):
        def wait(self, timeout=None):
            seconds.append(timeout)
            return self.is_set()

    monkeypatch.setattr(remote, "threading", SimpleNamespace(Event=Event, Lock=threading.Lock))
    return seconds


def test_retry_after_is_waited_for(hub, single, waits):
    hub.fails("status", SINGLE, status=429, headers={"Retry-After": "40"})
    checkpoint, values = read_all()
    assert waits == [40]
    assert_same(checkpoint, single, list(values), whole=False)


@pytest.mark.parametrize("headers", [{"Retry-After": "3600"}, {"RateLimit": '"resolvers";r=0;t=3600'}])
def test_retry_after_is_not_waited_for_without_bound(hub, single, waits, headers):
    hub.fails("status", SINGLE, status=429, headers=headers, times=1000)
    assert_fails(CheckpointError, "429", "not waiting the 3600 s that the hub asks for: try again later")
    assert waits == []
    assert hub.files() == ["config.json", SINGLE]


def test_the_waits_of_one_request_are_bounded_together(hub, single, waits):
    hub.fails("status", SINGLE, status=429, headers={"Retry-After": "40"}, times=1000)
    assert_fails(CheckpointError, "not waiting the 40 s")
    assert waits == [40]
    assert hub.files() == ["config.json", SINGLE, SINGLE]


def test_a_server_that_ignores_ranges_is_enough_for_what_lies_at_the_beginning(hub, tmp_path):
    folder = hub.publish("org/model", write_single(tmp_path / "m", layers=1, filler=640))
    hub.fails("ignores range", times=1000)
    checkpoint, values = read_all()
    assert_same(checkpoint, folder, list(values), whole=False)


def test_a_server_that_ignores_ranges_does_not_make_us_read_the_file(hub, tmp_path):
    """90 MB, as MiniLM has: what the sockets' buffers take is sent, and nothing after it."""
    tensors = tensors_of(layers=1) | {"lm_head.weight": np.zeros((90_000_000 // 256, 64), np.float32)}
    save_file(tensors, write_config(tmp_path / "m") / SINGLE)
    hub.publish("org/model", tmp_path / "m")
    hub.fails("ignores range", times=1000)
    assert_fails(CheckpointError, "org/model/model.safetensors: the server ignores ranges", "download it")
    sent = [entry["sent"] for entry in hub.log() if entry["path"].endswith(SINGLE)]
    assert len(sent) >= 2
    assert max(sent) < 20_000_000


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("wrong range", "org/model/model.safetensors: asked for bytes"),
        ("less", "org/model/model.safetensors: asked for bytes"),
        ("shrunk", "org/model/model.safetensors: truncated: "),
        ("other commit", "at commit b28b7af69320201d1cf206ebf28373980add1451, and given at another"),
        ("gzip", "org/model/model.safetensors: was sent compressed"),
    ],
)
@pytest.mark.parametrize("where", ["bytes=0-", SCALES], ids=["header", "scales"])
def test_a_server_that_answers_something_else_is_refused(hub, single, fault, says, where):
    hub.fails(fault, "safetensors$", range=where, times=1000)
    assert_fails(CheckpointError, says)


@pytest.mark.parametrize(
    ("file", "fault", "says"),
    [
        ("config.json", {"kind": "no commit"}, "does not say of which commit it is (X-Repo-Commit): is it a hub?"),
        ("config.json", {"kind": "huge"}, "org/model/config.json: larger than 64000000 bytes"),
        ("config.json", {"kind": "garbage", "byte": 91}, "org/model/config.json: not JSON"),
        ("config.json", {"kind": "status", "status": 204}, "org/model/config.json: the server answers 204"),
        ("config.json", {"kind": "status", "status": 300}, "org/model/config.json: the server answers 300"),
        (SINGLE, {"kind": "status", "status": 200, "headers": {"Content-Range": "bytes 0-7/8"}}, "answers 200"),
        (SINGLE, {"kind": "status", "status": 206}, "org/model/model.safetensors: the server answers 206"),
        (SINGLE, {"kind": "status", "status": 416}, "org/model/model.safetensors: truncated"),
        (SINGLE, {"kind": "garbage", "byte": 255}, "org/model/model.safetensors: refused: its header would be"),
        (SINGLE, {"kind": "garbage", "byte": 0}, "org/model/model.safetensors: not safetensors"),
    ],
    ids=lambda value: named(value) if isinstance(value, dict) else None,
)
def test_nonsense_is_refused_at_once(hub, single, file, fault, says):
    hub.behave(faults=[{"file": file, "times": 1000, **fault}])
    assert_fails(CheckpointError, says)
    assert len(hub.log()) <= 2


def test_a_hub_that_redirects_without_end(hub, single):
    hub.behave(redirect="loop")
    assert_fails(CheckpointError, "redirects without end")


def test_no_repository(hub):
    assert_fails(SpecError, "org/model: no local path of that name, and the hub", "log in (hf auth login, or HF_TOKEN)")
    assert hub.files() == ["config.json"]


def test_no_revision(hub, single):
    with pytest.raises(SpecError, match=r"org/model@v9: no local path .* no revision 'v9'"):
        read_all("org/model@v9")


def test_a_name_that_no_hub_can_have(hub):
    with pytest.raises(SpecError, match="not a name that the hub can have"):
        read_all("org/a--b")
    assert hub.log() == []


def test_without_the_token_that_is_needed(hub, single, monkeypatch):
    hub.behave(token="hf_right")
    assert_fails(SpecError, "org/model: no local path of that name, and the hub asks who you are", "hf auth login")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert_fails(SpecError, "or refuses your token")
    assert hub.files() == ["config.json", "config.json"]


def test_gated(hub, single):
    hub.behave(gated=True)
    assert_fails(SpecError, f"keeps it gated: accept its terms at {hub.endpoint}/org/model and log in")
    assert hub.files() == ["config.json"]


def test_a_refusal_shows_what_the_hub_said_and_no_control_characters(hub, single):
    headers = {"X-Error-Message": "Access to this resource is disabled.\x1b[2J"}
    hub.fails("status", status=403, headers=headers)
    assert_fails(CheckpointError, "the hub refuses it with 403: Access to this resource is disabled.[2J")


@pytest.mark.parametrize("where", ["config.json", SINGLE])
def test_a_store_that_refuses_does_not_show_its_signed_address(hub, single, where):
    hub.behave(redirect="store", faults=[{"kind": "status", "status": 403, "file": where, "times": 99}])
    assert_fails(CheckpointError, f"org/model/{where}: the hub refuses it with 403")


def test_no_config(hub, tmp_path):
    folder = write_single(tmp_path / "m")
    (folder / "config.json").unlink()
    hub.publish("org/model", folder)
    assert_fails(CheckpointError, "org/model/config.json: the repository has no such file")


def test_no_weights_that_can_be_read_by_range(hub, tmp_path):
    folder = write_config(tmp_path / "m")
    (folder / "pytorch_model.bin").write_bytes(b"PK")
    hub.publish("org/model", folder)
    assert_fails(CheckpointError, "org/model: holds neither model.safetensors nor", "download it")
    assert hub.files() == ["config.json", SINGLE, INDEX]


def test_a_plain_404_is_no_such_file(hub, single):
    hub.fails("status", "config.json", status=404)
    assert_fails(CheckpointError, "org/model/config.json: no such file, revision or repository")


def test_nobody_listens(hub, single, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    assert_fails(CheckpointError, "the connection to http://127.0.0.1:9 failed", f"(tried {TRIES} times)")


@pytest.mark.parametrize("model", [write_single, write_sharded], indirect=True)
def test_it_works_again_after_a_failure(hub, model):
    checkpoint = open_remote(parse_spec("org/model"))
    names = norms_of(checkpoint)
    hub.fails("status", "safetensors$", status=403, times=99)
    with pytest.raises(CheckpointError):
        values_of(checkpoint, names)
    hub.fails("cut", "safetensors$")
    assert values_of(checkpoint, names).keys() == set(names)
    close_session()
    assert values_of(checkpoint, final_of(names)).keys() == set(final_of(names))


@pytest.mark.parametrize(
    "name",
    ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "a\\b.safetensors", "..", ".", "", "https://x/y"],
)
def test_an_index_that_leads_elsewhere_is_refused_before_anything_is_asked(hub, tmp_path, name):
    folder = write_config(tmp_path / "m")
    write_index(folder, {"a.weight": "model-1.safetensors", "ln_f.weight": name})
    hub.publish("org/model", folder)
    assert_fails(CheckpointError, f"org/model/{INDEX}: refused: weight_map names {name!r}")
    assert hub.files() == ["config.json", SINGLE, INDEX]


@pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', "{"])
def test_an_index_that_is_none(hub, tmp_path, index):
    folder = write_config(tmp_path / "m")
    (folder / INDEX).write_text(index)
    hub.publish("org/model", folder)
    assert_fails(CheckpointError, f"org/model/{INDEX}: ")
    assert hub.files() == ["config.json", SINGLE, INDEX]


def test_a_shard_that_is_not_there(hub, tmp_path):
    folder = write_sharded(tmp_path / "m")
    (folder / "model-00002-of-00003.safetensors").unlink()
    hub.publish("org/model", folder)
    assert_fails(CheckpointError, f"{INDEX}: weight_map names 'model-00002-of-00003.safetensors', which is not there")


def test_an_index_that_names_a_tensor_in_the_wrong_shard(hub, tmp_path):
    folder = write_sharded(tmp_path / "m")
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    weight_map["transformer.ln_f.weight"] = "model-00001-of-00003.safetensors"
    write_index(folder, weight_map)
    hub.publish("org/model", folder)
    with pytest.raises(CheckpointError, match=r"says that tensor 'transformer.ln_f.weight' is in 'model-00001-of"):
        open_remote(parse_spec("org/model"), lambda names: ["transformer.ln_f.weight"])


def write_header(folder, header, size):
    """A file of that header and ``size`` bytes of data, all of them holes."""
    raw = json.dumps(header).encode()
    with (write_config(folder) / SINGLE).open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + size)


def test_a_file_shorter_than_its_header_says(hub, tmp_path):
    folder = write_single(tmp_path / "m")
    (folder / SINGLE).write_bytes((folder / SINGLE).read_bytes()[:-9])
    hub.publish("org/model", folder)
    assert_fails(CheckpointError, "org/model/model.safetensors: truncated: the tensors need")
    assert hub.files() == ["config.json", SINGLE]


def test_a_scale_of_a_gigabyte_is_not_fetched(hub, tmp_path):
    count = 2**28
    header = {"ln_f.weight": {"dtype": "F32", "shape": [count], "data_offsets": [0, 4 * count]}}
    write_header(tmp_path / "m", header, 4 * count)
    hub.publish("org/model", tmp_path / "m")
    assert_fails(CheckpointError, "org/model: refused: its norms would be 1073741824 bytes in 1 places")
    assert hub.files() == ["config.json", SINGLE]


def test_scales_in_too_many_places_are_not_fetched(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "MAX_RANGES", 5)
    offsets = [200_000 * n for n in range(8)]
    header = {}
    for n in offsets:
        header[f"{n}.codes"] = {"dtype": "U8", "shape": [1, 199_984], "data_offsets": [n, n + 199_984]}
        header[f"{n}.weight"] = {"dtype": "F32", "shape": [4], "data_offsets": [n + 199_984, n + 200_000]}
    write_header(tmp_path / "m", header, 1_600_000)
    hub.publish("org/model", tmp_path / "m")
    assert_fails(CheckpointError, "refused: its norms would be 128 bytes in 8 places")
    assert hub.files() == ["config.json", SINGLE]
