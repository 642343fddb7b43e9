"""A hub model's tensors by HTTP range: its config, its headers and a few kB of scales; no file is downloaded.

huggingface_hub says where and as whom: its endpoint, session, token, offline switch and error classes. The tries are our
own, because its ``http_stream_backoff`` waits for as long as a server asks, and does not cover a body that breaks off.

Each range is asked of the hub and redirected anew, one range a request: the address that the hub redirects to is signed for
one range (huggingface/xet-core#897), and object stores answer two ranges with the whole file (awslabs/aws-c-s3#257).
"""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import huggingface_hub
import numpy as np
from huggingface_hub import constants, get_token, hf_hub_url, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # it re-exports them without saying so
    get_session,
    hf_raise_for_status,
    tqdm,
)

import pytest_deaddir
from pytest_deaddir.errors import CheckpointError, SpecError
from pytest_deaddir.progress import Step, tell
from pytest_deaddir.source.checkpoint import (
    MAX_CONFIG,
    Checkpoint,
    Choice,
    Traffic,
    open_snapshot,
    parse_json,
    shard_names,
)
from pytest_deaddir.source.safetensors import Header, StoredTensor, decode, header_length, parse_header
from pytest_deaddir.source.spec import WEIGHTS, Spec

#: What a first request asks of a file: nearly every header, and in files that mix dtypes the norms behind it.
SPECULATIVE = 131_072
#: Bytes beside headers and wanted tensors that a whole read may fetch, and of one gap between two wanted tensors.
OVERREAD = 256_000
MAX_GAP = 64_000
#: What headers made up to exhaust us may make us fetch: no model's norms come near to it.
MAX_WANTED = 256_000_000
MAX_RANGES = 4_000

THREADS = 8
#: Tries of one request, the wait after the first (it doubles), and how long one request may wait in all, in seconds.
TRIES = 5
FIRST_WAIT = 0.5
LONGEST_WAIT = 60.0
#: A body counts as stalled that is slower than this, in bytes a second, with twice huggingface_hub's timeout to spare.
SLOWEST = 10_000
#: Reads shorter than this many seconds show no progress bar.
BAR_AFTER = 2.0

#: httpx's base class of everything that can go wrong with a request, from whichever httpx huggingface_hub is built on.
_HTTPError: type[BaseException] = HfHubHTTPError.__bases__[0]
_PASSING = (408, 429, 500, 502, 503, 504)

_Result = TypeVar("_Result")


class _AbsentError(CheckpointError):
    """The repository has no such file."""


class _PassingError(Exception):
    """A failure that another try may not meet. ``wait``: for how many seconds the server asked, if it did."""

    def __init__(self, problem: str, wait: float | None = None) -> None:
        super().__init__(problem)
        self.wait = wait


def open_remote(spec: Spec, wanted: Choice | None = None) -> Checkpoint:
    """Open a hub model at one commit: its config and headers, no values yet; these are fetched as they are read.

    ``wanted``: of a sharded model, the tensors that will be read; other shards' headers are not fetched, and their tensors
    are not in ``tensors``. Without it, or where it names none, every header is fetched. Under HF_HUB_OFFLINE the model is
    opened in huggingface_hub's cache.
    Raises :class:`SpecError` where the hub does not give the model, :class:`CheckpointError` where a file is wrong.
    """
    if constants.HF_HUB_OFFLINE:
        return _from_cache(spec)
    hub = _Repository(spec)
    with hub.progress():
        config = _json_object(hub, "config.json")
        try:
            parts, of = [hub.header(WEIGHTS[0], SPECULATIVE)], 1
        except _AbsentError:
            parts, of = _shards(hub, wanted)
    checkpoint = Checkpoint(
        hub.path(), config, revision=hub.commit, traffic=hub.traffic, differing=None, uncompared=None
    )
    checkpoint.partial = len(parts) < of
    for part in parts:
        checkpoint.add(part.header)
    checkpoint.reader = partial(_read, hub, {part.file: part for part in parts})
    return checkpoint


def _from_cache(spec: Spec) -> Checkpoint:
    """A hub model that huggingface_hub has downloaded before."""
    assert spec.repository is not None
    try:
        path = Path(
            snapshot_download(
                spec.repository, revision=spec.revision, local_files_only=True, allow_patterns="config.json"
            )
        )
    except (OSError, HFValidationError) as error:
        raise SpecError(
            f"{spec.text}: no local path of that name, and the hub does not give it: HF_HUB_OFFLINE is set, and "
            f"huggingface_hub's cache does not hold it at {_revision(spec)}"
        ) from error
    return open_snapshot(spec, path)


def _json_object(hub: _Repository, name: str) -> dict[str, Any]:
    raw, _ = hub.fetch(name)
    return parse_json(raw, hub.path(name))


def _shards(hub: _Repository, wanted: Choice | None) -> tuple[list[_Part], int]:
    """The shards that hold the wanted tensors, with their headers; and how many shards there are."""
    index = hub.path(WEIGHTS[1])
    try:
        document = _json_object(hub, index.name)
    except _AbsentError:
        raise CheckpointError(
            hub.path(),
            f"holds neither {WEIGHTS[0]} nor {WEIGHTS[1]}, and no other format can be read without a download: "
            "download it and give the directory",
        ) from None
    every = shard_names(document, index)
    weight_map: dict[str, str] = document["weight_map"]
    chosen = set(wanted(list(weight_map))) if wanted else set()
    names = sorted({weight_map[name] for name in chosen}) or every
    # an index tells about how long each header is; what is read behind them all is no more than behind a single file's
    lengths = dict.fromkeys(names, 1000 + SPECULATIVE // len(names))
    for tensor, name in weight_map.items():
        if name in lengths:
            lengths[name] = min(SPECULATIVE, lengths[name] + len(tensor) + 80)
    try:
        parts = hub.each(hub.header, list(lengths.items()))
    except _AbsentError as error:
        raise CheckpointError(index, f"weight_map names {Path(error.path).name!r}, which is not there") from None
    for lost in chosen - {name for part in parts for name in part.header.tensors}:
        raise CheckpointError(index, f"says that tensor {lost!r} is in {weight_map[lost]!r}, which does not hold it")
    return parts, len(every)


@dataclass(frozen=True)
class _Part:
    """A file whose header is known. ``start``: where the header ends; ``beyond``: what came with it from there on."""

    file: Path
    header: Header
    start: int
    beyond: bytes

    def holds(self, tensor: StoredTensor) -> bool:
        """Whether the tensor's bytes are here already."""
        return tensor.offset + tensor.length <= self.start + len(self.beyond)


def _read(
    hub: _Repository, parts: dict[Path, _Part], tensors: Iterable[StoredTensor]
) -> Iterator[tuple[StoredTensor, np.ndarray, bytes]]:
    """A checkpoint's reader. Nothing is given before everything is there: a read that fails has no partial result."""
    by_file: dict[Path, list[StoredTensor]] = {}
    for tensor in tensors:
        by_file.setdefault(tensor.file, []).append(tensor)
    missing = {
        file: [(t.offset, t.offset + t.length) for t in members if t.length and not parts[file].holds(t)]
        for file, members in by_file.items()
    }
    ranges = coalesce(missing, OVERREAD - sum(len(part.beyond) for part in parts.values()))
    size = sum(stop - start for _, start, stop in ranges)
    if size > MAX_WANTED or len(ranges) > MAX_RANGES:
        raise CheckpointError(
            hub.path(),
            f"refused: its norms would be {size} bytes in {len(ranges)} places (the limits are {MAX_WANTED} and "
            f"{MAX_RANGES}): download it and give the directory",
        )
    with hub.progress(size):
        bodies = hub.each(hub.exactly, [(file.name, start, stop) for file, start, stop in ranges])
    for file, members in by_file.items():
        blocks = [(parts[file].start, parts[file].beyond)]
        blocks += [(start, body) for (of, start, _), body in zip(ranges, bodies, strict=True) if of == file]
        for tensor in sorted(members, key=lambda member: member.offset):
            raw = _cut(blocks, tensor.offset, tensor.length)
            yield tensor, decode(raw, tensor.dtype).reshape(tensor.shape), raw


def _cut(blocks: list[tuple[int, bytes]], offset: int, length: int) -> bytes:
    """Bytes out of the one of ``blocks`` (start, bytes) that has them."""
    for start, body in blocks:
        if length and start <= offset and offset + length <= start + len(body):
            return body[offset - start : offset - start + length]
    return b""


def coalesce(pieces: dict[Path, list[tuple[int, int]]], allowance: int) -> list[tuple[Path, int, int]]:
    """Few ranges (file, start, stop) that cover all pieces (start, stop) of each file.

    Pieces that touch become one. The smallest gaps are read over first, none wider than :data:`MAX_GAP` and together at
    most ``allowance`` bytes.
    """
    ranges: list[tuple[Path, int, int]] = []
    for file, spans in pieces.items():
        for start, stop in sorted(spans):
            if ranges and ranges[-1][0] == file and start <= ranges[-1][2]:
                ranges[-1] = (file, ranges[-1][1], max(stop, ranges[-1][2]))
            else:
                ranges.append((file, start, stop))
    gaps = sorted(
        (right[1] - left[2], place)
        for place, (left, right) in enumerate(itertools.pairwise(ranges), 1)
        if left[0] == right[0] and right[1] - left[2] <= MAX_GAP
    )
    bridged = set()
    for gap, place in gaps:
        if gap > allowance:
            break
        allowance -= gap
        bridged.add(place)
    merged: list[tuple[Path, int, int]] = []
    for place, (file, start, stop) in enumerate(ranges):
        merged.append((file, merged.pop()[1] if place in bridged else start, stop))
    return merged


class _Repository:
    """A repository at one commit: whole small files and ranges of large ones, checked, counted, and tried again.

    The first answer names a commit, and everything after it is asked of that commit, so that a push in between cannot mix
    two revisions. ``traffic`` counts every try; the redirects that the hub answers with belong to the request that met them.
    """

    def __init__(self, spec: Spec) -> None:
        assert spec.repository is not None
        self.spec = spec
        self.repository = spec.repository
        self.commit: str | None = None
        self.traffic = Traffic()
        # not build_hf_headers(): since 2.x it asks the hub for a list first, to tell it which AI agent runs this process
        self._headers = {
            "user-agent": f"pytest-deaddir/{pytest_deaddir.__version__}; hf_hub/{huggingface_hub.__version__}",
            "accept-encoding": "identity",  # a range of a compressed file would be of no use
        }
        if not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN and (token := get_token()):
            self._headers["authorization"] = f"Bearer {token}"
        self._bar: Any = None
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def path(self, name: str = "") -> Path:
        """What messages and the audit call a file."""
        return Path(self.repository, name)

    def header(self, name: str, speculative: int) -> _Part:
        """A file's header, in one request where it fits into ``speculative`` bytes, else in two."""
        file = self.path(name)
        raw, size = self.fetch(name, 0, speculative)
        end = 8 + header_length(raw, file)
        if size is not None and end > size:
            raise CheckpointError(file, f"truncated: the header needs {end} bytes and the file has {size}")
        if len(raw) < end:
            raw += self.exactly(name, len(raw), end)
        return _Part(file, parse_header(raw[8:end], file, size), end, raw[end:])

    def exactly(self, name: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a file."""
        raw, _ = self.fetch(name, start, stop)
        if len(raw) != stop - start:
            raise CheckpointError(self.path(name), f"truncated: it ends before byte {stop}")
        return raw

    def fetch(self, name: str, start: int = 0, stop: int | None = None) -> tuple[bytes, int | None]:
        """Bytes [start, stop) of a file, fewer only where it ends, and its size if that was told; or the whole file."""
        waited = 0.0
        for tries in itertools.count(1):
            try:
                return self._fetch_once(name, start, stop)
            except _PassingError as failure:
                wait = FIRST_WAIT * 2 ** (tries - 1) if failure.wait is None else failure.wait
                if tries == TRIES:
                    raise CheckpointError(self.path(name), f"{failure} (tried {tries} times)") from failure
                if waited + wait > LONGEST_WAIT:
                    problem = f"{failure}; not waiting the {wait:.0f} s that the hub asks for: try again later"
                    raise CheckpointError(self.path(name), problem) from failure
                if self._stopped.wait(wait):
                    raise CheckpointError(self.path(name), f"{failure} (given up)") from failure
                waited += wait
        raise AssertionError

    def each(self, function: Callable[..., _Result], jobs: Sequence[tuple[Any, ...]]) -> list[_Result]:
        """The results of all jobs, in their order, a few at a time. The first failure stops the others."""
        self._stopped.clear()
        if len(jobs) <= 1:
            return [function(*job) for job in jobs]
        with ThreadPoolExecutor(min(THREADS, len(jobs))) as pool:
            futures = [pool.submit(function, *job) for job in jobs]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                self._stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [future.result() for future in futures]

    @contextmanager
    def progress(self, size: int | None = None) -> Iterator[None]:
        """A bar of bytes on stderr while this lasts, on a terminal and for long reads only."""
        look: dict[str, Any] = {"desc": self.repository, "unit": "B", "unit_scale": True, "leave": False}
        with tqdm(total=size, disable=None, delay=BAR_AFTER, **look) as self._bar:  # type: ignore[no-untyped-call]
            yield

    def _count(self, requests: int = 0, received: int = 0) -> None:
        with self._lock:
            self.traffic.requests += requests
            self.traffic.bytes += received
            self._bar.update(received)
        tell(Step("reading", self.traffic.bytes / 1e6, None, "MB"))

    def _fetch_once(self, name: str, start: int, stop: int | None) -> tuple[bytes, int | None]:
        headers = dict(self._headers) if stop is None else {**self._headers, "range": f"bytes={start}-{stop - 1}"}
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        try:
            url = hf_hub_url(self.repository, name, revision=self.commit or self.spec.revision)
        except HFValidationError as error:
            raise SpecError(f"{self.spec.text}: not a name that the hub can have: {error}") from error
        self._count(requests=1)
        try:
            with get_session().stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as response:
                self._count(received=sum(hop.num_bytes_downloaded for hop in response.history))
                self._refuse(response, name)
                self._pin(response, name)
                expected, size = _extent(response, self.path(name), start, stop)
                return self._body(response, name, expected), size
        except _HTTPError as error:
            raise _broken(error, timeout) from error

    def _refuse(self, response: Any, name: str) -> None:
        """Raise for a status that is none of success, saying what a person can do about it."""
        status = response.status_code
        if status in _PASSING:
            problem = f"the hub answers {status}"
            if status == 429:
                problem += " (who is logged in, by hf auth login or HF_TOKEN, may ask more often)"
            raise _PassingError(problem, _asked_wait(response.headers))
        told = {key: response.headers[key] for key in ("x-error-code", "x-error-message") if key in response.headers}
        # a copy without the body: huggingface_hub would read an error's body to its end
        bare = type(response)(status, headers=told, content=b"", request=response.request)
        subject = f"{self.spec.text}: no local path of that name, and the hub"
        log_in = "log in (hf auth login, or HF_TOKEN)"
        try:
            hf_raise_for_status(bare)
        except GatedRepoError as error:
            url = f"{constants.ENDPOINT}/{self.repository}"
            raise SpecError(f"{subject} keeps it gated: accept its terms at {url} and {log_in}") from error
        except RevisionNotFoundError as error:
            raise SpecError(f"{subject}'s repository has no revision {_revision(self.spec)!r}") from error
        except EntryNotFoundError as error:
            raise _AbsentError(self.path(name), "the repository has no such file") from error
        except RepositoryNotFoundError as error:
            raise SpecError(f"{subject} shows no such repository: check the name; if private, {log_in}") from error
        except HfHubHTTPError as error:
            if status == 401:
                raise SpecError(f"{subject} asks who you are, or refuses your token: {log_in}") from error
            if status == 404:
                raise _AbsentError(self.path(name), "no such file, revision or repository") from error
            if status == 416:
                raise CheckpointError(self.path(name), "truncated: it ends before the bytes asked for") from error
            reason = "".join(c for c in told.get("x-error-message", "") if c.isprintable())[:200]
            problem = f"the hub refuses it with {status}" + (f": {reason}" if reason else "")
            raise CheckpointError(self.path(name), problem) from error

    def _pin(self, response: Any, name: str) -> None:
        """Hold to the commit that the first answer names; the hub names it where it redirects, its stores do not."""
        told = (hop.headers.get(constants.HUGGINGFACE_HEADER_X_REPO_COMMIT) for hop in (*response.history, response))
        commit = next(filter(None, told), None)
        if self.commit is None:
            if commit is None or not re.fullmatch(r"[0-9a-f]{7,64}", commit):
                raise CheckpointError(
                    self.path(name),
                    f"{constants.ENDPOINT} does not say of which commit it is (X-Repo-Commit): is it a hub?",
                )
            self.commit = commit
        elif commit not in (None, self.commit):
            raise CheckpointError(self.path(name), f"asked for at commit {self.commit}, and given at another")

    def _body(self, response: Any, name: str, expected: int | None) -> bytes:
        """The body up to ``expected`` bytes; what a server sends beyond them is left unread."""
        started, patience = time.monotonic(), 2 * constants.HF_HUB_DOWNLOAD_TIMEOUT
        exact = response.headers.get("content-length") == str(expected)
        received = bytearray()
        for chunk in response.iter_raw():
            self._count(received=len(chunk))
            received += chunk
            if expected is None and len(received) > MAX_CONFIG:
                raise CheckpointError(self.path(name), f"larger than {MAX_CONFIG} bytes")
            if expected is not None and len(received) >= expected and not exact:
                break  # of an exact body the end is read too, and the connection can serve the next request
            if time.monotonic() > started + patience + len(received) / SLOWEST or self._stopped.is_set():
                raise _PassingError(f"stalled after {len(received)} bytes")
        if expected is not None and len(received) < expected:
            raise _PassingError(f"broke off after {len(received)} of {expected} bytes")
        return bytes(received[:expected])


def _extent(response: Any, file: Path, start: int, stop: int | None) -> tuple[int | None, int | None]:
    """How many bytes of a body are wanted (None: all) and the file's size, from headers that must fit what was asked."""
    headers = response.headers
    if headers.get("content-encoding", "identity") != "identity":
        raise CheckpointError(file, "was sent compressed, though asked for as it is")
    length = int(headers["content-length"]) if headers.get("content-length", "").isdecimal() else None
    if response.status_code == 200 and stop is None:
        if length is not None and length > MAX_CONFIG:
            raise CheckpointError(file, f"larger than {MAX_CONFIG} bytes")
        return length, length
    told = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", headers.get("content-range", ""))
    if stop is None or response.status_code != (206 if told else 200):
        raise CheckpointError(file, f"the server answers {response.status_code} where that makes no sense")
    if told is None and start == 0:  # the whole file, of which the beginning will do
        return stop if length is None else min(stop, length), length
    if told is None:
        problem = "the server ignores ranges and would send all of it: download it and give the directory"
        raise CheckpointError(file, problem)
    first, last, size = int(told[1]), int(told[2]), None if told[3] == "*" else int(told[3])
    if first != start or last < first or last + 1 != (stop if size is None else min(stop, size)):
        raise CheckpointError(file, f"asked for bytes {start} to {stop - 1}, and the server sends {told[0]!r}")
    return last + 1 - first, size


def _broken(error: BaseException, timeout: float) -> _PassingError | CheckpointError:
    """What became of a request that got no whole answer."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "TimeoutException" in kinds:
        return _PassingError(f"no answer from {constants.ENDPOINT} within {timeout} s")
    if "TooManyRedirects" in kinds:
        return CheckpointError(constants.ENDPOINT, "redirects without end")
    said = str(error).strip().split("\n")[0][:200] or type(error).__name__
    return _PassingError(f"the connection to {constants.ENDPOINT} failed: {said}")


def _asked_wait(headers: Any) -> float | None:
    """For how many seconds a server asks to be left alone, by Retry-After or the hub's ``ratelimit: "api";r=0;t=55``."""
    told = re.fullmatch(r"\s*(\d{1,9})\s*", headers.get("retry-after", "")) or re.search(
        r"r\s*=\s*0\s*;\s*t\s*=\s*(\d{1,9})", headers.get("ratelimit", "")
    )
    return float(told[1]) if told else None


def _revision(spec: Spec) -> str:
    return spec.revision or constants.DEFAULT_REVISION
