"""torchrun: processes that share the inputs of a model come to the tables of one, the first alone speaks, all fail together."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from plugin.helpers import EXAMPLE, LLAMA, assert_refused, report_of

ROOT = Path(__file__).parents[2]


@pytest.fixture
def torchrun(tmp_path):
    """Run pytest in two processes on a project with a factory that fails in the second; gives the finished process."""
    (tmp_path / "made.py").write_text(
        "import os, torch\n"
        "class Counted(torch.nn.Sequential):\n"
        "    def forward(self, x):\n"
        "        with open('rank' + os.environ.get('RANK', ''), 'a') as file:\n"
        "            file.write('.')\n"
        "        return super().forward(x)\n"
        "def good():\n"
        "    torch.manual_seed(0)\n"
        "    module = Counted(torch.nn.Linear(16, 16), torch.nn.LayerNorm(16))\n"
        "    return module, [(torch.randn(50, 16),) for _ in range(5)]\n"
        "def broken():\n"
        "    if os.environ['RANK'] == '1':\n"
        "        raise RuntimeError('no room on this device')\n"
        "    return good()\n"
        "def killed():\n"
        "    if os.environ['RANK'] == '1':\n"
        "        os.kill(os.getpid(), 9)\n"
        "    return good()\n"
    )

    def run(*options):
        words = ["--standalone", "--nproc-per-node=2", "-m", "pytest", "-p", "no:cacheprovider", "--deaddir-only"]
        python_path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        return subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", *words, *options],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": python_path, "OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": ""},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


#: Columns of the variance along a kernel. It is rounding itself, seen beside a mean of which float64 keeps 16 digits.
OF_ROUNDING = {"noise_ratio", "noise_excess", "eigenvalue", "eigenvalue_relative"}


def close(one, other, digits):
    if isinstance(one, list):
        return len(one) == len(other) and all(close(a, b, digits) for a, b in zip(one, other, strict=True))
    return one == (pytest.approx(other, rel=digits, abs=1e-12) if isinstance(other, float) else other)


def assert_same_tables(together, single):
    for table in ("norms", "blocks"):
        for a, b in zip(together[table], getattr(single, table), strict=True):
            digits = {name: 1e-8 if name in OF_ROUNDING else 1e-10 for name in a}
            differing = {k: (a[k], b[k]) for k in a if not close(a[k], b[k], digits[k])}
            assert not differing, (a["path"], differing)


def test_two_processes_come_to_the_tables_of_one(with_torch, tmp_path, monkeypatch, torchrun):
    from pytest_deaddir import audit

    specs = [str(EXAMPLE), LLAMA, "made:good"]
    options = ["--deaddir-batch-size=1", "--deaddir-report=audit.json", "--junitxml=junit.xml"]
    done = torchrun(*(f"--deaddir-model={spec}" for spec in specs), *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("test session starts") == 1
    assert done.stdout.count("22 of 22 checks ran") == 3
    assert done.stdout.count("inputs shared by 2 processes") == 3
    assert done.stdout.count("report written to") == 1
    assert [len((tmp_path / f"rank{rank}").read_text()) for rank in (0, 1)] == [1 + 125, 1 + 125]  # one to look around
    both = report_of(tmp_path / "audit.json")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        alone = [audit(spec, batch_size=1) for spec in specs]
    finally:
        del sys.modules["made"]
    for together, single in zip(both, alone, strict=True):
        assert together["model"]["processes"] == 2
        assert single.model["processes"] == 1
        assert together["model"]["samples"] == single.model["samples"]
        assert_same_tables(together, single)


@pytest.fixture
def qwen(with_torch, tmp_path):
    """A checkpoint with norms of queries and keys, of whose heads each process has its own. Its weights are not of a model
    that predicts anything, so that no activation repeats."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    config = Qwen3Config(hidden_size=32, num_hidden_layers=2, intermediate_size=64, vocab_size=64, **heads)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Qwen3ForCausalLM(config)
        for parameter in module.parameters():
            if parameter.dim() == 1:
                parameter.data = torch.rand_like(parameter) + 0.5
    module.save_pretrained(tmp_path / "qwen")
    return tmp_path / "qwen"


def test_two_processes_that_share_the_weights_come_to_the_tables_of_one(qwen, tmp_path, torchrun):
    from pytest_deaddir import audit

    specs = [str(EXAMPLE.with_name("tiny-llama")), str(qwen)]
    options = ["--deaddir-tp-plan=auto", "--deaddir-dtype=float64", "--deaddir-report=audit.json"]
    done = torchrun(*(f"--deaddir-model={spec}" for spec in specs), *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("weights shared by 2 processes: in the first") == 2
    for together, spec in zip(report_of(tmp_path / "audit.json"), specs, strict=True):
        single = audit(spec, dtype="float64")
        assert together["model"]["tp_plan"] == "auto"
        assert single.model["tp_plan"] is None
        parts, whole = (model["placement"]["cpu"] for model in (together["model"], single.model))
        assert 0.5 * whole < parts < 0.9 * whole  # embeddings and norms are in each
        assert together["model"]["samples"] == single.model["samples"]
        assert_same_tables(together, single)


def test_what_cannot_share_its_weights_says_so(torchrun):
    done = torchrun(f"--deaddir-model={EXAMPLE}", "--deaddir-tp-plan=auto")
    assert done.returncode != 0
    assert "`GPT2LMHeadModel` has no `tp_plan`" in done.stdout
    assert "(without --deaddir-tp-plan each process loads all weights)" in done.stdout


@pytest.mark.parametrize(
    ("processes", "said"), [(3, "4 heads (num_attention_heads)"), (4, "2 heads (num_key_value_heads)")]
)
def test_heads_that_the_processes_cannot_share_are_named_with_both_numbers(with_torch, monkeypatch, processes, said):
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from pytest_deaddir.errors import ModelError
    from pytest_deaddir.source.load import _tensor_parallel

    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    with torch.device("meta"):
        module = Qwen3ForCausalLM(Qwen3Config(hidden_size=32, num_hidden_layers=1, vocab_size=64, **heads))
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    assert _tensor_parallel(module, "auto").plan == "auto"
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: processes)
    with pytest.raises(ModelError) as error:
        _tensor_parallel(module, "auto")
    assert f"{said} cannot be shared by {processes} processes" in str(error.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([f"--deaddir-model={EXAMPLE}"], "needs several processes: torchrun --nproc-per-node=2 -m pytest"),
        ([f"--deaddir-model={LLAMA}"], "is only for directories and models on the hub"),
    ],
)
def test_a_plan_that_cannot_be_followed_is_a_usage_error(pytester, options, said):
    result = pytester.runpytest_inprocess("--deaddir-only", "--deaddir-tp-plan=auto", *options)
    assert_refused(result, "--deaddir-tp-plan", said)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--deaddir-level=full"], "is for the levels read and forward"),
        (["--deaddir-max-memory=1GB"], "and --deaddir-max-memory cannot be given together"),
        (["--deaddir-device=cpu"], "chooses the device by itself"),
    ],
)
def test_a_plan_goes_with_no_other_placing(pytester, monkeypatch, options, said):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    plan = ["--deaddir-tp-plan=auto", f"--deaddir-model={EXAMPLE}"]
    result = pytester.runpytest_inprocess("--deaddir-only", *plan, *options)
    assert_refused(result, "--deaddir-tp-plan", said)


def test_what_fails_in_one_process_fails_in_all_and_the_first_says_where(torchrun):
    done = torchrun("--deaddir-model=made:broken")
    assert done.returncode != 0
    assert "rank 1 of 2 failed: RuntimeError: no room on this device" in done.stdout
    assert "0 of 22 checks ran" in done.stdout


def test_a_process_that_is_killed_ends_all(torchrun):
    done = torchrun("--deaddir-model=made:killed")
    assert done.returncode != 0
    assert "SIGKILL" in done.stderr


def test_xdist_and_torchrun_together_are_a_usage_error(pytester, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = pytester.runpytest_inprocess("--deaddir-only", f"--deaddir-model={LLAMA}", "-n2")
    assert result.ret == 4
    assert "give one of -n and torchrun" in result.stderr.str()
