"""Fleets: the command on a real Ray cluster of this machine, with workers that are killed on the way."""

import json
import os
import subprocess
import sys
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


def call(folder, *arguments):
    """The command in a process of its own, as it is called."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(folder)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest_deaddir.fleet", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


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
    (folder / "subjects.txt").write_text("# all of them\n" + "\n".join(subjects) + "\ngood  # again\n")
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
    assert "model.safetensors" in found["cut"]["error"]
    assert [finding["code"] for finding in found["nan"]["findings"]] == ["DD001"]
    assert not found["good"]["findings"]
    assert "6 passed, 1 failed, 2 could not be audited" in done.stdout


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


def test_a_folder_of_other_options_is_refused(fleet_run):
    folder, _ = fleet_run
    again = call(folder, "subjects.txt", "--out", "out", "--level=read")
    assert again.returncode == 2
    assert "holds audits made with other options" in again.stderr


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
    assert len({store.path(name) for name in names}) == len(names)
    assert all(store.path(name).parent == tmp_path / "audits" and len(store.path(name).name) < 120 for name in names)


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
    how = dict.fromkeys(("level",), None)
    done = list(fleet.run(subjects, how, [], resources={}, concurrency=8, retries=0, interval=0.5))
    assert sorted(text for text, _ in done) == sorted(subjects)
    hub = [when for text, when in begun if text.startswith("org/")]
    assert all(later - earlier >= 0.5 for earlier, later in pairwise(hub))
