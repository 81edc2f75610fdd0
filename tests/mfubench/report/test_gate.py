"""The page of a performance gate, and of its check of itself."""

import io
import json
import math
import re
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from mfubench.gate.document import document
from mfubench.gate.judge import Judged
from mfubench.gate.policy import LIMITS, Policy
from mfubench.gate.rows import VERDICTS
from mfubench.gate.source import Source
from mfubench.report import html, markdown, terminal, write_page
from mfubench.report.blocks import Chart, Page, Table
from mfubench.report.charts import svg, why_not
from mfubench.report.ci import summary
from mfubench.report.format import cleaned
from mfubench.report.gate import MOST_ROWS, compared, gate_page, rows_of, self_check_page
from tests.mfubench.report.gate_factory import (
    HOSTILE,
    RATIO,
    a_check,
    a_gate,
    a_hostile_gate,
    a_row,
    a_self_check,
    a_timing,
    located,
    of_a_kernel,
    slower,
    some_rows,
)
from tests.mfubench.report.page import Document


def on_terminal(page: Page, width: int = 160, full: bool = False) -> str:
    stream = io.StringIO()
    terminal.print_page(page, Console(file=stream, width=width, emoji=False), full=full)
    return stream.getvalue()


def section(page: Page, title: str):
    return next((each for each in page.sections if each.title == title), None)


def table(page: Page, title: str = "Verdict") -> Table:
    return next(block for block in section(page, title).blocks if isinstance(block, Table))


def column(given: Table, header: str) -> list[str]:
    at = [each.header for each in given.columns].index(header)
    return [row[at] for row in given.rows]


OUTPUTS = {"terminal": lambda page: on_terminal(page, full=True), "markdown": markdown.render_page}


def test_the_headline_names_the_worst_row_and_counts_the_rest():
    rows = [slower(), *[of_a_kernel("CHANGED")] * 2, *[a_row()] * 20]
    assert gate_page(a_gate(*rows)).headline == (
        "FAIL: step time of kunlun small 1.080 [1.060, 1.100] times base's, allowed 1.03 times; "
        "1 fails, 2 changed, 20 pass"
    )


@pytest.mark.parametrize(
    ("rows", "headline"),
    [
        ([], "PASS: nothing was looked at"),
        ([a_row()], "PASS: 1 thing within its limit (1 count of a model)"),
        (
            [a_row(), of_a_kernel(), of_a_kernel(), slower("PASS")],
            "PASS: 4 things within their limits (1 count of a model, 2 of compiled kernels, 1 step time)",
        ),
        (
            [of_a_kernel("FAIL")],
            "FAIL: spill bytes of gdpa_fwd (bf16) on sm_90 in kunlun small: spills 176 bytes a thread, 0 before; "
            "1 fails",
        ),
        ([a_row("ERROR", metric="model", why="head: no\nmodule")], "ERROR: model of kunlun small: head: no; 1 could "),
        ([a_row("CHANGED", ratio=(1.5, 1.5, 1.5))], "CHANGED: bytes of kunlun small 1.500 times base's; 1 changed"),
        ([of_a_kernel("FAIL", waived="until 2026-12-31: x")], "CHANGED: spill bytes"),
        ([slower("NO_BASELINE", ratio=None, why="")], "NO_BASELINE: step time of kunlun small; 1 without a baseline"),
    ],
)
def test_every_verdict_is_a_sentence(rows, headline):
    assert gate_page(a_gate(*rows)).headline.startswith(headline)


def test_every_verdict_has_its_row_and_its_words():
    page = gate_page(a_gate(*some_rows()))
    shown = table(page)
    assert set(column(shown, "verdict")) == set(VERDICTS)
    assert column(shown, "verdict") == sorted(column(shown, "verdict"), key=list(VERDICTS).index)
    text = markdown.render_page(page)
    assert all(meaning in text for meaning in VERDICTS.values())


def test_what_passes_is_summed_up_and_listed_apart():
    page = gate_page(a_gate(*some_rows()))
    assert Counter(column(table(page), "verdict"))["PASS"] == 1  # the step time
    text = on_terminal(page)
    assert "And within their limits: 4 counts of models, 7 of compiled kernels." in text and "kernel_3" not in text
    assert len(table(page, "Within their limits").rows) == 11


def test_a_waiver_is_visible():
    (told,) = gate_page(a_check(of_a_kernel("FAIL", waived="until 2026-12-31: the new mask"))).sections[0].blocks
    assert column(told, "verdict") == ["CHANGED"]
    assert column(told, "why")[0].startswith("waived until 2026-12-31: the new mask; spills 176")


@pytest.mark.parametrize(
    ("changes", "limit"),
    [
        ({"metric": "step_time", "margin": 0.03}, "1.03 times"),
        ({"metric": "step_time", "margin": 0.0005}, "1.0005 times"),
        ({"metric": "registers", "margin": 8}, "8 more"),
        ({"metric": "spill_bytes", "margin": 0}, "no more"),
        ({"metric": "bytes", "margin": 0.0}, "no more"),
    ],
)
def test_what_is_allowed_is_a_share_or_a_count(changes, limit):
    assert column(table(gate_page(a_check(a_row("FAIL", **changes)))), "allowed") == [limit]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        *((168, "", "168"), (168.0, "", "168"), (0.3751, "", "0.3751"), (12.3, "ms", "12.30 ms")),
        *((2**20, "B", "1.00 MiB"), (2.5e9, "FLOP", "2.50 GFLOP"), ("wgmma", "", "wgmma")),
        *((None, "B", "n/a"), (float("nan"), "", "n/a")),
    ],
)
def test_a_value_has_the_form_of_its_unit(value, unit, text):
    shown = table(gate_page(a_check(a_row("FAIL", base=value, unit=unit), a_row("CHANGED"))))
    assert column(shown, "base") == [text, "700 MiB"]


def test_columns_that_say_nothing_are_left_out():
    rows = [of_a_kernel("CHANGED", metric="launched", base="no", head="yes", margin=None)]
    headers = [each.header for each in table(gate_page(a_check(*rows))).columns]
    assert headers == ["verdict", "benchmark", "metric", "base", "head", "why"]


def test_where_counts_differ_stands_below_the_verdicts():
    page = gate_page(a_check(located(), located("PASS", metric="peak_memory"), of_a_kernel("FAIL")))
    (below,) = [block for block in section(page, "Verdict").blocks if isinstance(block, Table)][1:]
    assert below.rows == [["kunlun small", "bytes", located().located]] and "items: +12.0 MiB copy" in located().located
    (passed,) = [block for block in section(page, "Within their limits").blocks if isinstance(block, Table)][1:]
    assert [row[1] for row in passed.rows] == ["peak memory"]


def test_a_document_from_before_places_is_read():
    told = a_check(located())
    for row in told["rows"]:
        del row["where"], row["elsewhere"]
    assert rows_of(told) == [located(where=(), elsewhere=0)]


def test_a_check_has_no_time():
    page = gate_page(a_check(*some_rows()[1:4]))
    assert section(page, "Time") is None and section(page, "Every pair of processes") is None


def test_time_is_a_forest_plot_beside_its_noise():
    told = a_gate(slower("PASS"), slower(benchmark="x"))
    page = gate_page(told)
    (chart,) = (block for block in section(page, "Time").blocks if isinstance(block, Chart))
    assert chart.figure.ratios and chart.figure.rows == ["x: FAIL", "kunlun small: PASS"]
    assert chart.figure.series == ["head against base", "base against itself"]
    assert [(dot.value, dot.low, dot.high) for dot in chart.figure.dots[:2]] == [RATIO, (1.001, 0.997, 1.004)]
    assert "x 1.080 [1.060, 1.100]" in chart.summary
    times = table(page, "Time")
    assert column(times, "base's step") == ["12.30 ms [12.10, 12.50]"] * 2
    assert column(times, "noise floor") == ["1.001 [0.997, 1.004]"] * 2
    assert column(table(page, "Every pair of processes"), "ratios")[0] == "1.081, 1.079, 1.080, 1.083"


@pytest.mark.skipif(bool(why_not()), reason=f"draws charts: {why_not()}")
@pytest.mark.parametrize("high", [1.01, 1.1, 3.0])
def test_ratios_near_one_and_far_have_ticks(high):
    told = a_gate(slower(), timings=[a_timing(ratio=[high, high - 0.005, high + 0.005])])
    (chart, *_) = section(gate_page(told), "Time").blocks
    ticks = re.findall(r">(\d(?:\.\d+)?)</text>", svg(chart, "here"))
    assert len(ticks) >= 3 and len(set(ticks)) == len(ticks)


def test_a_time_has_the_verdict_of_its_row():
    rows = [slower(waived="until 2026-12-31: known"), slower("ENVIRONMENT", benchmark="x")]
    told = a_gate(*rows, timings=[a_timing(verdict="FAIL"), a_timing("x", verdict="FAIL")])
    assert column(table(gate_page(told), "Time"), "verdict") == ["ENVIRONMENT", "CHANGED"]


def test_an_interval_without_an_end_is_not_drawn():
    told = a_gate(slower(), timings=[a_timing(ratio=[1.1, 0.0, math.inf])])
    (chart, *_) = section(gate_page(told), "Time").blocks
    assert [dot.series for dot in chart.figure.dots] == ["base against itself"]


def test_a_benchmark_without_numbers_is_still_listed():
    nothing = {"base_ms": None, "head_ms": None, "ratio": None, "against_itself": None, "ratios_of_pairs": []}
    page = gate_page(a_gate(slower("ERROR", ratio=None), timings=[a_timing(verdict="ERROR", **nothing)]))
    times, pairs = table(page, "Time"), table(page, "Every pair of processes")
    assert times.rows[0][2:5] == ["n/a"] * 3 and column(pairs, "ratios") == ["none"]
    assert not any(isinstance(block, Chart) for block in section(page, "Time").blocks)


@pytest.mark.parametrize("output", OUTPUTS)
def test_what_was_compared_is_in_the_full_view(output):
    text = OUTPUTS[output](gate_page(a_gate(*some_rows()))).replace("\\", "")
    for fact in ("origin/main, commit abc123def456", "with changes that are not committed", "sm_80, sm_90"):
        assert fact in text
    for fact in (
        "triton 3.9.0, ptxas 12.9.86",
        "1.15 times",
        "NVIDIA H100",
        "another process",
        "took its whole budget",
    ):
        assert fact in text
    assert "* spill_bytes until 2026-12-31: the new mask" in text
    assert "Processes of both sides took turns." in text and "mfubench gate run --base" in text
    assert "NVIDIA H100" not in on_terminal(gate_page(a_gate(*some_rows())))


@pytest.mark.parametrize("rows", [[], some_rows(), [of_a_kernel("CHANGED")] * 5000], ids=["none", "some", "many"])
def test_a_page_of_any_length_is_whole(rows):
    page = gate_page(a_gate(*rows))
    brief, text = on_terminal(page, width=80), html.render_page(page)
    assert len(brief.splitlines()) < 150 and max(map(len, brief.splitlines())) <= 80
    Document(text)
    assert "run.json" not in text.partition("<main>")[2].partition("pip install")[0] and len(text) < 10**6
    if len(rows) > MOST_ROWS:
        written = markdown.render_page(page)
        assert "4600 more rows; gate.json lists them all." in written.replace("\u00a0", "")
        assert "380 more rows; gate.json" in written and "run.json" not in written


def test_a_gates_own_document_has_what_the_reports_need():
    side = Source("base", "main", Path("/src"), (), "abc123", False)
    policy, judged = Policy(LIMITS), Judged([slower()], [a_timing()], notes=["a note"])
    told = json.loads(json.dumps(document(judged, side, side, policy, device="cpu", targets=[], exits={})))
    text = markdown.render_page(gate_page(told))
    assert "FAIL: step time of kunlun small" in text and "a note" in text and "commit abc123" in text
    assert "by default" in text and "no target" in text and "FAIL: step time" in summary(told)


def test_what_was_counted_and_compiled_is_said():
    facts = dict(compared(a_gate()).pairs)
    assert facts["kunlun small"] == (
        "32 requests a step, train, counted in fp32 on cpu; kernels, in bf16: 5 on sm_80, 6 on sm_90"
    )


def test_names_are_text_in_every_output(tmp_path):
    page = gate_page(a_hostile_gate())
    assert "\n" not in page.headline
    write_page(page, tmp_path)
    told = Document((tmp_path / "report.html").read_text("utf-8"))
    assert told.text.count("<i>c</i> `d`") > 8 and "i" not in {tag for tag, _ in told.tags}
    assert r"a\|b \<i\>c\</i\> \`d\`" in (tmp_path / "report.md").read_text("utf-8")
    assert "\x1b" not in on_terminal(page, full=True)
    if not why_not():
        assert "&lt;i&gt;c" in (tmp_path / "report-1.svg").read_text("utf-8")


def test_what_is_no_text_is_taken_out_everywhere():
    assert cleaned({"a\x00": ["\ud800b\ufffe", (1, None, "c\td\n")], "e": {"\x1bf": 2.5}}) == {
        "a": ["b", [1, None, "c\td\n"]],
        "e": {"f": 2.5},
    }
    assert HOSTILE not in str(cleaned(a_hostile_gate()))


def test_a_check_of_itself_says_how_often_it_errs():
    page = self_check_page(a_self_check())
    assert page.headline == (
        "This machine's gate would cry wolf in 0.200 % of runs on equal code, and catch a step that is 10.0 % slower "
        "in 99.0 %; the smallest change that it can tell: 3.40 %"
    )
    text = on_terminal(page)
    for fact in (
        "1.000 [0.995, 1.004]",
        "1.100 [1.094, 1.105]",
        "2000 of each kind",
        "stays undecided",
        "missed",
        "4.6",
        "4.1",
    ):
        assert fact in text
    assert re.search(r"passes: missed +0 %", text)


def test_a_machine_that_can_tell_nothing_says_so():
    page = self_check_page(a_self_check(smallest_change=None, detected=0.0, warnings=["the clocks move"]))
    assert page.headline.endswith("in 0 %; the smallest change that it can tell: n/a (no change that was tried)")
    assert page.warnings == ["the clocks move"]
    Document(html.render_page(page))
