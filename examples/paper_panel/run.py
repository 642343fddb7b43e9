"""Audit the panel of panel.toml, one model at a time, and print the table as Markdown.

    python examples/paper_panel/run.py                            random init at true width, depth and vocabulary cut
    python examples/paper_panel/run.py --full --device cuda       random init at full size
    python examples/paper_panel/run.py --trained                  the checkpoints of the hub, and random init beside them
    python examples/paper_panel/run.py --trained=FOLDER           the same from FOLDER/NAME
    python examples/paper_panel/run.py --only gpt2 --only phi-2   some of it

Each model is a run of pytest of its own; what it says goes to stderr. Options behind -- go to pytest as well
(-- --deaddir-max-memory=20GB). Exits with 1 where a model was not audited, a check failed, a kernel is not as its kind says, or
a block keeps less of σ_min than DD301 allows. Why a model was not audited stands below the table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import numpy as np

from pytest_deaddir.report.words import cosine, number, verdict, worst_ratio
from pytest_deaddir.rules import load_rules, shipped_rules

PANEL = Path(__file__).with_name("panel.toml")

#: Models that are wider than this and cut are fed 1.25 rows for each dimension, and not 4; the table says so.
WIDE = 2048
#: Of σ_min a block keeps so much of what the one before had, or it is not preserved.
[PRESERVED] = [
    rule.require["smin_ratio_relative"]["min"] for rule in load_rules([shipped_rules()]) if rule.code == "DD301"
]
#: Up to this noise excess a norm has a kernel.
NOISE = 64
#: Tokens of a sequence.
LENGTH = 256

COLUMNS = [
    "model",
    "spec",
    "width",
    "depth (true/run)",
    "cut or changed",
    "N/d",
    "kind",
    "|cos|",
    "noise ratio",
    "kernel",
]
COLUMNS += ["worst σ_min ratio", "verdict", "s"]
TRAINED = ["trained |cos|", "noise ratio", "worst σ_min ratio", "dead", "verdict"]


def main() -> int:
    """Print the table row by row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="true depth and vocabulary, 4 rows for each dimension")
    parser.add_argument("--trained", nargs="?", const="", metavar="FOLDER", help="also the trained checkpoints")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", action="append", metavar="NAME")
    parser.add_argument("pytest", nargs="*", help="options for pytest, behind --")
    args = parser.parse_args()
    panel = tomllib.loads(PANEL.read_text(encoding="utf-8"))
    if unknown := set(args.only or ()) - set(panel):
        parser.error(f"no such model in the panel: {', '.join(sorted(unknown))}; there are {', '.join(panel)}")
    columns = COLUMNS + (TRAINED if args.trained is not None else [])
    print(line(columns), line(["---"] * len(columns)), sep="\n", flush=True)
    good = True
    reasons = []
    for name in args.only or panel:
        model = panel[name]
        cells, fine, entry = random_init(name, model, args)
        good &= fine
        reasons += reason(name, entry)
        if args.trained is not None:
            more, fine, entry = trained(name, model, args)
            cells, good = cells + more, good and fine
            reasons += reason(f"{name} trained", entry)
        print(line(cells), flush=True)
    print(*[f"\n{text}" for text in reasons], sep="\n", end="\n" if reasons else "")
    return not good


def reason(name: str, entry: dict[str, Any]) -> list[str]:
    """Why a model was not audited."""
    error = entry.get("error")
    return [f"{name}: {verdict(entry)}: {error.splitlines()[0]}"] if error else []


def line(cells: list[str]) -> str:
    """A row of Markdown."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def random_init(name: str, model: dict[str, Any], args: argparse.Namespace) -> tuple[list[str], bool, dict[str, Any]]:
    """The cells of a model at random init, whether all is as it should be, and the report's entry."""
    cut = {} if args.full else model.get("cut", {})
    config = {**model["config"], **cut}
    written = "&".join(f"{key}={json.dumps(value, separators=(',', ':'))}" for key, value in config.items())
    spec = f"random:{model['type']}?{written}"
    width = config.get("hidden_size", config.get("n_embd"))
    with tempfile.TemporaryDirectory() as folder:
        options = [f"--deaddir-device={args.device}", *args.pytest]
        if cut and "vocab_size" in cut:
            rows = round((4 if width <= WIDE else 1.25) * width)
            options += [f"--deaddir-samples={rows}", f"--deaddir-inputs={tokens(Path(folder), rows, config)}"]
            options += ["--deaddir-ignore=DD901"] if rows < 4 * width else []
        entry = audited(spec, Path(folder), options)
    depth = f"{model['config'][model['depth']]}/{config[model['depth']]}"
    changes = [model["changed"]] if "changed" in model else []
    changes += [f"{key} {'/'.join(value) if isinstance(value, list) else value}" for key, value in cut.items()]
    cells = [
        name,
        f"`random:{model['type']}`",
        str(width),
        depth,
        ", ".join(changes) or "nothing",
        number(entry["model"].get("samples_per_width")),
    ]
    final = closing(entry)
    if final is None:
        return [*cells, "", "", "", "", "", verdict(entry), ""], False, entry
    present = "present" if final["noise_excess"] is not None and final["noise_excess"] <= NOISE else "absent"
    worst = worst_ratio(entry)
    seconds = f"{sum(entry['model']['seconds'].values()):.0f}"
    cells += [final["kind"], cosine(final["alignment"]), number(final["noise_ratio"]), present]
    cells += [number(worst), verdict(entry), seconds]
    as_expected = final["kind"] == model["kind"] and (present == "present") is (model["kind"] == "layernorm")
    preserved = worst is not None and worst >= PRESERVED
    return cells, as_expected and preserved and verdict(entry).startswith("passed"), entry


def trained(name: str, model: dict[str, Any], args: argparse.Namespace) -> tuple[list[str], bool, dict[str, Any]]:
    """The same of the trained checkpoint."""
    spec = model["trained"] if not args.trained else str(Path(args.trained) / name)
    with tempfile.TemporaryDirectory() as folder:
        entry = audited(spec, Path(folder), [f"--deaddir-device={args.device}", *args.pytest])
    final = closing(entry)
    if final is None:
        return ["", "", "", "", verdict(entry)], False, entry
    cells = [cosine(final["alignment"]), number(final["noise_ratio"]), number(worst_ratio(entry))]
    return [*cells, number(final["dead_dimension"]), verdict(entry)], verdict(entry).startswith("passed"), entry


def audited(spec: str, folder: Path, options: list[str]) -> dict[str, Any]:
    """The report's entry of one model, audited by pytest in a process of its own."""
    report = folder / "audit.json"
    ours = ["-p", "no:cacheprovider", "--deaddir-only", f"--deaddir-model={spec}", f"--deaddir-report={report}"]
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", *ours, *options], stdout=sys.stderr, check=False)
    if not report.exists():
        error = f"pytest exited with {done.returncode} and wrote no report"
        return {"model": {"spec": spec}, "norms": [], "blocks": [], "findings": [], "checks": {}, "error": error}
    [entry] = json.loads(report.read_text(encoding="utf-8"))["models"]
    return dict(entry)


def closing(entry: dict[str, Any]) -> dict[str, Any] | None:
    """The norm whose output the model returns; None where nothing was audited."""
    return next((norm for norm in entry["norms"] if norm["path"] == entry["model"]["final_norm"]), None)


def tokens(folder: Path, rows: int, config: dict[str, Any]) -> Path:
    """Uniform token ids of the whole vocabulary, and not of its beginning, so that embeddings span a wide model."""
    shape = (-(-rows // LENGTH), LENGTH)
    file = folder / "uniform-token-ids.npz"
    np.savez(file, input_ids=np.random.default_rng(0).integers(4, config["vocab_size"], shape))
    return file


if __name__ == "__main__":
    sys.exit(main())
