"""Others on the GPU are told of before anything is timed there, and all models share the risk of an interval."""

import math

import pytest
import torch

from mfubench.gate import judge
from mfubench.gate.policy import LIMITS
from mfubench.gate.timing import Pair
from mfubench.workload.spec import WorkloadSpec


def test_others_are_counted_when_the_driver_lists_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """It lists who has used the device, and this process has left that to its workers."""
    used: list[torch.device] = []
    monkeypatch.setattr(judge, "device_uuid", lambda _device: "GPU-aaaa")
    monkeypatch.setattr("torch.cuda.synchronize", used.append)
    monkeypatch.setattr(judge, "other_processes", lambda _uuid: 2 if used else None)
    assert judge._warning_of_others() == ["2 other processes are on the GPU: intervals are wider than they need to be"]


@pytest.mark.parametrize(("num_models", "pairs"), [(1, 4), (2, 8)])
def test_models_that_are_judged_together_share_the_risk(num_models: int, pairs: int) -> None:
    """0 with a standard error of 0.00548: 4.857 of them are below the 3 % of the limit, the 6.232 of half the risk not.

    So one model is decided by the first look, and one of two by the second.
    """
    question = judge.Question({f"net{at}": WorkloadSpec(f"net{at}") for at in range(num_models)}, (), LIMITS)
    stock = {"code": {}, "counts": {}, "data_hash": "", "not_compiled": {}, "kernels": {}}
    offered = (Pair(log, 0.0, [1.0], [math.exp(log)]) for log in [0.0095, -0.0095] * 8)
    row, timing = judge._timed_row(question, "net0", offered, (stock, stock), [], 60.0, lambda _done: None)
    assert row.verdict == "PASS" and timing is not None and timing["pairs"] == pairs
