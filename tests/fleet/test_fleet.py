"""Fleets: the command on a real Ray cluster of this machine, with workers that are killed on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import jsonschema
import pytest

from plugin.helpers import GPT2, write_checkpoint
from pytest_deaddir import fleet
from pytest_deaddir.report.schema import report_schema

HERE = Path(fleet.__file__).parents[1]

DEADLY = '''
"""Models whose making kills the process: once, and every time."""
import os, signal
from pathlib import Path
from torch import nn

def once():
    marker = Path(__file__).with_name("killed")
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)), (__import__("torch").randn(64, 8),)

def always():
    os.kill(os.getpid(), signal.SIGKILL)
'''


def command(folder, *arguments):
    """The command in a process of its own, as it is called."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(folder)]), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "pytest_deaddir.fleet", *map(str, arguments)]
    return subprocess.Popen(
        words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def call(folder, *arguments):
    with command(folder, *arguments) as process:
        out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.fixture(scope="module")
def fleet_run(tmp_path_factory):
    """A folder with subjects of every fate, and what came of the first run."""
    pytest.importorskip("ray", reason="fleets need pytest-deaddir[fleet]")
    folder = tmp_path_factory.mktemp("fleet")
    (folder / "deadly.py").write_text(DEADLY)
    write_checkpoint(folder / "good")
    write_checkpoint(folder / "nan", nan="transformer.ln_f")
    write_checkpoint(folder / "cut", truncated=True)
    subjects = [f"{GPT2}&seed={seed}" for seed in range(4)] + ["deadly:once", "deadly:always", "good", "nan", "cut"]
    (folder / "subjects.txt").write_text("\ufeff" + "\n".join(subjects) + "\ngood  # again\n", encoding="utf-8")
    return folder, call(folder, "subjects.txt", "--out", "out", "--retries=1")


def entries(folder):
    report = json.loads((folder / "out" / "report.json").read_text())
    jsonschema.validate(report, report_schema())
    models = report["models"]
    return {Path(entry["model"]["spec"]).name: entry for entry in models}


def test_every_subject_has_a_result_and_a_killed_worker_costs_none(fleet_run):
    folder, done = fleet_run
    assert done.returncode == 1, done.stderr
    found = entries(folder)
    assert len(found) == 9
    assert (folder / "killed").exists()
    assert found["deadly:once"]["norms"][0]["kind"] == "layernorm"
    assert "no worker finished it" in found["deadly:always"]["error"]
    assert found["deadly:always"]["error"].isprintable()
    assert "model.safetensors" in found["cut"]["error"]
    assert [finding["code"] for finding in found["nan"]["findings"]] == ["DD001"]
    assert not found["good"]["findings"]
    assert "6 passed, 1 failed, 2 could not be audited" in done.stdout
    [cut] = [line for line in done.stdout.splitlines() if "/cut" in line]
    assert cut.count("/cut") == 1
    assert not done.stderr


def test_results_are_told_as_they_arrive_and_reported_together(fleet_run):
    folder, done = fleet_run
    told = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert [line.split("]")[0] for line in told] == [f"[{number}/9" for number in range(1, 10)]
    assert len(list((folder / "out" / "audits").iterdir())) == 9
    assert (folder / "out" / "report.html").read_text().startswith("<!doctype html>")
    assert "| `deadly:once` | layernorm |" in (folder / "out" / "report.md").read_text()


def test_a_second_run_measures_only_what_is_missing(fleet_run):
    folder, _ = fleet_run
    before = entries(folder)
    [lost] = (folder / "out" / "audits").glob("*good-*")
    lost.write_text('{"schema": "pytest-deaddir/audit/1", "mod')  # half a file is none
    again = call(folder, "subjects.txt", "--out", "out", "--retries=1")
    assert "9 subjects, 8 of them done before" in again.stdout
    assert entries(folder).keys() == before.keys()
    assert not entries(folder)["good"]["findings"]


RULE = """
code = "ACME001"
name = "too-few-rows"
summary = "There are as many rows as we want."
severity = "error"
confidence = "heuristic"
table = "model"
require = {{ samples = {{ min = {least} }} }}
message = "{{samples}} rows"
"""


def test_what_has_changed_is_audited_anew_and_judged_by_the_rules_of_now(tmp_path):
    """In a folder of its own: a checkpoint gets other weights, then a rule file another limit."""
    pytest.importorskip("ray", reason="fleets need pytest-deaddir[fleet]")
    write_checkpoint(tmp_path / "changing")
    write_checkpoint(tmp_path / "cut", truncated=True)
    (tmp_path / "subjects.txt").write_text("changing\ncut\n")
    (tmp_path / "rule.toml").write_text(RULE.format(least=1))
    asked = ["subjects.txt", "--out", "out", "--rules=rule.toml", "--select=ACME001,DD001"]
    first = call(tmp_path, *asked)
    assert "1 passed, 0 failed, 1 could not be audited" in first.stdout, first.stderr

    (tmp_path / "rule.toml").write_text(RULE.format(least=10**6))
    stricter = call(tmp_path, *asked)
    assert "2 subjects, 2 of them done before\n0 passed, 1 failed, 1 could not be audited" in stricter.stdout
    assert entries(tmp_path)["changing"]["findings"][0]["code"] == "ACME001"

    (tmp_path / "rule.toml").write_text(RULE.format(least=1))
    write_checkpoint(tmp_path / "changing", nan="transformer.ln_f")
    changed = call(tmp_path, *asked, "--again")  # what ended in an error, too
    assert "2 subjects, 0 of them done before" in changed.stdout
    assert entries(tmp_path)["changing"]["findings"][0]["code"] == "DD001"
    assert len(list((tmp_path / "out" / "audits").iterdir())) == 2


def test_other_inputs_are_another_state(tmp_path):
    file = tmp_path / "inputs" / "text.txt"
    file.parent.mkdir()
    states = set()
    for text in ("some words", "other word"):
        file.write_text(text)
        os.utime(file, (1, len(states) + 1))
        states |= {json.dumps(fleet._inputs_state(path)) for path in (file, file.parent)}
    assert len(states) == 4


def test_going_on_takes_a_hundredth_of_a_second_for_each_subject(tmp_path):
    """What is done for a subject that was audited before; the bar is 5 % of the first time, and counted with room."""
    checkpoint = write_checkpoint(tmp_path / "good")
    text = str(checkpoint)
    store = fleet.Store(tmp_path / "out")
    rules = fleet.choose_rules(None, fleet.Given([fleet.Layer(lambda _: None, tmp_path, str)] * 2, []))
    store.keep(text, fleet._state(text, None), fleet.audit_one(text, {}))
    began = time.process_time()
    for _ in range(20):
        assert fleet._judged(text, store.kept(text, fleet._state(text, None)), rules)["checks"]["failed"] == 0
    assert time.process_time() - began < 20 * 0.03


def test_a_folder_of_other_options_is_refused(fleet_run):
    folder, _ = fleet_run
    again = call(folder, "subjects.txt", "--out", "out", "--level=read")
    assert again.returncode == 2
    assert "holds audits made with other options (level was left out and is read now)" in again.stderr


def test_what_no_node_has_is_told_and_locks_no_folder(tmp_path):
    pytest.importorskip("ray", reason="fleets need pytest-deaddir[fleet]")
    (tmp_path / "subjects.txt").write_text(GPT2)
    done = call(tmp_path, "subjects.txt", "--out", "out", "--cpus=4000", "--memory=900TB")
    assert done.returncode == 2
    assert "no node of the cluster has 4000 CPUs, 0 GPUs and 9e+05 GB of memory for an audit: there is " in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_node_must_have_all_that_an_audit_is_given():
    nodes = [{"CPU": 8.0, "memory": 8e9}, {"CPU": 2.0, "GPU": 1.0, "memory": 8e9}]
    assert fleet._lacking({"num_cpus": 2, "num_gpus": 1}, nodes) is None
    assert fleet._lacking({"num_cpus": 4, "num_gpus": 1}, nodes) == (
        "no node of the cluster has 4 CPUs, 1 GPUs for an audit: there is 2 CPUs, 1 GPUs; 8 CPUs, 0 GPUs"
    )
    assert "there is none" in (fleet._lacking({"num_cpus": 1, "num_gpus": 0}, []) or "")


def test_no_cluster_at_an_address_is_told(tmp_path):
    pytest.importorskip("ray", reason="fleets need pytest-deaddir[fleet]")
    (tmp_path / "subjects.txt").write_text(GPT2)
    done = call(tmp_path, "subjects.txt", "--out", "out", "--address=auto")
    assert (done.returncode, "error: --address auto: Could not find any running Ray" in done.stderr) == (2, True)
    assert not (tmp_path / "out").exists()


def test_an_interrupt_says_what_is_kept(tmp_path):
    pytest.importorskip("ray", reason="fleets need pytest-deaddir[fleet]")
    (tmp_path / "slow.py").write_text("import time\ndef model(): time.sleep(600)\n")
    (tmp_path / "subjects.txt").write_text(f"{GPT2}\nslow:model\n")
    with command(tmp_path, "subjects.txt", "--out", "out") as process:
        while not process.stdout.readline().startswith("[1/2]"):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    assert out == "stopped: 1 of 2 are kept in out; call it again to go on\n"


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--concurrency=-1", "argument --concurrency: '-1' is not a whole number above 0"),
        ("--concurrency=0", "argument --concurrency: '0' is not a whole number above 0"),
        ("--cpus=-1", "argument --cpus: '-1' is not a number above 0"),
        ("--cpus=0", "argument --cpus: '0' is not a number above 0"),
        ("--gpus=nan", "argument --gpus: 'nan' is not a number from 0 on"),
        ("--retries=-5", "argument --retries: '-5' is not a whole number from 0 on"),
        ("--interval=-1", "argument --interval: '-1' is not a number from 0 on"),
        ("--memory=cpu=1GB", "argument --memory: 'cpu=1GB' is no size"),
        ("--inputs=gone.txt", "--inputs gone.txt: no such file or folder"),
        ("--samples=-3", "--samples -3: not a positive whole number"),
        ("--batch-size=0", "--batch-size 0: not a positive whole number"),
        ("--max-memory=much", "--max-memory much: 'much' is no size"),
        ("--rules=gone.toml", "gone.toml"),
        ("--select=DD0,XY", "--select XY: no rule"),
        ("--select=DD601", "--select and --ignore leave no rule that can be answered at level forward"),
        ("--severity=DD001=grave", "--severity DD001=grave: write DD001=SEVERITY"),
        ("--fail-on=info", "--fail-on info: not one of error, warning"),
        ("--out=subjects.txt", "--out subjects.txt: is no folder"),
    ],
)
def test_what_cannot_be_meant_is_told_before_anything_starts(tmp_path, monkeypatch, capsys, option, said):
    pytest.importorskip("ray", reason="fleets need pytest-deaddir[fleet]")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "subjects.txt").write_text(GPT2)
    with pytest.raises(SystemExit) as exit_:
        fleet.main(["subjects.txt", "--out", "out", option])
    assert exit_.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_wrong_subjects_are_told_at_once_with_their_lines(tmp_path):
    (tmp_path / "subjects.txt").write_text("random:gpt2\n\nno such model\n./gone\n")
    done = call(tmp_path, "subjects.txt", "--out", "out")
    assert done.returncode == 2
    assert "subjects.txt:3: " in done.stderr
    assert "subjects.txt:4: " in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "# nothing\n"])
def test_no_subject_at_all_is_no_success(tmp_path, text):
    (tmp_path / "subjects.txt").write_text(text)
    done = call(tmp_path, "subjects.txt", "--out", "out")
    assert (done.returncode, "names no subject" in done.stderr) == (2, True)


def test_names_that_look_alike_have_files_of_their_own(tmp_path):
    store = fleet.Store(tmp_path)
    names = ["a/b", "a-b", "a?b", "../../etc/passwd", "a" * 300]
    paths = [store.path(name, "0123456789ab") for name in names]
    assert len(set(paths)) == len(names)
    assert all(path.parent == tmp_path / "audits" and len(path.name) < 130 for path in paths)


def test_models_of_a_hub_are_begun_apart(monkeypatch):
    """The pause between two of them, with a cluster and a clock that only count."""
    begun = []
    clock = [0.0]

    class Ray:
        def remote(self, **_):
            return lambda function: self

        def wait(self, running, timeout):
            clock[0] += 0.01 if timeout is None else timeout
            return running[:1], running[1:]

        def get(self, reference):
            return fleet.failed(reference, "made up")

    class Task(Ray):
        def remote(self, *arguments, **_):
            if not arguments:
                return lambda function: self
            begun.append((arguments[0], clock[0]))
            return arguments[0]

    pytest.importorskip("ray", reason="its errors are named")
    monkeypatch.setattr("ray.remote", Task().remote)
    monkeypatch.setattr("ray.wait", Task().wait)
    monkeypatch.setattr("ray.get", Task().get)
    monkeypatch.setattr(fleet.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(fleet.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    subjects = ["org/a", "org/b", "random:gpt2", "org/c"]
    done = list(fleet.run(subjects, {}, resources={}, concurrency=8, retries=0, interval=0.5))
    assert sorted(text for text, _ in done) == sorted(subjects)
    hub = [when for text, when in begun if text.startswith("org/")]
    assert all(later - earlier >= 0.5 for earlier, later in pairwise(hub))
