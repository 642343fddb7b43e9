"""What discovery takes on a model of a hundred blocks that is on the meta device, beside the forward pass that it watches.

    python benchmarks/discovery.py [--blocks L] [--runs N]

GPT-2 and Llama at the width that their configs have by default, as transformers builds them on the meta device: no weights, no
numbers, so that all of the time is Python's and torch's bookkeeping. In turn, least of N runs of the processor's time, after
one of each that imports what it needs. The bar is 2 seconds.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import torch
from solver import load as machine
from solver import verdict

from pytest_deaddir.discovery.discover import discover
from pytest_deaddir.source.load import quiet
from pytest_deaddir.source.synthetic import synthetic_inputs

BAR = 2.0


def seconds(call: Callable[[], object]) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started


def main() -> None:
    from transformers import AutoConfig, AutoModel

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=100, metavar="L")
    parser.add_argument("--runs", type=int, default=5, metavar="N")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    met = True
    for kind, depth in {"gpt2": "n_layer", "llama": "num_hidden_layers"}.items():
        with quiet(), torch.device("meta"):
            model = AutoModel.from_config(AutoConfig.for_model(kind, **{depth: args.blocks}))
            inputs = synthetic_inputs(model)

        def plain(model: torch.nn.Module = model, inputs: dict[str, torch.Tensor] = inputs) -> None:
            with torch.no_grad():
                model(**inputs)

        def found(model: torch.nn.Module = model, inputs: dict[str, torch.Tensor] = inputs) -> None:
            assert len(discover(model, inputs).norms) == 2 * args.blocks + 1

        plain(), found()
        pairs = [(seconds(plain), seconds(found)) for _ in range(args.runs)]
        forward, whole = (min(times) for times in zip(*pairs, strict=True))
        print(
            f"{kind}, {args.blocks} blocks: forward {forward:.2f} s, discovery {whole:.2f} s, {whole / forward:.1f} times"
        )
        met &= verdict("discovery", whole, BAR, ".2f")
    sys.exit(not met)


if __name__ == "__main__":
    main()
