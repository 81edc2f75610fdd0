"""The contract passes what is right, refuses what is wrong in any one way, and says what it did not prove."""

import json
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mfu_kernels import InvalidArgument
from mfu_kernels.examples import Draw, Inputs
from mfu_kernels.launching import config
from mfu_kernels.modes import nth_config
from mfu_kernels.rms_norm import op as rms_norm_op
from mfu_kernels.rms_norm.examples import EXAMPLES
from mfu_kernels.rms_norm.reference import rms_norm_reference
from mfubench.kernels import check
from mfubench.kernels.budget import OUTPUT, RoundedMatmuls, Verdict, beyond_range, judge, zeroed
from mfubench.kernels.catalog import examples_of, kernels_of, ops_with_kernels
from mfubench.kernels.check import CaseResult, OpResult, cases_of, check_op, document, poisoned_memory
from mfubench.report.kernels import check_page
from mfubench.report.markdown import render_page
from mfubench.worker import PartBroke, Watch
from tests.mfubench.kernels import broken

CPU = torch.device("cpu")


def check_with(monkeypatch: pytest.MonkeyPatch, function: Callable[..., Tensor]) -> list[CaseResult]:
    """The contract of rms_norm with ``function`` as its triton implementation."""
    implementations: Mapping[str, Any] = {**rms_norm_op.OP.implementations, "triton": function}
    monkeypatch.setattr(
        rms_norm_op, "OP", type(rms_norm_op.OP)("rms_norm", "norm", rms_norm_op.OP.cost, implementations)
    )
    return check_op(EXAMPLES, CPU).cases


def test_the_reference_passes_as_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = check_with(monkeypatch, broken.right)
    assert len(cases) > 40 and all(case.passed for case in cases)


@pytest.mark.parametrize("name", broken.BROKEN)
def test_what_is_wrong_fails(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    cases = check_with(monkeypatch, broken.BROKEN[name])
    assert any(not case.passed for case in cases)
    assert any(case.passed for case in cases), "wrong in one way only, so that the other cases pass"


def test_what_is_no_number_is_told_in_json(monkeypatch: pytest.MonkeyPatch) -> None:
    found = OpResult("rms_norm", check_with(monkeypatch, lambda x, *_, **__: x * torch.nan)[:4])
    told = json.loads(json.dumps(document([found], CPU, full=False), allow_nan=False))
    (op,) = told["ops"]
    assert op["failed"] and op["worst_error_of_budget"] is None
    assert None in [over for failure in op["failures"] for over in failure["over_budget"].values()]
    assert "is not finite" in render_page(check_page(told))


def test_a_crash_is_told_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = [case for case in check_with(monkeypatch, broken.crashes_on_no_rows) if not case.passed]
    assert all(case.case["rows"] == 0 and case.faults == ["IndexError: no rows"] for case in failed)


def test_dtypes_and_configs_are_factors_and_bf16_is_not_proved_on_a_cpu() -> None:
    cases = cases_of(EXAMPLES, CPU, full=False)
    assert {case["dtype"] for case in cases} == {"fp16", "fp32"}
    assert {case["dtype"] for case in cases_of(EXAMPLES, torch.device("cuda"), full=False)} == {"bf16", "fp16", "fp32"}
    assert {case["config"] for case in cases} == {None, *range(8)}
    told = document([check_op(EXAMPLES, CPU, part=(0, 6))], CPU, full=False)
    assert any("bf16" in reason for reason in told["ops"][0]["not_proved"])
    assert told["ops"][0]["failed"] == 0 and told["toolchain"]["triton"]


@pytest.mark.parametrize("op", ops_with_kernels())
def test_on_a_gpu_what_each_shape_has_is_checked_on_few_rows(op: str) -> None:
    examples, cuda = examples_of(op), torch.device("cuda")
    plain = cases_of(examples, cuda, full=False, shapes=[])
    added = cases_of(examples, cuda, full=False)[len(plain) :]
    for shape, wanted in examples.shapes.items():
        fixed = {name: value for name, value in wanted.items() if name not in check.ROWS}
        own = [case for case in added if fixed.items() <= case.items()]
        assert {case["config"] for case in own} >= {None, *range(8)}, shape
    assert {case["dtype"] for case in added} == {"bf16"}
    for case in added[::5]:
        inputs = examples.make(case, Draw(torch.bfloat16, torch.device("meta")))
        examples.function(**inputs.tensors, **inputs.others, impl="reference")
        assert sum(tensor.numel() for tensor in inputs.tensors.values()) < 1 << 26, "the truth on a host takes seconds"


@pytest.mark.parametrize("op", ["gdpa", "gdpa_block", "window_attention"])
def test_each_form_is_checked_at_each_shape(op: str) -> None:
    examples = examples_of(op)
    forms = {form for kernel in kernels_of(op) for form in kernel.forms}
    shape = next(iter(examples.shapes))
    cases = cases_of(examples, torch.device("cuda"), full=False, shapes=[shape])
    assert forms and all(sum(case["config"] == form for case in cases) == check.FORM_DRAWS for form in forms)


def test_a_form_is_chosen_by_its_name() -> None:
    space = [config(TILE=16), config(TILE=64, GROUPS=1), config(TILE=64, GROUPS=2)]
    assert nth_config("GROUPS")("a kernel", space) is space[1]
    assert nth_config("WALKERS")("a kernel", space) is None, "the launch takes what it takes"


def test_bad_input_is_not_a_failed_case(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(x: Tensor, weight: Tensor | None, *, eps: float) -> Tensor:
        raise InvalidArgument("rms_norm: x is odd; allowed: even")

    with pytest.raises(InvalidArgument, match="odd"):
        check_with(monkeypatch, refuse)


def test_poisoned_memory_is_nan_inside_only() -> None:
    with poisoned_memory():
        assert torch.empty(8).isnan().all() and torch.ones(3).new_empty(5).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


def test_matmul_operands_are_rounded_and_nothing_else() -> None:
    a, b = torch.randn(5, 7), torch.randn(7, 3)
    with RoundedMatmuls(torch.float16):
        product, total = a @ b, a + 1
    assert torch.equal(product, a.half().float() @ b.half().float())
    assert not torch.equal(product, a @ b) and torch.equal(total, a + 1)


def test_a_budget_is_twice_the_honest_error_forward_and_three_times_backward() -> None:
    exact = {OUTPUT: torch.ones(4, dtype=torch.float64), "x": torch.ones(4, dtype=torch.float64)}
    fair = {name: (tensor + 0.01).float() for name, tensor in exact.items()}
    kernel = {name: (tensor + 0.025).float() for name, tensor in exact.items()}
    forward, backward = judge(kernel, fair, exact)
    assert forward.ratio == pytest.approx(1.25, rel=1e-3) and backward.ratio == pytest.approx(0.025 / 0.03, rel=1e-3)


def test_one_rounding_of_the_output_is_always_allowed() -> None:
    exact = {OUTPUT: torch.full((4,), 1.0, dtype=torch.float64)}
    off = {OUTPUT: (exact[OUTPUT] * (1 + torch.finfo(torch.float16).eps / 2)).half()}
    (verdict,) = judge(off, {OUTPUT: exact[OUTPUT].half()}, exact)
    assert verdict.ratio <= 1


def test_the_same_seed_draws_the_same_numbers_and_meta_draws_none() -> None:
    first, second = (Draw(torch.float32, CPU, seed=3).normal(4, 5, strided=True) for _ in range(2))
    assert torch.equal(first, second) and not first.is_contiguous()
    meta = EXAMPLES.make(EXAMPLES.shapes["norm 1.18M x 512"], Draw(torch.bfloat16, torch.device("meta")))
    assert isinstance(meta, Inputs) and meta.tensors["x"].is_meta


def test_what_overflows_in_an_honest_result_is_right_in_none() -> None:
    fair = {OUTPUT: torch.tensor([1.0, 60_000.0, -math.inf, math.nan], dtype=torch.float16)}
    beyond = beyond_range(fair)
    found = zeroed({OUTPUT: torch.tensor([math.nan, math.inf, math.inf, 1.0])}, beyond)
    assert found[OUTPUT].isnan().tolist() == [True, False, False, False]
    assert found[OUTPUT][1:].tolist() == [0, 0, 1]
    other_shape = {OUTPUT: torch.ones(2)}
    assert zeroed(other_shape, beyond)[OUTPUT] is other_shape[OUTPUT]


def test_a_case_that_overflows_for_the_most_part_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        check, "beyond_range", lambda fair: {name: torch.ones_like(x).bool() for name, x in fair.items()}
    )
    assert all(
        "beyond its dtype" in str(case.faults) for case in check_with(monkeypatch, broken.right) if case.case["rows"]
    )


@pytest.mark.parametrize("config", [None, 3])
def test_a_config_that_does_not_fit_is_no_failed_case_unless_a_launch_takes_it(
    monkeypatch: pytest.MonkeyPatch, config: int | None
) -> None:
    class OutOfResources(Exception):
        pass

    def refuse(x: Tensor, weight: Tensor | None, *, eps: float, impl: str) -> Tensor:
        if impl == "triton":
            raise OutOfResources("shared memory")
        return rms_norm_reference(x, weight, eps=eps)

    case = {name: values[0] for name, values in EXAMPLES.factors.items()} | {"dtype": "fp32", "config": config}
    monkeypatch.setattr(check, "cases_of", lambda *_, **__: [case])
    found = check.check_op(replace(EXAMPLES, function=refuse), CPU)
    assert [failed.case["config"] for failed in found.failed] == [None], "what a launch takes does not fit either"
    assert any(f"config {config}" in told and "shared memory" in told for told in found.not_proved) == (config == 3)


@pytest.mark.parametrize(("later", "passes"), [(0.9, True), (1.2, False)])
def test_a_case_over_its_budget_is_judged_by_all_its_draws(
    monkeypatch: pytest.MonkeyPatch, later: float, passes: bool
) -> None:
    drawn: list[int] = []

    def draw(_examples: Any, case: Mapping[str, Any], _device: torch.device, *, seed: int, **_: Any) -> CaseResult:
        drawn.append(seed)
        return CaseResult(case, [Verdict("x", 1.2 if seed == 0 else later, 1.0)], [])

    monkeypatch.setattr(check, "_check_draw", draw)
    found = check.check_case(EXAMPLES, {}, CPU)
    assert found.passed == passes and len(set(drawn)) == len(drawn) == check.MORE_DRAWS + 1
    together = ((1.2**2 + check.MORE_DRAWS * later**2) / len(drawn)) ** 0.5
    assert found.verdicts[0].ratio == pytest.approx(together)


def test_what_goes_wrong_in_a_later_draw_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(_examples: Any, case: Mapping[str, Any], _device: torch.device, *, seed: int, **_: Any) -> CaseResult:
        return CaseResult(case, [], ["crash"]) if seed else CaseResult(case, [Verdict("x", 1.2, 1.0)], [])

    monkeypatch.setattr(check, "_check_draw", draw)
    assert not check.check_case(EXAMPLES, {}, CPU).passed


def watched_check(monkeypatch: pytest.MonkeyPatch, judged: Callable[..., CaseResult], **chosen: Any) -> OpResult:
    """A contract of three cases, whose second has a config of its own."""
    cases = [{"rows": rows, "config": config, "dtype": "fp32"} for rows, config in ((1, None), (2, 5), (3, None))]
    monkeypatch.setattr(check, "cases_of", lambda *_, **__: cases)
    monkeypatch.setattr(check, "check_case", lambda _examples, case, _device: judged(case))
    return check_op(EXAMPLES, CPU, **chosen)


def test_a_case_that_fails_with_a_config_is_checked_with_what_a_launch_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    found = watched_check(monkeypatch, lambda case: CaseResult(case, (), ["no"] if case["config"] else []))
    assert [(case.case["rows"], case.case["config"], case.passed) for case in found.cases] == [
        (1, None, True), (2, 5, False), (2, None, True), (3, None, True),
    ]  # fmt: skip


def test_a_case_that_hung_is_failed_and_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    parts: list[str] = []

    def part(name: str) -> Any:
        parts.append(name)
        return nullcontext()

    hung = "rows=2, config=5, dtype=fp32"
    found = watched_check(
        monkeypatch, lambda case: CaseResult(case, (), []), without={hung: "took over 30 s"}, watch=Watch(part)
    )
    assert [(case.case["config"], case.faults) for case in found.failed] == [(5, ["took over 30 s"])]
    assert parts == [f"rows={rows}, config=None, dtype=fp32" for rows in (1, 2, 3)]


def test_a_case_that_breaks_the_context_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(device: torch.device) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(check, "wait_for", wait)
    with pytest.raises(PartBroke, match="rows=2, config=5, dtype=fp32 broke the device's context: wrote elsewhere"):
        watched_check(monkeypatch, lambda case: CaseResult(case, (), ["wrote elsewhere"] if case["config"] else []))
