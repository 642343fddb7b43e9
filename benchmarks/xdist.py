"""Four models of equal size in one process and on two workers of pytest-xdist, in turn: is each measured once, and what
does the second worker save?

    python benchmarks/xdist.py [--runs N] [--width D] [--layers L]

Whole runs of pytest, start and imports included, one BLAS thread in each process. Exits with 1 where a model was loaded
or measured more than once, or where two workers were less than 1.5 times as fast.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

MODELS = 4
#: How many times as fast two workers must be.
BAR = 1.5
CONFTEST = """
import pytest_deaddir.api
import pytest_deaddir.source.load

def counted(module, name):
    plain = getattr(module, name)

    def call(subject, *arguments, **options):
        with open("counted.txt", "a") as file:
            file.write(f"{name} {subject.text}\\n")
        return plain(subject, *arguments, **options)

    setattr(module, name, call)

counted(pytest_deaddir.api, "measure")
counted(pytest_deaddir.source.load, "load")
"""


def one_run(folder: Path, specs: list[str], workers: int) -> float:
    """Seconds of a run. Exits where the models were not loaded and measured once each."""
    (folder / "counted.txt").unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-n", str(workers), "-p", "no:cacheprovider"]
    command += [f"--deaddir-model={spec}" for spec in specs]
    started = time.perf_counter()
    done = subprocess.run(
        command, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    counted = Counter((folder / "counted.txt").read_text().splitlines())
    expected = Counter(f"{name} {spec}" for spec in specs for name in ("measure", "load"))
    if counted != expected:
        raise SystemExit(f"-n {workers}: not once each: {dict(counted)}")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=6)
    arguments = parser.parse_args()
    size = f"n_embd={arguments.width}&n_layer={arguments.layers}&n_head=4&vocab_size=1000&n_positions=256"
    specs = [f"random:gpt2?{size}&seed={seed}" for seed in range(MODELS)]
    seconds: dict[int, list[float]] = {0: [], 2: []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "conftest.py").write_text(CONFTEST)
        for run in range(arguments.runs):
            for workers in (0, 2) if run % 2 == 0 else (2, 0):
                seconds[workers].append(one_run(folder, specs, workers))
    medians = {workers: statistics.median(times) for workers, times in seconds.items()}
    for workers, times in seconds.items():
        print(f"-n {workers}: {medians[workers]:6.2f} s  ({', '.join(f'{t:.2f}' for t in times)})")
    ratio = medians[0] / medians[2]
    print(f"each of {MODELS} models was loaded and measured once; -n 2 is {ratio:.2f} times as fast (bar: {BAR})")
    sys.exit(ratio < BAR)


if __name__ == "__main__":
    main()
