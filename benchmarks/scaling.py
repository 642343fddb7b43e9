"""How time and memory grow with width, depth, tokens and the number of models, at each level: fitted exponents.

    python benchmarks/scaling.py [--levels read forward full] [--axes width …] [--runs N] [--threads T] [--json PATH]

One axis at a time, the others at their middle. The subjects are random Llamas (read: sparse files of their norms, which take no
room). Times are of the processor (least of N runs, in this process, after one that warms it up), so that other work on the
machine shows less; memory is the peak beyond what was resident before, which Linux alone tells. y = a·x^p is fitted to
the logarithms by least squares; the exponent of the last step, the two largest sizes, is nearer to what comes behind.
"""

import argparse
import gc
import json
import math
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from read_limits import write_sparse
from solver import load as machine

from pytest_deaddir.api import read
from pytest_deaddir.source.load import load, quiet
from pytest_deaddir.source.spec import parse_spec
from pytest_deaddir.stages.forward import forward_stage
from pytest_deaddir.stages.full import full_stage

#: Axis → its sizes; the middle one is what the other axes are measured at.
READ = {"width": [1024, 4096, 16384], "depth": [32, 128, 512], "models": [4, 16, 64]}
FORWARD = {"width": [256, 512, 1024], "depth": [2, 4, 8], "tokens": [2112, 4160, 8256], "models": [1, 2, 4]}
FULL = {"width": [128, 256, 512], "depth": [2, 4, 8], "tokens": [1088, 2112, 4160], "models": [1, 2, 4]}

Sizes = dict[str, int]


def llama(sizes: Sizes) -> str:
    width = sizes["width"]
    return (
        f"random:llama?hidden_size={width}&intermediate_size={3 * width}&num_hidden_layers={sizes['depth']}"
        f"&num_attention_heads={width // 64}&num_key_value_heads={width // 64}&vocab_size=4096"
    )


def run_read(sizes: Sizes, folder: Path) -> Callable[[], Any]:
    files = [folder / f"{index}.safetensors" for index in range(sizes["models"])]
    for file in files:
        write_sparse(file, sizes["depth"], 1 << 34, sizes["width"])

    def run() -> None:
        for file in files:
            read(str(file))

    return run


def run_measured(level: str, sizes: Sizes) -> Callable[[], Any]:
    """Tokens are of each model; every model is loaded, measured and dropped before the next, loading not counted apart."""
    spec = parse_spec(llama(sizes))
    models = [load(spec, "cpu")]  # the same one again and again: building it is not what is measured

    def run() -> None:
        for _ in range(sizes["models"]):
            audit, done = forward_stage(models[0], None, spec=spec.text, samples=sizes["tokens"])
            if level == "full":
                full_stage(models[0], audit, done, seed=0, solver="inverse")

    return run


def measure(run: Callable[[], Any], runs: int) -> tuple[float, float | None]:
    """Least seconds of the processor, and peak megabytes beyond what was resident before."""
    run()
    times = []
    for _ in range(runs):
        started = time.process_time()
        run()
        times.append(time.process_time() - started)
    gc.collect()
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not clear.exists():
        return min(times), None
    clear.write_text("5")
    before = resident(status, "VmRSS")
    run()
    return min(times), (resident(status, "VmHWM") - before) / 1024


def resident(status: Path, name: str) -> int:
    [line] = [line for line in status.read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1])


def exponent(xs: list[float], ys: list[float]) -> float:
    logs = [(math.log(x), math.log(max(y, 1e-9))) for x, y in zip(xs, ys, strict=True)]
    x0, y0 = (sum(pair[i] for pair in logs) / len(logs) for i in (0, 1))
    return sum((x - x0) * (y - y0) for x, y in logs) / sum((x - x0) ** 2 for x, _ in logs)


def axis(level: str, name: str, grid: dict[str, list[int]], runs: int) -> dict[str, Any]:
    middle = {key: values[1] for key, values in grid.items()} | {"models": 1}
    sizes = grid[name]
    seconds, megabytes = [], []
    for size in sizes:
        chosen = middle | {name: size}
        if name == "width" and "tokens" in grid:
            chosen["tokens"] = 4 * size + 64  # as many as an audit of this width is fed by default
        if level == "read":
            with tempfile.TemporaryDirectory() as folder:
                taken = measure(run_read(chosen, Path(folder)), runs)
        else:
            with quiet():
                taken = measure(run_measured(level, chosen), runs)
        seconds.append(taken[0])
        megabytes.append(taken[1])
    known = [m for m in megabytes if m is not None]
    result = {"level": level, "axis": name, "sizes": sizes, "seconds": seconds, "megabytes": megabytes}
    result |= {"exponent": exponent(sizes, seconds), "last": exponent(sizes[-2:], seconds[-2:])}
    memory = f"{exponent(sizes, known):5.2f}" if len(known) == len(sizes) and min(known) > 5 else "    –"
    shown = "  ".join(f"{size}: {1e3 * s:.4g} ms" for size, s in zip(sizes, seconds, strict=True))
    held = ", ".join("?" if m is None else f"{m:.0f}" for m in megabytes)
    powers = f"time {result['exponent']:5.2f} (last step {result['last']:5.2f}), memory {memory}"
    print(f"{level:8}{name:7} {powers}   {shown}   MB: {held}", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    grids = {"read": READ, "forward": FORWARD, "full": FULL}
    parser.add_argument("--levels", nargs="+", choices=grids, default=list(grids))
    parser.add_argument("--axes", nargs="+", choices=FORWARD, help="default: all")
    parser.add_argument("--runs", type=int, default=3, metavar="N")
    parser.add_argument("--threads", type=int, default=1, metavar="T")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write every figure")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(machine())
    chosen = [(level, name) for level in args.levels for name in args.axes or grids[level] if name in grids[level]]
    found = [axis(level, name, grids[level], args.runs) for level, name in chosen]
    print(f"{machine()}; peak of the process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
