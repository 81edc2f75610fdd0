"""An ablation in every output: its numbers, what was not measured, and the published ones beside them."""

import html as escapes
import io
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from rich.console import Console

from mfubench.ablate.document import Ablation
from mfubench.ablate.ladder import Ladder
from mfubench.report import html, markdown, terminal
from mfubench.report.ablation import ablation_page
from mfubench.report.blocks import Page
from mfubench.report.format import GROUP
from mfubench.workload.spec import WorkloadSpec

Render = Callable[[Ablation], str]


def on_terminal(page: Page) -> str:
    stream = io.StringIO()
    terminal.print_page(page, Console(file=stream, width=400, emoji=False), full=True)
    return stream.getvalue()


OUTPUTS: dict[str, Callable[[Page], str]] = {
    "terminal": on_terminal,
    "markdown": markdown.render_page,
    "html": html.render_page,
}


@pytest.fixture(params=OUTPUTS)
def render(request: Any) -> Render:
    def plain(ablation: Ablation) -> str:
        text = re.sub(r"<(title|desc)[^>]*>.*?</\1>", "", OUTPUTS[request.param](ablation_page(ablation)))
        text = escapes.unescape(re.sub(r"<[^>]*>", "", text))
        return " ".join(text.replace(GROUP, "").replace("\\", "").replace("|", " ").split())

    return plain


def climbed(**options: Any) -> Ablation:
    ladder = Ladder(WorkloadSpec("kunlun", size="tiny", device="cpu", steps=3))
    ladder.climb(**options)
    return ladder.ablation()


def test_every_step_has_its_numbers(machine: Any, render: Render) -> None:
    text = render(climbed())
    for name in ("interformer", "+towers", "+event_personalization", "+experts"):
        assert f" {name} 2604 [" in text
    assert "+gdpa 2604 [2588, 2621] +6.25 % 41.0 [40.7, 41.3] 49.4 [49.1, 49.7] 50.0 1.00 1.20 700" in text


def test_the_headline_says_where_the_road_leads(machine: Any, render: Render) -> None:
    text = render(climbed())
    assert "16 of 16 settings measured on " in text
    assert "from interformer to the full kunlun: samples/s +80.0 %, MFU 0 %, model FLOPs a sample -44.4 %" in text
    assert "of 13 published changes of single steps the sign agrees with 8, disagrees with 1 and is undecided" in text


def test_published_numbers_stand_beside_the_measured_with_verdict_and_source(machine: Any, render: Render) -> None:
    text = render(climbed())
    assert (
        "+window samples/s +31.1 % +7.69 % sign agrees, smaller +10.0 % sign agrees, smaller +31.1 % QPS README, note"
    ) in text
    assert "-8.09 % +6.67 % sign disagrees" in text
    assert "not comparable: published for placing the experts on several GPUs" in text
    assert "github.com/doogkong/ad" in text and "5a4c502" in text
    assert "1.311 x 0.705 makes -7.6 %" in text and "undecided if zero is inside" in text


def test_intervals_of_changes_have_signs(machine: Any, render: Render, monkeypatch: pytest.MonkeyPatch) -> None:
    def noisy(*_: Any) -> Any:
        return [10.0] * 5, [8.0, 9.0, 10.0, 11.0, 12.5]

    monkeypatch.setattr("mfubench.ablate.ladder.time_pair", noisy)
    assert "0 % [-20.0, +25.0]" in render(climbed())


def test_what_is_lost_is_marked(machine: Any, render: Render) -> None:
    def fail(asked: Any) -> None:
        if isinstance(asked, WorkloadSpec) and asked.overrides["ffn"] == "pffn" and asked.overrides["rote"] == "true":
            raise torch.OutOfMemoryError("CUDA out of memory, 12 GiB asked for")

    machine.fail = fail
    text = render(climbed())
    assert "gdpa out of memory out of memory" in text and "12 GiB asked for" in text
    assert "15 of 16 settings measured" in text


def test_what_was_not_reached_is_marked(machine: Any, render: Render, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr("mfubench.ablate.ladder.monotonic", lambda: float(next(clock)))
    text = render(climbed(budget_s=4.5))
    assert "+comp_skip not reached not reached n/a" in text and "--budget 4.5s was spent" in text
    assert "+window samples/s +31.1 % n/a not reached n/a not reached" in text


def test_nothing_measured_is_a_page_too(machine: Any, render: Render) -> None:
    assert "0 of 16 settings measured" in render(climbed(budget_s=0.0))


def test_a_column_that_no_step_has_a_number_for_is_left_out(machine: Any, render: Render) -> None:
    ablation = climbed()
    text = render(ablation)
    assert "J a sample" not in text and "MFU % " not in text
    assert "Not measured: MFU and HFU against a datasheet, energy" in text and "no NVIDIA driver" in text

    def on_a_gpu(row: Any) -> Any:
        return replace(
            row, mfu=row.mfu_of_measured_peak.scaled(0.5), hfu=row.hfu_of_measured_peak, energy_j_per_sample=0.125
        )

    steps = [replace(step, row=on_a_gpu(step.row)) for step in ablation.steps]
    text = render(replace(ablation, steps=steps))
    assert "J a sample" in text and "0.125" in text and "20.5 [20.4, 20.6]" in text and "Not measured:" not in text


def test_warnings_are_in_every_output(machine: Any, render: Render) -> None:
    assert "was measured anew" in render(replace(climbed(), warnings=["+hsp was measured anew"]))
