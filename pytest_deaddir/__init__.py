"""pytest-deaddir: is what a LayerNorm's scale says about its output true of this checkpoint?

The public names resolve on first use (PEP 562): pytest loads this package for its plugin in every run, and a run that
audits nothing must not pay for numpy or torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_deaddir.api import audit as audit
    from pytest_deaddir.api import discover as discover
    from pytest_deaddir.api import probe as probe
    from pytest_deaddir.api import read as read
    from pytest_deaddir.tables import Audit as Audit

__version__ = "0.1.0"
__all__ = ["Audit", "audit", "discover", "probe", "read"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    home = "pytest_deaddir.tables" if name == "Audit" else "pytest_deaddir.api"
    return getattr(importlib.import_module(home), name)
