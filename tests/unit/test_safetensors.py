"""Our reading of safetensors against the library's, and against damaged files."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize
from safetensors.torch import save_file

from pytest_deaddir.errors import CheckpointError
from pytest_deaddir.source.safetensors import decode, read_header, read_tensors

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]


def write(path, header, data=b""):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_float_dtype_reads_as_the_library_writes_it(tmp_path, dtype):
    values = (torch.randn(37, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    save_file(
        {"a.weight": values, "b.weight": torch.zeros(2, 3)}, tmp_path / "x.safetensors", metadata={"format": "pt"}
    )
    tensors = read_header(tmp_path / "x.safetensors").tensors
    assert set(tensors) == {"a.weight", "b.weight"}
    [(tensor, read, raw)] = read_tensors([tensors["a.weight"]])
    assert np.array_equal(read, values.double().numpy())
    assert (tmp_path / "x.safetensors").read_bytes()[tensor.offset :][: tensor.length] == raw


@pytest.mark.parametrize(
    ("name", "dtype"), [("F8_E4M3", torch.float8_e4m3fn), ("F8_E5M2", torch.float8_e5m2)], ids=["e4m3", "e5m2"]
)
def test_all_256_values_of_an_8_bit_float(name, dtype):
    raw = bytes(range(256))
    expected = torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(dtype).double().numpy()
    assert np.array_equal(decode(raw, name), expected, equal_nan=True)


def test_all_65536_values_of_bfloat16():
    raw = np.arange(65536, dtype="<u2").tobytes()
    expected = torch.frombuffer(bytearray(raw), dtype=torch.bfloat16).double().numpy()
    assert np.array_equal(decode(raw, "BF16"), expected, equal_nan=True)


def test_integers_are_not_decoded_as_scales():
    with pytest.raises(ValueError, match="I32"):
        decode(b"\0" * 4, "I32")


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "data", "problem"),
    [
        ({"a": ENTRY}, b"\0" * 7, "truncated: the tensors need"),
        (b"[]", b"", "not an object"),
        (b"{", b"", "not JSON"),
        (b"[" * 100_000, b"", "not JSON"),
        ({"a": {**ENTRY, "dtype": "F31"}}, b"\0" * 8, "contradicts itself"),
        ({"a": {**ENTRY, "shape": [2**62, 0, -1]}}, b"\0" * 8, "contradicts itself"),
        ({"a": {**ENTRY, "shape": [3]}}, b"\0" * 8, "contradicts itself"),
        ({"a": {**ENTRY, "shape": [True, 2]}}, b"\0" * 8, "contradicts itself"),
        ({"a": {**ENTRY, "data_offsets": [8, 0]}}, b"\0" * 8, "contradicts itself"),
        ({"a": {**ENTRY, "data_offsets": [-8, 0]}}, b"\0" * 8, "contradicts itself"),
        ({"a": []}, b"", "contradicts itself"),
    ],
)
def test_a_damaged_header_is_an_error_that_names_the_file(tmp_path, header, data, problem):
    path = write(tmp_path / "bad.safetensors", header, data)
    with pytest.raises(CheckpointError, match=problem) as caught:
        read_header(path)
    assert str(path) in str(caught.value)


CUTS = st.lists(st.integers(0, 6), min_size=1, max_size=6).map(sorted)


@settings(max_examples=300, derandomize=True)
@given(CUTS, st.sampled_from([0, 0, 0, 1, -1]), st.randoms(use_true_random=False), st.integers(0, 3))
def test_layouts_are_refused_where_the_library_refuses_them(tmp_path_factory, cuts, more, shuffled, faults):
    """Data cut into tensors, some of them empty, in any order; then some of the offsets moved."""
    offsets = [list(pair) for pair in zip([0, *cuts], cuts, strict=False)]
    for _ in range(faults):
        pair = shuffled.choice(offsets)
        pair[shuffled.randrange(2)] += shuffled.choice([-1, 1])
    shuffled.shuffle(offsets)
    header = {
        f"t{i}": {"dtype": "U8", "shape": [max(end - begin, 0)], "data_offsets": [max(begin, 0), max(end, 0)]}
        for i, (begin, end) in enumerate(offsets)
    }
    path = write(tmp_path_factory.mktemp("layout") / "x.safetensors", header, b"\0" * max(cuts[-1] + more, 0))
    try:
        expected = {name for name, _ in deserialize(path.read_bytes())}
    except SafetensorError:
        with pytest.raises(CheckpointError):
            read_header(path)
    else:
        assert read_header(path).tensors.keys() == expected


def test_a_header_longer_than_the_format_allows_is_not_read(tmp_path):
    path = tmp_path / "bomb.safetensors"
    path.write_bytes((10**15).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match="limit"):
        read_header(path)


@pytest.mark.parametrize("size", [0, 7, 8, 20])
def test_a_truncated_file_is_an_error(tmp_path, size):
    path = write(tmp_path / "cut.safetensors", {"a": ENTRY}, b"\0" * 8)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match="truncated"):
        read_header(path)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_never_crash_the_header(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "f.safetensors"
    path.write_bytes(data)
    try:
        tensors = read_header(path).tensors
    except CheckpointError:
        return
    assert all(tensor.offset + tensor.length <= len(data) for tensor in tensors.values())
