"""Builds every broken or hostile checkpoint that the audit must survive, each into a folder of its own.

python tests/formats/hostile.py DIRECTORY
"""

from __future__ import annotations

import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

WIDTH = 16
CONFIG = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": WIDTH, "layer_norm_epsilon": 1e-5}

CASES: dict[str, Callable[[Path], None]] = {}


def case(build: Callable[[Path], None]) -> Callable[[Path], None]:
    CASES[build.__name__.replace("_", "-")] = build
    return build


def tensors(**changed: np.ndarray | None) -> dict[str, np.ndarray]:
    """A small healthy model's; ``changed`` by name with dots as double underscores, None to leave one out."""
    generator = np.random.default_rng(0)
    made = {"transformer.wte.weight": generator.normal(size=(8, WIDTH)).astype(np.float32)}
    for path in ("transformer.h.0.ln_1", "transformer.h.0.ln_2", "transformer.ln_f"):
        made[f"{path}.weight"] = generator.uniform(0.5, 1.5, WIDTH).astype(np.float32)
        made[f"{path}.bias"] = generator.normal(size=WIDTH).astype(np.float32)
    for name, value in changed.items():
        made[name.replace("__", ".")] = value
    return {name: value for name, value in made.items() if value is not None}


def checkpoint(path: Path, made: dict[str, np.ndarray], **config: object) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps({**CONFIG, **config}))
    save_file(made, path / "model.safetensors")
    return path


def raw(path: Path, header: bytes | dict, data: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def gamma(index: int, value: float) -> np.ndarray:
    scale = np.ones(WIDTH, np.float32)
    scale[index] = value
    return scale


@case
def healthy(path: Path) -> None:
    checkpoint(path, tensors())


@case
def nan_gamma(path: Path) -> None:
    checkpoint(path, tensors(transformer__ln_f__weight=gamma(3, np.nan)))


@case
def infinite_gamma(path: Path) -> None:
    checkpoint(path, tensors(transformer__h__0__ln_1__weight=gamma(3, -np.inf)))


@case
def zero_gamma(path: Path) -> None:
    checkpoint(path, tensors(transformer__ln_f__weight=gamma(5, 0.0)))


@case
def denormal_gamma(path: Path) -> None:
    checkpoint(path, tensors(transformer__ln_f__weight=gamma(5, 1e-41)))


@case
def gamma_missing(path: Path) -> None:
    checkpoint(path, tensors(transformer__ln_f__weight=None))


@case
def duplicate_names(path: Path) -> None:
    checkpoint(path, tensors())
    entries = [
        f'"transformer.ln_f.{name}": {json.dumps({"dtype": "F32", "shape": [WIDTH], "data_offsets": [at, at + 64]})}'
        for name, at in (("weight", 0), ("bias", 64), ("weight", 0))
    ]
    raw(path / "model.safetensors", f"{{{', '.join(entries)}}}".encode(), np.ones(2 * WIDTH, np.float32).tobytes())


@case
def duplicate_across_shards(path: Path) -> None:
    sharded(path, {"a.safetensors": tensors(), "b.safetensors": {"transformer.ln_f.weight": gamma(0, 9.0)}})


def sharded(path: Path, files: dict[str, dict[str, np.ndarray]], names: list[str] | None = None) -> None:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(CONFIG))
    for file, made in files.items():
        save_file(made, path / file)
    named = [*files] if names is None else names
    weight_map = {f"tensor.{i}": name for i, name in enumerate(named)}
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@case
def escapes_in_names(path: Path) -> None:
    hostile = ["x\x1b[2J.weight", "a\u202egpj.weight", "n\0ul.weight", "<img src=x>.weight", "../../etc/passwd.weight"]
    checkpoint(path, {**tensors(), **{name: np.ones(WIDTH, np.float32) for name in hostile}})


@case
def traversal_in_the_index(path: Path) -> None:
    save_outside(path)
    sharded(path, {"a.safetensors": tensors()}, ["a.safetensors", "../outside.safetensors"])


@case
def absolute_path_in_the_index(path: Path) -> None:
    save_outside(path)
    sharded(path, {"a.safetensors": tensors()}, [str((path.parent / "outside.safetensors").absolute())])


@case
def link_to_outside(path: Path) -> None:
    checkpoint(path, tensors())
    save_outside(path)
    (path / "model.safetensors").unlink()
    (path / "model.safetensors").symlink_to("../outside.safetensors")


@case
def link_in_the_index(path: Path) -> None:
    save_outside(path)
    sharded(path, {"a.safetensors": tensors()}, ["a.safetensors", "link.safetensors"])
    (path / "link.safetensors").symlink_to("../outside.safetensors")


def save_outside(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)
    save_file(tensors(), path.parent / "outside.safetensors")


@case
def two_different_formats(path: Path) -> None:
    checkpoint(path, tensors())
    sharded(path, {"a.safetensors": tensors(transformer__ln_f__weight=gamma(0, 7.0))})


@case
def two_equal_formats(path: Path) -> None:
    checkpoint(path, tensors())
    sharded(path, {"a.safetensors": tensors()})


@case
def a_bin_that_cannot_be_compared(path: Path) -> None:
    checkpoint(path, tensors())
    (path / "pytorch_model.bin").write_bytes(b"not a pickle")


@case
def header_bomb(path: Path) -> None:
    checkpoint(path, tensors())
    (path / "model.safetensors").write_bytes((67_000_000).to_bytes(8, "little") + b"{}" * 100)


@case
def empty_axis_of_2_to_the_62(path: Path) -> None:
    checkpoint(path, tensors())
    header, data = parts(path / "model.safetensors")
    header["x"] = {"dtype": "F32", "shape": [0, 2**62], "data_offsets": [0, 0]}
    raw(path / "model.safetensors", header, data)


@case
def misaligned_tensors(path: Path) -> None:
    checkpoint(path, tensors())
    header, data = parts(path / "model.safetensors")
    for entry in header.values():
        entry["data_offsets"] = [offset + 1 for offset in entry["data_offsets"]]
    header["x"] = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}
    raw(path / "model.safetensors", header, b"\0" + data)


def parts(path: Path) -> tuple[dict, bytes]:
    """A safetensors file's header and data."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def laid_out(path: Path, *, bias_at: int, size: int) -> None:
    """One norm of 16 float32 scales at 0, its shift somewhere, in so many bytes of data."""
    checkpoint(path, tensors())
    entry = {"dtype": "F32", "shape": [WIDTH]}
    header = {
        "transformer.ln_f.bias": {**entry, "data_offsets": [bias_at, bias_at + 64]},
        "transformer.ln_f.weight": {**entry, "data_offsets": [0, 64]},
    }
    raw(path / "model.safetensors", header, np.ones(size // 4, np.float32).tobytes())


@case
def overlapping_tensors(path: Path) -> None:
    laid_out(path, bias_at=32, size=96)


@case
def two_tensors_of_the_same_bytes(path: Path) -> None:
    laid_out(path, bias_at=0, size=64)


@case
def a_hole_between_tensors(path: Path) -> None:
    laid_out(path, bias_at=80, size=144)


@case
def bytes_behind_the_tensors(path: Path) -> None:
    laid_out(path, bias_at=64, size=1024)


@case
def twice_with_bytes_of_its_own(path: Path) -> None:
    checkpoint(path, tensors())
    entries = [json.dumps({"dtype": "F32", "shape": [WIDTH], "data_offsets": [at, at + 64]}) for at in (0, 64)]
    header = "{" + ", ".join(f'"transformer.ln_f.weight": {entry}' for entry in entries) + "}"
    raw(path / "model.safetensors", header.encode(), np.ones(2 * WIDTH, np.float32).tobytes())


@case
def truncated(path: Path) -> None:
    checkpoint(path, tensors())
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])


@case
def negative_eps(path: Path) -> None:
    checkpoint(path, tensors(), layer_norm_epsilon=-1.0)


@case
def eps_in_a_section(path: Path) -> None:
    checkpoint(path, tensors(), text_config={"rms_norm_eps": 1.0})


@case
def eps_without_end(path: Path) -> None:
    checkpoint(path, tensors(), layer_norm_epsilon=10**400)


@case
def duplicate_behind_an_escape(path: Path) -> None:
    checkpoint(path, tensors())
    entry = '{"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}'
    escaped = entry.replace("dtype", "\\u0064type")
    header = f'{{"transformer.ln_f.weight": {escaped}, "transformer.ln_f.weight": {entry}}}'
    raw(path / "model.safetensors", header.encode(), np.ones(WIDTH, np.float32).tobytes())


@case
def huge_scales(path: Path) -> None:
    checkpoint(path, tensors(transformer__ln_f__weight=np.full(WIDTH, 1e200)))


@case
def pipe_for_a_config(path: Path) -> None:
    checkpoint(path, tensors())
    (path / "config.json").unlink()
    os.mkfifo(path / "config.json")


@case
def a_norm_of_millions(path: Path) -> None:
    checkpoint(path, tensors())
    entry = {"dtype": "F32", "shape": [4_000_000], "data_offsets": [0, 16_000_000]}
    raw(path / "model.safetensors", {"transformer.ln_f.weight": entry}, b"")
    with (path / "model.safetensors").open("ab") as file:
        file.truncate((path / "model.safetensors").stat().st_size + 16_000_000)  # a sparse file


@case
def other_weights_named_in_the_config(path: Path) -> None:
    checkpoint(path, tensors(), transformers_weights="other.safetensors")


@case
def config_of_another_shape(path: Path) -> None:
    checkpoint(path, tensors())
    (path / "config.json").write_text("[" * 50_000)


@case
def pickle_with_code(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "pytorch_model.bin").write_bytes(pickle.dumps(Touch(str(path.parent / "executed"))))


class Touch:
    """Unpickled with ordinary pickle, it makes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return (open, (self.path, "w"))


@case
def stride_zero_pickle(path: Path) -> None:
    import torch

    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(CONFIG))
    made = {name: torch.from_numpy(value) for name, value in tensors().items()}
    torch.save({**made, "transformer.big.weight": torch.ones(1).expand(10**12)}, path / "pytorch_model.bin")


if __name__ == "__main__":
    for name, build in CASES.items():
        build(Path(sys.argv[1]) / name / "checkpoint")
        print(name)
