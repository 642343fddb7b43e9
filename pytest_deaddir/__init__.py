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
    from pytest_deaddir.rules import check_rule as check_rule
    from pytest_deaddir.rules import rule as rule
    from pytest_deaddir.tables import Audit as Audit

__version__ = "0.1.0"
__all__ = ["Audit", "audit", "check_rule", "discover", "probe", "read", "rule"]

_HOMES = {"Audit": "tables", "check_rule": "rules", "rule": "rules"}  # the others: api


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"pytest_deaddir.{_HOMES.get(name, 'api')}"), name)
