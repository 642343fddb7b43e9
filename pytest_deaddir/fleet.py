"""Audit hundreds of checkpoints on the machines of a Ray cluster, one task for each.

    python -m pytest_deaddir.fleet subjects.txt --out DIR

``subjects.txt`` holds a spec in each line, as for ``--deaddir-model``; what follows `` #`` is a comment. Each subject's audit
is written to DIR as soon as it is there, so that a run that was stopped goes on where it was; what a killed worker was at is
done again. At the end DIR holds one report on all. On one machine without Ray, ``pytest -n`` does the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pytest_deaddir.errors import DeaddirError, RuleError
from pytest_deaddir.files import write_whole
from pytest_deaddir.options import DEVICES, DTYPES, SITES
from pytest_deaddir.report.words import Entry, counted, escaped, verdict
from pytest_deaddir.source.spec import parse_spec
from pytest_deaddir.tables import CHECKS, LEVELS, SCHEMA, report_document

#: What is asked of each subject, as arguments of :func:`pytest_deaddir.api.measure`.
_MEASURING = ("level", "dtype", "device", "sites", "inputs", "samples")


def audit_one(text: str, how: Mapping[str, Any], rules: Sequence[str]) -> Entry:
    """The entry of one subject for a report: its audit, or the error that it ended in. Runs in a worker."""
    from pytest_deaddir.api import measure
    from pytest_deaddir.rules import judge

    try:
        spec = parse_spec(text)
        level = how["level"] or ("read" if spec.highest_level == "read" else "forward")
        return judge(measure(spec, **{**how, "level": level}), _rules(tuple(rules))).as_dict()
    except DeaddirError as error:
        return failed(text, str(error))
    except Exception as error:  # a stranger's model must not end the fleet; what it raised is told as it is
        return failed(text, repr(error))


def failed(text: str, error: str) -> Entry:
    """The entry of a subject that could not be audited."""
    checks = dict.fromkeys(CHECKS, 0)
    return {"model": {"spec": text}, "norms": [], "blocks": [], "findings": [], "checks": checks, "error": error}


_LOADED: dict[tuple[str, ...], Any] = {}


def _rules(paths: tuple[str, ...]) -> Any:
    """The shipped rules and those at ``paths``, loaded once in a worker."""
    from pytest_deaddir.rules import Source, load_rules, shipped_rules

    if paths not in _LOADED:
        _LOADED[paths] = load_rules([shipped_rules(), *(Source(path, Path(path)) for path in paths)])
    return _LOADED[paths]


@dataclass(frozen=True)
class Store:
    """The folder of a fleet's results: a report for each subject, written when it is done."""

    folder: Path

    def path(self, text: str) -> Path:
        """Where a subject's report lies: a name for people, and a digest that tells alike names apart."""
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[-80:]
        return self.folder / "audits" / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"

    def entry(self, text: str) -> Entry | None:
        """What is known of a subject; None where nothing is, or only half a file."""
        try:
            document = json.loads(self.path(text).read_text(encoding="utf-8"))
            (entry,) = document["models"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        known = document.get("schema") == SCHEMA and isinstance(entry, dict) and entry["model"]["spec"] == text
        return entry if known else None

    def keep(self, text: str, entry: Entry) -> None:
        """Write a subject's report, whole or not at all."""
        path = self.path(text)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(report_document([entry]), allow_nan=False))

    def begin(self, how: Mapping[str, Any]) -> str | None:
        """Make the folder, or why it cannot be gone on with: what lies there answers another question."""
        path = self.folder / "fleet.json"
        asked = json.dumps(how, indent=2, sort_keys=True) + "\n"
        try:
            before = path.read_text(encoding="utf-8")
        except OSError:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, asked)
            return None
        if before == asked:
            return None
        return f"{self.folder} holds audits made with other options ({path}): give another --out, or delete it"


def read_subjects(path: Path) -> tuple[list[str], list[str]]:
    """The specs of a file, each once, and what is wrong with others, with their lines. Relative paths start at the file."""
    found: dict[str, None] = {}
    problems = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        text = re.sub(r"(^|\s)#.*", "", line).strip()
        if not text:
            continue
        try:
            spec = parse_spec(text, path.parent)
        except DeaddirError as error:
            problems.append(f"{path}:{number}: {error}")
            continue
        found.setdefault(text if spec.path is None else str(spec.path.resolve()))
    return list(found), problems


def run(
    subjects: Sequence[str],
    how: Mapping[str, Any],
    rules: Sequence[str],
    *,
    resources: Mapping[str, Any],
    concurrency: int,
    retries: int,
    interval: float,
) -> Iterator[tuple[str, Entry]]:
    """Audit the subjects on the cluster that Ray is connected to; yields each as it is done, in no order.

    ``resources``: what one audit is given, as Ray names it: num_cpus, num_gpus, memory (bytes). ``concurrency``: audits at
    one time, at most. ``retries``: how often a subject is tried again whose worker died. ``interval``: seconds between the
    beginnings of two audits of models on a hub, which is a server of other people's.
    """
    import ray
    from ray.exceptions import RayError

    task: Any = ray.remote(max_retries=retries, **resources)(audit_one)
    waiting = list(reversed(subjects))
    running: dict[Any, str] = {}
    next_start = 0.0
    while waiting or running:
        while waiting and len(running) < concurrency:
            on_a_hub = parse_spec(waiting[-1]).form == "hub"
            if on_a_hub and time.monotonic() < next_start:
                break
            text = waiting.pop()
            running[task.remote(text, dict(how), list(rules))] = text
            next_start = time.monotonic() + interval if on_a_hub else next_start
        patience = max(0.0, next_start - time.monotonic()) if len(running) < concurrency and waiting else None
        if not running:
            time.sleep(patience or 0.0)
            continue
        done, _ = ray.wait(list(running), timeout=patience)
        for reference in done:
            text = running.pop(reference)
            try:
                yield text, ray.get(reference)
            except RayError as error:  # its worker died as often as it was tried, or the task was too much for the node
                yield text, failed(text, f"no worker finished it: {type(error).__name__}: {str(error).splitlines()[0]}")


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT]?)i?B?", text.strip())
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no amount of memory such as 8GB")
    return int(float(match[1]) * 1000 ** " kMGT".index(match[2] or " "))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pytest_deaddir.fleet", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("subjects", type=Path, help="a file with a spec in each line")
    add(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="where the audits go; a run that was stopped goes on there",
    )
    add("--level", choices=LEVELS, help="as --deaddir-level")
    add("--dtype", choices=DTYPES, help="as --deaddir-dtype")
    add("--device", choices=DEVICES, help="as --deaddir-device")
    add("--sites", choices=SITES, help="as --deaddir-sites")
    add("--inputs", type=Path, metavar="PATH", help="as --deaddir-inputs")
    add("--samples", type=int, metavar="N", help="as --deaddir-samples")
    add("--rules", action="append", default=[], metavar="PATH", help="rule files beside the shipped ones; repeatable")
    add("--address", help="of a running Ray cluster, or auto (default: this machine)")
    add("--cpus", type=float, default=1.0, metavar="N", help="of one audit (default: %(default)s)")
    add("--gpus", type=float, default=0.0, metavar="N", help="of one audit (default: %(default)s)")
    add("--memory", type=_bytes, metavar="SIZE", help="of one audit, such as 8GB (default: not asked for)")
    add(
        "--concurrency", type=int, metavar="N", help="audits at one time (default: as many as the cluster has room for)"
    )
    add("--retries", type=int, default=3, metavar="N", help="of a subject whose worker died (default: %(default)s)")
    add(
        "--interval",
        type=float,
        default=0.2,
        metavar="S",
        help="seconds between two models on a hub (default: %(default)s)",
    )
    add("--again", action="store_true", help="audit again what ended in an error before")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command of the module's docstring. Returns 0 where everything passed, 1 where not; exits with 2 for misuse."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if find_spec("ray") is None:
        parser.error(
            "Ray is not installed: pip install 'pytest-deaddir[fleet]', or audit on this machine with pytest -n"
        )
    try:
        subjects, problems = read_subjects(options.subjects)
        _rules(tuple(options.rules))
    except (OSError, ValueError) as error:
        parser.error(f"{options.subjects}: cannot be read: {error}")
    except RuleError as error:
        parser.error("\n".join(map(str, error.args)))
    if not subjects and not problems:
        problems = [f"{options.subjects}: names no subject"]
    if problems:
        parser.error("\n".join(map(escaped, problems)))

    how = {name: getattr(options, name) for name in _MEASURING}
    how["inputs"] = options.inputs and str(options.inputs.resolve())
    rules = [str(Path(path).resolve()) for path in options.rules]
    store = Store(options.out)
    if problem := store.begin({**how, "rules": rules}):
        parser.error(problem)

    known = {text: entry for text in subjects if (entry := store.entry(text)) is not None}
    if options.again:
        known = {text: entry for text, entry in known.items() if "error" not in entry}
    left = [text for text in subjects if text not in known]
    print(f"{counted(len(subjects), 'subject')}, {len(known)} of them done before")
    if left:
        with _cluster(options.address) as cores:
            room = int(cores / options.cpus) if options.cpus else len(left)
            resources = {"num_cpus": options.cpus, "num_gpus": options.gpus}
            resources |= {"memory": options.memory} if options.memory else {}
            done = run(
                left,
                how,
                rules,
                resources=resources,
                concurrency=options.concurrency or max(1, 2 * room),
                retries=options.retries,
                interval=options.interval,
            )
            for number, (text, entry) in enumerate(done, len(known) + 1):
                store.keep(text, entry)
                known[text] = entry
                told = entry.get("error", "").splitlines()[:1]
                print(
                    f"[{number}/{len(subjects)}] {escaped(': '.join([text, *told] if told else [text, verdict(entry)]))}"
                )
    return _report(store, [known[text] | {"label": text} for text in subjects], rules)


def _report(store: Store, entries: Sequence[Entry], rules: Sequence[str]) -> int:
    from pytest_deaddir import report

    for suffix in (".json", ".md", ".html", ".csv"):
        report.write(store.folder / f"report{suffix}", entries, _rules(tuple(rules)))
    errors = sum("error" in entry for entry in entries)
    failing = sum(entry["checks"]["failed"] > 0 for entry in entries)
    passed = len(entries) - errors - failing
    print(
        f"{passed} passed, {failing} failed, {errors} could not be audited; the report on all: {store.folder}/report.html"
    )
    return int(passed < len(entries))


@contextmanager
def _cluster(address: str | None) -> Iterator[int]:
    """Ray for as long as it lasts: the cluster at an address, else one of this machine. Yields how many cores there are."""
    import ray

    # Ray runs as many audits as there are cores, so that each is to have one thread.
    environment = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name not in os.environ}
    if address is None:  # workers import what this process imports, wherever it lies
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        with _environment(environment):  # inherited: with a runtime_env Ray would start its first workers anew
            ray.init(include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    else:
        ray.init(address, runtime_env={"env_vars": environment}, log_to_driver=False)
    try:
        yield int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
    finally:
        ray.shutdown()


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


if __name__ == "__main__":
    sys.exit(main())
