"""What a campaign's bench does about a peer that breaks the device's context."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mfubench.campaign import tasks
from mfubench.kernels import bench
from mfubench.kernels.bench import PeerBroke

ARGUMENTS = {"op": "rms_norm", "shape": "a shape", "peers": []}


def test_peers_that_break_it_are_left_out_one_by_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each time in a process of its own, which the campaign sees to."""
    left_out: list[dict[str, str]] = []

    def bench_op(*_: Any, without: dict[str, str], **__: Any) -> list[Any]:
        left_out.append(dict(without))
        peer = next((name for name in ("one", "other") if name not in without), None)
        if peer is not None:
            raise PeerBroke(peer, f"{peer} wrote where it should not")
        return []

    monkeypatch.setattr(bench, "bench_op", bench_op)
    monkeypatch.setattr(bench, "document", lambda rows, device: {"rows": rows})
    monkeypatch.setattr(tasks, "_require_right", lambda store, op: None)
    monkeypatch.setattr("mfubench.measure.environment.device_uuid", lambda device: None)
    arguments: dict[str, Any] = dict(ARGUMENTS)
    for _ in range(2):
        with pytest.raises(tasks.Again) as again:
            tasks._bench(arguments, torch.device("cuda"), tmp_path)
        arguments = again.value.arguments
    assert tasks._bench(arguments, torch.device("cuda"), tmp_path)["rows"] == []
    assert [list(names) for names in left_out] == [[], ["one"], ["one", "other"]]
    assert left_out[-1]["other"] == "other wrote where it should not"


def test_kernels_are_timed_on_a_gpu_only(tmp_path: Path) -> None:
    with pytest.raises(tasks.NotHere, match="on a GPU only"):
        tasks._bench(dict(ARGUMENTS), torch.device("cpu"), tmp_path)
