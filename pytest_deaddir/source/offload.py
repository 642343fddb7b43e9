"""A model larger than its memory: which part of the weights is held where, and how they are got at.

A checkpoint is loaded by accelerate: what a limit leaves no room for stays on the CPU or in the checkpoint's own files, is
on the meta device while it is not needed, and is brought by a hook of its module for the time that this runs. A module that
is built (a random twin) has no files to stay in, so its parameters are given temporary ones, mapped into memory: the system
writes and drops their pages as it needs the room. What is accumulated of the activations is more than the weights of a model
with three watched places in each block, and is kept in the same way.
"""

from __future__ import annotations

import copy
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from pytest_deaddir.errors import ModelError
from pytest_deaddir.source.memory import parse_memory

#: Tensors of at least so many bytes get a file of their own.
MAPPED = 1 << 16


@dataclass(frozen=True)
class Limit:
    """``text``: as it was given. ``memory``: bytes by device, for accelerate. ``folder``: a temporary one, for what must be
    written; :meth:`close` removes it."""

    text: str
    memory: dict[int | str, int]
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="deaddir-")))
    _names: Iterator[int] = field(default_factory=itertools.count)

    def mapped(self, values: torch.Tensor) -> torch.Tensor:
        """A copy on the CPU, a large one in a file that is mapped into memory and goes with the tensor.

        Raises :class:`ModelError` where there is no room for it.
        """
        if values.nbytes < MAPPED:
            return values.detach().to("cpu", copy=True)
        file = self.folder / f"{next(self._names)}.bin"
        try:
            with file.open("wb") as opened:
                if hasattr(
                    os, "posix_fallocate"
                ):  # else a full disk would end the process at the first write to the map
                    os.posix_fallocate(opened.fileno(), 0, values.nbytes)
            numbers = torch.from_file(str(file), shared=True, size=values.numel(), dtype=values.dtype)
        except (OSError, RuntimeError) as error:
            problem = f"{values.nbytes} bytes cannot be kept in {self.folder}: {error}"
            raise ModelError(f"{problem}; another folder is named by the environment's TMPDIR") from error
        with suppress(OSError):  # Windows keeps a file that is mapped, until the folder is removed
            file.unlink()
        layout = torch.empty_like(
            values, device="meta"
        ).stride()  # of a factor by columns: the solvers' rounding sees it
        return numbers.as_strided(values.shape, layout).copy_(values)

    def close(self) -> None:
        """Remove the folder. The model that uses it can no longer run."""
        shutil.rmtree(self.folder, ignore_errors=True)


def limit_of(text: str, device: torch.device) -> Limit:
    """The limit for a model that runs on ``device``. One size is of that device, and of each of its kind; beside an
    accelerator the CPU then holds what is free, and the files the rest. Raises :class:`ModelError` for a device that is not
    there."""
    given = parse_memory(text)
    there = {None, "cpu", *range(torch.cuda.device_count()), *(["mps"] if torch.backends.mps.is_available() else [])}
    if missing := [str(name) for name in given if name not in there]:
        raise ModelError(
            f"--deaddir-max-memory {text}: torch {torch.__version__} sees no device {', '.join(missing)} here"
        )
    size = given.pop(None, None)
    memory: dict[int | str, int] = {name: least for name, least in given.items() if name is not None}
    if size is not None and device.type == "cuda":
        memory = dict.fromkeys(range(torch.cuda.device_count()), size)
    elif size is not None:
        memory = {device.type: size}
    if size is not None and device.type != "cpu":
        from accelerate.utils import get_max_memory

        memory["cpu"] = int(0.9 * get_max_memory().get("cpu", 0))
    return Limit(text, memory)


# --- weights behind hooks ---------------------------------------------------------------------------------------------


def is_offloaded(module: nn.Module) -> bool:
    """Whether weights of the module are away while it does not run."""
    return any(_is_away(child) for child in module.modules())


def is_abstract(module: nn.Module) -> bool:
    """Whether the module is on the meta device, where there are no values at all."""
    return any(
        parameter.is_meta and _weights(child) is None
        for child in module.modules()
        for parameter in child._parameters.values()
        if parameter is not None
    )


def onloaded(module: nn.Module) -> nn.Module:
    """The module; where accelerate has put hooks on it, a copy without them that has its values. For small ones: a norm."""
    hooked = [child for child in module.modules() if "_hf_hook" in vars(child)]
    if not hooked:
        return module
    theirs = ("_hf_hook", "_old_forward", "forward")  # and of the module on top: to, cuda
    shared = {id(vars(child)[name]): vars(child)[name] for child in hooked for name in theirs if name in vars(child)}
    copied = copy.deepcopy(module, shared)  # not the hooks, which hold the weights of the whole model
    for child, original in zip(copied.modules(), module.modules(), strict=True):
        for name in theirs if original in hooked else ():
            vars(child).pop(name, None)
        weights = _weights(original)
        for name, parameter in child._parameters.items():
            if parameter is not None and parameter.is_meta and weights is not None:
                child._parameters[name] = nn.Parameter(weights[name], requires_grad=False)
    return copied


def place_of(module: nn.Module) -> tuple[torch.device, torch.dtype]:
    """The device that the module takes its inputs on, and its first parameter's dtype; cpu and float32 for one without."""
    parameter = next(module.parameters(), None)
    if parameter is None:
        return torch.device("cpu"), torch.float32
    device = parameter.device
    if parameter.is_meta and not is_abstract(module):
        device = torch.device(next(hook.execution_device for child in module.modules() for hook in _hooks(child)))
    return device, parameter.dtype


def placement(module: nn.Module) -> dict[str, int]:
    """Bytes of parameters by where this process holds them: a device, or ``disk``."""
    held: dict[str, int] = {}
    for child, name, parameter in _distinct(module):
        where = _place(child, name, parameter)
        own = parameter.to_local() if hasattr(parameter, "to_local") else parameter  # of a DTensor the process's part
        held[where] = held.get(where, 0) + own.nbytes
    return held


def parameter_count(module: nn.Module) -> int:
    """How many numbers the module's parameters are, tied ones counted once, wherever they are held."""
    return sum(parameter.numel() for _, _, parameter in _distinct(module))


def _distinct(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Parameters with their owners and names there, each once. What is tied is two parameters while it is on the meta
    device; a transformers model knows their names."""
    tied = set(getattr(module, "all_tied_weights_keys", None) or ()) if is_offloaded(module) else set()
    seen: set[int] = set()
    for path, child in module.named_modules():
        for name, parameter in child._parameters.items():
            if parameter is None or id(parameter) in seen or (f"{path}.{name}" if path else name) in tied:
                continue
            seen.add(id(parameter))
            yield child, name, parameter


def _place(module: nn.Module, name: str, parameter: torch.Tensor) -> str:
    weights = _weights(module)
    if parameter.is_meta and weights is not None:
        prefix, dataset = getattr(weights, "prefix", ""), getattr(weights, "dataset", weights)
        return "disk" if f"{prefix}{name}" not in getattr(dataset, "state_dict", dataset) else "cpu"
    return "disk" if getattr(parameter, "deaddir_mapped", False) else str(parameter.device)


def _hooks(module: nn.Module) -> list[Any]:
    hook = vars(module).get("_hf_hook")
    return [] if hook is None else list(getattr(hook, "hooks", [hook]))


def _weights(module: nn.Module) -> Any:
    """The mapping from which a module's hook takes its weights; None where it has no such hook."""
    return next((hook.weights_map for hook in _hooks(module) if getattr(hook, "offload", False)), None)


def _is_away(module: nn.Module) -> bool:
    return _weights(module) is not None and any(p is not None and p.is_meta for p in module._parameters.values())


# --- modules that are built -------------------------------------------------------------------------------------------


def built(make: Callable[[], nn.Module], limit: Limit, dtype: torch.dtype | None) -> nn.Module:
    """What ``make`` builds, with the same random numbers as without a limit, its parameters in files, in ``dtype`` if given.

    Where there are accelerators, accelerate puts as much on them as the limit allows.
    """
    with _mapping(limit.mapped):
        module = make()
    for tensor in itertools.chain(module.parameters(), module.buffers()):
        if dtype is not None and tensor.is_floating_point() and tensor.dtype != dtype:
            changed = tensor.data.to(dtype)
            tensor.data = limit.mapped(changed) if getattr(tensor, "deaddir_mapped", False) else changed
    if not set(limit.memory) <= {"cpu"}:
        from accelerate import dispatch_model, infer_auto_device_map

        memory = {**limit.memory, "cpu": 1 << 62}  # what is mapped takes none
        unsplit = getattr(module, "_no_split_modules", None)
        places = infer_auto_device_map(module, max_memory=memory, no_split_module_classes=unsplit)
        dispatch_model(module, places, skip_keys=getattr(module, "_skip_keys_device_placement", None))
    return module


@contextmanager
def _mapping(mapped: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Large parameters get mapped storage at the moment in which a module takes them, before anything is drawn into it."""

    def register(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> Any:
        if type(parameter) is not nn.Parameter or parameter.nbytes < MAPPED or parameter.device.type != "cpu":
            return None
        if getattr(parameter, "deaddir_mapped", False):  # tied: it is a second module's too
            return None
        replaced = nn.Parameter(mapped(parameter.data), parameter.requires_grad)
        replaced.deaddir_mapped = True  # type: ignore[attr-defined]
        return replaced

    hook = register_module_parameter_registration_hook(register)
    try:
        yield
    finally:
        hook.remove()
