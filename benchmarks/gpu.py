"""A 30B-class model's width on one GPU: the audit over the plain forward pass, and the solver over torch.linalg.svd.

    python benchmarks/gpu.py [--output FILE.md] [--layers N] [--patience SECONDS]
    python benchmarks/gpu.py --device cpu --tiny          # that the script runs; its figures mean nothing

Random weights in bfloat16 are made on the device, with no copy on the CPU: a Llama-type model (RMSNorm; LLaMA-30B's width,
heads and feed-forward) and a GPT-type one (LayerNorm; OPT-30B's), each as deep as fits beside its audit, up to its 60 or 48
blocks. What was cut is in the table. Every norm and every block is measured on at least 4 d tokens. The solver runs on the
planted rows of benchmarks/solver.py; once torch.linalg.svd has taken longer than the patience, wider ones are left out.

The output is a Markdown section for docs/benchmarks.md. Where there is no CUDA device, one line says so.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from forward_overhead import audit, batches_of, plain, tokens
from solver import errors, load, one_shot, planted, seconds, svd
from transformers import AutoModel, GPT2Config, LlamaConfig

from pytest_deaddir.rules import judge, load_rules, shipped_rules
from pytest_deaddir.source.load import Model, wrap
from pytest_deaddir.stages.accumulate import CHUNK

WIDTHS = [1024, 2048, 4096, 8192]
TINY_WIDTHS = [64, 128]

#: Part of the free memory to fill. Fragments and the workspaces of the solvers need the rest.
FILLED = 0.85


def configs(tiny: bool) -> dict[str, Any]:
    if tiny:
        narrow = {"vocab_size": 512, "max_position_embeddings": 256}
        return {
            "Llama-type": LlamaConfig(
                hidden_size=128, intermediate_size=344, num_attention_heads=4, num_hidden_layers=3, **narrow
            ),
            "GPT-type": GPT2Config(n_embd=128, n_head=4, n_layer=3, vocab_size=512, n_positions=256),
        }
    return {
        "Llama-type": LlamaConfig(
            hidden_size=6656, intermediate_size=17920, num_attention_heads=52, num_hidden_layers=60, vocab_size=32000
        ),
        "GPT-type": GPT2Config(n_embd=7168, n_head=56, n_layer=48, vocab_size=50272, n_positions=2048),
    }


def with_depth(config: Any, layers: int) -> Any:
    return type(config)(
        **{**config.to_diff_dict(), type(config).attribute_map.get("num_hidden_layers", "num_hidden_layers"): layers}
    )


def made(config: Any, device: torch.device) -> torch.nn.Module:
    torch.manual_seed(0)
    with device:
        return AutoModel.from_config(config, dtype=torch.bfloat16).eval()


def parameters(config: Any) -> int:
    return sum(parameter.numel() for parameter in made(config, torch.device("meta")).parameters())


def fitting(config: Any, taps_per_block: int, free: int) -> int:
    """Blocks that fit into ``free`` bytes together with what an audit keeps of each."""
    d, full = config.hidden_size, config.num_hidden_layers
    one = parameters(with_depth(config, 1))
    block = parameters(with_depth(config, 2)) - one
    tap = 8 * d * d + 2 * CHUNK * d * d  # the factor in float64, and rows that wait in bfloat16
    workspace = 4 * 8 * (CHUNK + 1) * d * d  # rows in float64, their factorisation, and the eigenvalues' copies
    left = FILLED * free - 2 * (one - block) - workspace
    return max(1, min(full, int(left // (2 * block + taps_per_block * tap))))


def peak_and_seconds(work: Callable[[Model, list[Any]], Any], model: Model, batches: list[Any], runs: int) -> Any:
    """The least time of some runs, the peak of the device's memory in GB (None on the CPU), and what the work gave."""
    on_gpu = next(model.module.parameters()).is_cuda
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    best, result = float("inf"), None
    for _ in range(runs):
        started = time.perf_counter()
        result = work(model, batches)
        if on_gpu:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return best, torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None, result


def audit_line(name: str, config: Any, layers: int, device: torch.device, runs: int) -> str:
    model = wrap(made(with_depth(config, layers), device))
    batches = batches_of(model)
    plain(model, batches[:1])
    plain_seconds, plain_peak, _ = peak_and_seconds(plain, model, batches, runs)
    audit_seconds, audit_peak, result = peak_and_seconds(audit, model, batches, runs)
    judge(result, load_rules([shipped_rules()]))
    codes = sorted({finding["code"] for finding in result.findings}) or ["none"]
    measured = sum(norm["samples"] is not None for norm in result.norms)
    size = sum(parameter.numel() for parameter in model.module.parameters()) / 1e9
    memory = "not measured" if plain_peak is None else f"{plain_peak:.1f} → {audit_peak:.1f} GB"
    return (
        f"| {name} | {config.hidden_size} | {layers} of {config.num_hidden_layers} | {size:.3g} B | {tokens(batches)} | "
        f"{measured} + {len(result.blocks)} | {plain_seconds:.2f} s | {audit_seconds:.2f} s | "
        f"{audit_seconds / plain_seconds:.2f} | {memory} | {', '.join(codes)} |"
    )


def solver_lines(widths: list[int], device: torch.device, runs: int, patience: float) -> list[str]:
    lines, slowest = [], 0.0
    for d in widths:
        data, sigma, basis = planted(4 * d, d, str(device))
        one_shot(data)  # the first call loads the library
        ours, found = min((seconds(one_shot, data) for _ in range(runs)), key=lambda pair: pair[0])
        angle, error = errors(found, sigma, basis)
        theirs = f"left out: the one before took {slowest:.0f} s | "
        if slowest <= patience:
            slowest, _ = min((seconds(svd, data) for _ in range(runs)), key=lambda pair: pair[0])
            theirs = f"{slowest:.3f} s | {slowest / ours:.1f}"
        lines.append(f"| {d} | {ours:.3f} s | {theirs} | {angle:.1e} | {error:.1e} |")
    return lines


def unavailable(device: str) -> str | None:
    if device != "cuda" or torch.cuda.is_available():
        return None
    built = torch.version.cuda
    why = f"built for CUDA {built}, but sees no device" if built else "built without CUDA"
    return f"nothing measured: torch {torch.__version__} is {why}. On a machine with a GPU: python benchmarks/gpu.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="narrow models, to try the script")
    parser.add_argument("--layers", type=int, metavar="N", help="blocks (default: as many as fit)")
    parser.add_argument(
        "--runs", type=int, default=2, metavar="N", help="of each, the least counts (default: %(default)s)"
    )
    parser.add_argument("--patience", type=float, default=120.0, metavar="SECONDS", help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the Markdown there too")
    args = parser.parse_args()
    if args.device == "cpu" and not args.tiny:
        parser.error("--device cpu is for trying the script: add --tiny")
    if reason := unavailable(args.device):
        print(reason)
        return

    device = torch.device(args.device)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(0)
        title = f"{properties.name}, {properties.total_memory / 1e9:.0f} GB, torch {torch.__version__}"
    else:
        title = f"CPU, {load()}"
    lines = [
        f"### {title}",
        "",
        "| random init, bfloat16 | d | blocks | parameters | tokens | norms + places | plain | audit | ratio | peak | findings |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, config in configs(args.tiny).items():
        free = torch.cuda.mem_get_info()[0] if device.type == "cuda" else 10**11
        fits = fitting(config, 1 if name == "Llama-type" else 3, free)
        lines.append(audit_line(name, config, args.layers or fits, device, args.runs))
        print(lines[-1], file=sys.stderr)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    lines += ["", "| d, N = 4 d | ours | svd | svd / ours | angle | σ |", "|---|---|---|---|---|---|"]
    lines += solver_lines(TINY_WIDTHS if args.tiny else WIDTHS, device, args.runs, args.patience)
    text = "\n".join(lines) + "\n"
    print(text)
    if args.output:
        args.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
