"""The numeric contract of the calls that are to be tuned, on few rows: with what launches take, configs, every form.

The few rows come from a step of few requests, which makes the same calls as the one that is timed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from mfu_kernels.examples import Examples
from mfubench.kernels.ahead import outputs_of
from mfubench.kernels.check import CONFIG, DTYPE, DTYPES, CaseResult, OpResult, check_cases, configs_of
from mfubench.worker import UNWATCHED, Watch

from .calls import Call, Floats, examples_of_calls

FEW_REQUESTS = 2
MOST_ELEMENTS = 1 << 26  # of a call: the truth in fp64 takes eight bytes for each, and as much for its gradient
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def too_large(call: Call) -> str | None:
    """Why a call, which has few rows, is not held to fp64; None where it is."""
    if call.num_elements <= MOST_ELEMENTS:
        return None
    return (
        f"{call.title}: not held to fp64, as {call.num_elements:,} numbers are too many; configs agree with the default"
    )


def check_call(
    call: Call,
    device: torch.device,
    *,
    without: Mapping[str, str] = MappingProxyType({}),
    watch: Watch = UNWATCHED,
) -> OpResult:
    """Hold the op's kernels to their budget on one call of few rows.

    Raises:
        PartBroke: a case made a fault after which this process can use the GPU no more.
    """
    examples, cases = contract_of_calls([call])
    return check_cases(call.op, examples, cases, device, without=without, watch=watch)


def contract_of_calls(calls: Sequence[Call]) -> tuple[Examples, list[dict[str, Any]]]:
    """How to make calls again, and of each that is not `too_large` a case with what a launch takes, with some configs
    and with every form."""
    examples = examples_of_calls(calls)
    again = examples.function

    def first(**given: Any) -> Tensor:
        """What it computes; what an implementation hands on besides is an input of its."""
        return outputs_of(again(**given))[0]

    held = [call for call in calls if not too_large(call)]
    cases = [{"call": call, DTYPE: _computed(call), CONFIG: config} for call in held for config in configs_of(call.op)]
    return replace(examples, function=first), cases


def _computed(call: Call) -> str:
    """The dtype of its products."""
    floats = (seen.dtype for seen in call.tensors.values() if isinstance(seen, Floats))
    return NAMES[call.autocast or next(floats)]


def failures(found: Sequence[OpResult]) -> dict[str, str]:
    """Why each op with a failed case is not tuned."""

    def why(case: CaseResult) -> str:
        over = (f"{verdict.name} errs {verdict.ratio:.2f} times its budget" for verdict in case.over)
        return "; ".join([*over, *case.faults])

    failed = {result.op: case for result in found for case in result.failed}
    return {
        op: f"its numbers fail the contract at {case.case['call']}, config {case.case[CONFIG]}: {why(case)}"
        for op, case in failed.items()
    }
