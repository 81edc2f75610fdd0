"""``mfubench doctor``."""

import json as json_module
import sys
from typing import Annotated

import typer

from .options import Debug, Json, Quiet, Verbose


def doctor(
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure the device's peaks anew and keep them.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Say what this machine can measure: devices, peaks, driver counters, versions.

    Examples:

    mfubench doctor

    mfubench doctor --calibrate
    """
    from mfubench.doctor import examine

    from .progress import stages

    with stages(quiet=quiet, verbose=verbose) as progress:
        found = examine(refresh=calibrate, progress=progress)
    if json:
        sys.stdout.write(json_module.dumps(found, indent=1) + "\n")
        return
    from rich.table import Table

    from mfubench.report.format import label, value
    from mfubench.report.terminal import stdout_console

    console = stdout_console()
    for title, facts in found.items():
        table = Table(title=label(title), title_justify="left", title_style="bold", show_header=False)
        for key, given in facts.items():
            table.add_row(label(key), value(key, given))
        console.print(table)
