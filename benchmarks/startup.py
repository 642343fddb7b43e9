"""What the plugin adds to a pytest run that does not use it: time, imports, lines of output.

    python benchmarks/startup.py [--pairs N]

Whole runs of one empty test with the plugin and with -p no:deaddir, in turn A B, B A, …, on the clock and of the processor.
Other processes only ever add to either, so beside the median of the paired differences stands the difference of the fastest
tenths. Exits with 1 where that of the processor is above 2 ms, where anything heavy is imported, or where a line is added.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

#: Milliseconds that the plugin may add.
BAR = 2.0
HEAVY = {"numpy", "torch", "transformers", "safetensors", "huggingface_hub", "tabulate", "tomllib"}
CONFTEST = """
import sys

def pytest_unconfigure():
    with open("modules.txt", "w") as file:
        file.write("\\n".join(sys.modules))
"""


#: Other plugins that take long to start, where they are installed.
OTHERS = ["-p", "no:hypothesispytest", "-p", "no:anyio", "-p", "no:xdist"]


def one_run(folder: Path, options: list[str]) -> tuple[float, float]:
    """Milliseconds of a run on the clock, and of the processor."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # or every run would compile the plugin
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *OTHERS, *options]
    started = time.perf_counter()
    with (folder / "output.txt").open("w") as output:
        child = subprocess.Popen(command, cwd=folder, env=environment, stdout=output)
        _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit((folder / "output.txt").read_text())
    return (time.perf_counter() - started) * 1e3, (usage.ru_utime + usage.ru_stime) * 1e3


def looked_at(folder: Path, options: list[str]) -> tuple[set[str], list[str]]:
    """The modules that a run imports, and what it prints without its times."""
    (folder / "conftest.py").write_text(CONFTEST)
    one_run(folder, options)
    (folder / "conftest.py").unlink()
    lines = (folder / "output.txt").read_text().splitlines()
    shown = [re.sub(r"[\d.]+s", "", line) for line in lines if not line.startswith("plugins:")]
    return set((folder / "modules.txt").read_text().split()), shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=40)
    arguments = parser.parse_args()
    without = ["-p", "no:deaddir"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "test_one.py").write_text("def test_one(): pass\n")
        (ours, shown), (theirs, plain) = looked_at(folder, []), looked_at(folder, without)
        pairs = []
        for turn in range(arguments.pairs + 1):  # the first is a warm-up
            times = {
                bool(options): one_run(folder, options) for options in (([], without) if turn % 2 else (without, []))
            }
            pairs.append((times[False], times[True]))
    added = 0.0
    for which, clock in enumerate(("on the clock", "of the processor")):
        ours_ms, theirs_ms = ([run[which] for run in runs] for runs in zip(*pairs[1:], strict=True))
        low, median, high = statistics.quantiles((a - b for a, b in zip(ours_ms, theirs_ms, strict=True)), n=4)
        added = statistics.quantiles(ours_ms, n=10)[0] - statistics.quantiles(theirs_ms, n=10)[0]
        print(
            f"{clock}: {added:+.2f} ms between the fastest tenths, to {statistics.quantiles(theirs_ms, n=10)[0]:.0f} ms; ",
            end="",
        )
        print(f"median of the differences {median:+.2f} (quartiles {low:.2f} … {high:.2f})")
    print(f"{arguments.pairs} pairs; bar {BAR} ms of the processor")
    more = sorted(ours - theirs)
    print(f"it imports {', '.join(more)}")
    heavy = HEAVY & {module.partition(".")[0] for module in more}
    if heavy:
        print(f"heavy: {', '.join(sorted(heavy))}")
    if shown != plain:
        print(f"it adds to the output: {[line for line in shown if line not in plain]}")
    sys.exit(added > BAR or bool(heavy) or shown != plain)


if __name__ == "__main__":
    main()
