"""What was asked for: the command line, then tables of deaddir.toml, then the ini-file; the first that says something wins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest


class Value(NamedTuple):
    """``value``: None where nothing was given. ``base``: what relative paths start at. ``name``: where it stands."""

    value: Any
    base: Path
    name: str


@dataclass(frozen=True)
class Layer:
    """One place where options are given. ``get``: the value by the option's name without the prefix, None where it gives
    none; ``name``: how that place writes the option, or one entry of its value by the entry's number, for people."""

    get: Callable[[str], Any]
    base: Path
    name: Callable[..., str]


class Given:
    """Options by name, from several places. ``problems`` takes what cannot be meant."""

    def __init__(self, layers: Sequence[Layer], problems: list[str]) -> None:
        self.layers = layers
        self.problems = problems

    @classmethod
    def of(cls, config: pytest.Config, problems: list[str], between: Sequence[Layer] = ()) -> Given:
        """The command line, the layers ``between``, and the ini-file."""

        def option(name: str) -> Any:
            return config.getoption(_dest(name))

        def ini(name: str) -> Any:
            return config.getini(_dest(name)) or None

        base = config.inipath.parent if config.inipath else config.rootpath
        command_line = Layer(option, config.invocation_params.dir, _flag)
        return cls([command_line, *between, Layer(ini, base, _flag)], problems)

    def value(self, name: str) -> Value:
        """What the first layer that gives the option gives."""
        for layer in self.layers:
            value = layer.get(name)
            if value is not None:
                return Value(value, layer.base, layer.name(name))
        return Value(None, self.layers[-1].base, _flag(name))

    def one_of(self, name: str, allowed: Sequence[str]) -> Any:
        """A value out of those allowed, None where none was given or another."""
        given, _, where = self.value(name)
        if given is not None and given not in allowed:
            self.problems.append(f"{where} {given}: not one of {', '.join(allowed)}")
            return None
        return given

    def number(self, name: str) -> int | None:
        """A whole number above 0."""
        given, _, where = self.value(name)
        if given is not None and not (str(given).isdecimal() and int(given) > 0):
            self.problems.append(f"{where} {given}: not a positive whole number")
            return None
        return None if given is None else int(given)

    def memory(self, name: str) -> str | None:
        """A limit of memory, as it was written."""
        from pytest_deaddir.source.memory import parse_memory

        given, _, where = self.value(name)
        if given is None:
            return None
        try:
            parse_memory(given)
        except ValueError as error:
            self.problems.append(f"{where} {given}: {error}")
            return None
        return str(given)

    def paths(self, name: str) -> dict[str, Path]:
        """Paths as they were written, and from where they start."""
        given, base, _ = self.value(name)
        return {path: base / path for path in given or ()}

    def all_paths(self, name: str) -> dict[str, Value]:
        """The same of every place that gives some: a table of deaddir.toml adds to the others."""
        *tables, ini = self.layers[1:]
        outer = self.layers[0] if self.layers[0].get(name) is not None else ini
        return {
            path: Value(layer.base / path, layer.base, layer.name(name, number))
            for layer in (*reversed(tables), outer)
            for number, path in enumerate(layer.get(name) or ())
        }

    def words(self, name: str) -> dict[str, str]:
        """What stands between commas, of all times that an option was given, and for each how its place is named."""
        words: dict[str, str] = {}
        given = [(layer, layer.get(name)) for layer in self.layers if layer.get(name) is not None]
        for layer, number, text in [(layer, *entry) for layer, texts in given[:1] for entry in enumerate(texts)]:
            where = layer.name(name, number)
            for word in map(str.strip, text.split(",")):
                if word:
                    words.setdefault(word, where)
                else:
                    self.problems.append(f"{where} {text}: a code is missing")
        return words


def table_layer(table: Mapping[str, Any], base: Path, name: Callable[..., str]) -> Layer:
    """A table of a TOML document as a place where options are given. ``name``: how a key in it is named, or what stands
    under a key of its value."""

    def get(option: str) -> Any:
        value = table.get(option)
        return [f"{code}={severity}" for code, severity in value.items()] if isinstance(value, dict) else value

    def entry(option: str, number: int | None = None) -> str:
        value = table.get(option)
        return name(option, list(value)[number] if isinstance(value, dict) and number is not None else number)

    return Layer(get, base, entry)


def _dest(name: str) -> str:
    return f"deaddir_{name.replace('-', '_')}"


def _flag(name: str, number: int | None = None) -> str:
    return f"--deaddir-{name}"
