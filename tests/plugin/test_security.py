"""A stranger's checkpoint is data: nothing of it is run, nothing in it is changed, whatever files lie beside the weights."""

from __future__ import annotations

import pytest

from plugin.helpers import READ_ITEMS, assert_no_insides, outcomes, text_of, write_checkpoint

#: Every file of this content that runs leaves a trace of its name.
EVIL = """
import pathlib
pathlib.Path({trace!r}).joinpath(pathlib.Path(__file__).name).touch()
def test_evil(): pass
"""
EVIL_FILES = ("conftest.py", "evil_test.py", "test_evil.py", "setup.py", "tabulate.py")


class Stranger:
    """A folder of somebody else's, full of Python files, and what came of it."""

    def __init__(self, folder, trace):
        self.folder = folder
        self.trace = trace
        folder.mkdir(parents=True)
        trace.mkdir()
        for name in EVIL_FILES:
            (folder / name).write_text(EVIL.format(trace=str(trace)))

    def ini(self, text, name="pytest.ini"):
        """Give the folder a configuration for pytest."""
        section = "[tool.pytest.ini_options]" if name == "pyproject.toml" else "[pytest]"
        (self.folder / name).write_text(f"{section}\n{text}\n")

    def files(self):
        """Path → content of all that is there."""
        return {p.relative_to(self.folder): p.read_bytes() for p in self.folder.rglob("*") if p.is_file()}

    def ran(self):
        """The names of the files that were run."""
        return sorted(path.name for path in self.trace.iterdir())


@pytest.fixture
def work(pytester, monkeypatch):
    """An empty folder to run in, beside the stranger's."""
    folder = pytester.mkdir("work")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def stranger(pytester, work):
    """A checkpoint's folder beside the one that the tests run in."""
    made = Stranger(pytester.path / "theirs", pytester.path / "trace")
    write_checkpoint(made.folder)
    return made


#: Configurations that would run a file, or load one in place of a library.
INIS = {
    "addopts": "addopts = ../theirs/evil_test.py",
    "addopts by testpaths": "testpaths = .",
    "pythonpath": "pythonpath = .",
    "nothing": "",
}


@pytest.mark.parametrize("ini", INIS.values(), ids=INIS.keys())
@pytest.mark.parametrize("model", ["../theirs", "../theirs/model.safetensors"], ids=["directory", "file"])
def test_one_word_runs_and_changes_nothing_in_the_checkpoint(pytester, stranger, model, ini):
    stranger.ini(ini)
    before = stranger.files()
    result = pytester.runpytest_inprocess(f"--deaddir-model={model}", "--deaddir-level=read")
    assert result.ret == 0
    assert len(outcomes(result)) == len(READ_ITEMS)
    assert stranger.ran() == []
    assert stranger.files() == before


@pytest.mark.parametrize("ini", INIS.values(), ids=INIS.keys())
@pytest.mark.parametrize("model", ["../theirs", "../theirs/model.safetensors"], ids=["directory", "file"])
def test_two_words_leave_a_configuration_in_the_checkpoint_alone(pytester, stranger, model, ini):
    stranger.ini(ini)
    before = stranger.files()
    result = pytester.runpytest_inprocess("--deaddir-model", model, "--deaddir-level=read")
    assert stranger.ran() == []
    assert result.ret == 0
    assert len(outcomes(result)) == len(READ_ITEMS)
    assert stranger.files() == before


def test_two_words_leave_a_pyproject_in_the_checkpoint_alone(pytester, stranger):
    stranger.ini('addopts = "../theirs/evil_test.py"', name="pyproject.toml")
    result = pytester.runpytest_inprocess("--deaddir-model", "../theirs", "--deaddir-level=read")
    assert stranger.ran() == []
    assert result.ret == 0


@pytest.mark.parametrize("model", ["../theirs", "../theirs/model.safetensors"], ids=["directory", "file"])
def test_two_words_without_a_configuration_run_and_change_nothing_in_the_checkpoint(pytester, stranger, model):
    before = stranger.files()
    result = pytester.runpytest_inprocess("--deaddir-model", model, "--deaddir-level=read")
    assert len(outcomes(result)) == len(READ_ITEMS)
    assert stranger.ran() == []
    assert stranger.files() == before


@pytest.mark.parametrize("ini", INIS.values(), ids=INIS.keys())
def test_two_words_with_a_configuration_above_the_checkpoint_run_nothing_of_there(pytester, work, ini):
    repository = Stranger(pytester.path / "theirs", pytester.path / "trace")
    repository.ini(ini)
    write_checkpoint(repository.folder / "m")
    before = repository.files()
    result = pytester.runpytest_inprocess("--deaddir-model", "../theirs/m", "--deaddir-level=read")
    assert repository.ran() == []
    assert result.ret == 0
    assert repository.files() == before


@pytest.mark.parametrize("option", ["rules", "report", "inputs"])
def test_two_words_of_another_option_that_lead_to_a_configuration_run_nothing_of_there(
    pytester, stranger, work, option
):
    stranger.ini("addopts = ../theirs/evil_test.py")
    write_checkpoint(work / "m")
    (stranger.folder / "out.json").write_text("{}")
    values = {"rules": "../theirs", "report": "../theirs/out.json", "inputs": "../theirs/config.json"}
    result = pytester.runpytest_inprocess(
        "--deaddir-model=m", "--deaddir-level=read", f"--deaddir-{option}", values[option]
    )
    assert stranger.ran() == []
    assert result.ret == (4 if option == "rules" else 0)  # there is no rule file in that folder
    assert_no_insides(result)


def test_a_configuration_that_loads_a_plugin_is_refused_since_pytest_has_loaded_it(pytester, stranger):
    stranger.ini("addopts = -p json.tool")
    result = pytester.runpytest_inprocess("--deaddir-model", "../theirs", "--deaddir-level=read")
    assert result.ret == 4
    assert "whose addopts load a plugin" in text_of(result)
    assert stranger.ran() == []


def test_one_own_configuration_stays_in_force(pytester, stranger, work):
    stranger.ini("addopts = ../theirs/evil_test.py")
    (work / "pytest.ini").write_text("[pytest]\ndeaddir_level = read\n")
    result = pytester.runpytest_inprocess("--deaddir-model=../theirs")
    assert len(outcomes(result)) == len(READ_ITEMS)


def test_a_named_configuration_is_enough_for_two_words(pytester, stranger, work):
    stranger.ini("addopts = ../theirs/evil_test.py")
    (work / "mine.ini").write_text("[pytest]\ndeaddir_level = read\n")
    result = pytester.runpytest_inprocess("-c", "mine.ini", "--deaddir-model", "../theirs")
    assert len(outcomes(result)) == len(READ_ITEMS)
    assert stranger.ran() == []


def test_whoever_stands_in_the_checkpoint_uses_its_configuration(pytester, checkpoint, monkeypatch):
    folder = checkpoint()
    (folder / "pytest.ini").write_text("[pytest]\ndeaddir_level = read\n")
    monkeypatch.chdir(folder)
    result = pytester.runpytest_inprocess("--deaddir-model", ".")
    assert result.ret == 0
    assert len(outcomes(result)) == len(READ_ITEMS)


@pytest.mark.parametrize("options", [["--deaddir-only"], []], ids=["only", "beside other tests"])
def test_tests_that_come_with_an_audited_checkpoint_are_not_collected(pytester, work, options):
    made = Stranger(work / "theirs", pytester.path / "trace")
    write_checkpoint(made.folder)
    before = made.files()
    (work / "test_mine.py").write_text("def test_one(): pass")
    result = pytester.runpytest_inprocess("--deaddir-model=theirs", "--deaddir-level=read", *options)
    assert made.ran() == []
    own = [] if options else ["test_mine.py::test_one"]
    assert list(outcomes(result)) == [*own, *(f"theirs::{name}" for name in READ_ITEMS)]
    assert made.files() == before


@pytest.mark.parametrize("where", ["beside", "below"])
@pytest.mark.parametrize("words", [["--deaddir-model={}"], ["--deaddir-model", "{}"]], ids=["one word", "two words"])
def test_a_gate_file_that_came_with_a_checkpoint_runs_none_of_its_rules(pytester, work, where, words):
    made = Stranger((work if where == "below" else pytester.path) / "theirs", pytester.path / "trace")
    write_checkpoint(made.folder)
    (made.folder / "rules").mkdir()
    (made.folder / "rules" / "acme.py").write_text(EVIL.format(trace=str(made.trace)))
    (made.folder / "deaddir.toml").write_text('level = "read"\nrules = ["rules", "setup.py"]\n[models.m]\npath = "."\n')
    (work / "test_mine.py").write_text("def test_one(deaddir_audit): pass")
    spec = "theirs" if where == "below" else "../theirs"
    for options in ([], ["--deaddir-only"]):
        result = pytester.runpytest_inprocess(*(word.format(spec) for word in words), "--deaddir-level=read", *options)
        assert made.ran() == []
        assert len([name for name in outcomes(result) if "test_mine" not in name]) == len(READ_ITEMS)


def test_a_rule_file_is_not_picked_up_from_beside_a_checkpoint(pytester, stranger):
    (stranger.folder / "rules").mkdir()
    (stranger.folder / "rules" / "theirs.toml").write_text("not even toml")
    result = pytester.runpytest_inprocess("--deaddir-model=../theirs", "--deaddir-level=read")
    assert result.ret == 0
    assert "theirs.toml" not in text_of(result)
