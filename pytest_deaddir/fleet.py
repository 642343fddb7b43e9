"""Audit hundreds of checkpoints on the machines of a Ray cluster, one task for each.

    python -m pytest_deaddir.fleet subjects.txt --out DIR

``subjects.txt`` holds a spec in each line, as for ``--deaddir-model``; what follows `` #`` is a comment. What is measured of
each subject is written to DIR as soon as it is there, so that a run that was stopped goes on where it was; what a killed worker
was at is done again. Workers measure, and this process judges, so that other rules need no new measuring. At the end DIR holds
one report on all. On one machine without Ray, ``pytest -n`` does the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pytest_deaddir.errors import DeaddirError
from pytest_deaddir.evidence import model_files
from pytest_deaddir.files import write_whole
from pytest_deaddir.given import Given, Layer
from pytest_deaddir.options import DEVICES, DTYPES, SITES
from pytest_deaddir.plan import RuleChoice
from pytest_deaddir.report.reading import Stored, read_stored
from pytest_deaddir.report.words import Entry, counted, escaped, escaped_lines, verdict
from pytest_deaddir.settings import choose_rules, measuring
from pytest_deaddir.source.memory import parse_memory
from pytest_deaddir.source.spec import parse_spec
from pytest_deaddir.tables import CHECKS, LEVELS, Audit, Level, report_document


def audit_one(text: str, how: Mapping[str, Any]) -> Entry:
    """What is measured of one subject as an entry of a report, or the error that it ended in. Runs in a worker.

    ``how``: arguments of :func:`pytest_deaddir.api.measure`.
    """
    from pytest_deaddir.api import measure

    try:
        measured = measure(parse_spec(text), **{**how, "level": _level(text, how)})
        return measured.as_dict() | {"checks": dict.fromkeys(CHECKS, 0)}
    except DeaddirError as error:
        return failed(text, str(error))
    except Exception as error:  # a stranger's model must not end the fleet; what it raised is told as it is
        return failed(text, repr(error))


def _level(text: str, how: Mapping[str, Any]) -> Level:
    level: Level = how.get("level") or ("read" if parse_spec(text).highest_level == "read" else "forward")
    return level


def failed(text: str, error: str) -> Entry:
    """The entry of a subject that could not be audited."""
    checks = dict.fromkeys(CHECKS, 0)
    return {"model": {"spec": text}, "norms": [], "blocks": [], "findings": [], "checks": checks, "error": error}


def _judged(text: str, measured: Stored | Entry, rules: RuleChoice) -> Entry:
    """The entry of one subject for the report on all."""
    from pytest_deaddir.rules import judge

    if isinstance(measured, Stored):
        audit, error = measured.audit, measured.error
    else:
        error = measured.pop("error", None)
        audit = None if error else Audit(**measured)
    if audit is None:
        return failed(text, error or "")
    try:
        return judge(audit, rules.chosen, rules.fail_on).as_dict()
    except Exception as raised:  # by a rule in Python: what was measured is kept, and judged again once that is mended
        return failed(text, f"a rule cannot judge it: {raised!r}")


@dataclass(frozen=True)
class Store:
    """The folder of a fleet's results: a report for each subject of what was measured, written when it is done."""

    folder: Path

    def path(self, text: str, state: str) -> Path:
        """Where a subject's report lies: a name for people, a digest that tells alike names apart, and what it depends on."""
        return self.folder / "audits" / f"{self._name(text)}-{state}.json"

    def _name(self, text: str) -> str:
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[-80:]
        return f"{name}-{_digest(text)}"

    def kept(self, text: str, state: str) -> Stored | None:
        """What is known of a subject in this state; None where nothing is, or only half a file."""
        try:
            (stored,) = read_stored(self.path(text, state))
        except (OSError, ValueError):
            return None
        return stored if stored.spec == text else None

    def keep(self, text: str, state: str, entry: Entry) -> None:
        """Write a subject's report, whole or not at all, in place of one on an earlier state."""
        path = self.path(text, state)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(report_document([entry]), allow_nan=False))
        for other in path.parent.glob(f"{self._name(text)}-*.json"):
            if other != path:
                other.unlink()

    def differing(self, how: Mapping[str, Any]) -> str | None:
        """Why the folder cannot be gone on with: what lies there answers another question."""
        path = self.folder / "fleet.json"
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            return f"{path}: cannot be read: {error}"
        names = sorted(name for name in {*before, *how} if before.get(name) != how.get(name))
        if not names:
            return None
        said = (f"{name} was {before.get(name, 'left out')} and is {how.get(name, 'left out')} now" for name in names)
        return (
            f"{self.folder} holds audits made with other options ({', '.join(said)}): give another --out, or delete it"
        )

    def begin(self, how: Mapping[str, Any]) -> None:
        """Make the folder one of these options."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / "fleet.json", json.dumps(how, indent=2, sort_keys=True) + "\n")


def _digest(what: Any) -> str:
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]


def _state(text: str, inputs: Any) -> str:
    """What the audit of a subject depends on beside the options, as far as it is known at once: which files a loader may
    open, their sizes and times of change. Of code and of a hub's names nothing is known."""
    path = parse_spec(text).path
    try:
        files = [] if path is None else [_identity(file) for file in model_files(path)]
    except (OSError, DeaddirError):  # the audit will say what is wrong
        files = []
    return _digest([files, inputs])


def _inputs_state(inputs: Path | None) -> Any:
    """The same of the inputs: of a file its content."""
    if inputs is None:
        return None
    if inputs.is_dir():
        return [_identity(file) for file in sorted(inputs.rglob("*")) if file.is_file()]
    return hashlib.sha256(inputs.read_bytes()).hexdigest()


def _identity(file: Path) -> tuple[str, int, int]:
    stat = file.stat()
    return str(file), stat.st_size, stat.st_mtime_ns


def read_subjects(path: Path) -> tuple[list[str], list[str]]:
    """The specs of a file, each once, and what is wrong with others, with their lines. Relative paths start at the file."""
    found: dict[str, None] = {}
    problems = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
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
    *,
    resources: Mapping[str, Any],
    concurrency: int,
    retries: int,
    interval: float,
) -> Iterator[tuple[str, Entry]]:
    """Measure the subjects on the cluster that Ray is connected to; yields each as it is done, in no order.

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
            running[task.remote(text, dict(how))] = text
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
                told = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines()[0]  # Ray colours its errors
                yield text, failed(text, f"no worker finished it: {type(error).__name__}: {told}")


def _bytes(text: str) -> int:
    try:
        (size,) = parse_memory(text).items()
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if size[0] is not None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write it as 500MB, 2GB or 1.5GiB")
    return size[1]


def _number(kind: type[int] | type[float], holds: Callable[[float], bool], words: str) -> Callable[[str], float]:
    def number(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and holds(value)):
            raise argparse.ArgumentTypeError(f"{text!r} is not {words}")
        return value

    return number


_positive = _number(float, lambda value: value > 0, "a number above 0")
_not_negative = _number(float, lambda value: value >= 0, "a number from 0 on")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pytest_deaddir.fleet",
        usage="%(prog)s subjects.txt --out DIR [options]",
        description=(__doc__ or "").splitlines()[0],
    )
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
    add("--dtype", choices=("auto", *DTYPES), help="as --deaddir-dtype")
    add("--device", choices=DEVICES, help="as --deaddir-device")
    add("--sites", choices=SITES, help="as --deaddir-sites")
    add("--inputs", metavar="PATH", help="as --deaddir-inputs")
    for name, metavar in (("samples", "N"), ("batch-size", "N"), ("max-memory", "SIZE")):
        add(f"--{name}", metavar=metavar, help=f"as --deaddir-{name}")
    for name, metavar in (("rules", "PATH"), ("select", "CODES"), ("extend-select", "CODES"), ("ignore", "CODES")):
        add(f"--{name}", action="append", metavar=metavar, help=f"as --deaddir-{name}; repeatable")
    add("--severity", action="append", metavar="CODE=SEVERITY", help="as --deaddir-severity; repeatable")
    add("--fail-on", metavar="SEVERITY", help="as --deaddir-fail-on")
    add("--address", help="of a running Ray cluster, or auto (default: this machine)")
    add("--cpus", type=_positive, default=1.0, metavar="N", help="of one audit (default: %(default)s)")
    add("--gpus", type=_not_negative, default=0.0, metavar="N", help="of one audit (default: %(default)s)")
    add("--memory", type=_bytes, metavar="SIZE", help="of one audit, such as 8GB (default: not asked for)")
    add(
        "--concurrency",
        type=_number(int, lambda value: value > 0, "a whole number above 0"),
        metavar="N",
        help="audits at one time (default: as many as the cluster has room for)",
    )
    add(
        "--retries",
        type=_number(int, lambda value: value >= 0, "a whole number from 0 on"),
        default=3,
        metavar="N",
        help="of a subject whose worker died (default: %(default)s)",
    )
    add(
        "--interval",
        type=_not_negative,
        default=0.2,
        metavar="S",
        help="seconds between two models on a hub (default: %(default)s)",
    )
    add("--again", action="store_true", help="audit again what ended in an error before")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command of the module's docstring.

    Returns 0 where everything passed, 1 where not, 130 where it was interrupted; exits with 2 for misuse.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if find_spec("ray") is None:
        parser.error(
            "Ray is not installed: pip install 'pytest-deaddir[fleet]', or audit on this machine with pytest -n"
        )
    subjects, problems = _subjects(options.subjects)
    how, rules = _asked(options, problems)
    for level in {_level(text, how) for text in subjects} if rules.chosen else ():
        if not rules.at(level, compared=False):
            problems.append(f"--select and --ignore leave no rule that can be answered at level {level}")
    if options.out.exists() and not options.out.is_dir():
        problems.append(f"--out {options.out}: is no folder")
    store = Store(options.out)
    if not problems and (problem := store.differing(how)):
        problems.append(problem)
    if problems:
        parser.error("\n".join(map(escaped_lines, problems)))

    inputs = _inputs_state(Path(how["inputs"]) if "inputs" in how else None)
    states = {text: _state(text, inputs) for text in subjects}
    kept = ((text, store.kept(text, state)) for text, state in states.items())
    known = {
        text: _judged(text, stored, rules) for text, stored in kept if stored and not (options.again and stored.error)
    }
    left = [text for text in subjects if text not in known]
    print(f"{counted(len(subjects), 'subject')}, {len(known)} of them done before", flush=True)
    try:
        for text, entry in _measured(left, how, options, store) if left else ():
            store.keep(text, states[text], entry)
            known[text] = _judged(text, entry, rules)
            print(f"[{len(known)}/{len(subjects)}] {_told(text, known[text])}", flush=True)
    except KeyboardInterrupt:
        print(f"stopped: {len(known)} of {len(subjects)} are kept in {options.out}; call it again to go on")
        return 130
    except _CannotStartError as error:
        parser.error(escaped_lines(str(error)))
    return _report(store, [known[text] | {"label": text} for text in subjects], rules)


class _CannotStartError(Exception):
    """There is no cluster, none that can do what is asked for, or no folder to write to."""


def _subjects(path: Path) -> tuple[list[str], list[str]]:
    try:
        subjects, problems = read_subjects(path)
    except (OSError, ValueError) as error:
        return [], [f"{path}: cannot be read: {error}"]
    return subjects, problems or ([] if subjects else [f"{path}: names no subject"])


def _asked(options: argparse.Namespace, problems: list[str]) -> tuple[dict[str, Any], RuleChoice]:
    """What is measured and by which rules it is judged, as the plugin's options of these names say it."""

    def get(name: str) -> Any:
        return getattr(options, name.replace("-", "_"), None)

    layers = [Layer(of, Path.cwd(), lambda name, *_: f"--{name}") for of in (get, lambda _: None)]
    given = Given(layers, problems)
    how = {name: value for name, value in measuring(given).items() if value is not None}
    if "inputs" in how:
        how["inputs"] = str(how["inputs"].resolve())
    return how, choose_rules(None, given)


def _measured(
    subjects: Sequence[str], how: Mapping[str, Any], options: argparse.Namespace, store: Store
) -> Iterator[tuple[str, Entry]]:
    """The subjects as the cluster is done with them. Raises _CannotStartError before the first, if at all."""
    with _cluster(options.address) as nodes:
        resources = {"num_cpus": options.cpus, "num_gpus": options.gpus}
        resources |= {"memory": options.memory} if options.memory else {}
        if problem := _lacking(resources, nodes):
            if options.address is None:
                raise _CannotStartError(problem)
            print(f"{problem}; waiting for one to be added", file=sys.stderr)
        try:
            store.begin(how)
        except OSError as error:
            raise _CannotStartError(f"--out {store.folder}: cannot be written to: {error.strerror}") from error
        cores = sum(node.get("CPU", 0) for node in nodes)
        yield from run(
            subjects,
            how,
            resources=resources,
            concurrency=options.concurrency or max(1, 2 * int(cores / options.cpus)),
            retries=options.retries,
            interval=options.interval,
        )


def _lacking(resources: Mapping[str, float], nodes: Sequence[Mapping[str, float]]) -> str | None:
    """What no node has of what one audit is to be given: Ray would wait for such a node for good."""
    asked = {"CPU": resources["num_cpus"], "GPU": resources["num_gpus"], "memory": resources.get("memory", 0)}
    if any(all(node.get(name, 0) >= amount for name, amount in asked.items()) for node in nodes):
        return None

    def words(amounts: Mapping[str, float]) -> str:
        memory = f" and {amounts['memory'] / 1e9:.3g} GB of memory" if asked["memory"] else ""
        return f"{amounts.get('CPU', 0):g} CPUs, {amounts.get('GPU', 0):g} GPUs{memory}"

    there = "; ".join(sorted({words({"memory": 0, **node}) for node in nodes})) or "none"
    return f"no node of the cluster has {words(asked)} for an audit: there is {there}"


def _told(text: str, entry: Entry) -> str:
    """A subject and what came of it, in a line."""
    said = entry["error"].splitlines()[0] if entry.get("error") else verdict(entry)
    return escaped(said if text in said else f"{text}: {said}")


def _report(store: Store, entries: Sequence[Entry], rules: RuleChoice) -> int:
    from pytest_deaddir import report

    for suffix in (".json", ".md", ".html", ".csv"):
        report.write(store.folder / f"report{suffix}", entries, rules.chosen)
    verdicts = [verdict(entry) for entry in entries]
    passed = sum(word.startswith("passed") for word in verdicts)
    errors, failing = verdicts.count("not audited"), verdicts.count("failed")
    others = len(verdicts) - passed - errors - failing
    print(
        f"{passed} passed, {failing} failed, {errors} could not be audited"
        + (f", of {others} nothing could be judged" if others else "")
        + f"; the report on all: {store.folder}/report.html"
    )
    return int(passed < len(entries))


@contextmanager
def _cluster(address: str | None) -> Iterator[list[dict[str, float]]]:
    """Ray for as long as it lasts: the cluster at an address, else one of this machine. Yields what each node has."""
    import ray

    # Ray runs as many audits as there are cores, so that each is to have one thread.
    environment = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name not in os.environ}
    if address is None:  # workers import what this process imports, wherever it lies
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        with _environment(environment):  # inherited: with a runtime_env Ray would start its first workers anew
            ray.init(include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    else:
        try:
            ray.init(address, runtime_env={"env_vars": environment}, logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise _CannotStartError(f"--address {address}: {str(error).splitlines()[0]}") from error
    try:
        yield [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
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
