"""How much memory a model's weights may take: ``2GB``, or ``cpu=2GB,0=20GB`` by device. Imports nothing heavy: it runs at
collection."""

from __future__ import annotations

import re

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {f"{prefix}I": 2 ** (10 * power) for power, prefix in enumerate("KMGT", start=1)}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT]?I?)B", re.IGNORECASE)

#: Bytes by device as accelerate names them: a number for an accelerator, ``mps`` or ``cpu``; under None, of the device that
#: the model runs on.
Memory = dict[int | str | None, int]


def parse_memory(text: str) -> Memory:
    """Understand a limit. Raises ValueError with what is wrong."""
    memory: Memory = {}
    parts = text.split(",")
    for part in parts:
        name, equals, size = part.strip().rpartition("=")
        device: int | str | None = int(name) if name.isdecimal() else name or None
        if (device is None and (equals or len(parts) > 1)) or (
            isinstance(device, str) and device not in ("cpu", "mps")
        ):
            raise ValueError(f"{part.strip()!r} names no device: write cpu=2GB,0=20GB, or 2GB for the one that runs")
        if device in memory:
            raise ValueError(f"{name} is given twice")
        match = _SIZE.fullmatch(size.strip())
        if match is None or match[2].upper() not in _UNITS:
            raise ValueError(f"{size.strip()!r} is no size: write it as 500MB, 2GB or 1.5GiB")
        memory[device] = round(float(match[1]) * _UNITS[match[2].upper()])
    return memory
