"""What a failing item says, and the command that runs just it again."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from plugin.helpers import GPT2, failed, outcomes, rerun_lines, write_checkpoint

BROKEN = "transformer.ln_f"


@contextmanager
def tensors_of(folder):
    """The tensors of a checkpoint, by name, to change and have saved."""
    tensors = load_file(folder / "model.safetensors")
    yield tensors
    save_file(tensors, folder / "model.safetensors")


def failures_of(result):
    """The text of the failures' section."""
    return result.stdout.str().partition("= FAILURES =")[2].partition("= deaddir =")[0]


def assert_rerun_reproduces(pytester, result):
    """The one command of the one failure runs that item alone, which fails again."""
    (nodeid,) = failed(result)
    (command,) = rerun_lines(result)
    again = pytester.runpytest_inprocess(*command)
    assert outcomes(again) == {nodeid: "failed"}, again.stdout.str()
    assert again.ret == 1
    return again


def test_a_failure_tells_measured_limit_and_site(audit, checkpoint):
    checkpoint(nan=BROKEN)
    shown = failures_of(audit())
    assert "DD001 non-finite-gamma (error): γ of transformer.ln_f has 1 NaN or infinite entries out of 16" in shown
    assert "  site      transformer.ln_f\n" in shown
    assert "  measured  gamma_nonfinite = 1, must be ≤ 0\n" in shown
    assert shown.count("re-run ") == 1
    assert "Traceback" not in shown
    assert ".py" not in shown


def test_a_failure_tells_every_finding_of_its_rule(audit, checkpoint):
    with tensors_of(checkpoint(nan=BROKEN)) as tensors:
        tensors["transformer.h.0.ln_1.weight"][0] = np.inf
    shown = failures_of(audit())
    assert "site      transformer.h.0.ln_1\n" in shown
    assert "site      transformer.ln_f\n" in shown
    assert shown.count("re-run ") == 1


def test_the_short_summary_names_the_finding(audit, checkpoint):
    checkpoint(nan=BROKEN)
    audit("-ra").stdout.fnmatch_lines(["FAILED m::DD001*"])


@pytest.mark.parametrize(
    "name", ["m", "it's a model", 'a "quoted" $HOME;x', "m[1]@x", "--m", "DD001", "discovery", "γ"]
)
def test_the_rerun_command_runs_just_the_failing_item(audit, checkpoint, pytester, name):
    checkpoint(name, nan=BROKEN)
    assert_rerun_reproduces(pytester, audit(models=[name]))


def test_the_rerun_command_of_one_of_several_models(audit, checkpoint, pytester):
    checkpoint("healthy")
    checkpoint("broken", nan=BROKEN)
    assert_rerun_reproduces(pytester, audit(models=["healthy", "broken"]))


def test_the_rerun_command_of_one_of_two_models_that_share_the_end_of_their_paths(audit, pytester, tmp_path_factory):
    base = tmp_path_factory.mktemp("elsewhere")
    models = [write_checkpoint(base / "x/a/m"), write_checkpoint(base / "y/a/m", nan=BROKEN)]
    (command,) = rerun_lines(audit(models=models))
    again = pytester.runpytest_inprocess(*command)
    assert list(outcomes(again).values()) == ["failed"]


def test_the_rerun_command_carries_the_ini_file_s_settings(pytester, checkpoint, monkeypatch):
    checkpoint(nan=BROKEN)
    pytester.makeini("[pytest]\ndeaddir_model = m\ndeaddir_level = read\ndeaddir_dtype = float16")
    assert_rerun_reproduces(pytester, pytester.runpytest_inprocess())
    pytester.mkdir("below")
    monkeypatch.chdir(pytester.path / "below")
    assert_rerun_reproduces(pytester, pytester.runpytest_inprocess())


def test_the_rerun_command_carries_the_rules(audit, checkpoint, pytester):
    checkpoint()
    (pytester.path / "my rules").mkdir()
    (pytester.path / "my rules" / "narrow.toml").write_text(
        """
        code = "ACME001"
        name = "narrow"
        severity = "error"
        table = "norms"
        where = { role = "final" }
        require = { features = { max = 4 } }
        message = "{path} is {features} wide"
        summary = "A norm is wide."
        """
    )
    assert_rerun_reproduces(pytester, audit("--deaddir-rules=my rules"))


def test_the_rerun_command_of_an_audit_that_failed(audit, checkpoint, pytester):
    checkpoint(truncated=True)
    again = assert_rerun_reproduces(pytester, audit())
    again.stdout.fnmatch_lines(["*model.safetensors: truncated*"])


def test_the_rerun_command_carries_what_a_forward_pass_was_given(audit, pytester, with_torch):
    again = assert_rerun_reproduces(
        pytester, audit("--deaddir-samples=20", "--deaddir-dtype=bfloat16", models=[GPT2], level="forward")
    )
    again.stdout.fnmatch_lines(["*too few samples: N = 20 rows for width d = 32*"])


def test_text_from_a_checkpoint_cannot_drive_the_terminal(audit, checkpoint):
    evil = "\x1b[2J\u202ex\x00.ln_f"
    with tensors_of(checkpoint(nan=BROKEN)) as tensors:
        for parameter in ("weight", "bias"):
            tensors[f"{evil}.{parameter}"] = tensors.pop(f"{BROKEN}.{parameter}")
    result = audit()
    assert result.ret == 1
    shown = result.stdout.str()
    assert not set("\x1b\u202e\x00") & set(shown)
    assert r"\x1b[2J" in shown


def test_a_folder_whose_name_speaks_to_terminals_and_logs_is_quoted_to_be_copied(
    audit, checkpoint, pytester, monkeypatch
):
    name = "evil\n::error file=README.md::injected \x1b[31m\u202e'q\\"
    checkpoint(name, nan="transformer.ln_f")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    result = audit(models=[name])
    text = result.stdout.str()
    assert result.ret == 1
    assert not any(sign in text for sign in ("\x1b", "\u202e", "\n::error file=README.md"))
    [line] = [line for line in result.outlines if line.startswith("re-run")]
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {line.removeprefix('re-run').strip()}"],
        capture_output=True,
        check=True,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )
    assert f"--deaddir-model={name}" in words.stdout.decode().split("\0")
