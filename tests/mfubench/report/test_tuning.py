"""The page of a tuned step: what is faster, by how much the step, and what was not tuned."""

from pathlib import Path
from typing import Any

import pytest

from mfubench.report import write_page
from mfubench.report.blocks import Chart, Table
from mfubench.report.markdown import render_page
from mfubench.report.tuning import tuning_page

OLD, NEW = {"ROWS": 8, "num_warps": 4, "num_stages": 1}, {"ROWS": 4, "num_warps": 2, "num_stages": 3}


def an_entry(kernel: str, config: dict[str, int], ratio: tuple[float, float, float]) -> dict[str, Any]:
    return {
        "kernel": kernel, "shape": "layers.0 (layer_norm)", "key": "width=512", "config": config, "config_before": OLD,
        "ms": 0.8, "ms_before": 1.0, "ms_of_default": 1.0, "ratio_of_fastest": ratio, "configs_timed": 12,
    }  # fmt: skip


ENTRIES = [
    an_entry("layer_norm_fwd_kernel", OLD, (1.0, 0.98, 1.02)),
    an_entry("layer_norm_bwd_kernel", NEW, (0.8, 0.75, 0.85)),
]
STEP = {
    "ms_before": (110.0, 109.0, 111.0),
    "ms": (100.0, 99.0, 101.0),
    "speedup": {"median": 1.1, "ci95_low": 1.09, "ci95_high": 1.11},
    "blocks": 16,
    "verdict": "faster",
}


def told(**changes: Any) -> dict[str, Any]:
    return {
        "workload": {"model": "kunlun", "size": "xl", "mode": "train", "dtype": "bf16"},
        "environment": {"device_name": "NVIDIA H200"},
        "toolchain": {"triton": "3.6.0"},
        "calls": [{"op": "layer_norm", "module": "layers.0"}],
        "entries": ENTRIES,
        "lock": ENTRIES,
        "not_tuned": {"gdpa": "took over 60 s"},
        "not_held": ["fields (embedding): not held to fp64"],
        "step": STEP,
        **changes,
    }


def test_the_headline_says_how_many_and_what_they_bring() -> None:
    page = tuning_page(told())
    assert page.title == "Kernels tuned for kunlun xl train bf16"
    assert page.headline == (
        "1 of 2 kernels have a faster config; the step is 1.100 [1.090, 1.110] times as fast, faster by more than 1 %"
    )


def test_what_is_new_and_the_step_are_drawn_beside_each_other() -> None:
    page = tuning_page(told())
    (chart,) = (block for block in page.sections[0].blocks if isinstance(block, Chart))
    assert [dot.row for dot in chart.figure.dots] == ["the step", "layer_norm_bwd_kernel, width=512"]  # type: ignore[union-attr]
    drawn = chart.figure.dots[1]  # type: ignore[union-attr]
    assert (drawn.value, drawn.low, drawn.high) == pytest.approx((1.25, 1 / 0.85, 1 / 0.75))


def test_a_step_that_was_not_timed_says_why() -> None:
    page = tuning_page(told(step={"reason": "the step was not timed: given up after 5 s"}, not_tuned={}, not_held=[]))
    assert page.headline.endswith("; the step was not timed: given up after 5 s")
    assert [section.title for section in page.sections[:3]] == [
        "The step itself", "Kernels", "Calls of ops whose kernels were tuned for",
    ]  # fmt: skip
    text = render_page(page)
    assert "given up after 5 s" in text and "took over" not in text


def test_a_run_without_any_entry_has_a_page(tmp_path: Path) -> None:
    page = tuning_page(told(entries=[], step={"reason": "nothing faster was found"}))
    assert page.headline.startswith("0 of 0 kernels") and "gdpa" in render_page(page)
    write_page(page, tmp_path)
    assert "took over 60 s" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_table_names_the_configs() -> None:
    (table,) = (block for block in tuning_page(told()).sections[1].blocks if isinstance(block, Table))
    assert table.rows[1][3] == "ROWS=4 num_warps=2 num_stages=3"
    assert "ms before" in [column.header for column in table.columns]
