"""A fleet of small checkpoints beside one process that audits them one after the other, and what going on costs.

    python benchmarks/fleet.py [--subjects 200] [--processes 2] [--width 192]

Each number is of a whole process, with its imports. One BLAS thread for each audit in all of them.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
ALONE = """
import sys
from pytest_deaddir.fleet import Store, audit_one
from pathlib import Path
store = Store(Path(sys.argv[2]))
for text in Path(sys.argv[1]).read_text().split():
    store.keep(text, "", audit_one(text, {}))
"""


def seconds(*command, folder):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    began = time.perf_counter()
    subprocess.run([sys.executable, *command], cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subjects", type=int, default=200)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--width", type=int, default=192, help="of the models' six layers (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = f"random:gpt2?n_layer=6&n_embd={options.width}&n_head=4&vocab_size=256&n_positions=128&seed="
        (folder / "subjects.txt").write_text("\n".join(f"{model}{n}" for n in range(options.subjects)))
        (folder / "one.txt").write_text(f"{model}0")
        alone = seconds("-c", ALONE, "subjects.txt", "alone", folder=folder)
        first = seconds("-c", ALONE, "one.txt", "alone-1", folder=folder)
        command = ("-m", "pytest_deaddir.fleet", "subjects.txt", "--out", "out")
        fleet = seconds(*command, folder=folder)
        start = seconds("-m", "pytest_deaddir.fleet", "one.txt", "--out", "out-1", folder=folder)
        again = seconds(*command, folder=folder)
    ideal = options.processes
    print(f"one process            {alone:7.1f} s, {options.subjects / alone:.2f} subjects/s")
    print(
        f"fleet                  {fleet:7.1f} s, {options.subjects / fleet:.2f} subjects/s: {alone / fleet:.2f} × one process"
    )
    steady = (alone - first) / (fleet - start)
    print(f"without what one subject takes ({first:.1f} s alone, {start:.1f} s in a fleet): {steady:.2f} ×")
    print(f"share of {ideal} × one process: {alone / fleet / ideal:.0%} whole, {steady / ideal:.0%} steady (bar 80 %)")
    print(f"the same again         {again:7.2f} s, {again / fleet:.1%} of the first time (bar 5 %)")


if __name__ == "__main__":
    main()
