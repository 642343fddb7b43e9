"""What reading γ costs: against a bare read of the same bytes, against the file's size, and for a thousand layers.

    python benchmarks/read_limits.py            # sparse files of 1 MB to 20 GB in a temporary folder; they take no space

Every figure is the best of several runs in one process, in milliseconds; ratios compare alternating runs.
"""

from __future__ import annotations

import json
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pytest_deaddir import read
from pytest_deaddir.discovery.names import sites_from_names
from pytest_deaddir.source.open import open_checkpoint
from pytest_deaddir.source.spec import parse_spec

WIDTH = 1024


def best(run: Callable[[], object], repeats: int = 15) -> float:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times) * 1e3


def write_sparse(
    path: Path, layers: int, total: int, width: int = WIDTH, first: int = 0, final: bool = True
) -> list[str]:
    """A safetensors file of ``total`` bytes whose matrices are holes; γ lies at its end, as far from the header as can be."""
    names = [f"model.layers.{i}.{n}.weight" for i in range(first, first + layers) for n in ("ln_1", "ln_2")]
    names += ["model.norm.weight"] if final else []
    scales = len(names) * width * 4
    header: dict[str, object] = {"model.embed.weight": entry("U8", [total - scales], 0, total - scales)}
    offset = total - scales
    for name in names:
        header[name] = entry("F32", [width], offset, offset + 4 * width)
        offset += 4 * width
    raw = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.seek(8 + len(raw) + total - scales)
        file.write(np.random.default_rng(0).uniform(0.5, 1.5, len(names) * width).astype("<f4").tobytes())
    return names


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def bare(path: Path) -> bytes:
    """The least there is to do: open, read the header, seek to the final γ and read it."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        begin, end = header["model.norm.weight"]["data_offsets"]
        file.seek(8 + length + begin)
        return file.read(end - begin)


def final_gamma(path: Path) -> np.ndarray:
    """The same through the package: header, sites by name, the final site's values."""
    checkpoint = open_checkpoint(parse_spec(str(path)))
    [site] = sites_from_names(checkpoint.floating_shapes(), {}, final_only=True)
    assert site.gamma is not None
    return next(values for _, values in checkpoint.read([site.gamma]))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        print("header + final γ of one file, 12 layers (bar: ≤ 3 × the bare read, constant in size)")
        for size in (10**6, 10**8, 10**9, 20 * 10**9):
            path = Path(folder, f"{size}.safetensors")
            write_sparse(path, 12, size)
            assert np.array_equal(final_gamma(path), np.frombuffer(bare(path), "<f4"))
            ours, least = best(lambda path=path: final_gamma(path)), best(lambda path=path: bare(path))
            print(f"  {size / 1e6:8.0f} MB  ours {ours:6.3f}  bare {least:6.3f}  ratio {ours / least:4.2f}")

        layers, shards = 1000, 20
        home = Path(folder, "thousand")
        home.mkdir()
        (home / "config.json").write_text(
            json.dumps({"model_type": "llama", "rms_norm_eps": 1e-6, "hidden_size": WIDTH})
        )
        weight_map: dict[str, str] = {}
        for shard in range(shards):
            name = f"model-{shard:02}.safetensors"
            each = layers // shards
            made = write_sparse(home / name, each, 10**8, first=shard * each, final=shard == shards - 1)
            weight_map |= dict.fromkeys(made, name)
        (home / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        audited = read(home)
        assert len(audited.norms) == 2 * layers + 1
        assert all(norm["predicted_dead_by_dtype"] for norm in audited.norms)
        print(
            f"all {len(audited.norms)} norms of {layers} layers in {shards} shards, everything predicted (bar: ≤ 500)"
        )
        print(f"  {best(lambda: read(home), 5):6.1f}")


if __name__ == "__main__":
    main()
