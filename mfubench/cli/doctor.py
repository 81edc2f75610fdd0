"""``mfubench doctor``."""

from typing import Annotated

import typer

from .options import Debug, Json, Quiet, Verbose, put


def doctor(
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure the device's peaks again and keep them.")
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
    from mfubench.report.device import doctor_page

    put(found, lambda: doctor_page(found), json=json, verbose=verbose)
