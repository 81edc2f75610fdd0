"""``mfubench config show``."""

from collections.abc import Mapping
from typing import Any

import typer

from mfubench.errors import BadInput

from .defaults import Option, options_of, read_defaults
from .options import Debug, Json, Quiet, Verbose, put
from .values import refusals

config = typer.Typer(
    name="config",
    no_args_is_help=True,
    help="Options whose defaults come from a file in the working directory.",
)


@config.command()
def show(
    context: typer.Context, json: Json = False, quiet: Quiet = False, verbose: Verbose = False, debug: Debug = False
) -> None:
    """Show what mfubench.toml, or pyproject.toml under tool.mfubench, sets, with where it is from; with -v, all else.

    A table for each command has the long names of its options: batch-size = 512 in profile's, budget = "20m" in
    gate.run's. The command line goes before it. Limits and waivers of the gate stand in its table: see docs/gate.md.

    Arguments such as a MODEL have no default here, nor has what belongs to one call: --out, --json, --quiet, --verbose,
    --debug. What a command would refuse is refused here, too, with exit code 2.

    Examples:

    mfubench config show

    mfubench config show --verbose --json
    """
    from mfubench.gate.policy import read_policy
    from mfubench.report.config import config_page

    root = context.find_root().command
    found, file = read_defaults(root)
    refused = list(refusals(list(options_of(root)), found, context))
    if refused:
        raise BadInput(f"{file}: {'; '.join(refused)}")
    read_policy(None)
    rows = [_row(option, found, file) for option in options_of(root)]
    told = {"file": file, "options": [row for row in rows if verbose or row["origin"] == file]}
    put(told, lambda: config_page(told), json=json, verbose=True)


def _row(option: Option, found: Mapping[str, Any], file: str | None) -> dict[str, Any]:
    table: Any = found
    for name in option.command:
        table = table.get(name, {})
    value, origin = (table[option.parameter], file) if option.parameter in table else (option.default, "default")
    return {"command": " ".join(option.command), "option": f"--{option.key}", "value": value, "origin": origin}
