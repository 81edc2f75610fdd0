"""Base is what head began from, and is gone afterwards; what cannot be had is said."""

from pathlib import Path

import pytest

from mfubench.errors import BadInput
from mfubench.gate.source import both_sides
from tests.mfubench.gate.repository import AS_USED, a_repository, edit, git


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = a_repository(tmp_path / "repository")
    monkeypatch.chdir(folder)
    return folder


def test_base_is_the_merge_base_and_head_what_lies_there(repository: Path) -> None:
    """What others have added to main since is not held against this change, and what is not committed is part of it."""
    began = git(repository, "rev-parse", "HEAD")
    git(repository, "checkout", "--quiet", "main")
    edit(repository / "net.py", "nn.Linear(16, 1)", "nn.Linear(16, 2)")
    git(repository, "commit", "--quiet", "--all", "--message", "of others")
    git(repository, "checkout", "--quiet", "change")
    edit(repository / "net.py", AS_USED, f"{AS_USED}.clone()")
    with both_sides("main") as (base, head):
        assert base.commit == began and not base.dirty and head.dirty
        assert (
            "nn.Linear(16, 1)" in (base.folder / "net.py").read_text()
            and "clone" in (head.folder / "net.py").read_text()
        )
        assert base.paths == (base.folder,) and head.folder == repository.resolve()
    assert not base.folder.exists() and len(git(repository, "worktree", "list").splitlines()) == 1


def test_a_new_file_is_a_change_of_head(repository: Path) -> None:
    with both_sides("main") as (_, head):
        assert head.dirty is False
    (repository / "new.py").write_text("")
    with both_sides("main") as (base, head):
        assert head.dirty and not base.dirty and not (base.folder / "new.py").exists()


def test_a_folder_as_base_is_as_dirty_as_its_checkout(repository: Path, tmp_path: Path) -> None:
    other = a_repository(tmp_path / "other")
    with both_sides(str(other)) as (base, _):
        assert base.commit == git(other, "rev-parse", "HEAD") and base.dirty is False
    (other / "new.py").write_text("")
    with both_sides(str(other)) as (base, _):
        assert base.dirty


def test_hooks_of_a_checkout_do_not_run(repository: Path) -> None:
    hook = repository / ".git" / "hooks" / "post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {repository}/hooked\n")
    hook.chmod(0o755)
    with both_sides("main"):
        assert not (repository / "hooked").exists()


def test_it_is_taken_away_after_an_error_too(repository: Path) -> None:
    with pytest.raises(KeyboardInterrupt), both_sides("main") as (base, _):
        raise KeyboardInterrupt
    assert not base.folder.exists() and len(git(repository, "worktree", "list").splitlines()) == 1


def test_a_folder_in_a_repository_is_found_in_base_too(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = repository / "ranking" / "src"
    inner.mkdir(parents=True)
    (inner / "ranked.py").write_text("")
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--message", "a folder")
    monkeypatch.chdir(repository / "ranking")
    with both_sides("HEAD", ["src"]) as (base, _):
        assert base.paths == (base.folder / "src",) and (base.folder / "src" / "ranked.py").is_file()
    with pytest.raises(BadInput, match="is not in"), both_sides("main"):
        pass


def test_base_may_be_a_folder(repository: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    with both_sides(str(copy)) as (base, _):
        assert base.folder == copy.resolve() and base.commit is None
    assert copy.is_dir()


@pytest.mark.parametrize("base", ["no-such-branch", "--help", "", " "])
def test_what_is_neither_is_said(repository: Path, base: str) -> None:
    with pytest.raises(BadInput, match=r"neither a revision nor a folder|--base is empty"), both_sides(base):
        pass


def test_a_path_may_be_absolute_and_is_base_s_own_there(repository: Path) -> None:
    (repository / "src").mkdir(exist_ok=True)
    copy = repository.parent / "another copy"
    (copy / "src").mkdir(parents=True)
    with both_sides(str(copy), [str(repository / "src")]) as (base, head):
        assert base.paths == ((copy / "src").resolve(),)
        assert head.paths == ((repository / "src").resolve(),)


def test_a_path_outside_of_the_working_directory_is_refused(repository: Path) -> None:
    with pytest.raises(BadInput, match=r"--path \.\. is outside of"), both_sides("HEAD", [".."]):
        pass


def test_itself_is_no_base(repository: Path) -> None:
    with pytest.raises(BadInput, match="self-check"), both_sides("."):
        pass


def test_histories_without_a_common_commit(repository: Path) -> None:
    git(repository, "checkout", "--quiet", "--orphan", "other")
    git(repository, "commit", "--quiet", "--message", "unrelated")
    with pytest.raises(BadInput, match="fetch-depth: 0"), both_sides("main"):
        pass


def test_without_git_only_a_folder_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(BadInput, match="knows no commit"), both_sides("main"):
        pass


def test_a_path_that_is_not_there(repository: Path) -> None:
    with pytest.raises(BadInput, match="--path src: no such folder"), both_sides("main", ["src"]):
        pass
