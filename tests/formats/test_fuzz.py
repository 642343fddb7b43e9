"""Valid files, then broken anyhow: a clear error or an audit, never another exception, a hang, or a file from outside.

The examples are the same in every run. DEADDIR_FUZZ=20000 tries as many new ones per test.
"""

import codecs
import copy
import io
import json
import os
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import gguf
import numpy as np
import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from formats.bounds import patience
from pytest_deaddir import api
from pytest_deaddir.errors import CheckpointError, SpecError
from pytest_deaddir.source.checkpoint import read_json
from pytest_deaddir.source.gguf import gguf_config, gguf_parts, parse_gguf, read_gguf
from pytest_deaddir.source.safetensors import parse_header, read_header

D = 4
INDEX = "model.safetensors.index.json"
OUTSIDE = "outside.safetensors"
#: Seconds for one file of a few hundred bytes; it takes milliseconds, but the machine may be busy.
PATIENCE = 20

fuzz = settings(
    max_examples=int(os.environ.get("DEADDIR_FUZZ", "400")),
    derandomize="DEADDIR_FUZZ" not in os.environ,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


# --- what is watched ----------------------------------------------------------------------------------------

_watched: tuple[int, list[str]] | None = None


def _hook(event, arguments):
    """The interpreter's own hook, so no way to open a file escapes it. It cannot be taken out again."""
    watched = event == "open" and _watched is not None and _watched[0] == threading.get_ident()
    if watched and isinstance(arguments[0], str | bytes | os.PathLike):
        _watched[1].append(os.fsdecode(arguments[0]))


sys.addaudithook(_hook)


@contextmanager
def opens():
    global _watched
    _watched = threading.get_ident(), []
    try:
        yield _watched[1]
    finally:
        _watched = None


def survives(home, call, *arguments):
    """What the call returns, or None where it raises an error of ours; all that it opens lies in ``home``."""
    result = None
    with opens() as opened, patience(PATIENCE), suppress(CheckpointError, SpecError):
        result = call(*arguments)
    outside = [path for path in opened if not Path(path).resolve().is_relative_to(home)]
    assert outside == []
    return result


def audited(home, path):
    """An audit at level read, whose scales lie within their files."""
    audit = survives(home, api.read, path)
    for norm in audit.norms if audit is not None else ():
        if norm["gamma_source"] == "file":
            file = home / norm["gamma_file"]
            assert 0 < norm["gamma_offset"] < file.stat().st_size


# --- valid files --------------------------------------------------------------------------------------------


def tensors(*paths):
    made = {"wte.weight": np.ones((3, D), np.float16)}
    for path in paths:
        made[f"{path}.weight"] = np.linspace(0.5, 1.5, D, dtype=np.float32)
        made[f"{path}.bias"] = np.zeros(D, np.float32)
    return made


CONFIG = {
    "architectures": ["GPT2LMHeadModel"],
    "hidden_size": D,
    "layer_norm_epsilon": 1e-5,
    "text_config": {"rms_norm_eps": 1e-6, "dim": D},
}
SINGLE = save(tensors("h.0.ln_1", "ln_f"), {"format": "pt"})
SHARDS = {"a.safetensors": save(tensors("h.0.ln_1")), "b.safetensors": save(tensors("ln_f"))}
WEIGHT_MAP = {"h.0.ln_1.weight": "a.safetensors", "wte.weight": "a.safetensors", "ln_f.weight": "b.safetensors"}


def gguf_bytes(path):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_embedding_length(D)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_custom_alignment(32)
    writer.add_token_list(["a", "", "bc"])
    writer.add_array("x", [1, 2])
    writer.add_tensor("output_norm.weight", np.ones(D, np.float32))
    writer.add_tensor("q", np.zeros((2, 20), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@pytest.fixture(scope="module", autouse=True)
def warm(tmp_path_factory):
    """What Python imports on first use is opened here, for files that can be read and for files that cannot.

    Without transformers, whose classes a config would have built: it is our own readers that are tried.
    """
    broken = {"x.safetensors": b"x" * 99, "y.gguf": b"GGUF" * 99}
    home = directory(tmp_path_factory, {"model.safetensors": SINGLE, **broken})
    gguf_bytes(home / "x.gguf")
    for encoding in ("utf-8-sig", "utf-16", "utf-16-be", "utf-16-le", "utf-32", "utf-32-be", "utf-32-le"):
        codecs.lookup(encoding)  # json guesses them
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "transformers", None)
        for name in (".", "x.gguf", *broken):
            with suppress(CheckpointError):
                api.read(home / name)
        yield


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """A checkpoint of one file; beside its directory lies what nobody should open."""
    return directory(tmp_path_factory, {"model.safetensors": SINGLE})


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    home = directory(tmp_path_factory, SHARDS)
    (home / INDEX).write_text(json.dumps({"metadata": {"total_size": 3}, "weight_map": WEIGHT_MAP}))
    (home / "link.safetensors").symlink_to(f"../{OUTSIDE}")
    (home / "folder.safetensors").mkdir()
    return home


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    """(directory, a valid file's bytes)."""
    home = directory(tmp_path_factory, {})
    return home, gguf_bytes(home / "valid.gguf")


def directory(factory, files):
    home = (factory.mktemp("fuzz") / "checkpoint").resolve()
    home.mkdir()
    (home.parent / OUTSIDE).write_bytes(SINGLE)
    (home / "config.json").write_text(json.dumps(CONFIG))
    for name, content in files.items():
        (home / name).write_bytes(content)
    return home


# --- how they are broken ------------------------------------------------------------------------------------

NUMBERS = [0, 1, 2, 3, 9, 31, 127, 128, 255, 2**16, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 16, 2**64 - 1]


@st.composite
def broken_bytes(draw, content):
    """Some of the bytes overwritten, taken out, doubled or cut off."""
    broken = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(broken) - 1, 0)))
        match draw(st.sampled_from(["number", "bytes", "bit", "delete", "double", "cut", "grow"])):
            case "number":
                number, size = draw(st.sampled_from(NUMBERS)), draw(st.sampled_from([1, 4, 8]))
                broken[at : at + size] = (number % 256**size).to_bytes(size, "little")
            case "bytes":
                new = draw(st.binary(max_size=12))
                broken[at : at + len(new)] = new
            case "bit" if broken:
                broken[at] ^= 1 << draw(st.integers(0, 7))
            case "delete":
                del broken[at : at + draw(st.integers(1, 40))]
            case "double":
                piece = broken[at : at + draw(st.integers(1, 120))]
                broken[at:at] = piece * draw(st.integers(1, 3))
            case "cut" if draw(st.integers(0, 3)) == 0:
                del broken[at:]
            case "grow":
                broken += b"\0" * draw(st.sampled_from([1, 100, 5000]))
    return bytes(broken)


TEXTS = [
    "", ".", "..", "/", "\0", "a\0", "\ud800", "é" * 300, "a" * 5000, "a.safetensors", "b.safetensors",
    "A.SAFETENSORS", "a.safetensors/", "./a.safetensors", "folder.safetensors", "link.safetensors", f"../{OUTSIDE}",
    f"..\\{OUTSIDE}", "/etc/hostname", "C:\\x", "~/x", "config.json", INDEX, "~", "$HOME", "file:///etc/hostname",
    "http://localhost/x", "weight", "ln_f.weight", "ln_f.gamma", ".weight", "norm.weight", "0.weight", "F32", "BF16",
    "F4", "F6_E2M3", "I64", "BOOL", "U8", "C64", "__metadata__", "rms_norm_eps", "hidden_size", "architectures",
]  # fmt: skip
VALUES = st.one_of(
    st.sampled_from(TEXTS),
    st.sampled_from([*NUMBERS, -1, -(2**63), 10**400, 0.0, -0.0, -1.5, 1e-320, 1e308, float("inf"), float("nan")]),
    st.sampled_from([None, True, False, [], {}, [[]], [0], [D], [0, 4 * D], {"a": {}}, [2**62, 0], [True], ["a"]]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=5,
    ),
).map(copy.deepcopy)  # some are changed later


def places(document):
    """Every (container, key) in a JSON document."""
    if not isinstance(document, dict | list):
        return []
    keys = list(document) if isinstance(document, dict) else range(len(document))
    return [place for key in keys for place in ((document, key), *places(document[key]))]


@st.composite
def broken_json(draw, document):
    """Some of the values replaced, left out, renamed or copied to elsewhere."""
    broken = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        holders = places(broken)
        if not holders or draw(st.integers(0, 40)) == 0:
            return draw(VALUES)
        holder, key = draw(st.sampled_from(holders))
        match draw(st.sampled_from(["replace", "replace", "remove", "rename", "copy"])):
            case "replace":
                holder[key] = draw(VALUES)
            case "remove":
                del holder[key]
            case "rename" if isinstance(holder, dict):
                holder[draw(st.sampled_from(TEXTS))] = holder.pop(key)
            case "copy":
                other, place = draw(st.sampled_from(holders))
                holder[key] = copy.deepcopy(other[place])
    return broken


def texts(document):
    """The JSON document broken as a document, or as text."""
    raw = json.dumps(document).encode()
    return st.one_of(broken_json(document).map(json.dumps).map(str.encode), broken_bytes(raw))


def header_of(content):
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(raw, data):
    return len(raw).to_bytes(8, "little") + raw + data


# --- safetensors --------------------------------------------------------------------------------------------


def test_what_is_going_to_be_broken_is_whole(single, sharded, quantised):
    home, content = quantised
    (home / "x.gguf").write_bytes(content)
    for path in (single, sharded, home / "x.gguf"):
        assert [norm["role"] for norm in api.read(path).norms][-1] == "final"
        audited(path if path.is_dir() else home, path)


def test_any_byte_of_a_header_may_be_any_of_a_few():
    length = int.from_bytes(SINGLE[:8], "little")
    header = SINGLE[8 : 8 + length]
    for at in range(length):
        for value in b'\x00\xff"{[9-,':
            broken = header[:at] + bytes([value]) + header[at + 1 :]
            try:
                found = parse_header(broken, Path("x.safetensors"), len(SINGLE))
            except CheckpointError:
                continue
            assert all(tensor.offset + tensor.length <= len(SINGLE) for tensor in found.tensors.values())


@fuzz
@given(content=broken_bytes(SINGLE))
def test_a_broken_safetensors_file(single, content):
    (single / "model.safetensors").write_bytes(content)
    survives(single, read_header, single / "model.safetensors")
    audited(single, single)


@fuzz
@given(raw=texts(header_of(SINGLE)[0]))
def test_a_broken_safetensors_header(single, raw):
    (single / "model.safetensors").write_bytes(with_header(raw, header_of(SINGLE)[1]))
    audited(single, single)
    audited(single, single / "model.safetensors")


# --- index and config ---------------------------------------------------------------------------------------


@fuzz
@given(raw=texts({"metadata": {"total_size": 3}, "weight_map": WEIGHT_MAP}))
def test_a_broken_index(sharded, raw):
    (sharded / INDEX).write_bytes(raw)
    audited(sharded, sharded)


@pytest.mark.parametrize("name", TEXTS)
def test_an_index_that_names_anything(sharded, name):
    (sharded / INDEX).write_text(json.dumps({"weight_map": {"ln_f.weight": "b.safetensors", "x": name}}))
    audited(sharded, sharded)


@fuzz
@given(raw=texts(CONFIG))
def test_a_broken_config(single, raw):
    (single / "model.safetensors").write_bytes(SINGLE)
    (single / "config.json").write_bytes(raw)
    survives(single, read_json, single / "config.json")
    audited(single, single)


# --- the class that a config names --------------------------------------------------------------------------

_SIZES = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 16}
_LLAMA = {"model_type": "llama", **_SIZES, "num_key_value_heads": 1, "rope_parameters": {"rope_type": "default"}}
_COHERE = {"model_type": "cohere2", **_SIZES, "layer_types": ["full_attention"], "sliding_window": 4}
_T5 = {"model_type": "t5", "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 16}
_SIGLIP = {"model_type": "siglip_vision_model", **_SIZES, "image_size": 8, "patch_size": 4}
BUILT = [
    {"architectures": ["LlamaForCausalLM"], **_LLAMA},
    {"architectures": ["Cohere2ForCausalLM"], **_COHERE},
    {"architectures": ["T5EncoderModel"], **_T5},
    {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "text_config": _LLAMA,
        "vision_config": _SIGLIP,
    },
    {"architectures": ["ModernBertModel"], "model_type": "modernbert", **_SIZES, "pad_token_id": 0},
]
#: A norm of each of them, of which the names say too little, so that the class is built.
OPEN = ("model.norm", "encoder.final_layer_norm", "model.language_model.norm", "final_norm")
EXTREME = st.sampled_from(
    [10**5, 10**6, 10**9, 10**12, -1, -(10**9), 0, 1, 0.5, "", "gelu", "llama", "t5", [], [10**6], {}]
)


@st.composite
def extreme_config(draw):
    """One to three values anywhere in a config replaced by an extreme or by anything, or left out."""
    config = copy.deepcopy(draw(st.sampled_from(BUILT)))
    for _ in range(draw(st.integers(1, 3))):
        holders = places(config)
        if not holders:
            break
        holder, key = draw(st.sampled_from(holders))
        if draw(st.integers(0, 9)) == 0:
            del holder[key]
        else:
            holder[key] = copy.deepcopy(draw(st.one_of(EXTREME, EXTREME, VALUES)))
    return config


@pytest.fixture
def classes(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", transformers)


@pytest.fixture(scope="module")
def left_open(tmp_path_factory):
    scales = {f"{path}.weight": np.ones(8, np.float32) for path in OPEN}
    return directory(tmp_path_factory, {"model.safetensors": save(scales)})


@pytest.mark.parametrize("config", BUILT, ids=lambda config: config["model_type"])
def test_the_class_is_built_where_the_config_is_whole(left_open, classes, config):
    (left_open / "config.json").write_text(json.dumps(config))
    assert any("probed on the meta device" in norm["how"] for norm in api.read(left_open).norms)


@settings(fuzz, max_examples=int(os.environ.get("DEADDIR_FUZZ", "120")))
@given(config=extreme_config())
def test_a_class_built_from_any_config(left_open, classes, config):
    (left_open / "config.json").write_text(json.dumps(config))
    with patience(PATIENCE), suppress(CheckpointError, SpecError):
        assert api.read(left_open).norms


# --- GGUF ---------------------------------------------------------------------------------------------------


def parsed(content):
    found, metadata, _ = parse_gguf(io.BytesIO(content), len(content), Path("m-00001-of-00003.gguf"))
    gguf_config(metadata)
    assert all("/" not in name for name in gguf_parts(Path("m-00001-of-00003.gguf"), metadata))
    assert all(tensor.offset + tensor.length <= len(content) for tensor in found.values())


def test_any_byte_of_a_gguf_file_may_be_any_of_a_few(quantised):
    _, content = quantised
    with patience(PATIENCE * 3):
        for at in range(len(content)):
            for value in b"\x00\x01\x09\x20\x7f\x80\xff":
                with suppress(CheckpointError):
                    parsed(content[:at] + bytes([value]) + content[at + 1 :])


def test_any_number_of_a_gguf_file_may_be_any_of_many(quantised):
    _, content = quantised
    with patience(PATIENCE * 3):
        for at in range(len(content)):
            for number in NUMBERS:
                size = 4 if number < 2**32 else 8
                with suppress(CheckpointError):
                    parsed(content[:at] + number.to_bytes(size, "little") + content[at + size :])


@fuzz
@given(data=st.data())
def test_a_broken_gguf_file(quantised, data):
    home, valid = quantised
    path = home / "x.gguf"
    path.write_bytes(data.draw(broken_bytes(valid)))
    survives(home, read_gguf, path)
    audited(home, path)


@fuzz
@given(data=st.data())
def test_a_broken_part_of_a_split_model(quantised, data):
    """Each part says how many there are; only files of that name beside it are opened."""
    home, valid = quantised
    key = b"llama.embedding_length"  # as long as the key that takes its place
    counted = valid.replace(key, b"split.count".ljust(len(key), b"\0"))
    assert len(counted) == len(valid)
    paths = [home / f"m-0000{part}-of-0000{D}.gguf" for part in range(1, D + 1)]
    for path in paths:
        path.write_bytes(counted)
    paths[1].write_bytes(data.draw(broken_bytes(counted)))
    audited(home, paths[data.draw(st.integers(0, 1))])
