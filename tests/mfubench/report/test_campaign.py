"""The table of results that a README shows: kernels beside their fastest peer, and models."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mfubench.errors import BadInput
from mfubench.figures import Dots
from mfubench.report.blocks import Chart
from mfubench.report.campaign import BEGIN, END, campaign_page, put_table, results_table
from mfubench.report.markdown import render_page
from tests.mfubench.report.factory import a_gpu_run

INDEX = {"identity": {"device": "a GPU"}, "environment": {"torch": "2.11"}}


def row(implementation: str, ms: float, ours: float | None = None, **changes: Any) -> dict[str, Any]:
    return {
        **{"op": "gdpa", "shape": "X", "direction": "forward", "implementation": implementation, "same_math": True},
        **{"ms": (ms, ms, ms), "tflops": 100.0, "share_of_floor": 0.5, "reason": None},
        **{"times_ours": None if ours is None else (ours, ours, ours), **changes},
    }


def bench(*rows: dict[str, Any], device: str = "a GPU", status: str = "done") -> dict[str, Any]:
    document = {"environment": {"device_name": device}, "rows": list(rows), "nvml": {}}
    return {"task": "bench/one", "status": status, "reason": None, "document": document}


def table(*benches: dict[str, Any]) -> list[str]:
    return [line for line in results_table(INDEX, {"bench": benches}).splitlines() if line.startswith("| gdpa")]


def test_ours_stands_beside_the_fastest_peer_of_the_same_mathematics() -> None:
    peers = [row("slow", 6.0, 3.0), row("fast", 3.0, 1.5), row("a ceiling", 1.0, 0.5, same_math=False)]
    absent = row("absent", 0.0, reason="out of memory") | {"ms": None}
    (line,) = table(bench(row("mfubench", 2.0), *peers, absent))
    assert "| fast |" in line and "1.5" in line and "2.0" in line and "50.0" in line


def test_a_shape_without_a_peer_has_none() -> None:
    lines = table(bench(row("mfubench", 2.0), row("mfubench", 4.0, direction="backward")))
    assert len(lines) == 2 and all("n/a" in line for line in lines)


def test_a_peer_stands_beside_ours_of_its_own_run() -> None:
    """And what counts is its time in ours, for runs may differ in pace."""
    (line,) = table(
        bench(row("mfubench", 1.5)),
        bench(row("mfubench", 2.0), row("torch", 5.0, 2.5)),
        bench(row("mfubench", 4.0), row("named", 6.0, 1.5), status="in part"),
    )
    assert "| named |" in line and "4.0" in line and "1.500" in line


def test_ours_alone_shows_only_until_there_is_a_run_beside_peers() -> None:
    def shown(*benches: dict[str, Any]) -> int:
        index = {"identity": {"device": "a GPU", "code": "0"}, "environment": {}}
        page = render_page(campaign_page(index, {"bench": benches}))
        return page.count("| forward | mfubench |")

    alone = bench({**row("mfubench", 1.5), "gb_s": 1.0})
    beside = bench(*({**given, "gb_s": 1.0} for given in (row("mfubench", 2.0), row("torch", 5.0, 2.5))))
    assert shown(alone) == 1 and shown(alone, beside) == 1 and shown(beside, beside) == 2


def test_peaks_of_a_busy_machine_are_told() -> None:
    document = {"environment": {"device_name": "a CPU"}, "by_dtype": {}, "busy": ["18 % of the cores' time"]}
    done = {"task": "calibration/peaks", "status": "done", "reason": None, "document": document}
    index = {"identity": {"device": "a CPU", "code": "0"}, "environment": {}}
    page = render_page(campaign_page(index, {"calibration": [done]}))
    assert "the peaks were measured on a busy machine (18 % of the cores' time): too low" in page


def test_what_is_not_measured_stands_by_its_reason() -> None:
    absent = [{"task": f"bench/{n}", "status": "not run", "reason": "no GPU", "document": None} for n in range(3)]
    page = render_page(
        campaign_page({"identity": {"device": "a CPU", "code": "0"}, "environment": {}}, {"bench": absent})
    )
    assert page.count("no GPU") == 1 and "no GPU: bench/0, bench/1, bench/2" in page


def test_results_of_two_devices_are_not_put_into_one_table() -> None:
    with pytest.raises(BadInput, match="bench/one is of another GPU, the campaign of a GPU: results of two devices"):
        table(bench(row("mfubench", 2.0), device="another GPU"))
    tuned = {"task": "tune/x", "status": "in part", "document": {"entries": [{"device": "another GPU"}]}}
    with pytest.raises(BadInput, match="tune/x is of another GPU"):
        campaign_page({**INDEX, "identity": {"device": "a GPU", "code": "0"}}, {"tune": [tuned]})


def test_a_file_holds_a_table_for_each_device(tmp_path: Path) -> None:
    """Each is replaced by its own device's next one; what stood there without a device goes."""
    file = tmp_path / "README.md"
    file.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")

    def put(device: str, ms: float) -> str:
        index = {"identity": {"device": device}, "environment": {"torch": "2.11"}}
        put_table(results_table(index, {"bench": [bench(row("mfubench", ms), device=device)]}), file)
        return file.read_text()

    put("NVIDIA H200", 2.0)
    put("NVIDIA H100 80GB HBM3", 3.0)
    text = put("NVIDIA H200", 4.0)
    assert text.startswith(f"before\n{BEGIN}\n### NVIDIA H200\n") and text.endswith(f"\n{END}\nafter\n")
    first, second = text.split("### NVIDIA H100 80GB HBM3")
    assert "| 4.000 [" in first and "| 3.000 [" in second and "2.000" not in text and "old" not in text
    assert put("NVIDIA H200", 4.0) == text


def profile(mfu: float | None, size: str) -> dict[str, Any]:
    run = a_gpu_run()
    run.mfu_of_measured_peak = mfu
    run.workload |= {"size": size}
    return {"task": f"profile/{size}", "status": "done", "reason": None, "document": json.loads(run.to_json())}


def test_warnings_that_differ_in_numbers_are_one() -> None:
    warned = [profile(0.1, size) for size in "abc"]
    for item, times in zip(warned, ("2.5", "10", "1.25"), strict=True):
        item["document"]["warnings"] = [f"a step of 3 took {times} times as long", "the same"]
    index = {"identity": {"device": "NVIDIA H100 80GB HBM3", "code": "0"}, "environment": {}}
    page = render_page(campaign_page(index, {"profile": warned}))
    told = [line for line in page.splitlines() if "of the profiles" in line]
    assert len(told) == 2 and "a step of 3 took 1.25 to 10 times as long (3 of the profiles)" in told[0]


def test_the_step_that_uses_the_device_best_is_drawn_and_kernels_beside_their_peers() -> None:
    device = a_gpu_run().device
    index = {"identity": {"device": device, "code": "0"}, "environment": {}}
    peers = [row("mfubench", 2.0), row("torch", 5.0, 2.5), row("mfubench", 2.0, direction="backward")]
    benches = [bench(*({**given, "gb_s": 1.0} for given in peers), device=device)]
    results = {"profile": [profile(None, "tiny"), profile(0.2, "base"), profile(0.1, "large")], "bench": benches}
    drawn: list[Chart] = []

    def picture(chart: Chart) -> str:
        drawn.append(chart)
        return f"{len(drawn)}.svg"

    page = render_page(campaign_page(index, results), picture=picture)
    assert "](1.svg)" in page and "](2.svg)" in page and len(drawn) == 2
    step, kernels = drawn
    assert "kunlun base" in step.title and device in step.title
    assert isinstance(kernels.figure, Dots) and "in 1 of 1" in kernels.summary
    assert [(dot.row, dot.value) for dot in kernels.figure.dots] == [("gdpa, X, forward", 2.5)]
    files = {step.title: "a/report-1.svg", kernels.title: "a/report-2.svg"}
    shown = re.findall(r"\]\((.*)\)", results_table(index, results, pictures=files))
    assert shown == list(files.values()) and "![" not in results_table(index, results)


def test_without_results_there_is_no_table() -> None:
    with pytest.raises(BadInput, match="no profile, bench or ladder"):
        results_table(INDEX, {})


@pytest.mark.parametrize(
    ("impl", "words"),
    [("reference", "PyTorch (references)"), ("reference,a=triton,b=triton", "our kernels (2 ops)"), ("auto", "auto")],
)
def test_what_computed_the_ops_is_told_in_words(impl: str, words: str) -> None:
    item = profile(0.1, "tiny")
    item["document"]["workload"]["impl"] = impl
    index = {**INDEX, "identity": {"device": a_gpu_run().device}}
    assert f"| {words} |" in results_table(index, {"profile": [item]})


def test_a_contract_passes_with_all_of_its_parts() -> None:
    """What was cut off would read as a pass."""

    def item(op: str, at: int, *, failed: int = 0, status: str = "done", **step: str) -> dict[str, Any]:
        of_op = {"op": op, "cases": 2, "failed": failed, "worst_error_of_budget": 0.5, "dtypes": ["bf16"]}
        given = {"op": op, "part": at, "parts": 1 if step else 2, **step}
        document = {"ops": [of_op], "run_by": "a GPU"}
        return {"task": op, "arguments": given, "status": status, "reason": None, "document": document}

    items = [
        item("whole", 0),
        item("whole", 1),
        item("whole", 0, step="a step"),
        item("missing", 0),
        item("wrong", 1, failed=1),
    ]
    items += [item("in part", 0), item("in part", 1, status="in part")]
    told = render_page(campaign_page({**INDEX, "identity": {"device": "a GPU", "code": "c"}}, {"contract": items}))
    assert "| whole | pass | 6 |" in told and "| wrong | FAIL |" in told
    assert "| missing | 1 of 2 parts, none fails |" in told and "| in part | 1 of 2 parts, none fails |" in told
