"""The state of one run: its settings, what was measured, and what came of every check."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_deaddir.evidence import Evidence
from pytest_deaddir.measurements import Measurements
from pytest_deaddir.options import GATE
from pytest_deaddir.results import Results
from pytest_deaddir.settings import Settings, read_settings
from pytest_deaddir.stages.ranks import world

if TYPE_CHECKING:
    from pytest_deaddir.plan import Subject
    from pytest_deaddir.rules import Rule


@dataclass
class State:
    """What the plugin keeps on the config while it is in use."""

    config: pytest.Config
    settings: Settings
    measurements: Measurements
    results: Results
    gates: dict[Path, list[Subject]] = field(default_factory=dict)

    def gate(self, path: Path) -> list[Subject]:
        """The subjects of a gate file, which is read once. Raises :class:`~pytest_deaddir.gate.GateError`."""
        from pytest_deaddir.gate import read_gate

        if path not in self.gates:
            self.gates[path] = read_gate(path, self.config)
        return self.gates[path]

    @property
    def subjects(self) -> list[Subject]:
        """The models of the run: of the options, and of the gate files of which any check was to run."""
        gates = {self.config.rootpath / label.rpartition("::")[0] for label in self.results.reported if "::" in label}
        return [*self.settings.subjects.values(), *(one for gate in sorted(gates) for one in self.gate(gate))]

    def update_baselines(self) -> bool:
        """Write the baselines that are to be; false where one was refused. What came of it stands in the summary."""
        from pytest_deaddir.baseline import update_files

        subjects = {subject.label: subject for subject in self.subjects}
        entries = [entry for entry in self.results.entries if entry["label"] in subjects]
        done = list(update_files([(subjects[e["label"]], e, self.results.models[e["label"]].judged) for e in entries]))
        self.results.notes += [text for _, text in done]
        return all(written for written, _ in done)

    @property
    def rules(self) -> list[Rule]:
        """The rules that any model of the run was judged by, each code once."""
        rules: dict[str, Rule] = {}
        for subject in self.subjects:
            rules = {rule.code: rule for rule in subject.applicable} | rules
        return list(rules.values())

    @cached_property
    def checkpoint_folders(self) -> list[Path]:
        """The checkpoints' directories: of the subjects, and of what the gate file in pytest's root names."""
        from pytest_deaddir.gate import named_paths

        specs = [subject.spec for subject in self.settings.subjects.values()]
        found = [spec.path for spec in specs if spec.form in ("directory", "stored") and spec.path]
        gate = self.config.rootpath / GATE
        found += named_paths(gate) if gate.exists() else []
        return [path.resolve() for path in found if path.is_dir()]


STATE = pytest.StashKey[State]()


def state_of(config: pytest.Config) -> State:
    """The run's state, made on first use. Raises pytest.UsageError where the options are wrong."""
    if STATE not in config.stash:
        settings = read_settings(config)
        # There is none under -p no:cacheprovider. Processes of torchrun measure together, or none of them does.
        cache = getattr(config, "cache", None) if settings.cache and world()[1] == 1 else None
        evidence = None if cache is None else Evidence(lambda: cache.mkdir("deaddir"))
        config.stash[STATE] = State(config, settings, Measurements(config, evidence), Results(settings))
    return config.stash[STATE]
