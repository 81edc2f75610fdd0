"""Terminal, Markdown and HTML say the same."""

import html as escapes
import io
import os
import re
import subprocess
import sys

import pytest
from rich.console import Console

from mfubench.figures import Dots
from mfubench.report import html, markdown, terminal, write_reports
from mfubench.report.blocks import Chart, Page, Section
from mfubench.report.comparison import page as page_of
from mfubench.report.format import GROUP
from mfubench.run import LedgerLine
from tests.mfubench.report.factory import STEP_MS, a_gpu_run, a_module, a_run, some_counters

HEADLINE = (
    "kunlun small, train, fp32 on AMD EPYC 9654 96-Core Processor: 12.34 ms a step [12.11, 12.61] (median), "
    "2604 samples/s on average, "
    "MFU n/a (no datasheet peak for a CPU), at least 41.0 % of the measured GEMM peak; with every row "
    "as long as its batch's longest it would need 1.09 times its model FLOPs"
)


def on_terminal(runs, width=160, full=True) -> str:
    stream = io.StringIO()
    terminal.print_runs(runs, Console(file=stream, width=width, emoji=False), full=full)
    return stream.getvalue()


def plain(text: str) -> str:
    """``text`` without markup and line breaks, so that outputs compare."""
    text = escapes.unescape(re.sub(r"<[^>]*>", "", text))
    return " ".join(text.replace(GROUP, "").replace("\\", "").split())


OUTPUTS = {
    "terminal": on_terminal,
    "markdown": lambda runs: markdown.render_page(page_of(runs)),
    "html": lambda runs: html.render_page(page_of(runs)),
}


@pytest.fixture(params=OUTPUTS)
def render(request):
    return lambda *runs: plain(OUTPUTS[request.param](runs))


def test_the_verdict_is_one_sentence(render):
    assert HEADLINE in render(a_run())


def test_every_cause_of_the_ledger_is_there_with_its_total(render):
    run = a_run()
    text = render(run)
    assert all(line.cause in text for line in run.ledger)
    assert f"{STEP_MS}" in text and "-0.004" in text


@pytest.mark.parametrize(
    "fact",
    [
        "The inefficiency of reduction is below zero",
        "aten::_cdist_forward",
        "99.1 % of the device time",
        "run gdpa with impl=triton",
        "700 MiB, reached in backward",
        "no NVIDIA driver on this machine",
        "there is no GPU on this machine",
        "7d793037a076",
        "2.13.0+cpu",
        "2 per multiply-add",
        "1.37 times the timed step",
        "2026-02-03",
    ],
)
def test_facts_are_in_every_output(render, fact):
    assert fact in render(a_run())


def test_a_gpu_run_has_its_peaks_and_counters(render):
    run = a_gpu_run()
    text = render(run)
    assert "MFU at least 33.2 %" in text and "no datasheet peak" not in text
    for fact in ("NVIDIA H100 datasheet, SXM", "989", "712", "2911", "3350", "bf16 GEMM, TFLOP/s", "2026-02-03"):
        assert fact in text
    for fact in ("1755", "6.10 s, 494 steps", "3997 J, to 3 %", "0.253 J", "gpu idle", "Tensor active", "44.2 %"):
        assert fact in text
    assert "HFU 40.0 % and the tensor pipe active for 44.2 % of the time agree" in text


def test_a_counter_that_contradicts_the_flops_is_told(render):
    run = a_gpu_run()
    run.nvml["cross_check"]["contradiction"] = "HFU is 60.0% and the tensor pipe was active for 30.0% of the time"
    text = render(run)
    assert run.nvml["cross_check"]["contradiction"] in text and "of the time agree" not in text


def test_what_the_driver_lacks_is_left_out_of_its_tables(render):
    """The reasons stand under what was not measured."""
    missing = {"unavailable": "not available: Not Supported"}
    counters = dict.fromkeys(("power_w", "sm_clock_mhz"), missing)
    nvml = some_counters(counters=counters, clock_events=missing, limits={"power": missing}, gpm={"x": missing})
    nvml |= {"cross_check": None, "energy": {"value": None, "unavailable": "not meaningful: the window was 2 s"}}
    text = render(a_gpu_run(nvml=nvml))
    assert "n/a (not meaningful: the window was 2 s)" in text and "Energy a step" not in text
    assert "held the clocks down" not in text and "1755" not in text


@pytest.mark.parametrize("workload", [{"num_candidates": 16}, {"num_candidates": 1, "request_level": True}])
def test_requests_and_candidates_are_told_apart_where_they_are(render, workload):
    step = {"requests_per_s": 2604.2, "candidates_per_s": 41_667.2}
    flops = {"per_request": 65_125_000.0, "per_candidate": 4_070_312.5}
    text = render(a_run(workload=workload, step=step, flops=flops))
    assert f"2604 requests/s of {workload['num_candidates']} candidates, 41667 candidates/s" in text
    assert all(
        words in text for words in ("Model FLOPs a request", "65.1 MFLOP", "Model FLOPs a candidate", "4.07 MFLOP")
    )
    alone = render(a_run(workload={"num_candidates": 1, "request_level": False}, step=step, flops=flops))
    assert "2604 samples/s" in alone and "candidates/s" not in alone and "Model FLOPs a candidate" not in alone


def test_a_device_without_a_datasheet_peak_says_so(render):
    assert "MFU n/a (no datasheet peak in use)" in render(a_gpu_run(mfu=None, hfu=None))


def test_runs_of_different_dtype_do_not_compare(render):
    text = render(a_run(), a_run(workload={"dtype": "bf16"}))
    assert "2 runs that do not compare: dtype differs" in text
    assert "dtype differs (run 1 fp32, run 2 bf16)" in text
    assert "device differs" not in text


def test_runs_that_compare_name_the_shortest(render):
    faster = a_run(step={"time_ms": {"median": 9.5, "ci95_low": 9.4, "ci95_high": 9.61}})
    faster.workload["overrides"] = {"ffn": "gdpa"}
    text = render(a_run(), faster)
    assert "2 runs that compare (device, dtype, mode and data agree)" in text
    assert "the shortest median step is run 2's" in text and "9.500 ms [9.400, 9.610]" in text
    assert "workload: overrides" in text and "ffn=gdpa" in text


def test_equal_runs_differ_in_nothing(render):
    assert "Nothing in workload, environment and peak." in render(a_run(), a_run())


def test_a_run_of_ones_own_module_and_a_run_without_rows(render):
    own = a_run(modules=[], ledger=[], hotspots=[], impls={}, not_measured=[])
    own.workload |= {"model": "my_package.my_module:build", "size": None}
    assert "my_package.my_module:build, train, fp32 on" in render(own)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("width", [40, 80, 160])
def test_a_terminal_cuts_nothing(width, full):
    run = a_run()
    name = run.modules[0].name
    text = on_terminal([run, a_gpu_run()], width, full)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    assert plain(HEADLINE) in plain(text)
    if width >= 80:
        assert all(verdict in text for verdict in ("compute-bound", "memory-bound", "launch-bound", "padding-bound"))
        column = "".join(line.split(" ms ")[0][: line.find("  ", 2)].strip() for line in text.splitlines())
        assert name in column


def test_a_terminal_is_brief_unless_asked():
    brief = on_terminal([a_run()], full=False)
    assert "MFU loss ledger" in brief and "Modules" in brief and "22 more modules" in brief
    assert "Environment" not in brief and "forward ms" not in brief


def test_a_name_on_a_terminal_is_no_markup():
    name = "[bold]x[/bold] :smile:"
    assert name in on_terminal([a_run(modules=[a_module(name)])])


def test_a_console_that_is_no_terminal_is_wide_and_not_live(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("COLUMNS", raising=False)
    for build in (terminal.stdout_console, terminal.stderr_console):
        build.cache_clear()
        console = build()
        assert console.width >= 160 and not console.is_interactive
        assert build() is console
        build.cache_clear()
    assert terminal.stderr_console().stderr and not terminal.stdout_console().stderr


@pytest.mark.parametrize(("columns", "width"), [("80", 80), ("200", 200), ("0", 160), ("-3", 160), ("wide", 160)])
def test_a_pipe_is_as_wide_as_columns_says(monkeypatch, columns, width):
    monkeypatch.setenv("COLUMNS", columns)
    terminal.stdout_console.cache_clear()
    assert terminal.stdout_console().width == width
    terminal.stdout_console.cache_clear()


@pytest.mark.parametrize(
    ("name", "width", "lines"),
    [
        ("embedding.tables.0", 18, ["embedding.tables.0"]),
        ("embedding.tables.0", 17, ["embedding.tables.", "0"]),
        ("embedding.tables.0", 10, ["embedding.", "tables.0"]),
        ("of embedding.tables.0", 10, ["of embedding.", "tables.0"]),
        ("a_name_without_dots", 10, ["a_name_without_dots"]),
        ("0.0712 [0.0701, 0.0733]", 10, ["0.0712 [0.0701, 0.0733]"]),
    ],
)
def test_a_modules_name_is_broken_after_a_dot(name, width, lines):
    assert terminal.broken_at_dots(name, width).split("\n") == lines


def test_a_narrow_table_breaks_names_after_dots():
    name = "sequence_towers.engagement.layers.attention.projection"
    text = on_terminal([a_run(modules=[a_module(name)])], 60, False)
    lines = [line.split("  ")[0].strip() for line in text.splitlines()]
    at = next(place for place, line in enumerate(lines) if line.startswith("sequence_"))
    parts = lines[at : next(place for place in range(at, len(lines)) if lines[place].endswith("projection")) + 1]
    assert "".join(parts) == name and len(parts) > 1 and all(part.endswith(".") for part in parts[:-1])


def test_a_chart_is_named_on_a_terminal():
    stream = io.StringIO()
    fall = Chart("MFU waterfall of kunlun", "From 100 % down to 1 %.", Dots("x", [], ratios=True))
    page = Page("A campaign", "done", [], [Section("Models", [fall], brief=True)])
    terminal.print_page(page, Console(file=stream, width=160))
    assert "MFU waterfall of kunlun: From 100 % down to 1 %." in stream.getvalue()


def test_markdown_escapes_what_it_would_act_on():
    run = a_run(modules=[a_module("a|b<c>*d*__e__`f`"), a_module("two\nlines"), a_module("[x](http://y)")])
    text = markdown.render_page(page_of([run]))
    assert r"| a\|b\<c\>\*d\*\_\_e\_\_\`f\` |" in text
    assert "| two lines |" in text and r"[x\](http://y)" in text
    assert "not_attributed" in text


def test_markdown_tables_are_even():
    rows: list[int] = []
    for line in [*markdown.render_page(page_of([a_run(), a_gpu_run()])).splitlines(), ""]:
        if line.startswith("|"):
            rows.append(len(re.findall(r"(?<!\\)\|", line)))
        else:
            assert len(set(rows)) <= 1
            rows = []


def test_markdown_says_how_many_rows_it_leaves_out():
    assert "12 more modules; run.json lists them all." in markdown.render_page(page_of([a_run()]))


def test_reports_are_written_whole(tmp_path):
    write_reports([a_run()], tmp_path / "new" / "folder")
    made = {path.name: path.read_text() for path in (tmp_path / "new" / "folder").iterdir()}
    pictures = sorted(name for name in made if name.endswith(".svg"))
    assert made.keys() - set(pictures) == {"report.html", "report.md"}
    shown = re.sub(r"!\[[^]]*\]\(([^)]*)\)\n\n", "", made["report.md"])
    assert shown == markdown.render_page(page_of([a_run()])) and all(
        f"({name})" in made["report.md"] for name in pictures
    )


def test_a_report_needs_neither_torch_nor_pandas():
    code = (
        "import sys, mfubench.report.html, mfubench.report.markdown; from mfubench.report import terminal; "
        "terminal.stdout_console(); print({'torch', 'pandas', 'numpy', 'jinja2', 'altair'} & sys.modules.keys())"
    )
    where = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=where)
    assert done.stdout.strip() == "set()"


def test_runs_are_held_against_a_baseline(render):
    slower = a_run(step={"timings_ms": [24.2, 24.68, 25.2]}, ledger=[])
    text = render(a_run(), slower)
    assert "ratios are to run 1" in text and "baseline" in text and "2.000" in text
    assert "run 2 - run 1 ms" in text and "measured apart" in text


def test_ledgers_stand_side_by_side_with_their_differences(render):
    lines = [LedgerLine("useful", 5.1, 0.4, []), LedgerLine("data", 0.11, 0.01, [])]
    text = render(a_run(), a_run(ledger=lines)).replace("|", " ").replace("  ", " ")
    text = " ".join(text.split())
    assert re.search(r"useful 4\.1\d* 5\.1\d* 1\.0+ ", text)
    assert re.search(r"launch 0\.82\d* 0 -0\.82", text)
