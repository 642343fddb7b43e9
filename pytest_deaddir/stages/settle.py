"""What tensor names leave open, settled by the architecture's own class: built from the config on the meta device, where it
takes no memory, and its norms probed. Only where transformers is installed, knows the type, and something is open."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Any

from pytest_deaddir.discovery.names import NamedSite, matched_paths
from pytest_deaddir.source.checkpoint import Checkpoint


def settled(sites: list[NamedSite], checkpoint: Checkpoint) -> list[NamedSite]:
    """``sites`` with kind and convention from the class, and with the norms that the class has and the files lack.

    Where the config describes far more than the files hold, nothing is settled.
    """
    if all(site.kind != "undecided" and site.convention for site in sites):
        return sites
    known = _norms_of_class(checkpoint, {site.features for site in sites})
    if known is None:
        return sites
    class_name, probes = known
    how = f"{class_name} from config.json, probed on the meta device"
    decided, met = [], set()
    homes = matched_paths([site.path for site in sites], probes)
    for site in sites:
        path = homes.get(site.path)
        if path is None:
            decided.append(site)
            continue
        met.add(path)
        found = probes[path]
        decided.append(replace(site, kind=found.kind, convention=found.convention, how=how))
    if met:  # otherwise the names have nothing to do with the class, and nothing can be said of what is missing
        for path, found in probes.items():
            if path not in met and found.gamma_parameter:
                decided.append(
                    NamedSite(path, None, None, found.features or 0, found.kind, how, "other", None, found.convention)
                )
    return decided


def _norms_of_class(checkpoint: Checkpoint, widths: set[int]) -> tuple[str, dict[str, Any]] | None:
    """The name of the class that the config names and the probes of its norms of the given widths by path; None where it
    cannot be built."""
    config = checkpoint.config
    if (
        "model_type" not in config
        or importlib.util.find_spec("transformers") is None
        or importlib.util.find_spec("torch") is None
    ):
        return None
    import torch
    import transformers

    from pytest_deaddir.discovery.probe import is_vectors_only, probe_alike
    from pytest_deaddir.source.limits import within_limits
    from pytest_deaddir.source.load import quiet

    names = config.get("architectures")
    try:
        with quiet(), within_limits(checkpoint), torch.device("meta"):
            made = transformers.CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
            named: Any = getattr(transformers, str(names[0]), None) if isinstance(names, list) and names else None
            is_model = isinstance(named, type) and issubclass(named, transformers.PreTrainedModel)
            module = named(made) if is_model else transformers.AutoModel.from_config(made)
    except Exception:  # an unknown type, a config that its class or we refuse: nothing is settled, and `how` shows it
        return None
    children = {
        path: child
        for path, child in module.named_modules()
        if is_vectors_only(child) and any(parameter.numel() in widths for parameter in child.parameters())
    }
    probes = {path: probe_alike(child) for path, child in children.items()}
    return type(module).__name__, {path: found for path, found in probes.items() if found.kind != "other"}
