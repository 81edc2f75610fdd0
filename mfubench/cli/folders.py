"""The folder that a command's results go to: that it can be written, and is no other command's or process's."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from mfubench.errors import BadInput

if TYPE_CHECKING:
    from mfubench.report.blocks import Page

# What each command leaves in its folder, beside reports that all call the same.
LEFT = {
    "profile": "run.json",
    "sweep": "sweep.json",
    "optimize": "optimize.jsonl",
    "ablate": "ablation.json",
    "scale": "ladder.json",
    "campaign": "campaign.json",
    "compare": "comparison.json",
    "gate": "gate.json",
    "gate self-check": "self-check.json",
    "plan": "plan.json",
    "kernels tune": "tune.json",
    "kernels bench": "bench.json",
}


def own_folder(out: Path | None, command: str) -> None:
    """Make sure before a long run that ``command`` may write in ``out``: that it can, and overwrites its own alone.

    Raises:
        BadInput: it cannot, or another command's results are there.
    """
    if out is None:
        return
    own = LEFT.get(command)
    for other, name in LEFT.items():
        if (out / name).exists() and not (own and (out / own).exists()):
            raise BadInput(f"--out {out} has what `mfubench {other}` left ({name}); give a folder of its own")
    writable_folder(out)


def writable_folder(folder: Path, option: str = "--out") -> None:
    """Make sure that ``folder`` can be made and written, without leaving anything there.

    Raises:
        BadInput: it cannot.
    """
    nearest = folder
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    try:
        if not nearest.is_dir():
            raise NotADirectoryError(20, "it is a file")
        os.rmdir(tempfile.mkdtemp(dir=nearest, prefix=".mfubench-"))
    except OSError as error:
        raise BadInput(
            f"{option} {folder}: cannot write in {nearest}: {error.strerror}; choose another folder"
        ) from None


def writable_file(file: Path | None, option: str) -> None:
    """The same for a file and the folder that it is in.

    Raises:
        BadInput: it cannot be written, or is a folder.
    """
    if file is None:
        return
    if file.is_dir():
        raise BadInput(f"{option} {file} is a folder; give a file")
    writable_folder(file.parent, option)


def goes_on(out: Path | None) -> str:
    """What becomes of what is done, where there is more to do."""
    return f"the same command goes on from what {out} keeps" if out else "nothing is kept without --out DIR"


@contextmanager
def sole_writer(folder: Path | None) -> Iterator[None]:
    """Hold ``folder``, so that two that go on from it do not mix what they find. Folders made for it go if empty.

    Raises:
        BadInput: another process holds it.
    """
    if folder is None or fcntl is None:
        yield
        return
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(f"--out {folder}: another mfubench works there; wait for it, or give another one") from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(handle)
        with suppress(OSError):
            for place in made:
                place.rmdir()


def keep(told: Any, page: "Page", folder: Path, name: str) -> None:
    """The result in ``folder``: its document, which is called ``name``, and its reports."""
    from mfubench.files import write_json
    from mfubench.report import write_page

    write_page(page, folder)
    write_json(folder / name, told)
