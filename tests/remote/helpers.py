"""What the tests of the remote read share: repositories of a few hundred kB, and the served hub's other end."""

from __future__ import annotations

import hashlib
import json
import os
import urllib.request
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from pytest_deaddir.source.open import open_checkpoint
from pytest_deaddir.source.spec import parse_spec

MAIN = hashlib.sha1(b"main").hexdigest()
OTHER = hashlib.sha1(b"other").hexdigest()
WIDTH = 64

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def tensors_of(layers=4, filler=40_000, seed=0, width=WIDTH):
    """A decoder by GPT-2's names: γ and β of each norm, and between them something large."""
    rng = np.random.default_rng(seed)
    tensors = {"transformer.wte.weight": rng.standard_normal((filler // width, width))}
    for layer in range(layers):
        at = f"transformer.h.{layer}"
        for norm in ("ln_1", "ln_2"):
            tensors[f"{at}.{norm}.weight"] = 1 + 0.1 * rng.standard_normal(width)
            tensors[f"{at}.{norm}.bias"] = 0.1 * rng.standard_normal(width)
        tensors[f"{at}.attn.c_attn.weight"] = rng.standard_normal((filler // width, width))
        tensors[f"{at}.mlp.c_fc.weight"] = rng.standard_normal((filler // width, width))
    tensors["transformer.ln_f.weight"] = 1 + 0.1 * rng.standard_normal(width)
    tensors["transformer.ln_f.bias"] = 0.1 * rng.standard_normal(width)
    tensors["transformer.wpe.weight"] = rng.standard_normal((filler // width, width))
    return {name: values.astype(np.float32) for name, values in tensors.items()}


def write_config(folder, **more):
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": WIDTH, **more}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_single(folder, **how):
    write_config(folder)
    save_file(tensors_of(**how), folder / SINGLE)
    return folder


def write_sharded(folder, shards=3, **how):
    """Tensors dealt out in order, so that each shard has norms and the final one lies in the last."""
    write_config(folder)
    tensors = tensors_of(**how)
    names = list(tensors)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        mine = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
        save_file({name: tensors[name] for name in mine}, folder / file)
        weight_map |= dict.fromkeys(mine, file)
    write_index(folder, weight_map)
    return folder


def write_index(folder, weight_map):
    document = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(document))


def norms_of(checkpoint):
    """Names of the γ and β that a checkpoint's headers hold."""
    return [name for name, tensor in checkpoint.tensors.items() if len(tensor.shape) == 1]


def final_of(names):
    return [name for name in names if ".ln_f." in name]


def values_of(checkpoint, names):
    return {tensor.name: array for tensor, array in checkpoint.read(names)}


def local(folder):
    """The same files opened on disk."""
    return open_checkpoint(parse_spec(str(folder)))


def assert_same(checkpoint, folder, names, *, whole=True):
    """The named tensors, and with ``whole`` all that was read, are what a local read of the same files gives."""
    here, there = local(folder), values_of(checkpoint, names)
    expected = values_of(here, names)
    assert there.keys() == expected.keys() == set(names)
    for name, array in expected.items():
        np.testing.assert_array_equal(there[name], array)
        mine, theirs = here.tensors[name], checkpoint.tensors[name]
        assert (mine.offset, mine.dtype, mine.shape) == (theirs.offset, theirs.dtype, theirs.shape)
        assert mine.file.name == theirs.file.name
    if whole:
        assert checkpoint.fingerprint() == here.fingerprint()
        assert checkpoint.parameters == here.parameters


class Hub:
    """The served hub, as a test sees it: what it is to do, and what it was asked."""

    def __init__(self, folder, ports):
        self.folder = Path(folder)
        self.port, self.store_port = ports
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._told = {}

    def publish(self, repository, folder, commit=MAIN, revision="main"):
        """Serve a folder's files as a repository at a commit, by links. Returns the folder."""
        target = self.folder / repository / commit
        target.mkdir(parents=True)
        for file in Path(folder).iterdir():
            (target / file.name).symlink_to(file.resolve())
        self._told.setdefault("refs", {}).setdefault(repository, {})[revision] = commit
        self.behave()
        return folder

    def behave(self, **told):
        """Change what the hub does; forgets the log."""
        self._told |= told
        body = json.dumps(self._told).encode()
        request = urllib.request.Request(f"{self.endpoint}/-/behaviour", body, method="PUT")
        _direct.open(request).close()

    def fails(self, kind, file="", **fault):
        self.behave(faults=[{"kind": kind, "file": file, **fault}])

    def log(self):
        with _direct.open(f"{self.endpoint}/-/log") as response:
            return json.load(response)

    def asked(self, port="hub"):
        """(file, revision) of each request, in order."""
        found = [entry for entry in self.log() if entry["port"] == port]
        assert {entry["method"] for entry in found} <= {"GET"}
        return [(entry["path"].rpartition("/")[2], entry["path"].split("/")[-2]) for entry in found]

    def files(self):
        return [file for file, _ in self.asked()]


#: Not through whatever proxy the environment names.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def environment(hub, home, **more):
    """Of a process that takes the served hub for the hub."""
    dropped = ("HF_", "HUGGING_FACE", "TRANSFORMERS_OFFLINE", "PYTEST", "HTTP_PROXY", "http_proxy", "ALL_PROXY")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return kept | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"} | more
