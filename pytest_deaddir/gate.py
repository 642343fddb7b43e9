"""The gate file deaddir.toml of a model repository: which models are audited, how, by which rules, and what is accepted."""

from __future__ import annotations

import json
import math
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
from pytest_deaddir.plan import Plan, RuleChoice, Subject
from pytest_deaddir.rules.select import no_such_rule
from pytest_deaddir.rules.suppress import Suppression
from pytest_deaddir.rules.toml import Keys, Lines, line_of, read_document
from pytest_deaddir.rules.vocabulary import SEVERITIES, did_you_mean
from pytest_deaddir.settings import (
    check_baseline,
    choose_rules,
    default_level,
    measuring,
    plan_of,
    with_baseline,
)
from pytest_deaddir.tables import LEVELS, Level

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


class GateError(Exception):
    """What is wrong with a gate file: every problem, each with its line."""


@dataclass(frozen=True)
class _File:
    """A gate file's content, where its keys stand, and what is wrong with it: texts that begin with their line."""

    path: Path
    document: dict[str, Any]
    lines: Lines
    problems: list[str]

    def wrong(self, keys: Keys, problem: str) -> None:
        self.problems.append(f"{self.place(keys)}: {problem}")

    def place(self, keys: Keys) -> str:
        return f"{self.path.name}:{line_of(keys, self.lines)}"

    def namer(self, table: Keys) -> Callable[..., str]:
        """How an option in a table, or an entry of it, is named in what is said of it."""

        def name(option: str, entry: str | int | None = None) -> str:
            return f"{self.place((*table, option) if entry is None else (*table, option, entry))}: {option}"

        return name

    def check(self) -> None:
        """Raises GateError where something is wrong; what is wrong in other files stands last."""
        if self.problems:
            raise GateError("\n".join(sorted(dict.fromkeys(self.problems), key=self._line)))

    def _line(self, problem: str) -> float:
        line = re.match(rf"{re.escape(self.path.name)}:(\d+): ", problem)
        return int(line[1]) if line else math.inf


@dataclass(frozen=True)
class _Model:
    """A model's table. ``subject``: None where something is wrong; ``own``: codes of the rules that the file has it judged
    by, whatever the command line says."""

    rules: RuleChoice
    own: list[str]
    subject: Subject | None


def read_gate(path: Path, config: pytest.Config) -> list[Subject]:
    """The subjects of a gate file, in its order; the command line has the last word. Nothing is measured.

    Raises :class:`GateError` with every mistake of the file at once, each with its line.
    """
    unread: list[str] = []
    read = read_document(path, unread)
    if read is None:
        raise GateError("\n".join(unread))
    file = _File(path, *read, problems=[])
    _check_words(file)
    models = dict(_models(file, config))
    _check_suppressions(file, models)
    file.check()
    return [model.subject for model in models.values() if model.subject is not None]


def named_paths(path: Path) -> list[Path]:
    """The folders and files that the models of a gate file lie in, whatever else is wrong with it."""
    document, _ = read_document(path, []) or ({}, {})
    models = document.get("models")
    tables = models.values() if isinstance(models, dict) else ()
    named = [model["path"] for model in tables if isinstance(model, dict) and isinstance(model.get("path"), str)]
    return [path.parent / name for name in named if "\0" not in name]


def _check_words(file: _File) -> None:
    """The closed vocabulary: keys, and the kinds of their values. Of a wrong kind is None from here on."""
    document = file.document
    _check_table(file, (), document, _TOP)
    if document.get("models", {}) == {}:
        file.wrong(("models",), "no model: each needs a table [models.NAME] with a path")
    for name, model in (document.get("models") or {}).items():
        where: Keys = ("models", name)
        if not _NAME.fullmatch(name):
            file.wrong(where, f"models: {name!r} cannot be a name: letters, digits, '.', '_' and '-' only")
        meant = {key: _meant(f"{name}.{key}", value) for key, value in model.items() if key not in _MODEL}
        for key in [key for key, whole in meant.items() if whole]:
            file.wrong((*where, key), f'models: a name with a dot is written in quotes: [models."{meant[key]}"]')
            del model[key]
        _check_table(file, where, model, _MODEL, [] if any(meant.values()) else ["path"])
    for number, entry in enumerate(document.get("suppress") or ()):
        _check_table(file, ("suppress", number), entry, _SUPPRESS, ["code", "reason"])
        if entry.get("reason") is not None and not entry["reason"].strip():
            file.wrong(("suppress", number, "reason"), "suppress: the reason is empty")


def _meant(name: str, table: Any) -> str | None:
    """The name of a model's table that TOML takes for one in another, since its dots stand without quotes."""
    if not isinstance(table, dict) or "path" in table:
        return name if isinstance(table, dict) else None
    return next(filter(None, (_meant(f"{name}.{key}", inner) for key, inner in table.items())), None)


def _check_table(file: _File, where: Keys, table: dict[str, Any], words: Mapping[str, str], needed: Any = ()) -> None:
    name = ".".join(str(part) for part in where if isinstance(part, str))
    prefix = f"{name}: " if name else ""
    for missing in [key for key in needed if key not in table]:
        file.wrong(where, f"{prefix}{missing} is missing")
    for key, value in list(table.items()):
        if key not in words:
            file.wrong((*where, key), f"{prefix}unknown key {key}{did_you_mean(key, words)}")
        elif not _fits(value, words[key]):
            file.wrong((*where, key), f"{prefix}{key} must be {words[key]}, not {value!r}")
            table[key] = None


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


def _models(file: _File, config: pytest.Config) -> Iterator[tuple[str, _Model]]:
    """The models by name."""
    document, base = file.document, file.path.parent
    label = _node_id(file.path, config)
    models = document.get("models") or {}
    choices: dict[str, RuleChoice] = {}  # a rule file is read once, and a Python one run once
    for name, model in models.items():
        where: Keys = ("models", name)
        between = [table_layer(model, base, file.namer(where)), table_layer(document, base, file.namer(()))]
        given = Given.of(config, file.problems, between)
        how = measuring(given)
        key = repr(
            [model.get(option) for option in ("rules", "select", "extend-select", "ignore", "severity", "fail-on")]
        )
        if key not in choices or not choices[key].chosen:  # what is wrong stands in another line here
            choices[key] = choose_rules(config, given)
        rules = choices[key]
        plan = _plan(file, name, how)
        compared = given.value("baseline").value is not None
        own = [rule.code for rule in rules.own if rule.applies_at(_own_level(given, plan), compared)]
        if plan is None:
            check_baseline(given, how)
            yield name, _Model(rules, own, None)
            continue
        suppressions = tuple(_suppressions(file, name))
        subject = Subject(f"{label}::{name}", plan, rules, suppressions, (file.path, line_of(where, file.lines)))
        subject = with_baseline(subject, given, how, len(models) == 1)
        if subject.unjudged:
            file.wrong(where, f"models.{name}: {subject.unjudged}")
        yield name, _Model(rules, own, subject)


def _plan(file: _File, name: str, how: Mapping[str, Any]) -> Plan | None:
    """How a model is measured; None where its path or its revision names nothing."""
    where: Keys = ("models", name)
    path, revision = (file.document["models"][name].get(key) for key in ("path", "revision"))
    if path is None:
        return None
    try:
        plan = plan_of(path, file.path.parent, how)
        if not revision:
            return plan
        if plan.spec.form == "hub":
            return plan_of(f"{path}@{revision}", file.path.parent, how)
        file.wrong((*where, "revision"), f"models.{name}: {path} is no model on the hub, which a revision is of")
    except SpecError as error:
        file.wrong((*where, "path"), str(error))
    return None


def _own_level(given: Given, plan: Plan | None) -> Level:
    """The level that a model is audited at where the command line says nothing; the highest where none can be known."""
    level: Level | None = Given(given.layers[1:], []).one_of("level", LEVELS)
    if level is None and plan is not None:
        level = default_level(plan.spec)
    return level or "full"


def _node_id(path: Path, config: pytest.Config) -> str:
    """As pytest names the file's own node."""
    root = config.rootpath
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def _suppressions(file: _File, model: str) -> Iterator[Suppression]:
    for number, entry in enumerate(file.document.get("suppress") or ()):
        if entry.get("model", model) == model and entry.get("code") and entry.get("reason"):
            yield Suppression(
                code=entry["code"],
                reason=entry["reason"],
                site=entry.get("site", "*"),
                expires=entry.get("expires"),
                place=file.place(("suppress", number)),
            )


def _check_suppressions(file: _File, models: Mapping[str, _Model]) -> None:
    """Each must be of a model of the file and of a rule that the file has it judged by: it could never be stale otherwise."""
    for number, entry in enumerate(file.document.get("suppress") or ()):
        where: Keys = ("suppress", number)
        name, code = entry.get("model", next(iter(models), None)), entry.get("code")
        if "model" not in entry and len(models) > 1:
            file.wrong(where, f"suppress: say of which model: model = one of {', '.join(models)}")
            name = None
        elif name is not None and name not in models:
            file.wrong((*where, "model"), f"suppress: the file has no model {name!r}{did_you_mean(name, models)}")
        meant = [models[name]] if name in models else list(models.values())
        loaded = [rule for model in meant for rule in model.rules.loaded]
        if code is None or not loaded:
            continue
        if unknown := no_such_rule(code, loaded, whole=True):
            file.wrong((*where, "code"), f"suppress: {unknown}")
        elif name in models and models[name].own and code not in models[name].own:
            file.wrong((*where, "code"), f"suppress: {code} is not among the rules that {name} is judged by")


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
