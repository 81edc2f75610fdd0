"""Files are written whole or not at all, and documents are read or refused in words."""

import json
import os

import pytest

from mfubench.errors import BadInput
from mfubench.files import kept_json, place_file, read_json, write_json, write_text


def test_a_document_comes_back_as_it_went(tmp_path):
    told = {"name": "é", "rows": [{"ms": 1.5, "calls": 2}]}
    write_json(tmp_path / "a.json", told)
    assert read_json(tmp_path / "a.json", "") == kept_json(tmp_path / "a.json") == told
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == json.dumps(told, indent=1) + "\n"


@pytest.mark.parametrize("text", ["{", "", "NaN", "[-Infinity]", "[1e999]", b"\xff"])
def test_what_is_not_json_is_refused(tmp_path, text):
    file = tmp_path / "a.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BadInput, match=r"a\.json is not JSON; give another$"):
        read_json(file, "give another")
    assert kept_json(file) is None


def test_what_is_not_there_is_refused_or_was_not_kept(tmp_path):
    with pytest.raises(BadInput, match=r"cannot read .*nowhere\.json: No such file or directory; give another$"):
        read_json(tmp_path / "nowhere.json", "give another")
    assert kept_json(tmp_path / "nowhere.json") is None


def test_text_is_written_and_readable_by_others(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    write_text(path, "new é\n")
    assert path.read_text(encoding="utf-8") == "new é\n"
    mask = os.umask(0o077)
    write_text(tmp_path / "private.txt", "")
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask
    assert (tmp_path / "private.txt").stat().st_mode & 0o777 == 0o600
    (tmp_path / "private.txt").unlink()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("broken", ["os.replace", "Path.open"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, broken, error):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(f"mfubench.files.{broken}", fail)
    with pytest.raises(type(error)):
        write_text(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_an_interrupt_right_after_a_write_is_an_interrupt(tmp_path, monkeypatch):
    replace = os.replace

    def replaced(*args):
        replace(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr("mfubench.files.os.replace", replaced)
    with pytest.raises(KeyboardInterrupt):
        write_text(tmp_path / "a.txt", "new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["new"]


def test_the_umask_which_all_threads_share_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("os.umask", None)
    write_text(tmp_path / "a.txt", "new")
    place_file(tmp_path / "a.txt", tmp_path / "b.txt")
    assert (tmp_path / "b.txt").read_text() == "new"


def test_text_that_cannot_be_encoded_leaves_nothing(tmp_path):
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a.txt", "\ud800")
    assert list(tmp_path.iterdir()) == []
