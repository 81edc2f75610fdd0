"""Progress of long work on stderr: a bar on a terminal, a line a stage elsewhere, nothing with --quiet."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from mfubench.progress import Progress, silent

from .signals import go_on_unless_interrupted
from .watched import tell_stage


@contextmanager
def stages(*, quiet: bool, verbose: bool = False) -> Iterator[Progress]:
    """A function ``(stage in words, share done)`` to report progress with.

    What is printed inside, as by a user's own model, is no part of the result: it goes to stderr.
    """
    with redirect_stdout(sys.stderr), _shown(quiet, verbose) as show:

        def progress(stage: str, done: float) -> None:
            go_on_unless_interrupted()
            tell_stage(stage)
            show(stage, done)

        yield progress


@contextmanager
def _shown(quiet: bool, verbose: bool) -> Iterator[Progress]:
    if quiet:
        yield silent
    elif sys.stderr.isatty():
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        from mfubench.report.terminal import stderr_console

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:.0f} %"),
            TimeElapsedColumn(),
        )
        with Bar(*columns, console=stderr_console(), transient=True) as bar:
            task = bar.add_task("", total=1.0)
            yield lambda stage, done: bar.update(task, description=stage, completed=done)
    else:
        yield _LinePerStage(verbose)


class _LinePerStage:
    """Prints a stage when it begins; what precedes the first measurement, and single steps, only if ``verbose``.

    So bad input, which shows before anything is measured, gets one line and no more.
    """

    def __init__(self, verbose: bool) -> None:
        self.verbose = verbose
        self.last = ""

    def __call__(self, stage: str, done: float) -> None:
        words = "".join(letter for letter in stage if not letter.isdigit())
        if self.verbose or (words != self.last and done > 0):
            print(f"mfubench: {done:4.0%} {stage}", file=sys.stderr, flush=True)
        self.last = words
