"""The audits of one run: each subject is measured once, for whoever asks first, and kept for all who ask after."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_deaddir.errors import ModelError
from pytest_deaddir.evidence import Evidence
from pytest_deaddir.shared import Shared

if TYPE_CHECKING:
    from pytest_deaddir.plan import Plan
    from pytest_deaddir.tables import Audit


class Measurements:
    """The audit of every plan that was asked for, or the error that it ended in. The workers of xdist share them."""

    def __init__(self, config: pytest.Config, evidence: Evidence | None) -> None:
        self._config = config
        self._evidence = evidence
        self._shared = Shared.of(config)
        self._results: dict[Plan, Audit | Exception] = {}
        self._origins: dict[Plan, str | None] = {}
        self._batches: dict[Plan, list[Mapping[str, Any]]] = {}
        self._expected: dict[Plan, None] = {}

    def expect(self, plans: Iterable[Plan]) -> None:
        """Note what this run will ask for: instead of waiting for another worker, this one can measure some of it."""
        self._expected |= dict.fromkeys(replace(plan, baseline=None) for plan in plans if plan.stored is None)

    def audit(self, plan: Plan) -> Audit:
        """The audit of a plan, measured at the first call. Where measuring failed, every call raises the same error."""
        if plan not in self._results:
            self._results[plan] = self._compared(plan) if plan.baseline else self._shared_result(plan)
        result = self._results[plan]
        if isinstance(result, Exception):
            raise result
        return result

    def _compared(self, plan: Plan) -> Audit | Exception:
        """The audit with its comparison to the baseline. The audit itself is measured as if there were no baseline."""
        assert plan.baseline is not None
        try:
            return plan.baseline.beside(self.audit(replace(plan, baseline=None)), self.audit)
        except Exception as error:
            return error

    def _shared_result(self, plan: Plan) -> Audit | Exception:
        """What became of a plan, whichever worker measures it.

        While another worker is at it, this one measures what nobody has begun, and waits only when nothing is left.
        """
        shared = self._shared
        if shared is None or plan.stored is not None:
            return self._measured(plan)
        others = [other for other in self._expected if other != plan and other not in self._results]
        while True:
            result = shared.outcome(repr(plan), lambda: self._measured(plan), wait=not others)
            if result is not None:
                return result
            other = others.pop(0)
            found = shared.outcome(repr(other), functools.partial(self._measured, other), wait=False)
            if found is not None:
                self._results[other] = found

    def _measured(self, plan: Plan) -> Audit | Exception:
        """The audit, measured now or taken from an earlier run; or the error that it ended in."""
        from pytest_deaddir.report.line import progress_line

        try:
            if plan.stored is not None:
                self._origins[plan] = f"measured earlier, from {plan.stored.path.name}"
                return plan.stored.at(plan.level, plan.dtype)
            inputs = self._inputs(plan)
            with progress_line(self._config, plan.spec.text.rpartition("/")[2]):
                if self._evidence is None:
                    return _measure(plan, inputs)
                audit, self._origins[plan] = self._evidence.audit(plan, inputs, lambda: _measure(plan, inputs))
        except pytest.exit.Exception:
            raise
        except Exception as error:
            return error
        except (pytest.skip.Exception, pytest.fail.Exception, SystemExit) as error:
            # a factory that skips, or a time limit: nothing was audited, which is no pass and is not tried again
            return ModelError(f"{plan.spec.text}: measuring was ended by {type(error).__name__}: {error}")
        else:
            return audit

    def _inputs(self, plan: Plan) -> Any:
        """What --deaddir-inputs gives, else what the hook gives, else None."""
        if plan.inputs is not None or plan.level == "read":
            return plan.inputs
        return self._config.hook.pytest_deaddir_inputs(config=self._config, spec=plan.spec.text)

    def batches(self, plan: Plan) -> list[Mapping[str, Any]]:
        """What the subject is fed in its forward pass. Raises as measuring does."""
        from pytest_deaddir.api import batches

        if plan.stored is not None:
            raise ModelError(f"{plan.spec.text} is judged again from {plan.stored.path.name} and fed nothing")
        plan = replace(plan, level="forward", baseline=None)
        if plan not in self._batches:
            self._batches[plan] = batches(plan.spec, inputs=self._inputs(plan), **plan.how)
        return self._batches[plan]

    def origin(self, plan: Plan) -> str | None:
        """Where the audit comes from, if this run did not measure it."""
        return self._origins.get(replace(plan, baseline=None))

    def done(self, plan: Plan) -> Audit | None:
        """The audit, if there is one by now."""
        result = self._results.get(plan)
        return None if isinstance(result, Exception) else result

    def error(self, plan: Plan) -> Exception | None:
        """The error that measuring ended in, if it did."""
        result = self._results.get(plan)
        return result if isinstance(result, Exception) else None


def _measure(plan: Plan, inputs: Any) -> Audit:
    from pytest_deaddir.api import measure

    return measure(plan.spec, inputs=inputs, **plan.how)
