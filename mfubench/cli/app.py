"""The application, and how its errors end: one line on stderr and the exit code that the contract names.

0 fine, 1 a gate failed, 2 usage or bad input, 3 inconclusive, 4 no comparable baseline, 5 the tool or benchmark broke,
130 interrupted, 143 ended by SIGTERM and 129 by SIGHUP, which clean up as an interrupt does. A traceback shows with
``--debug`` only.
"""

import inspect
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from mfubench import __version__
from mfubench.errors import BadInput, MfubenchError

from .ablate import ablate
from .campaign import campaign
from .compare import compare
from .config import config
from .defaults import read_defaults
from .doctor import doctor
from .gate import gate
from .guard import waited_for
from .kernels import kernels
from .models import models
from .optimize import optimize
from .options import DEBUG_FLAG
from .plan import plan
from .profile import profile
from .report import report
from .scale import scale
from .signals import ended_as_interrupted, how_interrupted
from .streams import fill_gaps, results_alone
from .sweep import sweep
from .watched import tell

INTERRUPTED = 130


def _show_version(asked: bool) -> None:
    if asked:
        print(f"mfubench {__version__}")
        raise typer.Exit


app = typer.Typer(
    name="mfubench",
    help="How much of a GPU does a recommendation model use, where is the rest lost, and what gets it back?",
    add_completion=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    context.default_map, _ = read_defaults(context.command)


app.add_typer(config)
app.add_typer(gate)
app.add_typer(kernels)
for command in (profile, sweep, plan, optimize, compare, report, ablate, scale, campaign, models, doctor):
    app.command()(command)


def _with_whole_paragraphs(of: typer.Typer) -> None:
    """Help whose paragraphs fill the terminal: Typer breaks all but the first where the source does."""
    for command in of.registered_commands:
        paragraphs = inspect.getdoc(command.callback).split("\n\n")  # type: ignore[union-attr]
        command.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


for each in (app, config, gate, kernels):
    _with_whole_paragraphs(each)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code; without ``arguments`` that of this process."""
    if arguments is not None:
        sys.exit(_run(list(arguments)))
    fill_gaps()
    code = waited_for(sys.argv[1:])
    if code is None:
        with results_alone():
            code = _run(sys.argv[1:])
        tell(over=True)
    sys.exit(code)


def _run(given: list[str]) -> int:
    _show_own_warnings_only()
    with ended_as_interrupted() as heard:
        try:
            _refuse_empty(given)
            _refuse_ranks(given)
            code = app(given or ["--help"], standalone_mode=False)
            if sys.stdout is not None:
                sys.stdout.flush()  # what cannot be written is told here, and not when the process has ended
        except KeyboardInterrupt:
            code = INTERRUPTED
        except (Exception, SystemExit) as error:
            if DEBUG_FLAG in given:
                traceback.print_exception(error)
            code = INTERRUPTED if heard else _end(error)  # what an interrupt leaves half imported fails in other ways
    if code == INTERRUPTED:
        number = heard[0] if heard else signal.SIGINT
        tell(over=True)  # a second signal may end this process before it has left
        sys.stderr.write(f"mfubench: {how_interrupted(number)}\n")
        code = 128 + number
    return code if isinstance(code, int) else 0


def _refuse_empty(given: Sequence[str]) -> None:
    """An empty argument is a variable of the shell that is not set; as a path it would be the working directory.

    Raises:
        BadInput: there is one.
    """
    for before, text in zip(["", *given], given, strict=False):
        if text == "" or (text.startswith("--") and text.find("=") == len(text) - 1):
            option = text.removesuffix("=") or (before if before.startswith("--") else "")
            raise BadInput(f"{option or 'an argument'} is empty; give a value, or leave it out")


def _refuse_ranks(given: Sequence[str]) -> None:
    """All commands but one would do the same in each of several processes, and start more of them.

    Raises:
        BadInput: it is another, and several were started.
    """
    from mfubench.measure.environment import launched

    words = [word for word in given if not word.startswith("-")]
    if words and words[0] != profile.__name__ and launched() is not None:
        raise BadInput(f"mfubench {words[0]} runs in one process, and several were started; start it without torchrun")


def _end(error: Exception | SystemExit) -> int:
    """Print what went wrong in one line and give the exit code."""
    if isinstance(error, BrokenPipeError) or isinstance(error.__context__, BrokenPipeError):
        return 0  # whoever reads has seen enough; Rich ends the process
    shown = getattr(error, "format_message", None)  # the usage errors of Typer's own parser
    if shown is not None:
        if not shown().strip():  # a command without arguments has printed its help
            return 2
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "mfubench"
        return _say(f"{shown().strip().rstrip('.')}{_from_file(error, context)}; see `{command} --help`", 2)
    if isinstance(error, MfubenchError):
        return _say(str(error), error.exit_code)
    if _is_invalid_argument(error):
        return _say(str(error), 2)
    if sys.stdout is None or sys.stdout.closed:
        return _say("stdout is closed, and the result has nowhere to go", 5)
    if isinstance(error, OSError):  # a full disk and the like
        return _say(f"{error}; see `{DEBUG_FLAG}`", 5)
    return _say(f"{type(error).__name__}: {error}; a defect of mfubench, see `{DEBUG_FLAG}`", 5)


def _from_file(error: BaseException, context: Any) -> str:
    """Where a value is from that nobody typed."""
    parameter = getattr(error, "param", None)
    if context is None or parameter is None:
        return ""
    source = context.get_parameter_source(parameter.name)
    told = " (from the configuration; see `mfubench config show`)"
    return told if getattr(source, "name", "") == "DEFAULT_MAP" else ""


def _say(message: str, code: int) -> int:
    print(f"mfubench: error: {_speaker()}{' '.join(message.split())}", file=sys.stderr)
    return code


def _speaker() -> str:
    """Which of several processes speaks."""
    from mfubench.measure.environment import launched

    try:
        launch = launched()
    except BadInput:  # which is what is told
        return ""
    return f"rank {launch.rank}: " if launch is not None else ""


def _is_invalid_argument(error: BaseException) -> bool:
    """Whether the packages below raised it for bad input; importing them to find out would import torch."""
    errors: Any = sys.modules.get("mfu_kernels.errors")
    return errors is not None and isinstance(error, errors.InvalidArgument)


def _show_own_warnings_only() -> None:
    """Warnings of mfubench are news for the user, one line each; those of libraries are not."""
    warnings.simplefilter("ignore")
    warnings.filterwarnings("default", module=r"mfubench\.")
    warnings.showwarning = lambda message, *_: print(f"mfubench: warning: {message}", file=sys.stderr)
