"""Entries of a report, written by hand: what every format is tested on."""

from __future__ import annotations

from pytest_deaddir.rules import Rule
from pytest_deaddir.tables import row

#: A rule in full, and one that says as little as it may.
RULES = [
    Rule(
        code="DD101",
        name="kernel-not-bottom-direction",
        severity="error",
        table="norms",
        summary="A LayerNorm's output varies along γ⁻¹.",
        source="rules/DD101.toml",
        where={"kind": ("layernorm",)},
        require={"noise_excess": {"max": 64.0}, "alignment": {"min": 0.9999}},
        message="γ⁻¹ of {path} is not dead",
        confidence="measured",
        why="What the scale says\nis not what runs.",
        how="One forward pass.",
        limits="Too few samples.",
        remedy="Look at the norm's code.",
        references=("https://arxiv.org/abs/2606.19491",),
    ),
    Rule("DD002", "dead-coordinates", "warning", "norms", "Dead coordinates.", "rules/DD002.toml"),
]


def healthy():
    """A LayerNorm model at level full, all of whose checks passed."""
    norms = [
        _norm("h.0.ln_1", "layernorm", "block", alignment=0.99999812, noise_ratio=4.75),
        _norm("ln_f", "layernorm", "final", alignment=0.9999999999999893, noise_ratio=5.949726648265144, depth=2.3456),
    ]
    norms[1] |= {"predicted_bottom": [0.0, 0.0577350269], "consumers": ["lm_head"]}
    blocks = [
        _block(-1, "input of h", None),
        _block(0, "h.0", 0.44231),
        _block(1, "h.1", 0.9873),
        _block(2, "h.2", 1e-9, inconclusive="σ_min lies below the noise floor; float32 would settle it"),
    ]
    model = _model("models/healthy", "full", norms=norms, normalisation="layernorm", depth=2.3456)
    model |= {"redundant_parameters": 16512, "twin_seed": 0}
    entry = _entry(model, norms, blocks, [], 12, label="healthy")
    return entry | {"anchor": {"file": "deaddir.toml", "line": 4}}


def faulty():
    """An RMSNorm model at level forward, with a finding of each severity, one that was accepted, and a rule that raised."""
    norms = [_norm("model.norm", "rmsnorm", "final", alignment=0.08123, noise_ratio=1.23456789e14)]
    norms[0] |= {
        "predicted_dead_dimension": 0,
        "dead_dimension": 0,
        "predicted_dead_by_dtype": {"float32": 0, "bfloat16": 3, "float16": None},
        "dead_coordinate_count": 2,
        "predicted_dead_coordinates": [127, 223],
    }
    model = _model("models/faulty", "forward", norms=norms, normalisation="rmsnorm", depth=None)
    findings = [
        _finding("DD002", "warning", "norms", "model.norm", "2 of 64 coordinates of model.norm are dead: 127, 223"),
        _finding("DD009", "info", "model", "models/faulty", "the files hold 1 tensor that nothing takes: extra.bias"),
        _finding("DD101", "error", "norms", "model.norm", "γ⁻¹ of model.norm is not dead: noise ratio 1.23e+14"),
        _finding("DD902", "error", "norms", "model.norm", "nothing was measured", suppressed="known, see #12"),
    ]
    findings[0] |= {"measured": {"dead_coordinate_count": 2}, "limit": {"dead_coordinate_count": {"max": 0}}}
    findings[2] |= {"measured": {"noise_ratio": 1.23456789e14}, "limit": {"noise_ratio": {"max": 64.0}}}
    blocks = [_block(-1, "input of layers", None), _block(0, "layers.0", 1.0625)]
    entry = _entry(model, norms, blocks, findings, 12, label="faulty")
    entry["checks"] |= {"failed": 2, "passed": 8, "warned": 1, "skipped": 2, "run": 10}
    error = "rules/acme.py:8: ZeroDivisionError: division by zero\nraised by the rule ACME001 on the row 'model.norm' of norms"
    entry["broken"] = [{"code": "ACME001", "error": error}]
    return entry | {"anchor": {"file": "models/faulty one/config.json", "line": 1}}


def broken():
    """What is left of a model whose audit ended in an error."""
    entry = _entry({"spec": "models/broken"}, [], [], [], 12, label="broken")
    entry["checks"] |= dict.fromkeys(("run", "passed"), 0)
    return entry | {"anchor": None, "error": "model.safetensors: the header ends after the file\nsecond line"}


def all_entries():
    """One of each."""
    return [healthy(), faulty(), broken()]


def named(text):
    """A faulty entry in which all that a stranger or a user names is ``text``."""
    entry = faulty() | {"label": text, "error": text or "none"}
    entry["model"] |= {
        "spec": text,
        "architecture": text,
        "inputs": text,
        "final_norm": text,
        "revision": text or "none",
    }
    entry["norms"][0] |= {"path": text, "class": text, "gamma_file": text, "consumers": [text]}
    entry["blocks"][1] |= {"path": text, "pinpoint_site": text}
    for finding in entry["findings"]:
        finding |= {"path": text, "message": f"γ of {text} is {text}", "measured": {"unsafe_names": [text]}}
    entry["findings"][3]["suppressed"] = text
    entry["broken"][0]["error"] = text or "none"
    return entry


def _model(spec, level, norms, **values):
    facts = {"fingerprint": "0123456789abcdef" * 4, "architecture": "TinyModel", "parameters": 660224, "width": 64}
    run = {"level": level, "dtype": "float32", "device": "cpu", "seed": 0, "inputs": "pydoc_data.topics"}
    run |= {"inputs_source": "own", "samples": 762, "samples_per_width": 11.90625, "peak_memory": 471674880}
    run |= {"versions": {"pytest-deaddir": "0.1.0"}, "seconds": {"read": 0.0123, "forward": 1.25}}
    lists = ("duplicate_tensors", "differing_weights", "uncompared_weights", "unsafe_names", "orphan_tensors")
    facts |= {name: [] for name in (*lists, "orphan_norms")}
    return row("model", spec=spec, final_norm=norms[-1]["path"], **facts, **run, **values)


def _norm(path, kind, role, **values):
    scale = {"gamma_convention": "w", "gamma_source": "file", "gamma_file": "model.safetensors", "gamma_offset": 4096}
    scale |= {"gamma_dtype": "F32", "gamma_min": 4.8123e-33, "gamma_median": 0.6512345, "gamma_max": 1.5}
    scale |= {"gamma_nonfinite": 0, "gamma_denormal": 0, "gamma_agrees": True, "kind_agrees": True}
    dead = {"predicted_dead_dimension": 1, "dead_coordinate_count": 0, "predicted_dead_coordinates": []}
    dead |= {"predicted_dead_by_dtype": {"float32": 1, "bfloat16": 1, "float16": 1}, "dead_dimension": 1}
    site = {"class": "Norm", "dtype": "float32", "how": "probe", "role_how": "by its values", "features": 64}
    site |= {
        "stack": "h" if role == "block" else None,
        "eps": 1e-5,
        "samples": 762,
        "unmeasured": "",
        "inconclusive": "",
    }
    return row("norms", path=path, kind=kind, role=role, **site, **scale, **dead, **values)


def _block(index, path, ratio, inconclusive=""):
    sigma = {"sigma_min": 0.0253, "sigma_median": 0.182, "sigma_max": 3.5, "dead_dimension": 0, "readable": True}
    ratios = {"smin_ratio": ratio and 2 * ratio, "smin_ratio_relative": ratio, "scale_ratio": ratio and 1.5}
    place = {"stack": "h", "features": 64, "samples": 762, "dtype": "float32", "deflated": "", "unmeasured": ""}
    return row("blocks", index=index, path=path, inconclusive=inconclusive, **sigma, **ratios, **place)


def _finding(code, severity, table, path, message, suppressed=None):
    rule = {"code": code, "name": f"rule-{code.lower()}", "severity": severity, "confidence": "measured"}
    where = {"table": table, "path": path, "message": message, "measured": {}, "limit": {}}
    return rule | where | {"suppressed": suppressed, "known": False}


def _entry(model, norms, blocks, findings, planned, label):
    checks = {"planned": planned, "run": planned, "passed": planned, "failed": 0, "warned": 0, "known": 0, "skipped": 0}
    tables = {"model": model, "norms": norms, "blocks": blocks, "findings": findings, "checks": checks}
    return tables | {"label": label}
