"""Each cause of the ledger has its remedies, and what they promise is what the roofline leaves."""

from dataclasses import replace
from typing import Any

import pytest

from mfubench.optimize.changes import Compile, UseDtype, WithoutAttentionWeights, added
from mfubench.optimize.remedies import Proposal, cells_of, proposals
from mfubench.optimize.survey import OpUse, Survey
from mfubench.run import Run
from tests.mfubench.report.factory import a_run

SURVEY = Survey(
    device="cuda", dtype="fp32", batch_size=32, interpreted=False, shapes_vary=True,
    peaks={"fp32": 50.0, "tf32": 200.0, "bf16": 500.0}, bandwidth_gb_s=1000.0,
    ops={
        "rms_norm": OpUse(["block.norm"], "norm", "reference", None),
        "window_attention": OpUse(["block.attention"], "attention", "torch", None),
        "gdpa": OpUse(["block.ffn"], "attention", "triton", None),
    },
    regions={"pkg.Block": ["block", "block.norm", "block.attention"]},
    attention=["block.attention"],
    optimizers={"fused": ["Adam"], "foreach": ["Adam"]},
    update_bytes=10**9,
    sparse_tables=["users"],
    dense_tables={"items": 10**9},
    stuck_tables={"tags": 2 * 10**9},
    odd_widths=["head [5, 33]"],
    padded_share_won=0.05,
)  # fmt: skip


def a_profile(module: str, cause: str, ms: float = 10.0) -> Run:
    """A step that loses ``ms`` to one cause in one module, and else multiplies for 40 ms."""
    run = a_run()
    row = run.modules[0]
    run.modules = [
        replace(row, name="body", causes={"useful": 40.0}),
        replace(row, name=module, causes={cause: ms}),
        replace(row, name="head", causes={"inefficiency.gemm": -0.5}),
    ]
    return run


def promised(run: Run, survey: Survey = SURVEY, judge: str = "time") -> dict[str, float]:
    """What can be tried and wins anything, with its milliseconds."""
    cells = cells_of(run)
    found = {p.title: p.predicted_ms(cells) for p in proposals(run, survey, judge) if p.change}
    return {title: ms for title, ms in found.items() if ms > 0}


PRODUCTS = {"dtype bf16": 36.0, "dtype tf32": 30.0}  # of the 40 ms, at a tenth and a quarter of the time
LARGER = {f"batch_size {size}": 5.0 for size in (64, 128, 256)}
REGION, WHOLE, GRAPHS = "compile Block", "compile model", "compile model, CUDA graphs"
WEIGHTS = "attention_without_weights"
CASES: dict[str, tuple[str, str, dict[str, float]]] = {
    "padding in an op": (
        *("block.attention", "padding"),
        {"impl window_attention=triton": 10.0, "dtype bf16": 45.0, "dtype tf32": 37.5, "bucket_by_length": 2.5},
    ),
    "padding elsewhere": (
        *("other", "padding"),
        {"dtype bf16": 45.0, "dtype tf32": 37.5, "bucket_by_length": 2.5},
    ),
    "launch gaps in a block": (
        *("block.norm", "launch"),
        {"impl rms_norm=triton": 10.0, REGION: 10.0, WHOLE: 10.0, GRAPHS: 10.0, **LARGER, **PRODUCTS},
    ),
    "launch gaps elsewhere": ("other", "launch", {WHOLE: 10.0, GRAPHS: 10.0, **LARGER, **PRODUCTS}),
    "a norm above its roofline": (
        *("block.norm", "inefficiency.norm"),
        {"impl rms_norm=triton": 10.0, REGION: 10.0, WHOLE: 10.0, **PRODUCTS},
    ),
    "a norm that moves bytes": ("block.norm", "memory_bound.norm", {REGION: 5.0, WHOLE: 5.0, **PRODUCTS}),
    "operators in a row": ("other", "memory_bound.elementwise", {WHOLE: 5.0, **PRODUCTS}),
    "attention above its roofline": (
        *("block.attention", "inefficiency.attention"),
        {"impl window_attention=triton": 10.0, REGION: 10.0, WHOLE: 10.0, WEIGHTS: 10.0, **PRODUCTS},
    ),
    "what is repeated": ("block.attention", "recompute", {"impl window_attention=triton": 10.0, **PRODUCTS}),
    "products below the peak": ("other", "inefficiency.gemm", {"dtype bf16": 45.0, "dtype tf32": 37.5}),
    "products in a slow dtype": ("other", "peak_gap", {"dtype bf16": 45.0, "dtype tf32": 37.5}),
    "products that move bytes": ("block.ffn", "memory_bound.gemm", PRODUCTS),
    "the optimizer": (
        *("(optimizer)", "optimizer"),
        {"optimizer fused": 9.0, "optimizer foreach": 9.0, "sparse_gradients": 3.0, **LARGER, **PRODUCTS},
    ),
    "nothing that is known": ("other", "not_attributed", PRODUCTS),
}


@pytest.mark.parametrize("case", CASES)
def test_each_cause_has_its_remedies(case: str) -> None:
    module, cause, expected = CASES[case]
    assert promised(a_profile(module, cause)) == pytest.approx(expected)


def test_all_regions_together_go_before_one_class_and_both_before_the_whole_model() -> None:
    survey = replace(SURVEY, regional=["block", "block.norm", "other"])
    run = a_profile("block.norm", "launch")
    found = promised(run, survey)
    assert found["compile regions"] == found[REGION] == found[WHOLE] == 10.0
    assert promised(a_profile("other", "memory_bound.elementwise"), survey)["compile regions"] == 5.0
    outside = promised(a_profile("outside", "launch"), survey)
    assert outside[WHOLE] == 10.0 and "compile regions" not in outside
    regional, block, whole = Compile("regions"), Compile("pkg.Block"), Compile("model")
    behind = {p.title: p.behind for p in proposals(run, survey, "time") if p.behind}
    assert behind == {WHOLE: (regional, block)}
    assert added((block, UseDtype("bf16")), regional) == (UseDtype("bf16"), regional)
    assert added((regional,), whole) == (whole,) and added((whole,), regional) == (whole, regional)
    assert regional.excludes(block) and not regional.excludes(whole) and not regional.excludes(regional)
    assert whole.excludes(regional) and not block.excludes(regional)
    assert not whole.excludes(Compile("model", cudagraphs=True))


def test_the_best_prediction_stands_first() -> None:
    run = a_profile("block.norm", "launch")
    cells = cells_of(run)
    predicted = [proposal.predicted_ms(cells) for proposal in proposals(run, SURVEY, "time")]
    assert predicted == sorted(predicted, reverse=True) and predicted[0] == 36.0


def why_not(found: list[Proposal]) -> dict[str, str]:
    return {proposal.title: proposal.why_not for proposal in found if proposal.why_not is not None}


def test_what_cannot_be_tried_says_why() -> None:
    blocked = {"rms_norm": replace(SURVEY.ops["rms_norm"], blocked="needs the package triton")}
    changes: dict[str, Any] = {"device": "cpu", "peaks": {"fp32": 1.0, "bf16": 2.0}, "ops": blocked}
    survey = replace(SURVEY, **changes, padded_share_won=None)
    found = why_not(proposals(a_profile("block.norm", "launch"), survey, "time"))
    assert found == {
        "impl rms_norm=triton": "needs the package triton",
        GRAPHS: "CUDA graphs need a CUDA device",
        "dtype tf32": "no tf32 on this device",
        "bucket_by_length": "the model makes its own batches",
        "widths in multiples that the device likes": "advice, changes the model: head [5, 33]",
    }
    rows = why_not(proposals(a_profile("(optimizer)", "optimizer"), survey, "time"))
    assert rows["row-wise optimizer of tables"].startswith("advice, changes the training")
    assert "SparseAdam" in rows["row-sparse gradients of 1 table"]


def test_an_inference_keeps_its_batch_size() -> None:
    """A larger batch is more throughput for later answers, which no search may decide."""
    run = a_profile("other", "launch")
    run.workload["mode"] = "infer"
    assert promised(run) == {WHOLE: 10.0, GRAPHS: 10.0, **PRODUCTS}
    (left,) = (p for p in proposals(run, SURVEY, "time") if p.title.startswith("batch_size"))
    assert left.title == "batch_size 64" and "mfubench sweep" in str(left.why_not)


def test_a_loader_of_one_size_has_no_larger_batches() -> None:
    run = a_profile("other", "launch")
    survey = replace(SURVEY, one_size=True)
    assert promised(run, survey).items() == (promised(run).items() - LARGER.items())
    (left,) = (p for p in proposals(run, survey, "time") if p.title.startswith("batch_size"))
    assert left.title == "batch_size 64" and "gives batches of one size" in str(left.why_not)


def test_zeros_of_tables_are_won_with_their_update() -> None:
    run = a_profile("items", "inefficiency.embedding", 8.0)
    run.modules[1] = replace(run.modules[1], time_ms=8.0, fwd_time_ms=2.0, bwd_time_ms=6.0)
    run.modules.append(replace(run.modules[0], name="(optimizer)", causes={"optimizer": 10.0}))
    found = promised(run)
    assert found["sparse_gradients"] == 3.0 + 6.0  # three times 1 GB at 1 TB/s, and the zeros
    assert found["batch_size 64"] == 5.0 + 3.0  # a step has them once, whatever its size
    cells = cells_of(run)
    (advice,) = (p for p in proposals(run, SURVEY, "time") if p.title.startswith("row-sparse"))
    assert advice.predicted_ms(cells) == 6.0  # of the optimizer, and no time of these tables


def test_the_kernel_follows_where_attention_hands_out_weights() -> None:
    run = a_profile("block.attention", "padding")
    calling = replace(SURVEY.ops["window_attention"], modules=["block.attention", "other"])
    for survey, after in (
        (SURVEY, WithoutAttentionWeights()),
        (replace(SURVEY, attention=[]), None),
        (replace(SURVEY, ops={"window_attention": calling}), None),  # somewhere without
    ):
        (kernel,) = (p for p in proposals(run, survey, "time") if p.title == "impl window_attention=triton")
        assert kernel.after == after


def test_judged_by_numbers_kernels_alone_are_tried() -> None:
    run = a_profile("block.norm", "launch")
    found = proposals(run, SURVEY, "numbers")
    assert {p.title for p in found if p.change} == {"impl rms_norm=triton", "impl window_attention=triton"}
    assert "times nothing" in why_not(found)[REGION]
    timed = why_not(proposals(run, replace(SURVEY, interpreted=True), "time"))
    assert timed.keys() >= {"impl rms_norm=triton", "impl window_attention=triton"} and REGION not in timed


def test_shapes_that_do_not_vary_are_compiled_as_they_are() -> None:
    run = a_profile("block.norm", "launch")
    for vary in (True, False):
        found = proposals(run, replace(SURVEY, shapes_vary=vary), "time")
        compiled = [p.change for p in found if isinstance(p.change, Compile)]
        assert len(compiled) == 3 and all(change.dynamic is vary for change in compiled)


def test_no_two_changes_are_promised_the_same_milliseconds() -> None:
    run = a_profile("block.norm", "launch")
    cells = cells_of(run)
    by_title = {proposal.title: proposal for proposal in proposals(run, SURVEY, "time")}
    assert by_title[REGION].cause(cells) == "launch"
    by_title[REGION].take(cells)
    assert cells["block.norm", "launch"] == 0 and by_title[GRAPHS].predicted_ms(cells) == 0
    by_title["dtype bf16"].take(cells)
    assert by_title["dtype tf32"].predicted_ms(cells) == pytest.approx(3.0)


@pytest.mark.parametrize(("won_ms", "left"), [(4.0, 6.0), (15.0, 0.0), (-1.0, 10.0), (None, 0.0)])
def test_what_a_change_did_not_win_is_left_for_others(won_ms: float | None, left: float) -> None:
    run = a_profile("block.norm", "launch")
    cells = cells_of(run)
    by_title = {proposal.title: proposal for proposal in proposals(run, SURVEY, "time")}
    by_title[REGION].take(cells, won_ms)
    assert by_title[WHOLE].predicted_ms(cells) == pytest.approx(left)
    by_title["bucket_by_length"].take(cells, 1.0)  # claims nothing here
    assert by_title[WHOLE].predicted_ms(cells) == pytest.approx(left)


def test_nothing_is_promised_more_than_it_takes() -> None:
    """Tables of 10 GB: 30 ms of zeros and updates in an optimizer of 10. Half of 50 ms of products: 25 of 10 padded."""
    tables = replace(SURVEY, dense_tables={"items": 10**10})
    assert promised(a_profile("(optimizer)", "optimizer"), tables)["sparse_gradients"] == pytest.approx(10.0)
    bucketed = replace(SURVEY, padded_share_won=0.5)
    assert promised(a_profile("other", "padding"), bucketed)["bucket_by_length"] == pytest.approx(10.0)


def test_nothing_is_promised_less_than_nothing() -> None:
    """An update that must move more than it took time for; a dtype that is slower here; batches that get worse."""
    worse: dict[str, Any] = {"update_bytes": 2 * 10**10, "peaks": {"fp32": 50.0, "tf32": 200.0, "bf16": 25.0}}
    survey, run = replace(SURVEY, **worse, padded_share_won=-0.2), a_profile("(optimizer)", "optimizer")
    run.modules.append(replace(run.modules[0], name="other", causes={"padding": 5.0}))
    cells = cells_of(run)
    won = {proposal.title: proposal.predicted_ms(cells) for proposal in proposals(run, survey, "time")}
    assert won["optimizer fused"] == won["dtype bf16"] == won["bucket_by_length"] == 0.0
