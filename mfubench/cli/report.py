"""``mfubench report``."""

import json as json_module
import sys
from pathlib import Path
from typing import Annotated

import typer

from .folders import own_folder
from .options import Debug, Json, Quiet, Verbose, out_option


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="run.json files, or folders that hold one.")],
    out: Annotated[Path | None, out_option("")] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Show one or several profiled runs again, or write them as report.md, with its charts, and report.html.

    Examples:

    mfubench report out/kunlun

    mfubench report out/transformer out/kunlun --out out/both
    """
    from mfubench.report import write_reports
    from mfubench.report.terminal import print_runs, stdout_console
    from mfubench.run import read_run

    documents = [read_run(path) for path in runs]
    homes = {(path if path.is_dir() else path.parent).resolve() for path in runs}
    if out is not None and out.resolve() not in homes:  # whose own report may be written again
        own_folder(out, "report")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_reports(documents, out)
    if json:
        listed = [json_module.loads(document.to_json()) for document in documents]
        sys.stdout.write(json_module.dumps(listed[0] if len(listed) == 1 else listed, indent=1) + "\n")
    else:
        print_runs(documents, stdout_console(), full=verbose)
    if out is not None and not quiet:
        print(f"mfubench: wrote {out / 'report.md'} and {out / 'report.html'}", file=sys.stderr)
