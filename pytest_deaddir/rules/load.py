"""Where rules come from: files and folders that were named, entry points, a hook. Never what lies beside a checkpoint."""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from pytest_deaddir.errors import RuleError
from pytest_deaddir.rules.definition import Rule, shipped_rules
from pytest_deaddir.rules.python import located, problems_of
from pytest_deaddir.rules.toml import read_rule

#: The group in which an installed package offers its rules.
ENTRY_POINTS = "deaddir.rules"

#: What the shipped rules come from, for people.
CATALOGUE = "the catalogue"

#: Python files that are passed over in a folder of rules; so are those whose names begin with ``_``.
_NO_RULES = ("conftest.py", "setup.py", "test_*.py", "*_test.py")
_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "*.pt", "*.pth")


@dataclass(frozen=True)
class Source:
    """Something that gives rules. ``origin``: what it is, for people. ``given``: a rule, a path, a module, a callable
    that returns any of these, or several of them. ``start``: the folder of whoever named it, by default the working one."""

    origin: str
    given: Any
    start: Path | None = None


def load_rules(sources: Iterable[Path | Source]) -> list[Rule]:
    """The rules of the given files and folders, and of what else gives some, by code.

    Of a folder, every ``*.toml`` and ``*.py`` in it. Raises :class:`RuleError` with every problem of every source at once.
    """
    found: list[str] = []
    rules: dict[str, Rule] = {}
    for source in sources:
        if isinstance(source, Path):
            source = Source(CATALOGUE if source == shipped_rules() else str(source), source)
        for rule in _rules_in(source.given, source, found):
            known = rules.setdefault(rule.code, rule)
            if known is not rule and (known.source, known.line) != (rule.source, rule.line):
                found.append(f"{rule.place}: code {rule.code} is taken by {known.place}")
    if found:
        raise RuleError(*found)
    return [rules[code] for code in sorted(rules)]


def entry_points() -> list[Source]:
    """What the installed packages offer; nothing of it is imported yet."""
    from importlib import metadata

    offered = sorted(metadata.entry_points(group=ENTRY_POINTS), key=lambda point: (point.name, point.value))
    return [Source(f"the entry point {point.name} ({point.value})", point.load) for point in offered]


def _rules_in(given: Any, source: Source, found: list[str]) -> Iterator[Rule]:
    """Every usable rule in what a source gave; the problems of the others are added to ``found``."""
    if isinstance(given, Rule):
        wrong = problems_of(given) if given.check else []
        found.extend(wrong)
        if not wrong:
            yield replace(given, origin=source.origin)
    elif isinstance(given, (str, Path)):
        yield from _rules_at(Path(given), source, found)
    elif isinstance(given, ModuleType):
        made = [value for value in vars(given).values() if isinstance(value, Rule)]
        if not made:
            found.append(f"{source.origin}: no rule in the module {given.__name__}: a function needs @rule")
        yield from _rules_in(made, source, found)
    elif isinstance(given, Iterable):
        for item in given:
            yield from _rules_in(item, source, found)
    elif callable(given):
        try:
            returned = given()
            if isinstance(returned, Iterator):
                returned = list(returned)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # pytest.skip() and sys.exit() are no Exception
            found.append(f"{source.origin}: {located(error)}")
            return
        yield from _rules_in(returned, source, found)
    else:
        found.append(f"{source.origin}: gave {given!r}, which is neither a rule nor where one is")


def _rules_at(path: Path, source: Source, found: list[str]) -> Iterator[Rule]:
    if os.path.isdir(path):  # noqa: PTH112, since Path.is_dir raises for what cannot be a path
        yield from _rules_of_folder(path, source, found)
    elif path.suffix == ".py":
        yield from _rules_of_python(path, source, found)
    else:
        rule = read_rule(path, found)
        if rule is not None:
            yield replace(rule, origin=source.origin)


def _rules_of_folder(folder: Path, source: Source, found: list[str]) -> Iterator[Rule]:
    python = [
        file
        for file in folder.glob("*.py")
        if not file.name.startswith("_") and not any(file.match(pattern) for pattern in _NO_RULES)
    ]
    checkpoint = _checkpoint_around(folder, source.start or Path.cwd()) if python else None
    if checkpoint is not None:
        found.append(
            f"{folder}: {', '.join(sorted(file.name for file in python))} not run: a checkpoint lies in {checkpoint}, "
            "and Python beside one is run only where the file itself is named"
        )
        python = []
    files = sorted([*folder.glob("*.toml"), *python])
    if not files and checkpoint is None:
        found.append(f"{folder}: no *.toml rule file in this folder, and no *.py")
    for file in files:
        yield from _rules_at(file, source, found)


def _checkpoint_around(folder: Path, start: Path) -> Path | None:
    """The folder of the checkpoint that ``folder`` is, or lies in: somebody else may have written what is there.

    Whoever stands in a checkpoint's folder, in person or with a gate file, means the folders in it as they mean its tests.
    """
    here = folder.resolve()
    if (here / "config.json").exists() or _has_weights(here):
        return here
    around = (p for p in here.parents if (p / "config.json").exists() and _has_weights(p))
    return next((p for p in around if not start.resolve().is_relative_to(p)), None)


def _has_weights(folder: Path) -> bool:
    return any(next(folder.glob(pattern), None) for pattern in _WEIGHTS)


def _rules_of_python(file: Path, source: Source, found: list[str]) -> Iterator[Rule]:
    """The rules in a Python file, which is run."""
    from importlib import util

    path = os.path.abspath(file)  # noqa: PTH100  # resolve() would follow links, and name another file than was named
    name = f"deaddir_rules_{zlib.crc32(path.encode()):08x}"
    spec = util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # pytest.importorskip() and sys.exit() raise what is no Exception
        del sys.modules[name]
        found.append(f"{file}: cannot be read: {error}" if isinstance(error, OSError) else located(error, path))
        return
    if not any(isinstance(value, Rule) for value in vars(module).values()):
        found.append(f"{file}: no rule in it: a function needs @rule")
        return
    yield from _rules_in(module, source, found)
