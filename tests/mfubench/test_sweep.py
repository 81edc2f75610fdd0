"""A sweep of batch sizes: where it begins and ends, which it names, and what it keeps; what runs is no model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mfubench.errors import BadInput, MfubenchError, OutOfMemory, TimeUp, ToolBroke
from mfubench.isolated import GaveUp
from mfubench.report.blocks import Table
from mfubench.report.format import GROUP
from mfubench.report.sweep import sweep_page
from mfubench.report.terminal import print_page, stdout_console
from mfubench.run import Run
from mfubench.sweep import FILE, Sweep, SweepPlan, identified, profiled, sizes_of
from mfubench.workload.spec import WorkloadSpec
from tests.mfubench.report.factory import a_run

ROOM = 64  # requests that the memory holds
IDENTITY = {"model": "dlrm", "code": "1"}
Reached = Callable[[int], Run]


def saturating(size: int) -> Run:
    """Throughput that rises to 1000 samples/s, half of it at 4 requests; latency that rises in step."""
    return reaching(size, 1000 * size / (size + 4), latency_ms=float(size + 4))


def reaching(size: int, samples_per_s: float, latency_ms: float | None = None) -> Run:
    ms = 1e3 * size / samples_per_s
    step: dict[str, Any] = {
        "time_ms": {"median": ms, "ci95_low": ms, "ci95_high": ms},
        "samples_per_s": samples_per_s,
        "timings_ms": [ms] * 6,
    }
    if latency_ms is not None:
        step["latency_ms"] = {"50": latency_ms / 2, "99": latency_ms}
    return a_run(workload={"batch_size": size}, step=step, warnings=[])


class Machine:
    """Runs what the sweep asks for in no process at all; ``ran`` are the batch sizes that it measured."""

    def __init__(self, reached: Reached = saturating, fails: dict[int, Exception] | None = None) -> None:
        self.reached, self.fails = reached, fails or {}
        self.ran: list[int] = []

    def __call__(
        self, task: Any, given: Any, *, limit_s: float, tell: Callable[[str], None] = lambda stage: None
    ) -> Any:
        spec, _ = given
        if task is identified:
            return dict(IDENTITY)
        assert task is profiled
        tell("timing")
        self.ran.append(spec.batch_size)
        if spec.batch_size in self.fails:
            raise self.fails[spec.batch_size]
        return self.reached(spec.batch_size)


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Machine]:
    """Have sweeps run on a machine."""

    def use(*arguments: Any, **named: Any) -> Machine:
        machine = Machine(*arguments, **named)
        monkeypatch.setattr("mfubench.sweep.run_isolated", machine)
        return machine

    return use


def plan(sizes: tuple[int, ...] = (), p99_ms: float | None = None, mode: str = "infer") -> SweepPlan:
    return SweepPlan(WorkloadSpec("dlrm", size="tiny", mode=mode, steps=100), sizes, p99_ms)


def swept(given: SweepPlan, folder: Path | None = None) -> Sweep:
    sweep = Sweep(given, folder)
    sweep.climb()
    return sweep


def test_it_doubles_until_throughput_no_longer_rises(on: Callable[..., Machine]) -> None:
    """1000 n/(n+4): from 128 to 256 and 512 it rises by 2.4 %, from 64 to 128 and 256 by 4.7."""
    machine = on()
    sweep = swept(plan())
    assert machine.ran == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
    assert sweep.complete and sweep.stopped == "two doublings brought less than 3 % more samples/s"
    assert sweep.best() == {"most_samples_per_s": 512, "knee": 64, "within_p99": None}


def test_a_dip_does_not_end_it(on: Callable[..., Machine]) -> None:
    """One size may meet a bad shape; two in a row do not."""
    rates = {16: 100.0, 32: 200.0, 64: 190.0, 128: 400.0, 256: 395.0, 512: 401.0}
    machine = on(lambda size: reaching(size, rates[size]))
    sweep = swept(plan(mode="train"))
    assert machine.ran == list(rates), "a training begins with 16"
    assert sweep.best() == {"most_samples_per_s": 512, "knee": 128, "within_p99": None}


def test_it_ends_where_answers_come_too_late(on: Callable[..., Machine]) -> None:
    machine = on()
    sweep = swept(plan(p99_ms=12.0))
    assert machine.ran == [1, 2, 4, 8, 16] and sweep.stopped == "16 requests take longer than --p99-ms 12"
    assert sweep.best()["within_p99"] == 8, "whose 12 ms are just within it"
    assert swept(plan(p99_ms=1.0)).best()["within_p99"] is None


ENDS: dict[str, tuple[Exception, str]] = {
    "out of memory": (OutOfMemory("the step ran out of memory: 2 GiB asked for"), "out of memory"),
    "refused": (BadInput("the log has no 128 requests"), "refused"),
    "failed with a reason": (ToolBroke("too little free memory to calibrate"), "failed"),
    "failed": (GaveUp("its process ended with SIGSEGV"), "failed"),
}


@pytest.mark.parametrize("case", ENDS)
def test_a_size_that_does_not_run_costs_itself(case: str, on: Callable[..., Machine], tmp_path: Path) -> None:
    error, status = ENDS[case]
    machine = on(fails={128: error})
    sweep = swept(plan(), tmp_path)
    assert machine.ran[-1] == 128 and sweep.complete and str(error) in sweep.stopped
    *others, last = sweep.to_document()["points"]
    assert [point["batch_size"] for point in others] == [1, 2, 4, 8, 16, 32, 64]
    assert (last["batch_size"], last["status"]) == (128, status) and str(error) in last["reason"]
    listed = on(fails={8: error})
    assert swept(plan((4, 8, 16))).best()["most_samples_per_s"] == 16 and listed.ran == [4, 8, 16]


@pytest.mark.parametrize("case", ENDS)
def test_a_model_that_does_not_run_at_all_is_an_error(case: str, on: Callable[..., Machine], tmp_path: Path) -> None:
    error, _ = ENDS[case]
    on(fails={1: error})
    expected: type[MfubenchError] = ToolBroke if isinstance(error, GaveUp) else type(error)  # type: ignore[assignment]
    with pytest.raises(expected, match=str(error)):
        swept(plan(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_budget_ends_it_and_the_same_sweep_goes_on(
    on: Callable[..., Machine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(100))
    monkeypatch.setattr("mfubench.sweep.monotonic", lambda: next(now))
    on(fails={4: GaveUp("given up")})
    first = Sweep(plan(), tmp_path)
    first.climb(budget_s=5)  # a second each: building, sizes 1, 2 and 4, and the look at the clock after that
    assert not first.complete and first.stopped == "--budget was spent before a step of 4 requests was measured"
    assert json.loads((tmp_path / FILE).read_text())["complete"] is False
    machine = on()
    second = swept(plan(), tmp_path)
    assert machine.ran == [4, 8, 16, 32, 64, 128, 256, 512] and second.complete
    assert [size for size, _ in second.done] == [1, 2, *machine.ran]
    with pytest.raises(TimeUp, match="before a step of 1 requests"):
        on(fails={1: GaveUp("given up")})
        Sweep(plan()).climb(budget_s=3)


def test_a_damaged_run_is_measured_again_and_another_sweep_is_refused(
    on: Callable[..., Machine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on()
    swept(plan((1, 2, 4)), tmp_path)
    (tmp_path / "batch-2" / "run.json").write_text("{")
    machine = on()
    swept(plan((2, 4, 8)), tmp_path)
    assert machine.ran == [2, 8]
    assert json.loads((tmp_path / "batch-2" / "run.json").read_text())["workload"]["batch_size"] == 2
    monkeypatch.setitem(IDENTITY, "code", "2")
    with pytest.raises(BadInput, match="belongs to another sweep"):
        swept(plan((1,)), tmp_path)
    (tmp_path / FILE).unlink()
    machine = on()
    swept(plan((2,)), tmp_path)
    assert machine.ran == [2], "nothing says whose the runs are"
    (tmp_path / FILE).write_text("[]")
    with pytest.raises(BadInput, match="no sweep of this release"):
        swept(plan((1,)), tmp_path)


def test_a_loader_has_a_column_of_its_own(on: Callable[..., Machine]) -> None:
    def fed(size: int) -> Run:
        run = saturating(size)
        run.step["loader"] = {"samples_per_s": 123.0 + size}
        return run

    def headers() -> dict[str, list[str]]:
        table = sweep_page(swept(plan((1, 4))).to_document()).sections[0].blocks[0]
        assert isinstance(table, Table)
        return {column.header: [row[at] for row in table.rows] for at, column in enumerate(table.columns)}

    on(fed)
    assert headers()["samples/s fed by its loader"] == ["124", "127"]
    on()
    assert "samples/s fed by its loader" not in headers()


def test_sizes_are_read_in_rising_order() -> None:
    assert sizes_of("64, 1,8,8") == (1, 8, 64)


@pytest.mark.parametrize("given", ["", "1,", "0", "-1", "1.5", "x", "1;2", "1000000001", "²"])
def test_what_is_no_size_is_refused(given: str) -> None:
    with pytest.raises(BadInput, match="is no number of requests"):
        sizes_of(given)


def test_a_latency_that_nothing_tells_is_refused() -> None:
    with pytest.raises(BadInput, match="--mode infer"):
        plan(p99_ms=1.0, mode="train")
    with pytest.raises(BadInput, match="--steps 100 or more"):
        SweepPlan(WorkloadSpec("dlrm", mode="infer", steps=99), p99_ms=1.0)
    for value in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(BadInput, match="milliseconds above 0"):
            plan(p99_ms=value)


def printed(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> str:
    """Its page on a terminal, without what tells thousands apart."""
    stdout_console.cache_clear()
    print_page(sweep_page(json.loads(json.dumps(sweep.to_document()))), stdout_console(), full=True)
    stdout_console.cache_clear()
    return " ".join(capsys.readouterr().out.replace(GROUP, "").split())


def test_the_page_names_the_batch_sizes_to_take(on: Callable[..., Machine], capsys: pytest.CaptureFixture[str]) -> None:
    on()
    told = printed(swept(plan((1, 8, 32, 64), p99_ms=40.0)), capsys)
    assert "Most throughput: 64 requests a step, 941 samples/s" in told
    assert "with 99 % of the steps within 40 ms: 32 requests a step, 889 samples/s" in told
    assert "32 requests reach 94.4 % of it" in told
    assert "64 68.00 [68.00, 68.00]" in told, "the step's ms and its interval"
    assert "no batch size has 99 % of the steps within 1 ms" in printed(swept(plan((1, 2), p99_ms=1.0)), capsys)


def test_the_page_says_what_did_not_run_and_of_which_a_warning_is(
    on: Callable[..., Machine], capsys: pytest.CaptureFixture[str]
) -> None:
    def warned(size: int) -> Run:
        run = saturating(size)
        run.warnings = [
            "of all",
            *(["the clock fell"] if size == 2 else []),
            *([f"{size / 8} ms late"] if size < 8 else []),
        ]
        return run

    on(warned, fails={4: OutOfMemory("2 GiB asked for")})
    sweep = swept(plan((1, 2, 4, 8)))
    told = printed(sweep, capsys)
    assert "Warning: with 1, 2 requests (the last's numbers): 0.25 ms late" in told
    assert "Warning: of all" in told and "Warning: with 2 requests: the clock fell" in told
    assert "4 requests: 2 GiB asked for" in told
    charts = [block for section in sweep_page(sweep.to_document()).sections for block in section.blocks]
    assert [chart.title for chart in charts if hasattr(chart, "figure")] == [
        "Throughput by batch size",
        "Throughput by latency",
    ]


def test_shares_of_every_size_add_up(on: Callable[..., Machine]) -> None:
    on()
    for point in swept(plan((1, 2))).to_document()["points"]:
        assert sum(point["shares"].values()) == pytest.approx(1.0)
