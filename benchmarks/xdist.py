"""Four models of equal size in one process and on two workers of pytest-xdist, in turn: is each measured once, and what
does the second worker save?

    python benchmarks/xdist.py [--runs N] [--width D] [--layers L]

Whole runs of pytest, start and imports included, one BLAS thread in each process. Beside the time on the clock, which wants
two free cores, stands that of the processor on the longest path: the controller's and the busier worker's. Exits with 1 where
a model was loaded or measured more than once, or where two workers were less than 1.5 times as fast on the clock.
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
import os, time

def pytest_configure(config):
    if config.getoption("numprocesses") and not hasattr(config, "workerinput"):
        return  # the controller measures nothing, and must not pay for torch's import because of this benchmark
    import pytest_deaddir.api
    import pytest_deaddir.source.load

    counted(pytest_deaddir.api, "measure")
    counted(pytest_deaddir.source.load, "load")

def pytest_unconfigure():
    with open("processor.txt", "a") as file:
        file.write(f"{os.environ.get('PYTEST_XDIST_WORKER', '')} {time.process_time()}\\n")

def counted(module, name):
    plain = getattr(module, name)

    def call(subject, *arguments, **options):
        with open("counted.txt", "a") as file:
            file.write(f"{name} {subject.text}\\n")
        return plain(subject, *arguments, **options)

    setattr(module, name, call)
"""


def one_run(folder: Path, specs: list[str], workers: int) -> tuple[float, float]:
    """Seconds of a run, on the clock and of the processor. Exits where a model was not loaded and measured once."""
    for name in ("counted.txt", "processor.txt"):
        (folder / name).unlink(missing_ok=True)
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
    used = [line.split(" ") for line in (folder / "processor.txt").read_text().splitlines()]
    of_workers = [float(processor) for worker, processor in used if worker]
    return seconds, max(of_workers, default=0.0) + sum(float(processor) for worker, processor in used if not worker)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=6)
    arguments = parser.parse_args()
    size = f"n_embd={arguments.width}&n_layer={arguments.layers}&n_head=4&vocab_size=1000&n_positions=256"
    specs = [f"random:gpt2?{size}&seed={seed}" for seed in range(MODELS)]
    seconds: dict[int, list[tuple[float, float]]] = {0: [], 2: []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "conftest.py").write_text(CONFTEST)
        for run in range(arguments.runs):
            for workers in (0, 2) if run % 2 == 0 else (2, 0):
                seconds[workers].append(one_run(folder, specs, workers))
    ratios = []
    for which, clock in enumerate(("on the clock", "of the processor")):
        medians = {workers: statistics.median(run[which] for run in runs) for workers, runs in seconds.items()}
        ratios.append(medians[0] / medians[2])
        print(f"{clock}: -n 0 {medians[0]:.2f} s, -n 2 {medians[2]:.2f} s: {ratios[-1]:.2f} times as fast")
    print(
        f"each of {MODELS} models was loaded and measured once; medians of {arguments.runs} runs; bar {BAR} on the clock"
    )
    sys.exit(ratios[0] < BAR)


if __name__ == "__main__":
    main()
