"""A spec's checkpoint, from wherever it is: on this disk, downloaded to it, or left on a hub and read by range."""

from __future__ import annotations

from pathlib import Path

from pytest_deaddir.errors import CheckpointError, SpecError
from pytest_deaddir.source.checkpoint import Checkpoint, Choice, first_line, open_local, open_snapshot
from pytest_deaddir.source.spec import WEIGHTS, Spec


def open_checkpoint(spec: Spec, *, download: bool = True, wanted: Choice | None = None) -> Checkpoint:
    """Find and open what a spec of the form directory, safetensors, gguf or hub names: configs and headers, no values yet.

    ``download``: whether a hub's model is to lie on this disk. Otherwise what is read is fetched by range, and of a sharded
    model no headers but those of the shards that hold what ``wanted`` chooses.
    Raises :class:`CheckpointError` naming the file, and :class:`SpecError` where the form needs what is not installed.
    """
    if spec.form != "hub":
        return open_local(spec)
    if download:
        return open_snapshot(spec, _downloaded(spec))
    from pytest_deaddir.source.remote import open_remote

    return open_remote(spec, wanted)


def _downloaded(spec: Spec) -> Path:
    """A hub model's files in huggingface_hub's cache, downloaded if need be."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    assert spec.repository is not None
    wanted = ["*.json", "*.txt", "*.model", "*.jinja", "*.safetensors"]
    try:
        path = Path(snapshot_download(spec.repository, revision=spec.revision, allow_patterns=wanted))
        if not any((path / name).is_file() for name in WEIGHTS[:2]):
            wanted = ["*.json", "*.txt", "*.model", "*.jinja", "pytorch_model*.bin"]
            path = Path(snapshot_download(spec.repository, revision=spec.revision, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise SpecError(
            f"{spec.text}: no local path of that name, and the hub does not give it: {first_line(error)}"
        ) from error
    if not (path / "config.json").is_file():
        raise CheckpointError(path, f"{spec.repository} has no config.json")
    return path
