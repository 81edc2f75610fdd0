"""``mfubench gate check | run | self-check``."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .folders import keep, own_folder, writable_file
from .options import (
    BatchSize,
    Candidates,
    Compile,
    Data,
    Debug,
    Device,
    Dtype,
    Impl,
    Json,
    Mode,
    Quiet,
    Seed,
    Set,
    Size,
    Verbose,
    out_option,
    overrides,
    put,
    seconds,
)
from .progress import stages

if TYPE_CHECKING:
    from mfubench.gate.run import Request
    from mfubench.report.blocks import Page

Models = Annotated[
    list[str], typer.Argument(metavar="MODEL...", help="package.module:build of your own, or models of this zoo.")
]
Base = Annotated[
    str,
    typer.Option(metavar="REV", help="Revision to compare with, at its merge base with HEAD; or a folder."),
]
Path_ = Annotated[
    list[str] | None,
    typer.Option("--path", metavar="FOLDER", help="Folder that imports start from; repeatable. \\[default: .]"),
]
Config = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Limits and waivers. \\[default: mfubench.toml, else pyproject.toml]"),
]
Target = Annotated[
    list[str] | None, typer.Option("--target", help="sm_80, sm_90 or sm_100; repeatable. \\[default: all]")
]
Summary = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Append a summary in Markdown, as to $GITHUB_STEP_SUMMARY.", show_default=False),
]
Junit = Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Write JUnit XML.", show_default=False)]
Annotations = Annotated[
    bool, typer.Option("--annotations", help="Print GitHub's ::error and ::warning lines on stderr.")
]
Strict = Annotated[bool, typer.Option("--strict", help="Exit with 3 if a time is undecided, or the machine's.")]
Require = Annotated[bool, typer.Option("--require-baseline", help="Exit with 4, not 0, if base has no such model.")]

gate = typer.Typer(
    name="gate",
    no_args_is_help=True,
    help="Compare a change with the code it started from: counts, compiled kernels, time. For CI.",
)


@gate.command()
def check(
    models: Models,
    base: Base,
    target: Target = None,
    path: Path_ = None,
    size: Size = None,
    set_: Set = None,
    impl: Impl = "auto",
    mode: Mode = "train",
    dtype: Dtype = None,
    batch_size: BatchSize = None,
    candidates: Candidates = None,
    seed: Seed = 0,
    data: Data = "synthetic",
    config: Config = None,
    summary: Summary = None,
    junit: Junit = None,
    annotations: Annotations = False,
    require_baseline: Require = False,
    out: Annotated[Path | None, out_option("gate.json, ")] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Compare what needs neither a GPU nor a clock: with the same torch and Triton, the result is always the same.

    Of each model, in both sides' code: parameters, FLOPs, bytes, memory, operators; and every Triton kernel that its
    step launches, compiled for each target: spills, registers, tensor cores, copies, instructions. What needs more in
    the same model, or spills, fails (exit code 1). Limits and waivers are gate in mfubench.toml, or tool.mfubench.gate
    in pyproject.toml: limits = {peak_memory = 0.02}, and a list of
    waivers, each {row = "* peak_memory", until = 2026-12-31, reason = "issue 12"}.

    Examples:

    mfubench gate check my_package.my_module:build --base origin/main

    mfubench gate check kunlun hstu --size tiny --base main --path kernels --path model_zoo --target sm_90
    """
    files = _Files(out, summary, junit, annotations)
    from mfubench.gate.run import AskedModels, Request

    asked = AskedModels(models, {
        "size": size, "overrides": overrides(set_), "impl": impl, "mode": mode, "dtype": dtype, "device": "cpu",
        "batch_size": batch_size, "candidates": candidates, "seed": seed, "data": data,
    })  # fmt: skip
    exits = {"require_baseline": require_baseline}
    request = Request(asked, base, path or (), target or (), config, exits=exits)
    _report(_gated(request, quiet=quiet, verbose=verbose), files, json=json, verbose=verbose)


@gate.command()
def run(
    models: Models,
    base: Base,
    budget: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="Time for counts and timing: no pair of processes but the first begins that would not end in it: "
            "90s, 10m or 1h.",
        ),
    ] = "10m",
    target: Annotated[
        list[str] | None,
        typer.Option("--target", help="As for check. \\[default: the GPU's own generation, none on a CPU]"),
    ] = None,
    path: Path_ = None,
    size: Size = None,
    set_: Set = None,
    impl: Impl = "auto",
    compile_: Compile = "none",
    mode: Mode = "train",
    dtype: Dtype = None,
    device: Device = "auto",
    batch_size: BatchSize = None,
    candidates: Candidates = None,
    seed: Seed = 0,
    data: Data = "synthetic",
    config: Config = None,
    summary: Summary = None,
    junit: Junit = None,
    annotations: Annotations = False,
    strict: Strict = False,
    require_baseline: Require = False,
    out: Annotated[Path | None, out_option("gate.json, ")] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """All of `check`, and the time of a step: both sides in turns, in fresh processes, until it is decided.

    It fails (exit code 1) where the interval of head's time over base's lies above the limit, step_time = 0.03 unless
    the configuration says otherwise, and passes where it lies below. What the budget does not decide is inconclusive,
    and what is slower in the very same code is the environment's: neither fails, unless --strict asks for a 3.

    Examples:

    mfubench gate run my_package.my_module:build --base origin/main --batch-size 512 --out out/gate

    mfubench gate run my_package.my_module:build --base origin/main --summary "$GITHUB_STEP_SUMMARY" --annotations
    """
    budget_s = seconds("--budget", budget)
    files = _Files(out, summary, junit, annotations)
    from mfubench.gate.run import AskedModels, Request

    asked = AskedModels(models, {
        "size": size, "overrides": overrides(set_), "impl": impl, "compile": compile_, "mode": mode, "dtype": dtype,
        "device": device, "batch_size": batch_size, "candidates": candidates, "seed": seed, "data": data,
    })  # fmt: skip
    exits = {"strict": strict, "require_baseline": require_baseline}
    request = Request(asked, base, path or (), target or (), config, timed=True, budget_s=budget_s, exits=exits)
    _report(_gated(request, quiet=quiet, verbose=verbose), files, json=json, verbose=verbose)


@gate.command("self-check")
def self_check(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="package.module:build, or a model of this zoo.")],
    budget: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="Time for rounds of two pairs, of which 4 are the least; the last may end after it: 90s, 10m or 1h.",
        ),
    ] = "10m",
    path: Path_ = None,
    size: Size = None,
    set_: Set = None,
    impl: Impl = "auto",
    compile_: Compile = "none",
    mode: Mode = "train",
    dtype: Dtype = None,
    device: Device = "auto",
    batch_size: BatchSize = None,
    candidates: Candidates = None,
    seed: Seed = 0,
    data: Data = "synthetic",
    config: Config = None,
    out: Annotated[Path | None, out_option("self-check.json, ")] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """How far a gate on this machine can be trusted: how often it would blame identical code, and miss slower code.

    The model is held against itself, and against itself with a tenth more to do; gates are replayed on what was timed.

    Examples:

    mfubench gate self-check my_package.my_module:build --budget 10m

    mfubench gate self-check kunlun --size tiny --path kernels --path model_zoo --json
    """
    budget_s = seconds("--budget", budget)
    own_folder(out, "gate self-check")
    from mfubench.gate.run import AskedModels, run_self_check
    from mfubench.report.gate import self_check_page

    asked = AskedModels([model], {
        "size": size, "overrides": overrides(set_), "impl": impl, "compile": compile_, "mode": mode, "dtype": dtype,
        "device": device, "batch_size": batch_size, "candidates": candidates, "seed": seed, "data": data,
    })  # fmt: skip
    with stages(quiet=quiet, verbose=verbose) as progress:
        told = run_self_check(asked, path or (), config, budget_s=budget_s, progress=progress)
    if out is not None:
        keep(told, self_check_page(told), out, "self-check.json")
    put(told, lambda: self_check_page(told), json=json, verbose=verbose)


# Parts ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Files:
    """Where besides stdout the result goes, which is made sure of before anything runs."""

    out: Path | None
    summary: Path | None
    junit: Path | None
    annotations: bool

    def __post_init__(self) -> None:
        own_folder(self.out, "gate")
        writable_file(self.summary, "--summary")
        writable_file(self.junit, "--junit")


def _gated(request: "Request", *, quiet: bool, verbose: bool) -> dict[str, Any]:
    """The gate's document, with progress on stderr."""
    from mfubench.gate.run import run_gate

    with stages(quiet=quiet, verbose=verbose) as progress:
        return run_gate(request, progress)


def _report(told: dict[str, Any], files: _Files, *, json: bool, verbose: bool) -> None:
    """Write and print it, and leave with the gate's own exit code; a verdict is told even if no file can be written."""
    from mfubench.report import ci
    from mfubench.report.gate import gate_page

    page, wrong = gate_page(told), None
    try:
        _write_files(told, page, files)
    except OSError as error:
        wrong = error
    if files.annotations:
        for line in ci.annotations(told):
            print(line, file=sys.stderr)
    put(told, lambda: page, json=json, verbose=verbose)
    if wrong is not None:
        raise wrong
    if told["exit_code"]:
        raise typer.Exit(told["exit_code"])


def _write_files(told: dict[str, Any], page: "Page", files: _Files) -> None:
    from mfubench.files import write_text
    from mfubench.report import ci

    if files.out is not None:
        keep(told, page, files.out, "gate.json")
    if files.junit is not None:
        files.junit.parent.mkdir(parents=True, exist_ok=True)
        write_text(files.junit, ci.junit(told))
    if files.summary is not None:
        files.summary.parent.mkdir(parents=True, exist_ok=True)
        with files.summary.open("a", encoding="utf-8") as summary:
            summary.write(ci.summary(told))
