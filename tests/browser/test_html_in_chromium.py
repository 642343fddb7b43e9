"""The HTML report in a real browser, started anew for each page: nothing foreign runs, tables sort, a phone is wide enough."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
import zlib

import pytest

from pytest_deaddir.report.html import render
from report.pages import RULE, broken_entry, entry, finding, hostile_entry

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")

#: A phone of 390 CSS pixels, which takes the page's message: a browser's own window cannot be made so narrow.
PHONE = """<!doctype html><title>nothing was heard</title>
<iframe src="page.html" width="390" height="844" style="border:0"></iframe>
<script>addEventListener("message", event => { document.title = event.data })</script>"""

#: What is read from the page once its own script has run.
PROBE = """
const seen = {};
try {
  const table = document.querySelector("table.sortable.first-11, .table table.sortable");
  const heading = [...table.tHead.rows[0].cells].find(cell => cell.textContent === "gamma_min");
  const button = heading.querySelector("[role=button]");
  const column = () => [...table.tBodies[0].rows].map(row => row.cells[0].textContent.slice(0, 9));
  seen.orders = [column()];
  seen.sorts = [heading.getAttribute("aria-sort")];
  for (let click = 0; click < 3; click++) {
    button.focus();
    seen.focused = document.activeElement === button;
    if (click == 1) button.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true }));
    else button.click();
    seen.orders.push(column());
    seen.sorts.push(heading.getAttribute("aria-sort"));
  }
  const visible = () => [...table.tHead.rows[0].cells].filter(cell => cell.checkVisibility()).length;
  seen.columns = [visible()];
  document.querySelector(".table input").click();
  seen.columns.push(visible(), table.tHead.rows[0].cells.length);
  seen.firstNumber = table.tHead.rows[0].cells[1].getBoundingClientRect().right;
  seen.file = fileName("σ_min of the residual stream, |γ|");
  seen.saves = document.querySelectorAll("figure button.save").length;
} catch (error) { seen.error = String(error) }
seen.figures = document.querySelectorAll("figure").length;
seen.plot = document.querySelector("svg .dd-line") && getComputedStyle(document.querySelector("svg .dd-line")).stroke;
seen.title = document.title;
seen.foreign = document.querySelectorAll("img, iframe, object, [onclick], [onerror]").length;
seen.widths = [innerWidth, document.documentElement.scrollWidth];
parent.postMessage(JSON.stringify(seen), "*");
"""


@pytest.fixture(scope="module")
def chromium():
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(
            f"no browser is installed: none of {', '.join(NAMES)} is on the PATH (Debian: apt-get install chromium)"
        )
    return found


@pytest.fixture
def opened(chromium, tmp_path):
    """Open a report on a phone; gives what :data:`PROBE` saw, and the console's messages."""

    def run(*models, theme="light"):
        page = render(models, [RULE])
        digest = base64.b64encode(hashlib.sha256(PROBE.encode()).digest()).decode()
        allowed = page.replace("script-src ", f"script-src &#x27;sha256-{digest}&#x27; ", 1)
        assert allowed != page
        probed = allowed.replace("</body>", f"<script>{PROBE}</script></body>")
        (tmp_path / "page.html").write_text(probed, encoding="utf-8")
        (tmp_path / "phone.html").write_text(PHONE, encoding="utf-8")
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        options += ["--hide-scrollbars", "--enable-logging=stderr", "--virtual-time-budget=3000", "--dump-dom"]
        options += ["--blink-settings=preferredColorScheme=0"] if theme == "dark" else []
        done = subprocess.run(
            [chromium, *options, (tmp_path / "phone.html").as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        heard = html.unescape(re.search("<title>(.*?)</title>", done.stdout, re.DOTALL).group(1))
        console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        return json.loads(heard), console

    return run


def test_a_report_on_a_phone(opened):
    findings = [finding(), finding("h.1", severity="warning", table="blocks")]
    seen, console = opened(entry(findings=findings), entry("another"), broken_entry())
    assert console == []
    assert "error" not in seen
    assert seen["widths"] == [390, 390]
    assert seen["orders"] == [["h.0.ln_1", "ln_f"], ["ln_f", "h.0.ln_1"], ["h.0.ln_1", "ln_f"], ["h.0.ln_1", "ln_f"]]
    assert seen["sorts"] == ["none", "ascending", "descending", "none"]
    assert seen["focused"]
    few, all_of_them, there = seen["columns"]
    assert few == 11 < all_of_them == there
    assert seen["figures"] == seen["saves"] == 10
    assert seen["firstNumber"] < 390
    assert seen["file"] == "sigma_min-of-the-residual-stream-gamma.svg"
    assert seen["plot"] == "rgb(31, 95, 168)"


def test_headings_are_repeated_on_every_printed_page(chromium, tmp_path):
    """What is printed of the page is what is printed of it without its script, which leaves the headings as they are."""
    one = entry()
    one["blocks"] += [one["blocks"][1] | {"index": place, "path": f"h.{place}"} for place in range(2, 150)]
    page = render([one], [RULE])
    bare = re.sub("<script>.*</script>", "", page, flags=re.DOTALL)
    assert bare != page
    printed = [_texts_on_pages(chromium, tmp_path, source) for source in (page, bare)]
    assert printed[0] == printed[1]
    assert len(printed[0]) > 3


def _texts_on_pages(chromium, folder, page):
    """How many texts each page of a print draws."""
    source, target = folder / "print.html", folder / "print.pdf"
    source.write_text(page, encoding="utf-8")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    done = [chromium, *options, "--no-pdf-header-footer", f"--print-to-pdf={target}", source.as_uri()]
    subprocess.run(done, capture_output=True, timeout=120, check=True)
    streams = re.findall(rb"/FlateDecode.*?stream\r?\n(.*?)\r?\nendstream", target.read_bytes(), re.DOTALL)
    drawn = [len(re.findall(rb"\bT[jJ]\b", zlib.decompress(stream))) for stream in streams]
    return [count for count in drawn if count]


def test_nothing_of_a_stranger_s_runs_or_widens_the_page(opened):
    seen, console = opened(hostile_entry(), broken_entry("<script>document.title='ran'</script>" * 20), theme="dark")
    assert console == []
    assert seen["foreign"] == 0
    assert "ran" not in seen["title"].split()
    assert seen["title"] == "2 of 2 models did not pass · 2 models"
    assert seen["widths"] == [390, 390]
    assert seen["plot"] == "rgb(121, 176, 242)"


def test_the_policy_stops_what_escaping_would_have_missed(opened, monkeypatch):
    """The second lock, tried with the first one open."""
    monkeypatch.setattr("pytest_deaddir.report.markup.html.escape", lambda string: string)
    seen, console = opened(entry("m" + "<script>document.title='ran'</script><img src=x onerror=document.title='ran'>"))
    assert seen["foreign"] > 0
    assert seen["title"] != "ran"
    assert any("Content Security Policy" in line for line in console)
