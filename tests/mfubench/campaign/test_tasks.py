"""What a campaign's tasks do about a peer that breaks the device's context."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mfubench.campaign import tasks
from mfubench.campaign.plan import Task
from mfubench.campaign.store import DONE, Store
from mfubench.kernels import bench
from mfubench.kernels.bench import PeerBroke

GPU = torch.device("cuda")
PLACE = {"op": "rms_norm", "shape": "a shape", "peers": []}


def breaks(*_: Any, without: dict[str, str], **__: Any) -> Any:
    """The first peer that is not left out breaks it."""
    peer = next((name for name in ("one", "other") if name not in without), None)
    if peer is not None:
        raise PeerBroke(peer, "it wrote where it should not")
    return {name: why for name, why in without.items()}


def until_it_stands(stage: str, folder: Path) -> Any:
    arguments: dict[str, Any] = dict(PLACE)
    for _ in range(3):
        try:
            return tasks._BY_STAGE[stage](arguments, GPU, folder)
        except tasks.Again as again:
            arguments = again.arguments
    raise AssertionError("it never stands")


def test_the_peers_that_break_it_are_left_out_one_by_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench, "build_peers", breaks)
    found = until_it_stands("peers", tmp_path)
    assert list(found["without"]) == list(found["absent"]) == ["one", "other"]


def test_a_bench_knows_which_break_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From when the peers were run once; one that breaks it in the bench itself is left out the same way."""
    asked: list[dict[str, str]] = []

    def bench_op(*arguments: Any, without: dict[str, str], **options: Any) -> list[Any]:
        asked.append(dict(without))
        breaks(without=without)
        return []

    monkeypatch.setattr(bench, "bench_op", bench_op)
    monkeypatch.setattr(bench, "document", lambda rows, device: {"rows": rows})
    monkeypatch.setattr(tasks, "_require_right", lambda store, op: None)
    monkeypatch.setattr("mfubench.measure.environment.device_uuid", lambda device: None)
    known = {"absent": {}, "without": {"one": "it wrote where it should not"}}
    Store(tmp_path).write(Task("peers", "rms_norm-a-shape", PLACE), DONE, None, known)
    Store(tmp_path).write(
        Task("peers", "rms_norm-another", {**PLACE, "shape": "b"}), DONE, None, {"without": {"x": ""}}
    )
    assert until_it_stands("bench", tmp_path)["rows"] == []
    assert [list(names) for names in asked] == [["one"], ["one", "other"]]


def test_without_a_gpu_peers_are_not_run(tmp_path: Path) -> None:
    with pytest.raises(tasks.NotHere, match="on a GPU only"):
        tasks._BY_STAGE["peers"](dict(PLACE), torch.device("cpu"), tmp_path)
