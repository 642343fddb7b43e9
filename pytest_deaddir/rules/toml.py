"""A rule in TOML: its file read, checked, and each problem given the line that it stands in."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from pytest_deaddir.rules.definition import Example, Rule
from pytest_deaddir.rules.vocabulary import TEXTS, problems

#: Bytes. A rule file may come with a stranger's checkpoint; the longest shipped one has a few thousand.
LARGEST = 256 * 1024

#: The path of a key in a document → the line that it stands in, from 1.
Lines = dict[tuple[str | int, ...], int]

_WORD = r"""(?:[\w-]+|"(?:[^"\\]|\\.)*"|'[^']*')"""
_DOTTED = rf"{_WORD}(?:\s*\.\s*{_WORD})*"
_HEADER = re.compile(rf"\s*(\[\[?)\s*({_DOTTED})\s*\]\]?\s*(#.*)?$")
_KEY = re.compile(rf"\s*({_DOTTED})\s*=")
_INLINE_KEY = re.compile(rf"[{{,]\s*({_DOTTED})\s*=")
_AT_LINE = re.compile(r"\(at line (\d+), column \d+\)")


def read_rule(file: Path, found: list[str]) -> Rule | None:
    """The rule in a file, or None with its problems added to ``found``, each as ``file:line: problem``."""
    read = read_document(file, found)
    if read is None:
        return None
    document, lines = read
    wrong = sorted((line_of(path, lines), problem) for path, problem in problems(document))
    found.extend(f"{file}:{line}: {problem}" for line, problem in wrong)
    return None if wrong else _rule(document, file, lines)


def read_document(file: Path, found: list[str]) -> tuple[dict[str, Any], Lines] | None:
    """A TOML document and the lines of its keys, or None with what is wrong added to ``found``."""
    try:
        with file.open("rb") as opened:
            raw = opened.read(LARGEST + 1)
        if len(raw) > LARGEST:
            found.append(f"{file}: cannot be read: larger than {LARGEST // 1024} kB, which no such file is")
            return None
        text = raw.decode("utf-8")
    except (OSError, ValueError) as error:  # no file, not UTF-8, no name of a file
        found.append(f"{file}: cannot be read: {error}")
        return None
    try:
        document = tomllib.loads(text)
    except RecursionError:
        found.append(f"{file}: not TOML: nested too deep")
        return None
    except ValueError as error:  # TOMLDecodeError, or a number of thousands of digits
        line = _AT_LINE.search(str(error))
        found.append(f"{file}{f':{line[1]}' if line else ''}: not TOML: {error}")
        return None
    return document, key_lines(text)


def _rule(document: dict[str, Any], file: Path, lines: Lines) -> Rule:
    """The rule of a document in which nothing is wrong."""
    where = {column: tuple(v) if isinstance(v, list) else (v,) for column, v in document.get("where", {}).items()}
    examples = [
        Example(example["row"], example["expect"], line_of(("example", number), lines))
        for number, example in enumerate(document.get("example", ()))
    ]
    texts = {key: document[key] for key in TEXTS if key in document}
    return Rule(
        code=document["code"],
        name=document["name"],
        severity=document["severity"],
        confidence=document.get("confidence", "heuristic"),
        table=document["table"],
        where=where,
        require=document["require"],
        message=document["message"],
        summary=document["summary"],
        references=tuple(document.get("references", ())),
        examples=tuple(examples),
        source=str(file),
        line=line_of(("code",), lines),
        **texts,
    )


def key_lines(text: str) -> Lines:
    """Where each key of a TOML document stands: its path → its line, from 1. tomllib does not tell.

    A scan by line, good enough to point at: the keys of inline tables are found one level deep and deeper ones in the
    order in which they come; what stands in a multi-line string is no key.
    """
    lines: Lines = {}
    table: tuple[str | int, ...] = ()
    counts: dict[str, int] = {}
    quote = ""
    for number, line in enumerate(text.split("\n"), 1):
        if not quote:
            if header := _HEADER.match(line):
                table = _names(header[2])
                if header[1] == "[[":
                    counts[header[2]] = counts.get(header[2], -1) + 1
                    table = (*table, counts[header[2]])
                for length in range(1, len(table) + 1):  # [models.a] makes the table models as well
                    lines.setdefault(table[:length], number)
            elif key := _KEY.match(line):
                path = (*table, *_names(key[1]))
                lines.setdefault(path, number)
                for inner in _INLINE_KEY.findall(line[key.end() :]):
                    lines.setdefault((*path, *_names(inner)), number)
        for mark in ('"""', "'''"):
            if quote in ("", mark) and line.count(mark) % 2:
                quote = "" if quote else mark
    return lines


def _names(key: str) -> tuple[str, ...]:
    """The parts of a key as it is written, with quotes and dots."""
    if key.isidentifier():
        return (key,)
    names: list[str] = []
    try:
        node: Any = tomllib.loads(f"{key} = 0")
    except ValueError:  # an escape that is none
        return (key,)
    while isinstance(node, dict):
        ((name, node),) = node.items()
        names.append(name)
    return tuple(names)


def line_of(path: tuple[str | int, ...], lines: Lines) -> int:
    """The line of the last key on the way to ``path`` that was found."""
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return 1
