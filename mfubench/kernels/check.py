"""The numeric contract of a kernel: its error within the budget, every output written, the same bits twice.

Natively on a GPU in bf16, fp16 and fp32. On a CPU under Triton's interpreter, which computes bf16 wrongly, in fp16 and
fp32; what a machine cannot prove is said to be not proved.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mfu_kernels.errors import InvalidArgument
from mfu_kernels.examples import Draw, Examples, Inputs
from mfu_kernels.modes import forced_config, nth_config
from mfubench.measure.environment import environment
from mfubench.measure.timing import wait_for
from mfubench.worker import UNWATCHED, PartBroke, Watch

from .budget import FACTORS, Results, Verdict, beyond_range, honest, judge, pooled, results, truth, zeroed
from .catalog import kernels_of
from .machine_code import toolchain
from .pairwise import pairwise_cover, whole_product

DTYPES = {"fp16": torch.float16, "fp32": torch.float32, "bf16": torch.bfloat16}
PROVED_ON = {"cpu": ("fp16", "fp32"), "cuda": ("bf16", "fp16", "fp32")}
CONFIG, DTYPE = "config", "dtype"
ROWS = ("lengths", "rows", "batch", "events")  # of a shape: so many that the truth on a host would take minutes
MORE_DRAWS = 7
MOST_BEYOND = 0.1  # of a result that overflows in the honest implementation: a case of more proves too little
FORM_DRAWS = 4  # cases of each form of a kernel at each shape, besides those of its configs
MAX_CONFIGS = 8  # configs that differ in more than warps and stages, which do not change numbers
CONFIGS = (None, *range(MAX_CONFIGS))


@dataclass(frozen=True, slots=True)
class CaseResult:
    """One case: what was drawn, the verdicts, and what else was wrong, in words; or why it does not run here."""

    case: Mapping[str, Any]
    verdicts: Sequence[Verdict]
    faults: Sequence[str]
    left_out: str = ""

    @property
    def over(self) -> list[Verdict]:
        """The verdicts on what errs more than its budget."""
        return [verdict for verdict in self.verdicts if not verdict.ratio <= 1]

    @property
    def passed(self) -> bool:
        """Whether nothing was wrong."""
        return not self.faults and not self.over


@dataclass(slots=True)
class OpResult:
    """All cases of one op; ``not_proved`` names what this machine cannot check."""

    op: str
    cases: list[CaseResult] = field(default_factory=list)
    not_proved: list[str] = field(default_factory=list)

    @property
    def failed(self) -> list[CaseResult]:
        """The cases that did not pass."""
        return [case for case in self.cases if not case.passed]

    @property
    def worst(self) -> float:
        """The largest error in budgets."""
        return max((verdict.ratio for case in self.cases for verdict in case.verdicts), default=0.0)


def joined(parts: Sequence[OpResult]) -> OpResult:
    """An op's result from those of the parts of its cases, one part after the other."""
    first = parts[0]
    not_proved = list(dict.fromkeys(told for part in parts for told in part.not_proved))
    return OpResult(first.op, [case for part in parts for case in part.cases], not_proved)


def cases_of(
    examples: Examples, device: torch.device, *, full: bool, shapes: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """The cases to check on ``device``: all pairs of values or the whole product, with dtypes and configs.

    On a GPU also what runs at each of the named ``shapes``, all by default, on few rows: configs that are tuned there,
    and forms of a kernel that take no other inputs.
    """
    factors = {**examples.factors, DTYPE: PROVED_ON[device.type], CONFIG: CONFIGS}
    cases = list(whole_product(factors)) if full else pairwise_cover(factors)
    if device.type == "cpu":
        return cases
    own: list[dict[str, Any]] = []  # what each shape has beside its rows
    for shape in examples.shapes if shapes is None else shapes:
        fixed = {name: value for name, value in examples.shapes[shape].items() if name not in ROWS}
        own += [fixed] if fixed not in own else []
    configs = configs_of(examples.function.__name__)
    return cases + [case for fixed in own for case in _at(fixed, factors, configs)]


def configs_of(op: str) -> tuple[int | str | None, ...]:
    """What a launch takes, some configs, and each form of the op's kernels a few times, as `nth_config` takes them."""
    forms = {form for kernel in kernels_of(op) for form in kernel.forms}
    return (*CONFIGS, *sorted(forms) * FORM_DRAWS)


def _at(
    fixed: Mapping[str, Any], factors: Mapping[str, Sequence[Any]], configs: Sequence[int | str | None]
) -> Iterator[dict[str, Any]]:
    """A case for each of ``configs``, with ``fixed``; the values of the other factors are drawn."""
    draw = random.Random(repr(sorted(fixed.items())))
    for config in configs:
        drawn = {name: draw.choice(values) for name, values in factors.items()}
        yield {**drawn, **fixed, DTYPE: "bf16", CONFIG: config}


def check_case(examples: Examples, case: Mapping[str, Any], device: torch.device, *, repeat: bool = True) -> CaseResult:
    """Run one case on poisoned memory, twice if ``repeat``, and hold it against the truth and the budget.

    Few numbers may err much by chance, in the kernel or too little in what the budget comes from. So a case over its
    budget is drawn again, `MORE_DRAWS` times, and judged by all its draws together, the first one included.
    """
    first = _check_draw(examples, case, device, seed=0, repeat=repeat)
    if first.passed or first.faults:
        return first
    draws = [first, *(_check_draw(examples, case, device, seed=2 * n) for n in range(1, MORE_DRAWS + 1))]
    return CaseResult(case, pooled([draw.verdicts for draw in draws]), [f for draw in draws for f in draw.faults])


def _check_draw(
    examples: Examples, case: Mapping[str, Any], device: torch.device, *, seed: int, repeat: bool = True
) -> CaseResult:
    """One draw of a case; ``seed`` is that of its inputs, the next one that of the weights of its output."""
    dtype = DTYPES[case[DTYPE]]
    inputs = examples.make(case, Draw(dtype, device, seed=seed))
    try:
        # Interpreted, a lane that is masked out may overflow, as it may on a GPU; what is stored is looked at below.
        lanes = np.errstate(over="ignore", invalid="ignore")
        with forced_config(nth_config(case[CONFIG])), poisoned_memory(), lanes:
            shape = _output_shape(examples, inputs)
            weights = Draw(dtype, device, seed=seed + 1).normal(*shape) if shape else torch.ones((), device=device)
            once = results(examples, inputs, weights, impl="triton")
            again = results(examples, inputs, weights, impl="triton") if repeat else once
    except InvalidArgument:
        raise
    except Exception as error:  # a kernel that does not compile or run: a failed case, and the others go on
        told = f"{type(error).__name__}: {error}"
        if case[CONFIG] is not None and type(error).__name__ == "OutOfResources":
            return CaseResult(case, (), (), told)
        return CaseResult(case, (), [told])
    exact, fair = truth(examples, inputs, weights), honest(examples, inputs, weights, dtype)
    beyond = beyond_range(fair)
    once, again, exact, fair = (zeroed(found, beyond) for found in (once, again, exact, fair))
    lost = [f"too much of {name} is beyond its dtype" for name, where in beyond.items() if _share(where) > MOST_BEYOND]
    return CaseResult(case, judge(once, fair, exact), [*_faults(once, again, exact), *lost])


def _output_shape(examples: Examples, inputs: Inputs) -> torch.Size:
    with torch.no_grad():
        on_meta = {name: tensor.to("meta") for name, tensor in inputs.tensors.items()}
        others = {name: v.to("meta") if isinstance(v, Tensor) else v for name, v in inputs.others.items()}
        return examples.function(**on_meta, **others, impl="reference").shape


def _share(where: Tensor) -> float:
    return float(where.double().mean()) if where.numel() else 0.0


def _faults(once: Results, again: Results, exact: Results) -> list[str]:
    found = []
    for name, tensor in once.items():
        if tensor.shape != exact[name].shape:
            found.append(f"{name} has shape {list(tensor.shape)}, not {list(exact[name].shape)}")
        if not tensor.isfinite().all():
            found.append(f"{name} is not finite everywhere: an element was not written, or a sum overflowed")
        if not torch.equal(tensor, again[name]):
            found.append(f"{name} has other bits in a second run")
    return found


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Inside, ``torch.empty`` and its kin are full of NaN, so that what a kernel does not write shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic
    filled = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = True
    try:
        yield
    finally:
        settings.fill_uninitialized_memory = filled
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def check_op(
    examples: Examples,
    device: torch.device,
    *,
    full: bool = False,
    part: tuple[int, int] = (0, 1),
    shapes: Sequence[str] | None = None,
    without: Mapping[str, str] = MappingProxyType({}),
    watch: Watch = UNWATCHED,
) -> OpResult:
    """Check one op on ``device`` over a pairwise covering of its factors, or over their whole product.

    ``shapes``: as `cases_of` has them. ``part``: only the first of so many parts of the cases, counted from 0.
    ``without``: as `check_cases` has it.

    Raises:
        PartBroke: where `check_cases` does.
    """
    index, parts = part
    cases = cases_of(examples, device, full=full, shapes=shapes)[index::parts]
    return check_cases(examples.function.__name__, examples, cases, device, without=without, watch=watch)


def check_cases(
    op: str,
    examples: Examples,
    cases: Sequence[Mapping[str, Any]],
    device: torch.device,
    *,
    without: Mapping[str, str] = MappingProxyType({}),
    watch: Watch = UNWATCHED,
) -> OpResult:
    """Check ``op`` on ``cases``; ``without``: those that are not run, and what befell them.

    A case that fails with a config of its own, or whose config does not fit the device and is not proved, is checked
    once more with what a launch would take: that shows whether it is the config's fault.

    Raises:
        PartBroke: a case made a fault after which this process can use the GPU no more.
    """
    found = OpResult(op)
    for case in cases:
        result = _watched_case(examples, case, device, without, watch)
        if result.left_out:
            found.not_proved.append(f"config {case[CONFIG]} at {_named(case)}: {result.left_out}")
        else:
            found.cases.append(result)
        if case[CONFIG] is not None and (result.left_out or not result.passed):
            found.cases.append(_watched_case(examples, {**case, CONFIG: None}, device, without, watch))
    if device.type == "cpu":
        found.not_proved += ["bf16: Triton's interpreter computes it wrongly", "compiled code: needs a GPU"]
    return found


def _watched_case(
    examples: Examples, case: Mapping[str, Any], device: torch.device, without: Mapping[str, str], watch: Watch
) -> CaseResult:
    name = _named(case)
    if name in without:
        return CaseResult(case, (), [without[name]])
    with watch.part(name):
        result = check_case(examples, case, device)
        if result.faults:
            try:
                wait_for(device)
            except RuntimeError as error:
                raise PartBroke(name, result.faults[0]) from error
    return result


def _named(case: Mapping[str, Any]) -> str:
    return ", ".join(f"{factor}={value}" for factor, value in case.items())


def document(found: Sequence[OpResult], device: torch.device, *, full: bool) -> dict[str, Any]:
    """What was checked where, as JSON: a summary of each op, and every failed case."""
    return {
        "schema_version": 1,
        "environment": environment(device),
        "toolchain": toolchain(),
        "run_by": "Triton's interpreter" if device.type == "cpu" else torch.cuda.get_device_name(device),
        "cover": "the whole product" if full else "all pairs",
        "budget": FACTORS,
        "ops": [
            {
                "op": op.op,
                "cases": len(op.cases),
                "failed": len(op.failed),
                "worst_error_of_budget": _finite(op.worst),
                "dtypes": sorted({case.case[DTYPE] for case in op.cases}),
                "not_proved": op.not_proved,
                "failures": [
                    {
                        "case": {name: _plain(value) for name, value in case.case.items()},
                        "over_budget": {verdict.name: _finite(verdict.ratio) for verdict in case.over},
                        "faults": list(case.faults),
                    }
                    for case in op.failed
                ],
            }
            for op in found
        ],
    }


def _finite(ratio: float) -> float | None:
    """JSON has no infinity."""
    return ratio if isfinite(ratio) else None


def _plain(value: Any) -> Any:
    return value if isinstance(value, (int, float, str, bool, type(None))) else str(value)
