"""What the terminal's section looks like: its width, its colours, and a comparison where there are several models."""

import json
import os
import re
from pathlib import Path

import pytest

from plugin.helpers import GPT2, LLAMA, write_checkpoint
from pytest_deaddir.report.terminal import _shortened

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


@pytest.fixture
def narrow(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def section(result):
    """The lines of the section."""
    lines = result.outlines
    begin = next(number for number, line in enumerate(lines) if re.match(r"=+ deaddir =+", line))
    ends = [number for number, line in enumerate(lines) if number > begin and line.startswith("====")]
    return [line for line in lines[begin + 1 : ends[0]] if line]


@pytest.fixture(scope="module")
def entries(tmp_path_factory):
    """A report of two models of long names: one whose norms could not be measured, with many findings, and a healthy one."""
    report = json.loads((GOLDEN / "report.json").read_text())
    model = next(entry for entry in report["models"] if entry["model"]["level"] == "full")
    norm = {**model["norms"][0], "unmeasured": "", "inconclusive": "", "alignment": 1.0, "noise_ratio": 4.95}
    paths = [f"encoder.layer.{layer}.output.LayerNorm" for layer in range(25)]
    healthy = {**model, "norms": [{**norm, "path": path, "role": "block"} for path in paths]}
    broken = [
        {**norm, "path": path, "role": "final", "unmeasured": "its activations are not finite", "alignment": None}
        for path in paths
    ]
    models = [
        {**entry, "model": {**entry["model"], "spec": f"an/organisation-with-a-long-name/{name}"}}
        for entry, name in ((healthy, "a-healthy-model"), ({**model, "norms": broken}, "a-model-without-numbers"))
    ]
    file = tmp_path_factory.mktemp("entries") / "audit.json"
    file.write_text(json.dumps({**report, "models": models}))
    return file


@pytest.fixture
def audited(pytester, entries):
    """Judge that report again."""
    return lambda *options: pytester.runpytest_inprocess("--deaddir-only", f"--deaddir-from={entries}", *options)


@pytest.mark.parametrize("columns", [80, 60])
@pytest.mark.parametrize("options", [(), ("-v",), ("-q",)])
def test_a_measured_audit_fits(audited, options, columns, monkeypatch):
    """Two models with long names and paths, measured, one of them failing: every line of the section."""
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = section(audited(*options))
    assert any("DD902" in line for line in lines)
    assert [line for line in lines if len(line) > columns and "report" not in line] == []


def test_what_a_narrow_terminal_leaves_out_is_said(audited, monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    lines = section(audited("-v"))
    assert "(50 columns hold no more: d left out)" in lines
    measured, _ = [line for line in lines if line.startswith("e.l.5.")]
    assert "1.0000" in measured


def test_paths_are_cut_where_they_say_the_least():
    path = "encoder.layer.11.output.LayerNorm"
    assert _shortened(path, 33) == path
    assert _shortened(path, 30) == "e.layer.11.output.LayerNorm"
    assert _shortened(path, 20) == "e.l.11.o.LayerNorm"
    assert _shortened(path, 16) == "e.l.11.…ayerNorm"
    assert _shortened("random:gpt2?n_layer=12&n_embd=96", 20) == "random:gp…&n_embd=96"
    layers = {_shortened(f"model.layers.{layer}.post_attention_layernorm", 20) for layer in range(100)}
    assert len(layers) == 100


def test_the_gravest_is_told_first_and_no_more_than_anyone_reads(audited):
    lines = section(audited())
    codes = [line.split()[1] for line in lines if re.match(r"DD\d+ ", line)]
    assert codes == sorted(codes)  # error, then warning
    assert sum(line.startswith("DD902") for line in lines) == 20
    assert "(5 more; -v shows them)" in lines
    assert sum(line.startswith("DD902") for line in section(audited("-v"))) == 25


@pytest.mark.parametrize("options", [(), ("-v",), ("-q",)])
def test_it_fits_80_columns(pytester, with_torch, narrow, options):
    write_checkpoint(pytester.path / ("a-name-that-is-longer-than-most/" * 2) / "m", nan="transformer.h.0.ln_1")
    long = next(pytester.path.rglob("config.json")).parent
    result = pytester.runpytest_inprocess(f"--deaddir-model={long}", "--deaddir-level=read", "--deaddir-only", *options)
    lines = section(result)
    assert any("DD001" in line for line in lines)
    words = {word for line in lines for word in line.split()}
    longest = max(len(word) for word in words)
    assert all(len(line) <= max(80, longest + 4) for line in lines)


def test_several_models_are_compared_first(pytester, with_torch, narrow):
    result = pytester.runpytest_inprocess(f"--deaddir-model={GPT2}", f"--deaddir-model={LLAMA}", "--deaddir-only")
    header, _, gpt2, llama, note = section(result)[:5]
    assert header.split() == ["model", "kind", "d", "aligned", "noise", "dead", "verdict"]  # one block has no ratio
    assert re.search(r"layernorm +32 +1\.0000 +\S+ +1/1 +passed", gpt2)
    assert re.search(r"rmsnorm +32 +0\.\d{4} +\S+ +0/0 +passed", llama)
    assert note == "dead: predicted/measured"
    assert all(len(line) <= 80 for line in section(result)[:5])


def test_colours_say_how_it_ended_and_are_left_out_where_nobody_sees_them(pytester, monkeypatch):
    write_checkpoint(pytester.path / "m", nan="transformer.ln_f")
    options = ("--deaddir-model=m", "--deaddir-level=read")
    coloured = pytester.runpytest_inprocess(*options, "--color=yes").stdout.str()
    assert "\x1b[31mDD001 error" in coloured
    assert re.search(r"\x1b\[31m\d+ of \d+ checks ran", coloured)
    assert "\x1b" not in pytester.runpytest_inprocess(*options, "--color=no").stdout.str()


def test_a_ci_log_has_no_colours_of_ours(pytester, monkeypatch):
    write_checkpoint(pytester.path / "m", nan="transformer.ln_f")
    monkeypatch.setenv("CI", "1")
    result = pytester.runpytest_inprocess("--deaddir-model=m", "--deaddir-level=read", "--color=yes")
    assert any(line.startswith("DD001 error") for line in result.outlines)


def test_the_golden_file_is_what_is_shown(pytester, monkeypatch):
    """The golden report, judged again by the shipped rules. To write it anew: DEADDIR_WRITE_GOLDEN=1."""
    monkeypatch.setenv("COLUMNS", "80")
    result = pytester.runpytest_inprocess("--deaddir-only", f"--deaddir-from={GOLDEN / 'report.json'}", "-v")
    text = "\n".join(line.rstrip() for line in section(result)) + "\n"
    file = GOLDEN / "terminal.txt"
    if os.environ.get("DEADDIR_WRITE_GOLDEN"):
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")


def test_the_golden_junit_file_is_what_is_written(pytester):
    options = ["--junitxml=junit.xml", "--deaddir-junit-properties", "-o", "junit_family=xunit1"]
    pytester.runpytest_inprocess("--deaddir-only", f"--deaddir-from={GOLDEN / 'report.json'}", *options)
    text = (pytester.path / "junit.xml").read_text(encoding="utf-8").replace("><", ">\n<")
    text = re.sub(r' (time|timestamp|hostname)="[^"]*"', r' \1="…"', text)
    text = re.sub(r">[^<>]*:None: ", ">…: ", re.sub(r"[^\s\"=]*/golden/", "…/", text)) + "\n"
    file = GOLDEN / "junit.xml"
    if os.environ.get("DEADDIR_WRITE_GOLDEN"):
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")
