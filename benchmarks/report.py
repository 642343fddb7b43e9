"""What the reports of a model of 100 blocks cost, beside its audit, and how soon a browser shows the HTML one.

    python benchmarks/report.py [SPEC] [--level L] [--runs N]

The audit is api.audit at level forward, loading included. Each format is written as a run writes it, the first time in this
process, with the import of its module, and then N more times. Opening: from the navigation until the page is loaded and laid
out, by the clock of chromium, which is started anew each time and without its network; where there is none it is left out.
"""

import argparse
import base64
import hashlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from solver import load as machine
from solver import verdict

from pytest_deaddir import audit
from pytest_deaddir.report import FORMATS, write
from pytest_deaddir.rules import load_rules, shipped_rules

MAX_SHARE = 0.05
MAX_SIZE = 1_000_000
MAX_OPENING = 1000

SPEC = "random:gpt2?n_layer=100&n_embd=64&n_head=2"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
OPTIONS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--dump-dom"),
]

#: Reading the height lays the page out.
PROBE = """addEventListener("load", () => {
  const height = document.documentElement.scrollHeight;
  document.title = `${performance.now()} ms, ${height} px`;
});"""


def opening(browser: str, page: Path) -> float:
    """Milliseconds until a page is laid out."""
    digest = base64.b64encode(hashlib.sha256(PROBE.encode()).digest()).decode()
    text = page.read_text(encoding="utf-8").replace("script-src ", f"script-src &#x27;sha256-{digest}&#x27; ", 1)
    probed = page.with_name("probed.html")
    probed.write_text(text.replace("</head>", f"<script>{PROBE}</script></head>", 1), encoding="utf-8")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [browser, *OPTIONS, f"--user-data-dir={profile}", probed.as_uri()]
        seen = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search(r"<title>([\d.]+) ms, \d+ px</title>", seen)
    assert found, "the page's title is not the probe's"
    return float(found[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("spec", nargs="?", default=SPEC, help="default: %(default)s")
    parser.add_argument("--level", default="forward", choices=("read", "forward", "full"))
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="after the first (default: %(default)s)")
    args = parser.parse_args()
    if args.runs < 1:
        parser.error("--runs from 1")
    torch.set_num_threads(1)
    print(machine())
    started = time.perf_counter()
    made = audit(args.spec, level=args.level)
    took = time.perf_counter() - started
    print(
        f"\n{args.spec}: {len(made.norms)} norms, {len(made.blocks)} places of the stream, {args.level}: {took:.2f} s"
    )
    rules = load_rules([shipped_rules()])
    met = True
    with tempfile.TemporaryDirectory() as folder:
        for suffix in FORMATS:
            path, times = Path(folder, f"report{suffix}"), []
            for _ in range(args.runs + 1):
                started = time.perf_counter()
                write(path, [made.as_dict()], rules)
                times.append(time.perf_counter() - started)
            again = statistics.median(times[1:])
            print(f"{suffix:7} {times[0] * 1e3:6.1f} ms, again {again * 1e3:6.1f} ms, {path.stat().st_size:9,} bytes")
            met &= verdict("share of the audit", times[0] / took, MAX_SHARE, ".2%")
        page = Path(folder, "report.html")
        met &= verdict("bytes of HTML", page.stat().st_size, MAX_SIZE, ",")
        browser = next(filter(None, map(shutil.which, BROWSERS)), None)
        if browser:
            opened = [opening(browser, page) for _ in range(args.runs)]
            print(f"opened in {', '.join(f'{ms:.0f}' for ms in opened)} ms")
            met &= verdict("median of opening it, ms", statistics.median(opened), MAX_OPENING, ".0f")
        else:
            print(f"opening it was not measured: none of {', '.join(BROWSERS)} is on the PATH")
    print(f"\n{machine()}")
    sys.exit(not met)


if __name__ == "__main__":
    main()
