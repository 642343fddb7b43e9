"""torchrun: processes that share the inputs of a model come to the tables of one, the first alone speaks, all fail together."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from plugin.helpers import EXAMPLE, LLAMA, report_of

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


def test_two_processes_come_to_the_tables_of_one(with_torch, tmp_path, monkeypatch, torchrun):
    from pytest_deaddir import audit

    specs = [str(EXAMPLE), LLAMA, "made:good"]
    options = ["--deaddir-batch-size=1", "--deaddir-report=audit.json", "--junitxml=junit.xml"]
    done = torchrun(*(f"--deaddir-model={spec}" for spec in specs), *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("test session starts") == 1
    assert done.stdout.count("22 of 22 checks ran") == 3
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
        for table in ("norms", "blocks"):
            for a, b in zip(together[table], getattr(single, table), strict=True):
                digits = {name: 1e-8 if name in OF_ROUNDING else 1e-10 for name in a}
                differing = {k: (a[k], b[k]) for k in a if not close(a[k], b[k], digits[k])}
                assert not differing, (a["path"], differing)


def test_what_fails_in_one_process_fails_in_all_and_the_first_says_where(torchrun):
    done = torchrun("--deaddir-model=made:broken")
    assert done.returncode != 0
    assert "rank 1 of 2 failed: RuntimeError: no room on this device" in done.stdout
    assert "0 of 22 checks ran" in done.stdout


def test_xdist_and_torchrun_together_are_a_usage_error(pytester, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = pytester.runpytest_inprocess("--deaddir-only", f"--deaddir-model={LLAMA}", "-n2")
    assert result.ret == 4
    assert "give one of -n and torchrun" in result.stderr.str()
