"""The page of plans: what fits, the least step, the most MFU; what is not known is said."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mfubench.report import write_page
from mfubench.report.blocks import Page, Table
from mfubench.report.charts import why_not
from mfubench.report.planning import plan_page
from tests.mfubench.report.page import Document


def a_plan(**changes: Any) -> dict[str, Any]:
    lines = [("useful", 30.0), ("peak_gap", 10.0), ("memory_bound.norm", 20.0)]
    speed = {"step_ms": 60.0, "mfu": 0.5, "samples_per_s": 17066.7, "gpus": 1}
    return {
        "gpu": "H200 SXM",
        "workload": {"model": "kunlun", "size": "large", "mode": "train", "dtype": "bf16"},
        "requests": 1024,
        "flops": {"model": 3 * 10**13, "hardware": 4 * 10**13},
        "bytes": 10**11,
        "unknown_ops": [],
        "impls": {"gdpa": "triton"},
        "memory": {"peak_bytes": 48 << 30, "by_kind": {"parameters": 8 << 30}, "phase": "(backward)"},
        "fits": True,
        "most_requests": 2048,
        "more_may_fit": False,
        "least": {
            **speed,
            "ledger": [{"cause": cause, "ms": ms, "share": ms / 60, "modules": ["layer"]} for cause, ms in lines],
        },
        "at_rates": None,
        "notes": [],
        **changes,
    }


def told(*plans: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    gpu = {
        "name": "H200 SXM",
        "dtype": "bf16",
        "datasheet_tflops": 989.5,
        "tflops": {"bf16": 989.5},
        "bandwidth_gb_s": 4800,
        "memory_bytes": 150 * 10**9,
        "basis": "datasheet",
        "source": "a datasheet",
    }
    return {
        "gpus": [gpu],
        "like": None,
        "samples_per_day": None,
        "room": 0.9,
        "plans": list(plans),
        "flop_convention": "2 per multiply-add",
        "environment": {"torch": "2.13.0"},
        **changes,
    }


def plans_of(document: Mapping[str, Any]) -> dict[str, list[str]]:
    table = plan_page(document).sections[0].blocks[0]
    assert isinstance(table, Table)
    return {column.header: [row[at] for row in table.rows] for at, column in enumerate(table.columns)}


def test_the_headline_says_what_fits_and_what_bounds() -> None:
    page = plan_page(told(a_plan(), a_plan(fits=False)))
    assert page.headline == (
        "kunlun large train bf16, 1\u00a0024 requests a step, on H200 SXM: fits, 48.0 GiB of 140 GiB, no eager step "
        "below 60.0 ms, so an MFU of at most 50.0 %; 1 of 2 plans fit"
    )


def test_what_no_run_told_has_no_column() -> None:
    assert not {"ms at the rates", "least GPUs"} & plans_of(told(a_plan())).keys()


def test_gpus_of_no_run_are_the_least_alone() -> None:
    page = plan_page(told(a_plan(), samples_per_day=1e9))
    assert _caption(page).endswith("samples a day, at least.") and "rates" not in _caption(page)


def _caption(page: Page) -> str:
    table = page.sections[0].blocks[0]
    assert isinstance(table, Table)
    return table.caption


def test_times_at_a_runs_rates_stand_beside_the_least() -> None:
    speed = {"step_ms": 90.0, "mfu": 0.33, "samples_per_s": 11377.8, "gpus": 2}
    like = {"title": "a run", "device": "NVIDIA H200", "step_ms": 100.0, "rates": {"gemm": 0.8, "attention": 0.4}}
    document = told(a_plan(at_rates=speed), a_plan(), like=like, samples_per_day=1e9)
    columns = plans_of(document)
    assert columns["ms at the rates"] == ["90.0", "n/a"]
    assert (columns["least GPUs"], columns["GPUs at the rates"]) == (["1", "1"], ["2", "n/a"])
    page = plan_page(document)
    assert _caption(page).endswith("1\u00a0000\u00a0000\u00a0000 samples a day, at least and at the rates.")
    assert "at the rates of a run its kernels take 90.0 ms, an MFU of 33.0 %" in page.headline
    rates = page.sections[1].blocks[0]
    assert isinstance(rates, Table) and [row[0] for row in rates.rows] == ["attention", "gemm"]


def test_memory_that_is_not_known_is_not_judged() -> None:
    document = told(a_plan(fits=None, most_requests=None, more_may_fit=None))
    document["gpus"][0]["memory_bytes"] = None
    assert "48.0 GiB at its peak, of a memory that is not known" in plan_page(document).headline
    assert not {"fits", "most requests"} & plans_of(document).keys()


def test_notes_and_operators_that_nobody_knows_are_warned_of_once() -> None:
    notes = ["bytes are not known"]
    page = plan_page(told(a_plan(notes=notes), a_plan(notes=notes, unknown_ops=["mine::product"])))
    assert page.warnings == [
        "kunlun large train bf16: bytes are not known",
        "kunlun large train bf16: FLOPs of mine::product are not known, and missing here",
    ]


@pytest.mark.skipif(bool(why_not()), reason=f"draws charts: {why_not()}")
def test_each_plan_has_its_waterfall(tmp_path: Path) -> None:
    files = write_page(plan_page(told(a_plan())), tmp_path)
    assert list(files) == ["The most MFU of kunlun large train bf16 on H200 SXM"]
    assert "the least step, 60.00 ms" in (tmp_path / "report-1.svg").read_text(encoding="utf-8")
    assert "share of the least step" in Document((tmp_path / "report.html").read_text(encoding="utf-8")).text
