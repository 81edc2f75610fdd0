"""``mfubench models``."""

import json as json_module
import sys

from .options import Debug, Json, Quiet, Verbose


def models(json: Json = False, quiet: Quiet = False, verbose: Verbose = False, debug: Debug = False) -> None:
    """List the zoo: sizes, parameters and model FLOPs of a sample with every sequence at its full length.

    Examples:

    mfubench models

    mfubench models --json
    """
    from mfubench.workload.zoo import list_models

    listed = list_models()
    if json:
        sys.stdout.write(json_module.dumps(listed, indent=1) + "\n")
        return
    from rich.table import Table

    from mfubench.report.format import number
    from mfubench.report.terminal import stdout_console

    console = stdout_console()
    for model in listed:
        table = Table(title=f"{model['name']}: {model['summary']}", title_justify="left", title_style="bold")
        for header in (
            "size",
            "forward GFLOP/sample",
            "training GFLOP/sample",
            "dense params M",
            "all params M",
            "sequences",
        ):
            table.add_column(header, justify="left" if header in ("size", "sequences") else "right", overflow="fold")
        for size, facts in model["sizes"].items():
            table.add_row(
                size,
                number(facts["fwd_gflops_per_sample"], 4),
                number(facts["train_gflops_per_sample"], 4),
                number(facts["dense_params"] / 1e6, 4),
                number(facts["params"] / 1e6, 4),
                ", ".join(f"{name} {length}" for name, length in facts["sequences"].items()),
            )
        console.print(table)
