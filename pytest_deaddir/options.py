"""The command line and ini options: what they are called.

pytest imports this in every run. What the options come to is settings.py's, for runs that audit.
"""

from __future__ import annotations

from typing import Any

import pytest

#: The name of a gate file.
GATE = "deaddir.toml"

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("float64", "float32", "bfloat16", "float16")
SITES = ("all", "final")
SOLVERS = ("inverse", "svd")
TP_PLANS = ("auto",)


def add_options(parser: pytest.Parser) -> None:
    """Every option, each with an ini twin of the same name (deaddir_level for --deaddir-level)."""
    group = parser.getgroup("deaddir", "audit of transformer checkpoints (pytest-deaddir)")

    def add(name: str, metavar: str | None, text: str, ini: Any = "string", action: str = "store") -> None:
        extra = {} if metavar is None else {"metavar": metavar}
        dest = f"deaddir_{name.replace('-', '_')}"
        group.addoption(f"--deaddir-{name}", dest=dest, default=None, action=action, help=text, **extra)
        if ini is not None:
            parser.addini(dest, f"{text} (the option's default)", type=ini, default=None)

    add(
        "model",
        "SPEC",
        "Audit SPEC: a checkpoint's path, random:TYPE?…, module:factory, org/name. Repeatable.",
        "linelist",
        "append",
    )
    add(
        "from",
        "PATH.json",
        "Judge again what an earlier report holds, measuring nothing. Repeatable.",
        "linelist",
        "append",
    )
    add("level", "LEVEL", "How far to look: read (parameters only), forward (one pass; the default), full.")
    add("device", "DEVICE", f"Where the model runs: {', '.join(DEVICES)}.")
    add("dtype", "DTYPE", f"What the model runs in: auto (its own), {', '.join(DTYPES)}.")
    add("sites", "SITES", "Which norms to look at: all, final (default: all; at the level read on a hub final).")
    add(
        "solver",
        "SOLVER",
        "How to find the bottom of a spectrum: inverse iteration (inverse, the default), full decomposition (svd).",
    )
    add("inputs", "PATH", "What to feed the model: text, .jsonl, tables, images, .wav, .npz (default: English text).")
    add("samples", "N", "Rows of activations to measure (default: 4 for each dimension of the width).")
    add("batch-size", "N", "Sequences of one forward pass (default: as many as make about 2000 rows).")
    add(
        "max-memory", "SIZE", "What the weights may take: 2GB, or cpu=2GB,0=20GB; the rest is offloaded (default: all)."
    )
    add(
        "tp-plan",
        "PLAN",
        "How torchrun's processes share the weights: auto, by transformers' plan (default: each has all).",
    )
    add("no-cache", None, "Measure anew what is kept in pytest's cache, and keep nothing.", "bool", "store_true")
    add("rules", "PATH", "Rule file (.toml, .py) or folder, beside the shipped ones. Repeatable.", "linelist", "append")
    add("select", "CODES", "Judge by these rules alone, by code or prefix: DD1,ACME001.", "linelist", "append")
    add("extend-select", "CODES", "Judge by these rules as well.", "linelist", "append")
    add("ignore", "CODES", "Do not judge by these rules. The longest code or prefix decides.", "linelist", "append")
    add("severity", "CODE=SEVERITY", "Another severity for a rule: DD301=error. Repeatable.", "linelist", "append")
    add("fail-on", "SEVERITY", "The least severity that fails a check: error (the default), warning.")
    add(
        "report", "PATH", "Write the audit to PATH (.json, .html, .md, .sarif, .csv). Repeatable.", "linelist", "append"
    )
    add("junit-properties", None, "Write what was measured into pytest's JUnit file.", "bool", "store_true")
    add(
        "baseline",
        "PATH.json|SPEC",
        "Compare with an earlier audit (a report), or with another model audited likewise.",
    )
    add("only", None, "Run the audit and none of the other tests.", "bool", "store_true")
    group.addoption(
        "--deaddir-baseline-update",
        dest="deaddir_baseline_update",
        nargs="?",
        const="held",
        metavar="all",
        help="Write the baseline, unless there are findings that it does not hold; =all takes them in.",
    )
    add("explain", "CODE", "Print the page of a rule and exit.", None)
    add("list-rules", None, "Print all rules, with where each was loaded from, and exit.", None, "store_true")
    add("check-rules", "PATH", "Check rule files and their examples and exit. Repeatable.", None, "append")
