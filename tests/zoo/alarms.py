"""Every architecture, small and at random init, audited with the shipped rules: what is said of healthy models.

    python -m tests.zoo.alarms [TYPE …] [--every N] [--level forward|full] [--dtype DTYPE]

A random init is healthy, so each error or warning that is no fact about the model is a defect of its rule. Prints one line
of JSON for each type with findings or an error, and the counts.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from typing import Any

import torch

from pytest_deaddir import audit
from pytest_deaddir.errors import DeaddirError
from pytest_deaddir.options import DTYPES

from . import judge, shrink
from .isolate import each

MEMORY = 12 << 30


def alarms(model_type: str, level: str = "forward", dtype: str | None = None) -> dict[str, Any]:
    """The findings on one type above information, and how many rows were judged or left undecided."""
    torch.manual_seed(0)
    try:
        model = shrink.build(model_type)
    except Exception as error:
        return {"skipped": judge.reason_of(error)}
    try:
        result = audit(model, level=level, dtype=dtype)  # type: ignore[arg-type]
    except DeaddirError as error:
        return {"refused": str(error)[:300]}
    return {
        "findings": [[f["code"], f["path"], f["message"][:200]] for f in result.findings if f["severity"] != "info"],
        "blocks": len(result.blocks),
        "undecided": sum(bool(row["inconclusive"]) for row in result.norms + result.blocks),
    }


def main() -> None:
    """The command of the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("types", nargs="*", metavar="TYPE")
    parser.add_argument("--every", type=int, default=1, help="one of N types")
    parser.add_argument("--level", choices=("forward", "full"), default="forward")
    parser.add_argument("--dtype", choices=DTYPES, help="default: as it is built, in float32")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    judge.quieten()
    wanted = options.types or shrink.model_types()[:: options.every]
    counts: Counter[str] = Counter()
    done = each(
        lambda name: alarms(name, options.level, options.dtype),
        wanted,
        processes=options.processes,
        timeout=120,
        memory=MEMORY,
    )
    for name, record in done:
        counts[next((key for key in ("reason", "skipped", "refused") if key in record), "audited")] += 1
        counts["with findings"] += bool(record.get("findings"))
        if record.get("findings") or "refused" in record or "reason" in record:
            print(json.dumps({name: record}), flush=True)
    print(dict(counts), file=sys.stderr)


if __name__ == "__main__":
    main()
