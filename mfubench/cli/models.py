"""``mfubench models``."""

import json as json_module
import sys
from typing import Annotated

import typer

from mfubench.errors import BadInput

from .options import Debug, Json, Quiet, Verbose


def models(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print Markdown, as model_zoo/README.md has it.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """List the zoo: what each model is, its sizes, sequences, parameters and model FLOPs of a sample.

    Examples:

    mfubench models

    mfubench models --json
    """
    if markdown and json:
        raise BadInput("--markdown and --json are two outputs; give one of them")
    from mfubench.workload.zoo import list_models

    listed = list_models()
    if json:
        sys.stdout.write(json_module.dumps(listed, indent=1) + "\n")
        return
    from mfubench.report.models import models_page

    page = models_page(listed)
    if markdown:
        from mfubench.report.markdown import render_page

        sys.stdout.write(render_page(page, level=2))
    else:
        from mfubench.report.terminal import print_page, stdout_console

        print_page(page, stdout_console(), full=True)
