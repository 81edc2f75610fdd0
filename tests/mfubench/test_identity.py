"""Whose a folder is: the same code, whatever git says of it, and the same of all else that measurements hang on."""

import json
from pathlib import Path

import pytest

import mfu_kernels
import mfu_models
import mfubench.kernels
from mfubench.errors import BadInput
from mfubench.identity import code_hash, kernels_hash, require_same


def test_an_edit_makes_other_code_unless_it_only_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("report", "measure"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.py").write_text("x = 1\n")
    monkeypatch.setattr(mfubench, "__path__", [str(tmp_path)])
    before = code_hash()
    (tmp_path / "report" / "a.py").write_text("x = 2\n")
    assert code_hash() == before
    (tmp_path / "measure" / "a.py").write_text("x = 2\n")
    assert code_hash() != before


def test_other_models_are_no_other_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in (mfubench.kernels, mfu_kernels, mfu_models):
        before = kernels_hash()
        folder = tmp_path / package.__name__
        folder.mkdir()
        (folder / "a.py").write_text("x = 1\n")
        with monkeypatch.context() as patched:
            patched.setattr(package, "__path__", [str(folder)])
            after = kernels_hash()
        assert (before == after) == (package is mfu_models), package


def test_all_that_differs_is_named_and_what_to_do(tmp_path: Path) -> None:
    here = {"sizes": ("tiny", "base"), "seeds": 2, "code": "abc", "batch_size": None}
    there = json.loads(json.dumps(here))
    require_same(tmp_path, "ladder", there, here)
    with pytest.raises(BadInput) as refused:
        require_same(tmp_path, "ladder", {**there, "seeds": 3, "code": "abd", "old": 1}, here)
    assert str(refused.value) == (
        f"{tmp_path} belongs to another ladder (seeds 3 there, 2 here; other code; old 1 there, None here); "
        "choose another --out, or remove what is there"
    )
