"""``--deaddir-model=org/name --deaddir-level=read``: the audit of what lies on a hub is that of the same files here."""

import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pytest_deaddir.api import measure
from pytest_deaddir.discovery.names import final_candidates, final_path
from remote.helpers import INDEX, MAIN, SINGLE, environment, write_index, write_sharded, write_single

#: What may differ between an audit of a hub's model and one of the same files.
OF_THE_HUB = {"spec", "revision", "requests", "bytes_read", "seconds", "peak_memory"}
OF_THE_HUB |= {"differing_weights", "uncompared_weights"}


@pytest.fixture
def audit(hub, tmp_path):
    """Run pytest as a user does, in a folder without anything; gives the process and the model's audit."""

    def run(spec, *options, **variables):
        report = tmp_path / "run" / "audit.json"
        report.parent.mkdir(exist_ok=True)
        report.unlink(missing_ok=True)
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--deaddir-only", "--deaddir-level=read"]
        process = subprocess.run(
            [*command, f"--deaddir-model={spec}", f"--deaddir-report={report}", *options],
            cwd=report.parent,
            env=environment(hub, tmp_path / "home", **variables),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert "Traceback" not in process.stdout + process.stderr, process.stdout + process.stderr
        models = json.loads(report.read_text())["models"] if report.exists() else [None]
        return process, models[0]

    return run


def facts(model):
    return {column: value for column, value in model.items() if column not in OF_THE_HUB}


def test_the_final_norm_is_audited_in_three_requests(hub, audit, tmp_path):
    folder = hub.publish("org/model", write_single(tmp_path / "m"))
    process, remote = audit("org/model")
    assert process.returncode == 0, process.stdout
    log = hub.log()
    assert [entry["path"].rpartition("/")[2] for entry in log] == ["config.json", SINGLE, SINGLE]
    assert remote["model"]["requests"] == 3
    assert f"{remote['model']['bytes_read'] / 1e3:.0f} kB in 3 requests" in process.stdout
    assert remote["model"]["bytes_read"] == sum(entry["sent"] for entry in log)
    assert remote["model"]["revision"] == MAIN
    assert remote["model"]["differing_weights"] is remote["model"]["uncompared_weights"] is None
    assert [norm["path"] for norm in remote["norms"]] == ["transformer.ln_f"]
    here = measure(folder, level="read", sites="final")
    assert remote["norms"] == here.norms
    assert facts(remote["model"]) == facts(here.model)
    assert not (tmp_path / "home" / "hub").exists()


def test_all_norms_of_a_sharded_model(hub, audit, tmp_path):
    folder = hub.publish("org/model", write_sharded(tmp_path / "m"))
    process, remote = audit(f"org/model@{MAIN}", "--deaddir-sites=all")
    assert process.returncode == 0, process.stdout
    assert len(remote["norms"]) == 9
    here = measure(folder, level="read")
    assert remote["norms"] == here.norms
    assert facts(remote["model"]) == facts(here.model)


def test_the_final_norm_of_a_sharded_model_touches_one_shard(hub, audit, tmp_path):
    folder = hub.publish("org/model", write_sharded(tmp_path / "m"))
    process, remote = audit("org/model")
    assert process.returncode == 0, process.stdout
    last = "model-00003-of-00003.safetensors"
    assert hub.files() == ["config.json", SINGLE, INDEX, last, last]
    assert remote["norms"] == measure(folder, level="read", sites="final").norms
    assert remote["model"]["parameters"] is None


def test_names_that_mislead_do_not_hide_the_final_norm(hub, tmp_path):
    """By its name the one candidate is a norm's scale; it is none, and the norm is in a shard that was not opened."""
    folder = write_sharded(tmp_path / "m")
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    last = weight_map["transformer.ln_f.weight"]
    tensors = load_file(folder / last)
    tensors = {name: values for name, values in tensors.items() if ".ln_f." not in name}
    save_file(tensors, folder / last)
    save_file({"transformer.norm.weight": np.ones((4, 4), np.float32)}, folder / "odd.safetensors")
    kept = {name: file for name, file in weight_map.items() if ".ln_f." not in name}
    write_index(folder, {**kept, "transformer.norm.weight": "odd.safetensors"})
    hub.publish("org/model", folder)
    remote = measure("org/model", level="read")
    assert [norm["path"] for norm in remote.norms] == ["transformer.h.3.ln_2"]
    assert remote.norms == measure(folder, level="read", sites="final").norms


def test_a_hub_that_fails_fails_the_audit_in_words(hub, audit, tmp_path):
    hub.publish("org/model", write_single(tmp_path / "m"))
    hub.fails("status", SINGLE, status=403, times=99)
    process, remote = audit("org/model")
    assert process.returncode == 1
    assert "org/model/model.safetensors: the hub refuses it with 403" in process.stdout
    assert not remote["norms"]


def test_offline_nothing_is_asked(hub, audit, tmp_path):
    hub.publish("org/model", write_single(tmp_path / "m"))
    process, _ = audit("org/model", HF_HUB_OFFLINE="1")
    assert process.returncode == 1
    assert "HF_HUB_OFFLINE is set" in process.stdout
    assert hub.log() == []


BLOCKS = [f"{at}.{norm}" for at in ("model.layers.2", "model.layers.10") for norm in ("input_layernorm", "mlp.up_proj")]
BERT = [
    f"bert.encoder.layer.{n}.{at}"
    for n in (2, 11)
    for at in ("attention.output.LayerNorm", "output.LayerNorm", "dense")
]


@pytest.mark.parametrize(
    ("paths", "last_shard"),
    [
        (["model.embed_tokens", *BLOCKS, "model.norm", "lm_head"], {"model.norm"}),
        (["bert.embeddings.LayerNorm", *BERT, "cls.predictions.transform.LayerNorm"], {*BERT[3:5]}),
        (["visual.merger.ln_q", *BLOCKS, "model.norm"], {"visual.merger.ln_q", "model.norm"}),
        (["wte", "h.0.attn", "h.0.mlp"], set()),
    ],
)
def test_the_final_norm_is_among_the_candidates(paths, last_shard):
    names = [f"{path}.{last}" for path in paths for last in ("weight", "bias")]
    candidates = final_candidates(names)
    assert {name.rpartition(".")[0] for name in candidates} == last_shard
    assert len(candidates) == 2 * len(last_shard)
    norms = {path: 1 for path in paths if "norm" in path.lower() or "ln_" in path}
    final = final_path(norms, norms)
    assert final in last_shard or not norms
