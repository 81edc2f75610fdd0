"""Options that every command has, and where their output goes: results to stdout, everything else to stderr."""

import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from mfubench.errors import BadInput

DEBUG_FLAG = "--debug"

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="More detail: longer tables, each step's progress.")]
Debug = Annotated[bool, typer.Option(DEBUG_FLAG, help="Show the traceback of an error.")]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Folder for run.json, report.md and report.html.", show_default=False),
]


def writable_folder(folder: Path | None) -> None:
    """Make sure before a long run that ``folder`` can be made and written, without leaving anything there.

    Raises:
        BadInput: it cannot.
    """
    if folder is None:
        return
    nearest = folder
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    try:
        if not nearest.is_dir():
            raise NotADirectoryError(20, "it is a file")
        os.rmdir(tempfile.mkdtemp(dir=nearest, prefix=".mfubench-"))
    except OSError as error:
        raise BadInput(f"--out {folder}: cannot write in {nearest}: {error.strerror}; choose another folder") from None
