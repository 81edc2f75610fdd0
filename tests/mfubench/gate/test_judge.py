"""Others on the GPU are told of before anything is timed there."""

import pytest
import torch

from mfubench.gate import judge


def test_others_are_counted_when_the_driver_lists_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """It lists who has used the device, and this process has left that to its workers."""
    used: list[torch.device] = []
    monkeypatch.setattr(judge, "device_uuid", lambda _device: "GPU-aaaa")
    monkeypatch.setattr("torch.cuda.synchronize", used.append)
    monkeypatch.setattr(judge, "other_processes", lambda _uuid: 2 if used else None)
    assert judge._warning_of_others() == ["2 other processes are on the GPU: intervals are wider than they need to be"]
