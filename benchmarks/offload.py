"""A checkpoint several times as large as the memory it is given: what an audit at level forward costs over accelerate's own
forward pass under the same limit, and whether it is the same audit.

    python benchmarks/offload.py [--width D] [--layers L] [--factor F] [--runs N] [--threads T] [--folder DIR] [--kind TYPE]

A random Llama or GPT-2 in float32 is written in shards, with three dead coordinates in its final norm where it has LayerNorms.
Then, each in a process of its own, in turn, N times, with 1/F of the checkpoint's size as the limit:

    plain   from_pretrained(device_map="auto", max_memory=…), and core(**batch) for each batch, without gradients or hooks
    audit   the same checkpoint through --deaddir-max-memory: loading, discovery, probing, the watched pass, every spectrum
    whole   the audit without the limit: once, for its tables and its memory

Both run on the same batches of at least 4 d tokens after a small one, since discovery runs on one. Ratios are of the least
times after loading, on the clock and of the processor, and one of them has to meet the bar: where other work takes turns, the
clock tells of that. Memory: the peak of resident memory that belongs to the process alone (RssAnon), sampled every 5 ms, and
ru_maxrss, in which the pages of mapped files count that the system may drop whenever it likes. Weights that are read from a
cached file are read quickly: on a cold disk both sides wait for it alike, and the ratio is nearer to 1.
"""

import argparse
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from operator import itemgetter as at
from pathlib import Path
from typing import Any

import torch
from solver import load as machine
from solver import verdict

from pytest_deaddir.source.load import quiet

MAX_TIME = 1.5


def write(folder: Path, kind: str, width: int, layers: int, vocabulary: int) -> int:
    """A sharded checkpoint of random weights; its bytes."""
    import transformers

    sizes = {
        "llama": {
            **{"hidden_size": width, "num_hidden_layers": layers, "intermediate_size": 3 * width},
            **{"num_attention_heads": width // 64, "num_key_value_heads": width // 64},
        },
        "gpt2": {"n_embd": width, "n_layer": layers, "n_head": width // 64},
    }
    config = transformers.AutoConfig.for_model(kind, vocab_size=vocabulary, **sizes[kind])
    torch.manual_seed(0)
    module = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    final: Any = module.base_model.norm if kind == "llama" else module.base_model.ln_f
    final.weight.data.uniform_(0.5, 1.5)
    final.weight.data[[1, 2, 3]] = 1e-30
    module.save_pretrained(folder, max_shard_size="200MB")
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def batches_of(model: Any) -> tuple[list[Any], int]:
    from forward_overhead import batches_of as own

    return own(model), int(model.config.get_text_config().hidden_size)


class Memory(threading.Thread):
    """The most resident memory of this process that is backed by no file, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.running = 0, True

    def run(self) -> None:
        status = Path("/proc/self/status")
        while self.running and status.exists():
            [line] = [line for line in status.read_text().splitlines() if line.startswith("RssAnon")]
            self.peak = max(self.peak, int(line.split()[1]) * 1024)
            time.sleep(0.005)


def child(which: str, folder: Path, limit: str | None) -> None:
    from pytest_deaddir.source.load import load
    from pytest_deaddir.source.spec import parse_spec
    from pytest_deaddir.stages.forward import forward_stage
    from pytest_deaddir.stages.read import read_stage
    from pytest_deaddir.stages.taps import call_arguments

    memory = Memory()
    memory.start()
    before = memory.peak
    spec = parse_spec(str(folder))
    started = time.perf_counter()
    read = read_stage(spec)
    model = load(spec, "cpu", None, limit)
    loaded = time.perf_counter()
    batches, width = batches_of(model)
    result: dict[str, Any] = {"load": loaded - started, "width": width, "before": before}
    started, busy = time.perf_counter(), os.times()
    if which == "plain":
        with torch.no_grad():
            for batch in batches:
                model.core(**call_arguments(model.core, batch))
    else:
        audited, _ = forward_stage(model, read, spec=str(folder), inputs=batches)
        tables = json.dumps([audited.norms, audited.blocks], sort_keys=True)
        result |= {"tables": hashlib.sha256(tables.encode()).hexdigest()}
        result |= {"placement": audited.model["placement"], "accumulators": audited.model["accumulators"]}
        result |= {"findings": findings(audited), "tokens": sum(batch["input_ids"].numel() for batch in batches)}
    result["run"], after = time.perf_counter() - started, os.times()
    result |= {"user": after.user - busy.user, "system": after.system - busy.system}
    memory.running = False
    memory.join()
    model.close()
    result |= {"anonymous": memory.peak, "resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    print(json.dumps(result))


def findings(audited: Any) -> list[str]:
    from pytest_deaddir.rules import judge, load_rules, shipped_rules

    return sorted(f"{f['code']} {f['path']}" for f in judge(audited, load_rules([shipped_rules()])).findings)


def measured(which: str, folder: Path, limit: str | None, threads: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", which, "--folder", str(folder), "--threads", str(threads)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # what a tensor leaves is given back at once
    command += ["--limit", limit] if limit else []
    out = subprocess.run(command, capture_output=True, text=True, env=environment)
    if out.returncode:
        raise SystemExit(out.stderr)
    return dict(json.loads(out.stdout.splitlines()[-1]))


def mega(size: float) -> str:
    return f"{size / 1e6:.0f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", choices=("llama", "gpt2"), default="llama")
    parser.add_argument("--width", type=int, default=1024, metavar="D")
    parser.add_argument("--layers", type=int, default=24, metavar="L")
    parser.add_argument("--vocabulary", type=int, default=8192, metavar="V")
    parser.add_argument("--factor", type=float, default=4, metavar="F", help="checkpoint over limit (default: 4)")
    parser.add_argument("--runs", type=int, default=2, metavar="N")
    parser.add_argument("--threads", type=int, default=1, metavar="T")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="of the checkpoint; kept if given")
    parser.add_argument("--child", choices=("plain", "audit"), help=argparse.SUPPRESS)
    parser.add_argument("--limit", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.child:
        child(args.child, args.folder, args.limit)
        return
    folder = args.folder or Path(tempfile.mkdtemp(prefix="deaddir-offload-"))
    print(machine())
    try:
        with quiet():
            size = write(folder, args.kind, args.width, args.layers, args.vocabulary)
        limit = f"{round(size / args.factor)}B"
        print(
            f"{args.kind}, d = {args.width}, {args.layers} blocks: {mega(size)} in float32, limit {mega(size / args.factor)}"
        )
        times: dict[str, list[tuple[float, float]]] = {"plain": [], "audit": []}
        last: dict[str, dict[str, Any]] = {}
        for _ in range(args.runs):
            for which in times:
                last[which] = measured(which, folder, limit, args.threads)
                times[which].append((last[which]["run"], last[which]["user"] + last[which]["system"]))
        last["whole"] = measured("audit", folder, None, args.threads)
    finally:
        if args.folder is None:
            shutil.rmtree(folder)
    for which, taken in last.items():
        shown = f"    {which:6} {taken['run']:7.1f} s after loading ({taken['load']:.1f} s)"
        shown += f", processor {taken['user']:.1f} s and in the system {taken['system']:.1f} s"
        print(f"{shown}, of its own {mega(taken['anonymous'])}, with mapped files {mega(taken['resident'])}")
    audit, whole = last["audit"], last["whole"]
    held = ", ".join(f"{mega(part)} on {place}" for place, part in audit["placement"].items())
    print(f"    weights: {held}; accumulators {mega(audit['accumulators'])}; {audit['tokens']} tokens")
    same = audit["tables"] == whole["tables"] and audit["findings"] == whole["findings"]
    print(f"    tables and findings as without the limit: {same}; findings: {', '.join(audit['findings'])}")
    wall, busy = (min(map(at(i), times["audit"])) / min(map(at(i), times["plain"])) for i in (0, 1))
    met = verdict("time, audit / plain", wall, MAX_TIME, ".2f")
    met |= verdict("processor time, audit / plain, where other work takes turns", busy, MAX_TIME, ".2f")
    print(machine())
    sys.exit(not (met and same))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
