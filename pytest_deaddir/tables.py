"""The contract: an Audit is three tables of plain data, and everything downstream uses nothing else.

Each column is declared once, with the level that fills it. Unmeasured is ``None`` and never a number.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any, Literal

SCHEMA = "pytest-deaddir/audit/1"

Level = Literal["read", "forward", "full"]
LEVELS: tuple[Level, ...] = ("read", "forward", "full")

#: One row of a table: column → a JSON value.
Row = dict[str, Any]

_READ, _FORWARD, _FULL = LEVELS

#: Table → column → the level that fills it.
COLUMNS: dict[str, dict[str, Level]] = {
    "model": {
        "spec": _READ,
        "name": _READ,  # in deaddir.toml
        "revision": _READ,
        "fingerprint": _READ,
        "architecture": _READ,
        "parameters": _READ,
        "width": _READ,
        "normalisation": _READ,
        "norm_eps": _READ,  # the least plausible that config.json gives
        "final_norm": _FORWARD,  # path of the norm whose output the model returns; empty where there is none
        "duplicate_tensors": _READ,
        "differing_weights": _READ,  # other sets of weights beside the one that was read, unlike it
        "uncompared_weights": _READ,  # sets of weights beside it that torch would have to open
        "unsafe_names": _READ,  # tensor names with control, invisible or markup characters, or that are paths
        "orphan_tensors": _FORWARD,  # in the files, and no module takes them
        "orphan_norms": _FORWARD,  # those of them that are scales of norms
        "bytes_read": _READ,  # from a hub
        "requests": _READ,
        "level": _READ,
        "dtype": _READ,
        "device": _FORWARD,
        "seed": _READ,
        "inputs": _FORWARD,
        "inputs_source": _FORWARD,  # own | synthetic
        "samples": _FORWARD,
        "samples_per_width": _FORWARD,
        "twin_seed": _FULL,
        "twin_note": _FULL,  # why there is no twin
        "depth": _FULL,  # of the final norm
        "redundant_parameters": _FULL,
        "versions": _READ,
        "seconds": _READ,
        "peak_memory": _READ,
        "max_memory": _FORWARD,  # the limit that was given for the weights
        "placement": _FORWARD,  # bytes of weights by where they are held: a device, or disk
        "accumulators": _FORWARD,  # bytes
        "processes": _FORWARD,  # that measured together
        "tp_plan": _FORWARD,  # by which they shared the weights; None where each had all
        "baseline": _READ,  # the spec of what the audit was compared with; this and what follows None without one
        "baseline_findings": _READ,  # code → what was measured, of the findings that the baseline holds
        "normalisation_change": _READ,  # such as "layernorm → rmsnorm"; empty where there is none
        "lost_sites": _READ,  # norms of the baseline that the model has not
        "new_sites": _READ,  # norms that the baseline has not
        "not_compared": _READ,  # what could not be compared, and why
    },
    "norms": {
        "path": _READ,
        "class": _FORWARD,
        "gamma_agrees": _FORWARD,  # whether the module's scale is the stored one, by its least, middle and largest |γ|
        "dtype": _FORWARD,  # of the site's output
        "kind_agrees": _FORWARD,  # whether the module is of the kind that the files' names say, where they say any
        "kind": _READ,  # layernorm | rmsnorm | other | undecided
        "how": _READ,  # the evidence for the kind
        "role": _READ,  # final | block | qk | embedding | pooler | other
        "role_how": _READ,
        "stack": _READ,
        "features": _READ,
        "eps": _FORWARD,
        "gamma_convention": _READ,  # w | 1+w | none | fitted
        "gamma_source": _READ,  # file | missing | module | none
        "gamma_file": _READ,
        "gamma_offset": _READ,
        "gamma_dtype": _READ,
        "gamma_min": _READ,
        "gamma_median": _READ,
        "gamma_max": _READ,
        "gamma_profile": _READ,  # |γ| of the final norm by rank: 33 of them, from the smallest to the largest
        "gamma_nonfinite": _READ,
        "gamma_denormal": _READ,  # below the smallest normal number of the stored dtype, and not 0
        "predicted_dead_dimension": _READ,
        "predicted_dead_by_dtype": _READ,  # the dimension, by the name of each dtype that models are deployed in
        "predicted_dead_coordinates": _READ,
        "dead_coordinate_count": _READ,
        "predicted_bottom": _READ,  # σ of whitened z, smallest first
        "participation_ratio": _READ,
        "samples": _FORWARD,
        "alignment": _FORWARD,
        "alignment_bottom": _FORWARD,
        "eigenvalue": _FORWARD,
        "eigenvalue_relative": _FORWARD,
        "noise_ratio": _FORWARD,
        "noise_excess": _FORWARD,  # noise_ratio over what the rounding of the computed mean explains
        "dead_dimension": _FORWARD,
        "bottom_singular_values": _FORWARD,
        "bottom_thresholds": _FORWARD,  # at or below which these are dead; fewer of them where none above can be
        "sigma_max": _FORWARD,
        "unmeasured": _FORWARD,  # why nothing could be measured here
        "inconclusive": _FORWARD,  # why what was measured decides nothing, and what would settle it; empty where it does
        "twin_alignment": _FULL,
        "twin_eigenvalue_relative": _FULL,
        "twin_noise_ratio": _FULL,
        "twin_dead_dimension": _FULL,
        "dead_directions_opened": _FULL,  # by training: dead dimension beyond the twin's
        "depth": _FULL,  # orders of ten by which training lowered the variance along the kernel, over the largest
        "consumers": _FULL,
        "consumers_tested": _FULL,
        "redundant_parameters": _FULL,
        "invariance_error": _FULL,
        "invariance_error_relative": _FULL,  # over the round-off that it is seen in
        "random_change": _FULL,
        "fisher_dead": _FULL,
        "fisher_random": _FULL,
        "dead_energy": _FULL,
        "invariance_note": _FULL,  # why some of these are missing
        "baseline_path": _READ,  # of the norm that this one is compared with
        "baseline_findings": _READ,
        "kind_change": _READ,  # such as "layernorm → rmsnorm"; empty where there is none
        "new_dead_coordinates": _READ,  # dead coordinates that are alive in the baseline
        "predicted_dead_grown": _READ,  # predicted dead dimension beyond the baseline's, in the coarser dtype of the two
        "dead_dimension_grown": _FORWARD,  # beyond the baseline's
        "depth_moved": _FULL,  # depth beyond the baseline's
    },
    "blocks": {
        "stack": _FORWARD,
        "index": _FORWARD,  # of the block whose output this is; -1: the stream before the first
        "path": _FORWARD,
        "features": _FORWARD,
        "samples": _FORWARD,
        "dtype": _FORWARD,
        "deflated": _FORWARD,  # what was known to be dead and taken out first
        "deflated_dimension": _FORWARD,  # how many directions that was
        "sigma_min": _FORWARD,
        "sigma_median": _FORWARD,
        "sigma_max": _FORWARD,
        "smin_ratio": _FORWARD,  # σ_min over that of the row before
        "smin_ratio_relative": _FORWARD,  # the same of σ_min / σ_median, at most
        "scale_ratio": _FORWARD,  # σ_median over that of the row before
        "dead_dimension": _FORWARD,
        "readable": _FORWARD,  # whether σ_min lies above the noise floor
        "pinpoint_site": _FORWARD,  # the norm of the block whose scale predicts what is dead
        "pinpoint_coordinates": _FORWARD,
        "pinpoint_participation": _FORWARD,
        "pinpoint_overlap": _FORWARD,
        "unmeasured": _FORWARD,
        "inconclusive": _FORWARD,
        "baseline_path": _FORWARD,
        "baseline_findings": _FORWARD,
        "sigma_min_moved": _FORWARD,  # orders of ten of σ_min / σ_median over the baseline's
        "dead_dimension_grown": _FORWARD,
    },
}

#: Table → the columns that are filled beside a baseline, and by nothing else.
COMPARED: dict[str, frozenset[str]] = {
    "model": frozenset(
        ("baseline", "baseline_findings", "normalisation_change", "lost_sites", "new_sites", "not_compared")
    ),
    "norms": frozenset(
        (
            *("baseline_path", "baseline_findings", "kind_change"),
            *("new_dead_coordinates", "predicted_dead_grown", "dead_dimension_grown", "depth_moved"),
        )
    ),
    "blocks": frozenset(("baseline_path", "baseline_findings", "sigma_min_moved", "dead_dimension_grown")),
}


#: Column → the type of its values; columns that are not named hold a number.
TYPES: dict[str, str] = {
    **dict.fromkeys(("spec", "name", "revision", "fingerprint", "architecture", "normalisation", "final_norm"), "text"),
    **dict.fromkeys(("level", "dtype", "device", "inputs", "inputs_source"), "text"),
    **dict.fromkeys(("path", "class", "kind", "how", "role", "role_how", "stack"), "text"),
    **dict.fromkeys(("gamma_convention", "gamma_source", "gamma_file", "gamma_dtype"), "text"),
    **dict.fromkeys(("deflated", "pinpoint_site", "unmeasured", "inconclusive", "invariance_note"), "text"),
    **dict.fromkeys(("gamma_agrees", "kind_agrees", "readable"), "flag"),
    **dict.fromkeys(("duplicate_tensors", "differing_weights", "uncompared_weights", "unsafe_names"), "texts"),
    **dict.fromkeys(("orphan_tensors", "orphan_norms", "consumers"), "texts"),
    **dict.fromkeys(("predicted_dead_coordinates", "new_dead_coordinates", "pinpoint_coordinates"), "integers"),
    **dict.fromkeys(("gamma_profile", "predicted_bottom", "bottom_singular_values", "bottom_thresholds"), "numbers"),
    **dict.fromkeys(("baseline", "baseline_path", "normalisation_change", "kind_change"), "text"),
    **dict.fromkeys(("lost_sites", "new_sites", "not_compared"), "texts"),
    **dict.fromkeys(("deflated_dimension", "predicted_dead_grown", "dead_dimension_grown"), "integer"),
    "baseline_findings": "objects by name",
    **dict.fromkeys(("max_memory", "tp_plan", "twin_note"), "text"),
    "accumulators": "integer",
    "processes": "integer",
    "placement": "integers by name",
    "versions": "texts by name",
    "seconds": "numbers by name",
    "predicted_dead_by_dtype": "integers by name",
    **dict.fromkeys(("parameters", "width", "bytes_read", "requests", "seed", "samples", "twin_seed"), "integer"),
    **dict.fromkeys(("redundant_parameters", "peak_memory", "features", "index", "consumers_tested"), "integer"),
    **dict.fromkeys(("gamma_offset", "gamma_nonfinite", "gamma_denormal", "dead_coordinate_count"), "integer"),
    **dict.fromkeys(("predicted_dead_dimension", "dead_dimension", "twin_dead_dimension"), "integer"),
    "dead_directions_opened": "integer",
}

#: Columns that hold no numbers, so that no rule can set a minimum or a maximum for them.
NOT_NUMBERS = frozenset(column for column, kind in TYPES.items() if kind != "integer")

#: Columns that hold one of a few words, and those words. A rule that asks for another word is refused.
CHOICES: dict[str, tuple[str, ...]] = {
    "level": LEVELS,
    "normalisation": ("layernorm", "rmsnorm", "undecided", "mixed", "none"),
    "inputs_source": ("own", "synthetic"),
    "kind": ("layernorm", "rmsnorm", "other", "undecided"),
    "role": ("final", "block", "qk", "embedding", "pooler", "other"),
    "gamma_convention": ("w", "1+w", "none", "fitted"),
    "gamma_source": ("file", "missing", "module", "none"),
}


def row(table: str, **values: Any) -> Row:
    """A row of ``table`` with every column, unmeasured where not given. A column that is not declared is a TypeError."""
    unknown = values.keys() - COLUMNS[table].keys()
    if unknown:
        raise TypeError(f"no column {', '.join(sorted(unknown))} in table {table}")
    return {column: values.get(column) for column in COLUMNS[table]}


#: What is counted of an audit's checks.
CHECKS = ("planned", "run", "passed", "failed", "warned", "known", "skipped")


@dataclass
class Audit:
    """Everything measured on one subject, and what the rules found in it.

    ``model``: one row; ``norms``: a row per norm site; ``blocks``: a row per block; ``findings``: a row per finding;
    ``checks``: how many rules were planned, run, passed, failed, warned (passed with warnings), known (failing
    as in the baseline) and skipped; ``broken``: code and error of rules in Python that raised.
    """

    model: Row
    norms: list[Row] = field(default_factory=list)
    blocks: list[Row] = field(default_factory=list)
    findings: list[Row] = field(default_factory=list)
    checks: dict[str, int] = field(default_factory=dict)
    broken: list[dict[str, str]] = field(default_factory=list)

    def table(self, name: str) -> list[Row]:
        """The rows of the table ``model``, ``norms`` or ``blocks``."""
        return {"model": [self.model], "norms": self.norms, "blocks": self.blocks}[name]

    def as_dict(self) -> dict[str, Any]:
        """The audit as one entry of the report's ``models``."""
        return {
            "model": self.model,
            "norms": self.norms,
            "blocks": self.blocks,
            "findings": self.findings,
            "checks": self.checks,
            **({"broken": self.broken} if self.broken else {}),
        }

    def to_json(self) -> str:
        """The audit as a report of one model. Equal to the audit after :meth:`from_json`."""
        return json.dumps(report_document([self.as_dict()]), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Audit:
        """The one audit in a report. Raises ValueError for another schema or another number of models."""
        document = json.loads(text)
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            raise ValueError(f"not a report of schema {SCHEMA}")
        models = document["models"]
        if len(models) != 1:
            raise ValueError(f"the report holds {len(models)} models, not one: build each with Audit(**entry)")
        if "error" in models[0]:
            raise ValueError(f"the report holds no audit, but the error that it ended in: {models[0]['error']}")
        return completed(cls(**models[0]))


def completed(audit: Audit) -> Audit:
    """An audit that another release made, with the columns of this one."""
    tables = {
        table: [{column: given.get(column) for column in columns} for given in audit.table(table)]
        for table, columns in COLUMNS.items()
    }
    return replace(audit, model=tables["model"][0], norms=tables["norms"], blocks=tables["blocks"])


def is_comparison(finding: Row) -> bool:
    """Whether a finding came of a comparison, and so is about one baseline."""
    return not COMPARED[finding["table"]].isdisjoint(finding["measured"])


def report_document(models: list[dict[str, Any]]) -> dict[str, Any]:
    """The report on several subjects, each as :meth:`Audit.as_dict` gives it."""
    return {"schema": SCHEMA, "models": models}
