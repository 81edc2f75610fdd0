"""Tuning takes the fastest config and keeps its measurement; a locked config is what a launch then takes."""

from typing import Any

import pytest
import torch

from mfu_kernels import lock
from mfu_kernels.launching import KERNELS, config
from mfu_kernels.rms_norm.examples import EXAMPLES
from mfubench.errors import BadInput
from mfubench.kernels import tune
from mfubench.kernels.catalog import kernels_of, ops_with_kernels
from mfubench.kernels.timing import Call

CPU, SMALL = torch.device("cpu"), {"rows": 9, "width": 512, "weight": True}


@pytest.fixture
def no_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_adopted", [])
    lock._by_place.cache_clear()
    yield  # type: ignore[misc]
    lock._by_place.cache_clear()


def entry(rows: int) -> dict[str, Any]:
    return {
        "kernel": "rms_norm_fwd_kernel",
        "device": "a GPU",
        "key": lock.key_text({"width": 512, "bytes": 2}),
        "config": {"ROWS": rows, "num_warps": 4, "num_stages": 1},
    }


def test_the_committed_lock_reads_and_names_kernels_that_exist() -> None:
    for op in ops_with_kernels():
        kernels_of(op)
    for found in lock.committed():
        assert found["kernel"] in KERNELS and found["date"] and found["ms"] > 0
        config(**found["config"])


def test_what_is_adopted_holds_for_its_gpu_and_key_only(no_lock: None) -> None:
    lock.adopt([entry(2)])
    lock.adopt([entry(16)])
    found = lock.locked_config("rms_norm_fwd_kernel", "a GPU", {"bytes": 2, "width": 512})
    assert found == entry(16)["config"] and len(lock.merged()) == len(lock.committed()) + 1
    assert lock.locked_config("rms_norm_fwd_kernel", "another GPU", {"bytes": 2, "width": 512}) is None
    assert lock.locked_config("rms_norm_fwd_kernel", "a GPU", {"bytes": 2, "width": 256}) is None


def test_the_fastest_config_wins_and_its_measurement_is_kept() -> None:
    kernel = next(kernel for kernel in kernels_of("rms_norm") if kernel.name == "rms_norm_fwd_kernel")
    key = {"width": 512, "bytes": 4}
    launched = tune.Launched(kernel.name, key, "forward", list(kernel.space(key))[:3])
    ran: list[Any] = []

    def time(calls: dict[str, Call], *, rounds: int) -> dict[str, list[float]]:
        for call in calls.values():
            ran.append(call())
        return {"0": [3.0] * rounds, "1": [1.0, 2.0, 1.0], "2": [2.0] * rounds}

    examples = type(EXAMPLES)(EXAMPLES.function, {}, EXAMPLES.make, {"small": SMALL})
    found = tune._tune_kernel(examples, "small", launched, CPU, "NVIDIA H200", time)
    best = launched.configs[1]
    assert found["config"] == {**best.kwargs, "num_warps": best.num_warps, "num_stages": best.num_stages}
    assert (found["ms"], found["ms_of_default"], found["configs_timed"]) == (1.0, 3.0, 3)
    assert all(torch.equal(out, ran[0]) for out in ran), "configs change the speed, not the numbers"
    assert found["date"] and found["toolchain"]["triton"]


def test_without_a_gpu_nothing_is_tuned() -> None:
    with pytest.raises(BadInput, match="on a GPU only"):
        tune.tune_op(EXAMPLES, CPU, shapes=["norm 295k x 512"])
