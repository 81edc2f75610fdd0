"""Lock files: what was written is read, and what this release cannot launch is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

import mfubench
from mfu_kernels import lock
from mfubench.errors import BadInput
from mfubench.kernels.locks import read_lock, write_lock


@pytest.fixture
def entry() -> dict[str, Any]:
    return dict(next(one for one in lock.committed() if one["kernel"] == "layer_norm_bwd_kernel"))


def test_what_was_written_is_read(tmp_path: Path, entry: dict[str, Any]) -> None:
    write_lock([entry], tmp_path)
    assert read_lock(tmp_path) == read_lock(tmp_path / "lock.json") == [entry]


def test_every_committed_entry_can_be_launched(tmp_path: Path) -> None:
    write_lock(lock.committed(), tmp_path)
    assert len(read_lock(tmp_path)) == len(lock.committed())


def test_a_script_uses_it(tmp_path: Path, entry: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_adopted", [])
    monkeypatch.setattr(lock, "_holds", None)
    write_lock([{**entry, "device": "a GPU"}], tmp_path)
    mfubench.use_lock(str(tmp_path / "lock.json"))
    assert lock.places().by_device["layer_norm_bwd_kernel", "a GPU", entry["key"]].config == entry["config"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "cannot read"),
        ("{", "is not JSON"),
        ("[]", "is no lock of schema_version 1"),
        ('{"schema_version": 2, "entries": []}', "is no lock of schema_version 1"),
        ('{"schema_version": 1, "entries": {}}', "is no lock of schema_version 1"),
        ('{"schema_version": 1, "entries": [3]}', "3 is no entry: kernel, device, target, key, date are texts"),
    ],
)
def test_what_is_no_lock_is_refused(tmp_path: Path, content: str | None, why: str) -> None:
    file = tmp_path / "lock.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(BadInput, match=f"{why}.*make one with `mfubench kernels tune`"):
        read_lock(file)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"kernel": "a_kernel"}, "this release has no a_kernel"),
        ({"key": "breadth=512"}, "layer_norm_bwd_kernel has no key 'breadth=512' in this release"),
        ({"config": {"ROWS": 3, "num_warps": 4, "num_stages": 1}}, "has no config {'ROWS': 3"),
        ({"config": None}, "has no config None"),
        ({"date": None}, "are texts"),
    ],
)
def test_what_this_release_cannot_launch_is_refused(
    tmp_path: Path, entry: dict[str, Any], change: dict[str, Any], why: str
) -> None:
    (tmp_path / "lock.json").write_text(json.dumps({"schema_version": 1, "entries": [{**entry, **change}]}))
    with pytest.raises(BadInput, match=why):
        read_lock(tmp_path)
