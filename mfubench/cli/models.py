"""``mfubench models``."""

import sys
from typing import Annotated

import typer

from mfubench.errors import BadInput

from .options import Debug, Json, Quiet, Verbose, put


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
    from mfubench.report.models import models_page

    if markdown:
        from mfubench.report.markdown import render_page

        sys.stdout.write(render_page(models_page(listed), level=2))
    else:
        put(listed, lambda: models_page(listed), json=json, verbose=True)
