"""The bottom of a spectrum: the streamed factor with inverse iteration beside a full SVD and beside a Gram matrix.

    python benchmarks/solver.py [--widths D …] [--runs N] [--threads T] [--rows-per-width M]

For each width d, M · d rows in float64 with eight planted σ of 1e-6 … 1e-9 σ_max along random directions, around a mean as
large as the rows. All of these run in turn, and the least time of each is kept:

    streamed   Accumulator in batches of 512 rows, then bottom()
    one shot   Accumulator with all rows at once, then bottom()
    svd        torch.linalg.svd(full_matrices=False) of the centred rows
    gram       eigh of the centred rows' Gram matrix in float64: what is not done here, and why

Angle: the sine of the largest angle between the planted subspace and the found one. σ: the worst relative error of the eight.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable

import torch

from pytest_deaddir.stages.accumulate import Accumulator
from pytest_deaddir.stages.bottom import bottom

PLANTED = 8
BATCH = 512

MAX_ANGLE = 1e-11
MAX_ERROR = 1e-5
MIN_SPEED = 3.0
MAX_STREAMING = 1.3

Found = tuple[torch.Tensor, torch.Tensor]


def planted(rows: int, d: int, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows, (rows, d), float64, whose centred singular values are exactly the σ, (d,), along the columns of the basis."""
    generator = torch.Generator(device).manual_seed(d)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64, device=device)

    basis = torch.linalg.qr(normal(d, d)).Q
    sigma = torch.cat([torch.logspace(-9, -6, PLANTED), torch.linspace(0.05, 1, d - PLANTED)]).to(basis)
    left = normal(rows, d)
    left = torch.linalg.qr(left - left.mean(0)).Q
    return left * sigma @ basis.T + normal(d) * rows**-0.5, sigma, basis


def streamed(data: torch.Tensor) -> Found:
    rows = Accumulator(data.shape[1])
    for batch in data.split(BATCH):
        rows.update(batch)
    return bottom(rows.factor(), PLANTED)


def one_shot(data: torch.Tensor) -> Found:
    rows = Accumulator(data.shape[1])
    rows.update(data)
    return bottom(rows.factor(), PLANTED)


def svd(data: torch.Tensor) -> Found:
    _, sigma, transposed = torch.linalg.svd(data - data.mean(0), full_matrices=False)
    return sigma.flip(0)[:PLANTED], transposed.flip(0)[:PLANTED].T


def gram(data: torch.Tensor) -> Found:
    centred = data - data.mean(0)
    eigenvalues, vectors = torch.linalg.eigh(centred.T @ centred)
    return eigenvalues[:PLANTED].clamp(min=0).sqrt(), vectors[:, :PLANTED]


METHODS: dict[str, Callable[[torch.Tensor], Found]] = {
    "streamed": streamed,
    "one shot": one_shot,
    "svd": svd,
    "gram": gram,
}


def errors(found: Found, sigma: torch.Tensor, basis: torch.Tensor) -> tuple[float, float]:
    """The angle of the subspace and the worst relative error of its values."""
    values, vectors = found
    true = basis[:, :PLANTED]
    angle = torch.linalg.matrix_norm(vectors - true @ (true.T @ vectors), 2)
    return float(angle), float(((values - sigma[:PLANTED]) / sigma[:PLANTED]).abs().max())


def seconds(method: Callable[[torch.Tensor], Found], data: torch.Tensor) -> tuple[float, Found]:
    started = time.perf_counter()
    found = method(data)
    if data.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started, found


def load() -> str:
    """What else the machine does, so that a figure can be judged."""
    average = f", load average {os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else ""
    return f"{os.cpu_count()} cores{average}, {torch.get_num_threads()} thread(s), torch {torch.__version__}"


def verdict(name: str, measured: float, bar: float, form: str, least: bool = False) -> bool:
    met = measured >= bar if least else measured <= bar
    side = "at least" if least else "at most"
    print(f"    {name}: {measured:{form}}, bar {side} {bar:{form}}: {'met' if met else 'NOT met'}")
    return met


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[768, 1024, 2048], metavar="D")
    parser.add_argument(
        "--runs", type=int, default=5, metavar="N", help="of each method, in turn (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=1, metavar="T", help="of the BLAS (default: %(default)s)")
    parser.add_argument("--rows-per-width", type=int, default=4, metavar="M", help="(default: %(default)s)")
    args = parser.parse_args()
    if args.runs < 1 or args.threads < 1 or args.rows_per_width < 2 or min(args.widths) <= 4 * PLANTED:
        parser.error(f"--runs and --threads from 1, --rows-per-width from 2, widths above {4 * PLANTED}")
    torch.set_num_threads(args.threads)
    print(load())

    met = True
    for d in args.widths:
        data, sigma, basis = planted(args.rows_per_width * d, d)
        best = dict.fromkeys(METHODS, float("inf"))
        wrong: dict[str, tuple[float, float]] = {}
        for _ in range(args.runs):
            for name, method in METHODS.items():
                took, found = seconds(method, data)
                best[name] = min(best[name], took)
                wrong[name] = errors(found, sigma, basis)
        print(f"\nd = {d}, N = {len(data)}, the least of {args.runs} runs each")
        for name in METHODS:
            angle, error = wrong[name]
            print(f"    {name:10}{best[name] * 1e3:9.1f} ms    angle {angle:.1e}    σ {error:.1e}")
        met &= verdict("angle, streamed", wrong["streamed"][0], MAX_ANGLE, ".1e")
        met &= verdict("σ, streamed", wrong["streamed"][1], MAX_ERROR, ".1e")
        met &= verdict("svd / streamed", best["svd"] / best["streamed"], MIN_SPEED, ".2f", least=True)
        met &= verdict("streamed / one shot", best["streamed"] / best["one shot"], MAX_STREAMING, ".2f")
    print(f"\n{load()}")
    sys.exit(not met)


if __name__ == "__main__":
    main()
