"""A machine that answers at once: what a ladder profiles and times is made up from the switches, and can fail."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from mfubench.run import Run
from mfubench.workload.spec import WorkloadSpec
from tests.mfubench.report.factory import a_run

OFF = ("pffn", "pma", "full", "false")


def num_off(spec: WorkloadSpec) -> int:
    """How many of the road's switches are at their start: each costs 1 ms and 10 % of the FLOPs."""
    return sum(value in OFF for value in spec.overrides.values())


@dataclass
class Machine:
    """Keeps what it was asked for; ``fail`` may raise instead of answering."""

    profiled: list[WorkloadSpec] = field(default_factory=list)
    timed: list[tuple[WorkloadSpec, WorkloadSpec]] = field(default_factory=list)
    fail: Callable[[Any], None] = lambda asked: None

    def profile(self, spec: WorkloadSpec, *, progress: Any) -> Run:
        self.fail(spec)
        self.profiled.append(spec)
        flops = (10 + num_off(spec)) * 1e8
        return a_run(
            workload={"overrides": dict(spec.overrides), "size": spec.size, "batch_size": 32, "num_params": 10**6},
            flops={"model": flops, "per_request": flops / 32},
            step={"timings_ms": [time + num_off(spec) for time in (9.9, 10.0, 10.1)]},
            warnings=[],
        )

    def time_pair(self, before: WorkloadSpec, after: WorkloadSpec, source: Any, progress: Any) -> Any:
        self.fail((before, after))
        self.timed.append((before, after))
        return tuple([pace * (10.0 + num_off(spec)) for pace in (1, 3, 2)] for spec in (before, after))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """In place of preparing, profiling and timing."""
    found = Machine()
    monkeypatch.setattr("mfubench.ablate.ladder.prepare", lambda spec, source: spec)
    monkeypatch.setattr("mfubench.ablate.ladder.profile_workload", found.profile)
    monkeypatch.setattr("mfubench.ablate.ladder.time_pair", found.time_pair)
    return found
