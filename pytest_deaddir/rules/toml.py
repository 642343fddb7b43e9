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

#: The keys that lead to something in a document, and the numbers of entries in lists.
Keys = tuple[str | int, ...]

#: The path of a key in a document → the line that it stands in, from 1.
Lines = dict[Keys, int]

#: What a TOML document is made of: strings of four kinds, comments, line ends, marks, and all else without a space in it.
_TOKEN = re.compile(
    r"""\"{3}(?:\\.|[^\\])*?"{3,5} | '{3}.*?'{3,5} | "(?:\\.|[^"\\\n])*" | '[^'\n]*'"""
    r"""| \#[^\n]* | \n | [][{},=] | [^][{},=\s"'\#]+""",
    re.DOTALL | re.VERBOSE,
)
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
    """Where the keys of a TOML document and the entries of its lists stand: path → line, from 1. tomllib does not tell."""
    lines: Lines = {}

    def stands(path: Keys) -> Keys:
        for length in range(1, len(path) + 1):  # [models.a] makes the table models as well
            lines.setdefault(path[:length], line)
        return path

    table: Keys = ()
    counts: dict[Keys, int] = {}  # of [[tables]]
    nested: list[tuple[Keys, int | None]] = []  # what is open, and in a list the number of its entry
    path: Keys = ()  # of the value that comes
    key, brackets, in_key, line, last = "", 0, True, 1, 0
    for match in _TOKEN.finditer(text):
        token = match[0]
        line, last = line + text.count("\n", last, match.start()), match.start()
        around, number = nested[-1] if nested else (table, None)
        if token.startswith("#"):
            continue
        if token == "\n":
            if not nested:
                key, brackets, in_key = "", 0, True
        elif token in "]}" and nested:
            nested.pop()
            in_key = False
        elif in_key and token == "=":
            path = stands((*around, *_names(key)))
            key, in_key = "", False
        elif in_key and token == "]":
            table = stands(_header(_names(key), brackets, counts)) if key else table
            key = ""
        elif in_key:
            brackets += token == "["
            key = "" if token in "[,{" else key + token
        elif token == ",":
            if nested:
                nested[-1] = (around, None if number is None else number + 1)
            in_key = bool(nested) and number is None
        else:
            if number is not None:
                path = stands((*around, number))
            if token in "[{":
                nested.append((path, 0 if token == "[" else None))
                in_key = token == "{"
    return lines


def _header(names: Keys, brackets: int, counts: dict[Keys, int]) -> Keys:
    """The path of ``[names]`` or ``[[names]]``, with the numbers of the tables that lie in lists."""
    path: Keys = ()
    for name in names[:-1]:
        path = (*path, name)
        path = (*path, counts[path]) if path in counts else path
    path = (*path, *names[-1:])
    if brackets > 1:
        counts[path] = counts.get(path, -1) + 1
    return (*path, counts[path]) if brackets > 1 else path


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


def line_of(path: Keys, lines: Lines) -> int:
    """The line of the last key on the way to ``path`` that was found."""
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return 1
