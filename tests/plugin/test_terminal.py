"""What the terminal's section looks like: its width, its colours, and a comparison where there are several models."""

import re

import pytest

from plugin.helpers import GPT2, LLAMA, write_checkpoint


@pytest.fixture
def narrow(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def section(result):
    """The lines of the section."""
    lines = result.outlines
    begin = next(number for number, line in enumerate(lines) if re.match(r"=+ deaddir =+", line))
    ends = [number for number, line in enumerate(lines) if number > begin and line.startswith("====")]
    return [line for line in lines[begin + 1 : ends[0]] if line]


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
