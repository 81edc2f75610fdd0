"""``mfubench compare``."""

import json as json_module
import sys
from pathlib import Path
from typing import Annotated

import typer

from mfubench.errors import BadInput

from .folders import own_folder
from .options import Debug, Json, Quiet, Verbose, out_option


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="run.json files, or folders that hold one.")],
    baseline: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Which of them is the baseline. \\[default: the first]")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Compare them also where device, dtype, mode or data differ, and say so.")
    ] = False,
    out: Annotated[Path | None, out_option("comparison.json, ")] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Compare runs with a baseline: step time ratio, utilisation, FLOPs, memory, energy, ledgers side by side.

    Runs compare when device, dtype, mode and data agree; others are refused (exit code 2) unless --force is given. DIR
    gets comparison.json, report.md with its charts and report.html.

    Examples:

    mfubench compare out/transformer out/kunlun

    mfubench compare out/a out/b out/c --baseline out/b --out out/abc
    """
    from mfubench.comparison import compare as compare_runs
    from mfubench.comparison import require_comparable
    from mfubench.files import write_json
    from mfubench.report import write_page
    from mfubench.report.comparison import comparison_page
    from mfubench.report.terminal import print_page, stdout_console
    from mfubench.run import read_run

    place = _place(runs, baseline)
    documents = [read_run(path) for path in runs]
    require_comparable(dict(zip(map(str, runs), documents, strict=True)), force=force)
    own_folder(out, "compare")
    found = compare_runs(documents, baseline=place)
    page = comparison_page(documents, found, list(map(str, runs)))
    told = found.to_document(documents)
    if out is not None:
        write_page(page, out)
        write_json(out / "comparison.json", told)
    if json:
        sys.stdout.write(json_module.dumps(told, indent=1) + "\n")
    else:
        print_page(page, stdout_console(), full=verbose)


def _place(runs: list[Path], baseline: Path | None) -> int:
    """The baseline's place among ``runs``, each of which is another file."""
    files = [path.resolve() for path in runs]
    files = [path / "run.json" if path.is_dir() else path for path in files]
    for path, file in zip(runs, files, strict=True):
        if files.count(file) > 1:
            raise BadInput(f"{path} is given twice; give runs that were measured apart")
    if baseline is None:
        return 0
    wanted = baseline.resolve()
    wanted = wanted / "run.json" if wanted.is_dir() else wanted
    if wanted not in files:
        raise BadInput(f"--baseline {baseline} is not among the runs: {', '.join(map(str, runs))}")
    return files.index(wanted)
