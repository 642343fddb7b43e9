"""Every hostile or broken checkpoint ends in a finding or in an error that names the file, and nothing outside is opened."""

import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from formats.hostile import CASES
from pytest_deaddir import api
from pytest_deaddir.errors import CheckpointError
from pytest_deaddir.rules import judge, load_rules, shipped_rules

#: Case → (code of the finding, path of the site or None for the model's row).
FINDINGS = {
    "nan-gamma": ("DD001", "transformer.ln_f"),
    "infinite-gamma": ("DD001", "transformer.h.0.ln_1"),
    "huge-scales": ("DD001", "transformer.ln_f"),  # infinite in the float32 that the model runs in
    "zero-gamma": ("DD002", "transformer.ln_f"),
    "gamma-missing": ("DD003", "transformer.ln_f"),
    "duplicate-names": ("DD005", None),
    "duplicate-across-shards": ("DD005", None),
    "escapes-in-names": ("DD006", None),
    "two-different-formats": ("DD007", None),
    "a-bin-that-cannot-be-compared": ("DD007", None),
    "negative-eps": ("DD008", None),
    "eps-in-a-section": ("DD008", None),
    "eps-without-end": ("DD008", None),
    "duplicate-behind-an-escape": ("DD005", None),
}
#: Case → what the error says, beside the file's name.
ERRORS = {
    "traversal-in-the-index": "refused: weight_map names '../outside.safetensors'",
    "absolute-path-in-the-index": "refused: weight_map names",
    "link-to-outside": "refused: a link to outside",
    "link-in-the-index": "refused: a link to outside",
    "header-bomb": "refused: its header would be 67000000 bytes",
    "truncated": "truncated",
    "overlapping-tensors": "'transformer.ln_f.weight' and 'transformer.ln_f.bias' overlap by 32 bytes",
    "two-tensors-of-the-same-bytes": "'transformer.ln_f.bias' and 'transformer.ln_f.weight' overlap by 64 bytes",
    "a-hole-between-tensors": "16 bytes between 'transformer.ln_f.weight' and 'transformer.ln_f.bias' belong to no tensor",
    "bytes-behind-the-tensors": "the last 896 bytes belong to no tensor",
    "twice-with-bytes-of-its-own": "given more than once: 'transformer.ln_f.weight'",
    "config-of-another-shape": "not JSON",
    "pipe-for-a-config": "refused: not a regular file",
    "a-norm-of-millions": "would be a norm of 16000000 bytes",
    "other-weights-named-in-the-config": "transformers_weights names other weights",
    "pickle-with-code": "refused by torch.load",
    "stride-zero-pickle": "claims more elements than its storage holds",
}
HEALTHY = {"healthy", "two-equal-formats", "empty-axis-of-2-to-the-62", "misaligned-tensors"}


_watched: list[str] | None = None


def _hook(event, arguments):
    if event == "open" and _watched is not None and isinstance(arguments[0], (str, bytes)):
        _watched.append(arguments[0] if isinstance(arguments[0], str) else arguments[0].decode())


sys.addaudithook(_hook)


@contextmanager
def opens():
    """The paths of all files that this process opens; a hook of the interpreter, so no way to read escapes it."""
    global _watched
    _watched = []
    try:
        yield _watched
    finally:
        _watched = None


def findings(path):
    audited = judge(api.read(path), load_rules([shipped_rules()]))
    return [(finding["code"], finding["path"]) for finding in audited.findings]


def test_every_case_is_expected_somewhere():
    assert set(CASES) == FINDINGS.keys() | ERRORS.keys() | HEALTHY | {"denormal-gamma"}


@pytest.mark.parametrize("name", FINDINGS)
def test_exactly_its_finding(tmp_path, name):
    CASES[name](tmp_path / "checkpoint")
    code, site = FINDINGS[name]
    if code == "DD007":
        pytest.importorskip("torch", reason="where it is not loaded, a .bin is left closed (DD011)")
    assert findings(tmp_path / "checkpoint") == [(code, site or str(tmp_path / "checkpoint"))]


def test_a_denormal_scale_is_named_beside_the_coordinate_that_it_kills(tmp_path):
    CASES["denormal-gamma"](tmp_path / "checkpoint")
    assert [code for code, _ in findings(tmp_path / "checkpoint")] == ["DD002", "DD004"]


@pytest.mark.parametrize("name", sorted(HEALTHY))
def test_no_finding(tmp_path, name):
    CASES[name](tmp_path / "checkpoint")
    assert findings(tmp_path / "checkpoint") == []


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_that_names_the_file(tmp_path, name):
    CASES[name](tmp_path / "checkpoint")
    with pytest.raises(CheckpointError) as caught:
        api.read(tmp_path / "checkpoint")
    assert ERRORS[name] in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "checkpoint"))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", [name for name in CASES if "pickle" not in name and "bin" not in name])
def test_nothing_outside_the_checkpoint_is_opened(tmp_path, name):
    warm_up(name, tmp_path / "before")  # what is imported on first use is opened now
    CASES[name](tmp_path / "checkpoint")
    with opens() as opened:
        try:
            findings_of = api.read(tmp_path / "checkpoint")
            assert findings_of.norms
        except CheckpointError:
            pass
    home = (tmp_path / "checkpoint").resolve()
    outside = [path for path in opened if not Path(path).resolve().is_relative_to(home)]
    assert outside == []
    assert opened or name == "pipe-for-a-config"


def warm_up(name, folder):
    """Read the same case once, and one that opens whole."""
    for case in (name, "healthy"):
        (folder / case).mkdir(parents=True, exist_ok=True)
        CASES[case](folder / case / "checkpoint")
        with suppress(CheckpointError):
            api.read(folder / case / "checkpoint")
