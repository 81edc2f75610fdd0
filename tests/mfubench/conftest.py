"""What the tests of the tool share: a cache folder of their own, a calibration, and workloads that are quick to run."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from mfubench.measure.calibrate import Calibration, load_or_calibrate
from mfubench.workload.prepare import prepare
from mfubench.workload.spec import Workload, WorkloadSpec
from tests.mfubench.ablate.machine import Machine

ZooWorkload = Callable[..., Workload]


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder for the session, its subprocesses included: the user's own calibration is left alone.

    Tests run side by side: what they calibrate is kept however busy the machine is.
    """
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.setattr("mfubench.measure.calibrate.BUSY", 0.0)
        yield folder


@pytest.fixture(scope="session", autouse=True)
def no_columns() -> Iterator[None]:
    """Output as wide as into any pipe, subprocesses included: some runners of tests say COLUMNS for their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("COLUMNS", raising=False)
        yield


@pytest.fixture(scope="session")
def calibrated(own_cache: Path) -> Calibration:
    """The CPU's fp32 calibration, measured once and kept in the session's cache, where every profile finds it."""
    return load_or_calibrate(torch.device("cpu"), "fp32")


@pytest.fixture
def fixed_calibration(monkeypatch: pytest.MonkeyPatch) -> Calibration:
    """A calibration without measuring: 1 TFLOP/s and 100 GB/s, for tests that are not about the peak."""
    found = Calibration("a CPU", {"fp32": 1.0, "bf16": 1.0}, 100.0, {}, "2026-01-01T00:00:00+00:00", "", 1, "by hand")
    monkeypatch.setattr("mfubench.profiling.load_or_calibrate", lambda *args, **options: found)
    return found


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """An ablation's machine, which answers at once."""
    return Machine().installed(monkeypatch)


@pytest.fixture
def zoo() -> ZooWorkload:
    """A workload of the zoo on the CPU, by default tiny and of a few samples, whatever devices there are."""

    def make(model: str = "transformer", **changes: object) -> Workload:
        options = {"size": "tiny", "batch_size": 4, "steps": 1, "device": "cpu"} | changes
        return prepare(WorkloadSpec(model, **options))  # type: ignore[arg-type]

    return make
