"""Seeded kernels and compilers through a whole search, in its real processes: each is refused with the reason."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from mfu_kernels import OPS
from mfubench.isolated import GaveUp, run_isolated
from mfubench.optimize.document import Optimization
from mfubench.optimize.log import FILE
from mfubench.optimize.recipe import read_recipe
from mfubench.optimize.search import optimize
from mfubench.optimize.state import Plan
from mfubench.optimize.tasks import finale, take_stock
from mfubench.optimize.trial import confirm, try_change
from mfubench.workload.regions import class_name
from mfubench.workload.spec import WorkloadSpec
from tests.mfubench.optimize.test_numbers import WrongGradient

SPEC = WorkloadSpec("kunlun", size="tiny", batch_size=4, steps=4, impl="reference", device="cpu")
SLOW_S, COMPILE_S = 0.01, 2.0
Kernel = Callable[..., Tensor]


def wrong_gradient(reference: Kernel, x: Tensor, z: Tensor, w: Tensor) -> Tensor:
    """Right to the last bit, but for one element of one gradient."""
    return reference(x, z, WrongGradient.apply(w))


def slower(reference: Kernel, *args: Any, **options: Any) -> Tensor:
    """Right, and slow."""
    time.sleep(SLOW_S)
    return reference(*args, **options)


def crashes_on_empty_rows(
    reference: Kernel, seeds: Tensor, k: Tensor, v: Tensor, offsets: Tensor, *others: Any, **options: Any
) -> Tensor:
    """Right wherever every row has events."""
    if not offsets.diff().all():
        raise RuntimeError("illegal memory access")
    return reference(seeds, k, v, offsets, *others, **options)


def compiler(module: nn.Module, **_options: Any) -> None:
    """One class is never done, the others fail."""
    if class_name(module).endswith("SeedPooling"):
        module._compiled_call_impl = lambda *args, **options: time.sleep(600)
    else:
        raise RuntimeError("no compiler here")


KERNELS = {"sum_kron_linear": wrong_gradient, "window_attention": slower, "seed_pooling": crashes_on_empty_rows}
SEEDED = {
    "impl sum_kron_linear=triton": "wrong numbers: gradient of towers.",
    "impl window_attention=triton": "times as fast",
    "impl seed_pooling=triton": "RuntimeError: illegal memory access while checking numbers",
    "compile SeedPooling": "compiling took longer than what it was given",
    "compile TowerLayer": "RuntimeError: no compiler here while preparing",
}


def in_a_seeded_process(argument: tuple[Any, Any], tell: Any) -> Any:
    """A task where kernels and compiler are the seeded ones."""
    for name, kernel in KERNELS.items():
        have: Any = OPS[name].implementations
        have["triton"] = partial(kernel, have["reference"])
    nn.Module.compile = compiler  # type: ignore[method-assign]
    task, given = argument
    return task(given, tell)


def run(task: Any, argument: Any, **limits: Any) -> Any:
    """A process for each task; changes that are not seeded are refused at once."""
    if task is finale or (task in (try_change, confirm) and argument.change.title not in SEEDED):
        raise GaveUp("of no concern here")
    found = run_isolated(in_a_seeded_process, (task, argument), **limits)
    if task is not take_stock:
        return found
    identity, profile, survey = found
    ops = {name: use for name, use in survey.ops.items() if name in KERNELS}
    return identity, profile, replace(survey, interpreted=False, ops=ops)  # the seeded ones are no kernels of Triton


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> tuple[Optimization, Path]:
    """The search and its folder."""
    out = tmp_path_factory.mktemp("seeded")
    return optimize(Plan(SPEC, out, compile_s=COMPILE_S), run=run), out


@pytest.mark.parametrize("title", SEEDED)
def test_what_is_seeded_is_refused_with_the_reason(title: str, search: tuple[Optimization, Path]) -> None:
    found, out = search
    facts = [json.loads(line) for line in (out / FILE).read_text().splitlines()]
    logged = {fact["step"]["change"]: fact["step"] for fact in facts if fact["kind"] == "step"}
    (step,) = (step for step in found.steps if step.change == title)
    assert not step.kept and SEEDED[title] in step.reason
    assert (logged[title]["kept"], logged[title]["reason"]) == (False, step.reason)


def test_what_is_wrong_is_never_timed_and_what_is_slow_is(search: tuple[Optimization, Path]) -> None:
    timed = {step.change: step.speedup for step in search[0].steps if step.speedup is not None}
    assert timed.keys() == {"impl window_attention=triton"}
    assert timed["impl window_attention=triton"]["median"] < 1.0


def test_nothing_is_kept(search: tuple[Optimization, Path]) -> None:
    found, out = search
    assert found.kept == [] and read_recipe(out / "recipe.toml").changes == ()
