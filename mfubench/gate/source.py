"""Where the two sides of a gate come from: the working directory, and the commit that it branched off, in a folder."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mfubench.errors import BadInput, ToolBroke
from mfubench.measure.environment import git, uncommitted
from mfubench.worker import Place

CHECKOUT_LIMIT_S = 300.0  # of a large repository


@dataclass(frozen=True, slots=True)
class Source:
    """One side's code: the folder that it runs in, and the folders that it is imported from, before all others.

    ``given`` is what the user called it; ``commit`` is that of its checkout, which is ``dirty`` with files that are
    changed or new, and not ignored by git; both None outside of git. It imports nothing from ``hidden``, the other
    side's. One that is ``lasting`` is there afterwards.
    """

    name: str
    given: str
    folder: Path
    paths: tuple[Path, ...]
    commit: str | None = None
    dirty: bool | None = None
    hidden: tuple[Path, ...] = ()
    lasting: bool = True

    @property
    def place(self) -> Place:
        """Where its processes run."""
        return Place(self.folder, self.paths, self.hidden)

    def to_document(self) -> dict[str, Any]:
        """As JSON, with where it is if it is still there."""
        told = {key: getattr(self, key) for key in ("name", "given", "commit", "dirty")}
        return told | {"folder": str(self.folder) if self.lasting else None}


@contextmanager
def both_sides(base: str, paths: Sequence[str] = ()) -> Iterator[tuple[Source, Source]]:
    """Base and head: head is the working directory as it stands, its changes included.

    ``base`` is a revision, of which the merge base with HEAD is checked out for as long as the context lasts, or a
    folder with another copy of the working directory. ``paths`` are folders in both, from which Python imports;
    without any, it is the working directory itself.

    Raises:
        BadInput: ``base`` is neither, or has no commit in common with HEAD; a path is not in the working directory.
        ToolBroke: git cannot check it out.
    """
    head = working_directory(paths)
    paths = [str(path.relative_to(head.folder)) for path in head.paths]  # base has them in a folder of its own
    if not base.strip():
        raise BadInput("--base is empty; give a revision, such as origin/main, or a folder")
    revision = git(head.folder, "rev-parse", "--verify", "--quiet", f"{base}^{{commit}}")
    if revision is None:
        yield _copy(base, head, paths), head
        return
    with _checked_out(head.folder, _merge_base(head.folder, base, revision)) as (folder, commit):
        yield Source("base", base, folder, _within(folder, paths), commit, False, head.paths, lasting=False), head


def working_directory(paths: Sequence[str] = ()) -> Source:
    """The working directory as a side of its own.

    Raises:
        BadInput: a path is not in it.
    """
    here = Path.cwd().resolve()
    for path in paths:
        if not (here / path).is_dir():
            raise BadInput(f"--path {path}: no such folder in {here}")
        if not (here / path).resolve().is_relative_to(here):
            raise BadInput(f"--path {path} is outside of {here}; give folders in it, or call the gate from further up")
    return Source("head", "working directory", here, _within(here, paths), *_state(here))


def _state(folder: Path) -> tuple[str | None, bool | None]:
    return git(folder, "rev-parse", "HEAD"), uncommitted(folder, limit_s=CHECKOUT_LIMIT_S)


def _within(folder: Path, paths: Sequence[str]) -> tuple[Path, ...]:
    return tuple((folder / path).resolve() for path in paths or (".",))


def _copy(base: str, head: Source, paths: Sequence[str]) -> Source:
    folder = Path(base).resolve()
    if not folder.is_dir():
        why = "" if head.commit else f", and `git rev-parse HEAD` knows no commit in {head.folder}"
        raise BadInput(f"--base {base} is neither a revision nor a folder{why}")
    if folder == head.folder:
        raise BadInput(f"--base {base} is the working directory; `mfubench gate self-check` holds it against itself")
    return Source("base", base, folder, _within(folder, paths), *_state(folder), hidden=head.paths)


def _merge_base(here: Path, base: str, revision: str) -> str:
    """Head is held against where it began: what others have added to ``base`` since is not head's doing."""
    found = git(here, "merge-base", revision, "HEAD")
    if found is None:
        raise BadInput(
            f"--base {base} has no commit in common with HEAD; in a shallow clone, fetch all of both "
            "(actions/checkout: fetch-depth: 0)"
        )
    return found


@contextmanager
def _checked_out(here: Path, commit: str) -> Iterator[tuple[Path, str]]:
    """The working directory as it was in ``commit``, for as long as the context lasts."""
    top = git(here, "rev-parse", "--show-toplevel")
    assert top is not None  # it has a commit
    with tempfile.TemporaryDirectory(prefix="mfubench-base-") as temporary:
        tree = Path(temporary).resolve() / Path(top).name
        # Whoever has hooks wants them for a working directory, not for this.
        add = ("-c", "core.hooksPath=/dev/null", "worktree", "add", "--detach", str(tree), commit)
        made = git(here, *add, limit_s=CHECKOUT_LIMIT_S)
        if made is None:
            raise ToolBroke(f"`git worktree add --detach {tree} {commit}` failed in {here}")
        try:
            folder = tree / here.relative_to(Path(top).resolve())
            if not folder.is_dir():
                raise BadInput(f"{here} is not in {commit[:12]}, which --base leads to; nothing to hold it against")
            yield folder, commit
        finally:
            git(here, "worktree", "remove", "--force", str(tree), limit_s=CHECKOUT_LIMIT_S)
