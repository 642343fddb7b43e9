"""The gate file deaddir.toml of a model repository: which models are audited, how, by which rules, and what is accepted."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest

from pytest_deaddir.errors import SpecError
from pytest_deaddir.given import Given, table_layer
from pytest_deaddir.options import DEVICES, DTYPES, SITES, SOLVERS, TP_PLANS
from pytest_deaddir.plan import RuleChoice, Subject
from pytest_deaddir.rules.select import no_such_rule
from pytest_deaddir.rules.suppress import Suppression
from pytest_deaddir.rules.toml import line_of, read_document
from pytest_deaddir.rules.vocabulary import SEVERITIES, did_you_mean
from pytest_deaddir.settings import choose_rules, measuring, plan_of, with_baseline
from pytest_deaddir.tables import LEVELS

_WORDS = "a list of strings"
_NUMBER = "a positive whole number"
_TEXT = "a string"

#: What may stand at the top of the file and in each model's table, and what it must be.
OPTIONS = {
    "level": _TEXT,
    "sites": _TEXT,
    "solver": _TEXT,
    "device": _TEXT,
    "dtype": _TEXT,
    "inputs": _TEXT,
    "samples": _NUMBER,
    "batch-size": _NUMBER,
    "baseline": _TEXT,
    "max-memory": _TEXT,
    "tp-plan": _TEXT,
    "rules": _WORDS,
    "select": _WORDS,
    "extend-select": _WORDS,
    "ignore": _WORDS,
    "severity": 'a table such as { DD301 = "error" }',
    "fail-on": _TEXT,
}
_TOP = {**OPTIONS, "models": "tables, each under [models.NAME]", "suppress": "tables, each under [[suppress]]"}
_MODEL = {"path": _TEXT, "revision": _TEXT, **OPTIONS}
_SUPPRESS = {"code": _TEXT, "model": _TEXT, "site": _TEXT, "reason": _TEXT, "expires": "a date such as 2027-01-31"}

#: What stands in an item's name must mean nothing to pytest, xdist or a shell.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

_Path = tuple[str | int, ...]


class GateError(Exception):
    """What is wrong with a gate file: every problem, each with its line."""


@dataclass(frozen=True)
class _File:
    """A gate file's content, where its keys stand, and what is wrong with it."""

    path: Path
    document: dict[str, Any]
    lines: dict[_Path, int]
    found: list[tuple[int, str]]

    def wrong(self, path: _Path, problem: str) -> None:
        self.found.append((line_of(path, self.lines), problem))

    def place(self, path: _Path) -> str:
        return f"{self.path.name}:{line_of(path, self.lines)}"

    def namer(self, table: _Path) -> Callable[[str], str]:
        """How an option in a table is named in what is said of it."""
        return lambda option: f"{self.place((*table, option))}: {option}"


def read_gate(path: Path, config: pytest.Config) -> list[Subject]:
    """The subjects of a gate file, in its order; the command line has the last word. Nothing is measured.

    Raises :class:`GateError` with every mistake of the file at once, each with its line.
    """
    unread: list[str] = []
    read = read_document(path, unread)
    if read is None:
        raise GateError("\n".join(unread))
    file = _File(path, *read, found=[])
    _check_words(file)
    if file.found:
        raise _error(file, [])
    problems: list[str] = []
    subjects = list(_subjects(file, config, problems))
    _check_suppressions(file, dict(subjects))
    if file.found or problems:
        raise _error(file, problems)
    return [subject for _, subject in subjects if subject is not None]


def named_paths(path: Path) -> list[Path]:
    """The folders and files that the models of a gate file lie in, whatever else is wrong with it."""
    document, _ = read_document(path, []) or ({}, {})
    models = document.get("models")
    tables = models.values() if isinstance(models, dict) else ()
    named = [model["path"] for model in tables if isinstance(model, dict) and isinstance(model.get("path"), str)]
    return [path.parent / name for name in named if "\0" not in name]


def _error(file: _File, problems: list[str]) -> GateError:
    told = [f"{file.path.name}:{line}: {problem}" for line, problem in sorted(file.found)]
    return GateError("\n".join(dict.fromkeys([*told, *problems])))


def _check_words(file: _File) -> None:
    """The closed vocabulary: keys, and the kinds of their values."""
    document = file.document
    _check_table(file, (), document, _TOP)
    models, suppress = document.get("models", {}), document.get("suppress", [])
    if _fits(models, _TOP["models"]):
        if not models:
            file.wrong(("models",), "no model: each needs a table [models.NAME] with a path")
        for name, model in models.items():
            where: _Path = ("models", name)
            if not _NAME.fullmatch(name):
                file.wrong(where, f"models: {name!r} cannot be a name: letters, digits, '.', '_' and '-' only")
            _check_table(file, where, model, _MODEL, ["path"])
    if _fits(suppress, _TOP["suppress"]):
        for number, entry in enumerate(suppress):
            _check_table(file, ("suppress", number), entry, _SUPPRESS, ["code", "reason"])
            if isinstance(entry.get("reason"), str) and not entry["reason"].strip():
                file.wrong(("suppress", number, "reason"), "suppress: the reason is empty")


def _check_table(
    file: _File, where: _Path, table: Mapping[str, Any], words: Mapping[str, str], needed: Any = ()
) -> None:
    name = ".".join(str(part) for part in where if isinstance(part, str))
    prefix = f"{name}: " if name else ""
    for missing in [key for key in needed if key not in table]:
        file.wrong(where, f"{prefix}{missing} is missing")
    for key, value in table.items():
        if key not in words:
            file.wrong((*where, key), f"{prefix}unknown key {key}{did_you_mean(key, words)}")
        elif not _fits(value, words[key]):
            file.wrong((*where, key), f"{prefix}{key} must be {words[key]}, not {value!r}")


def _fits(value: Any, kind: str) -> bool:
    if kind == _TEXT:
        return isinstance(value, str)
    if kind == _WORDS:
        return isinstance(value, list) and all(isinstance(word, str) for word in value)
    if kind == _NUMBER:
        return isinstance(value, int) and not isinstance(value, bool) and value > 0
    if kind == _SUPPRESS["expires"]:
        return isinstance(value, date) and not isinstance(value, datetime)
    if kind == _TOP["suppress"]:
        return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)
    if kind == _TOP["models"]:
        return isinstance(value, dict) and all(isinstance(entry, dict) for entry in value.values())
    return isinstance(value, dict) and all(isinstance(word, str) for word in value.values())


def _subjects(file: _File, config: pytest.Config, problems: list[str]) -> Iterator[tuple[str, Subject | None]]:
    """Name and subject of each model; None for one that something is wrong with."""
    document, base = file.document, file.path.parent
    label = _node_id(file.path, config)
    choices: dict[str, RuleChoice] = {}  # a rule file is read once, and a Python one run once
    for name, model in document.get("models", {}).items():
        where: _Path = ("models", name)
        path, revision = model["path"], model.get("revision")
        between = [table_layer(model, base, file.namer(where)), table_layer(document, base, file.namer(()))]
        own: list[str] = []
        given = Given.of(config, own, between)
        how = measuring(given)
        key = repr(
            [model.get(option) for option in ("rules", "select", "extend-select", "ignore", "severity", "fail-on")]
        )
        if key not in choices:
            choices[key] = choose_rules(config, given)
        rules = choices[key]
        problems += own
        try:
            plan = plan_of(path, base, how)
            if revision and plan.spec.form != "hub":
                file.wrong(
                    (*where, "revision"), f"models.{name}: {path} is no model on the hub, which a revision is of"
                )
            elif revision:
                plan = plan_of(f"{path}@{revision}", base, how)
        except SpecError as error:
            file.wrong((*where, "path"), str(error))
            yield name, None
            continue
        suppressions = tuple(_suppressions(file, name))
        subject = Subject(f"{label}::{name}", plan, rules, suppressions, (file.path, line_of(where, file.lines)))
        subject = with_baseline(subject, Given(given.layers, problems), how, len(document["models"]) == 1)
        if subject.unjudged:
            file.wrong(where, f"models.{name}: {subject.unjudged}")
        yield name, subject


def _node_id(path: Path, config: pytest.Config) -> str:
    """As pytest names the file's own node."""
    root = config.rootpath
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def _suppressions(file: _File, model: str) -> Iterator[Suppression]:
    for number, entry in enumerate(file.document.get("suppress", ())):
        if entry.get("model", model) == model:
            yield Suppression(
                code=entry["code"],
                reason=entry["reason"],
                site=entry.get("site", "*"),
                expires=entry.get("expires"),
                place=file.place(("suppress", number)),
            )


def _check_suppressions(file: _File, subjects: Mapping[str, Subject | None]) -> None:
    """Each must be of a model of the file and of a rule that it is judged by: it could never be stale otherwise."""
    for number, entry in enumerate(file.document.get("suppress", ())):
        where: _Path = ("suppress", number)
        if "model" not in entry and len(subjects) > 1:
            file.wrong(where, f"suppress: say of which model: model = one of {', '.join(subjects)}")
            continue
        if "model" in entry and entry["model"] not in subjects:
            hint = did_you_mean(entry["model"], subjects)
            file.wrong((*where, "model"), f"suppress: the file has no model {entry['model']!r}{hint}")
            continue
        subject = subjects[entry.get("model", next(iter(subjects)))]
        if subject is None or not subject.rules.loaded:
            continue
        if unknown := no_such_rule(entry["code"], subject.rules.loaded, whole=True):
            file.wrong((*where, "code"), f"suppress: {unknown}")
        elif entry["code"] not in [rule.code for rule in subject.applicable]:
            name = subject.label.rpartition("::")[2]
            file.wrong((*where, "code"), f"suppress: {entry['code']} is not among the rules that {name} is judged by")


def gate_schema_text() -> str:
    """The JSON Schema of a gate file, for editors (draft 7, which Taplo and VS Code know), from the same vocabulary."""
    words = {"type": "array", "items": {"type": "string"}}
    kinds: dict[str, Any] = {
        _TEXT: {"type": "string"},
        _WORDS: words,
        _NUMBER: {"type": "integer", "minimum": 1},
        OPTIONS["severity"]: {"type": "object", "additionalProperties": {"enum": list(SEVERITIES)}},
        _SUPPRESS["expires"]: {},  # a TOML date is no JSON value
    }
    allowed = {"level": LEVELS, "sites": SITES, "solver": SOLVERS, "device": DEVICES, "fail-on": SEVERITIES[:2]}
    allowed |= {"dtype": ("auto", *DTYPES), "tp-plan": TP_PLANS}

    def table(keys: Mapping[str, str], **more: Any) -> dict[str, Any]:
        properties = {
            key: {"enum": list(allowed[key])} if key in allowed else kinds[kind] for key, kind in keys.items()
        }
        return {"type": "object", "additionalProperties": False, "properties": properties, **more}

    schema = table(OPTIONS, required=["models"])
    models = {
        "additionalProperties": table(_MODEL, required=["path"]),
        "propertyNames": {"pattern": f"^{_NAME.pattern}$"},
    }
    schema["properties"]["models"] = {"type": "object", "minProperties": 1, **models}
    schema["properties"]["suppress"] = {"type": "array", "items": table(_SUPPRESS, required=["code", "reason"])}
    heading = {"$schema": "http://json-schema.org/draft-07/schema#", "title": "The gate file of pytest-deaddir"}
    return json.dumps(heading | schema, indent=2) + "\n"
