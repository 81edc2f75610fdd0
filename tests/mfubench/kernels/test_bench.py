"""What a benchmark says of what it timed; the timing itself needs a GPU."""

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mfu_kernels import OPS, gdpa, window_attention
from mfu_kernels.examples import Draw, Inputs
from mfu_kernels.rms_norm.examples import EXAMPLES
from mfubench.errors import BadInput
from mfubench.kernels import apart, bench, peers
from mfubench.kernels.bench import OURS, BenchRow, bench_op
from mfubench.kernels.check import CaseResult, OpResult
from mfubench.kernels.peers import PEERS_BY_OP, CannotRun, Peer, named_peer, peers_of
from mfubench.measure.calibrate import Calibration
from mfubench.report.kernels import bench_page
from mfubench.report.markdown import render_page
from mfubench.worker import PartBroke, Watch

CALIBRATION = Calibration("a GPU", {"bf16": 100.0}, 1000.0, {}, "2026-01-01", "2.13", 1, "by hand")
CPU = torch.device("cpu")


def small() -> Inputs:
    return EXAMPLES.make({"rows": 6, "width": 8, "weight": True}, Draw(torch.float32, CPU))


def refuse(_inputs: Inputs) -> Any:
    raise CannotRun("it takes no norms")


def wrong(x: Tensor, weight: Tensor) -> Tensor:
    return x * weight


OURS_HERE = Peer(OURS, lambda given: lambda **tensors: EXAMPLES.function(**tensors, **given.others, impl="reference"))


def build(*peers: Peer) -> bench.Built:
    inputs = small()
    built = bench._built(OURS_HERE, inputs)
    for peer in peers:
        bench._add(built, peer, inputs)
    return built


def test_peers_that_run_and_agree_are_timed_and_the_others_are_named_with_reasons() -> None:
    built = build(
        *PEERS_BY_OP["rms_norm"][:1],
        Peer("refuses", refuse),
        Peer("wrong", lambda _: wrong),
        Peer("ceiling", lambda _: wrong, same_math=False),
        Peer("crashes", lambda _: lambda **tensors: 1 / 0),  # type: ignore[return-value]
        Peer("no backward", lambda given: lambda **tensors: EXAMPLES.function(**tensors, **given.others).detach()),
    )
    absent = built.absent
    assert list(built.forward) == [OURS, "F.rms_norm", "ceiling", "no backward"]
    assert list(built.backward) == [OURS, "F.rms_norm", "ceiling"]
    why = {name: reason for name, _, reason in absent}
    assert why["refuses"] == "it takes no norms" and "does not require grad" in why["no backward"]
    assert "differs from ours" in why["wrong"] and "ZeroDivisionError" in why["crashes"]
    both = [(name, way) for name in ("refuses", "wrong", "crashes") for way in bench.DIRECTIONS]
    assert [place[:2] for place in absent] == [*both, ("no backward", "backward")]
    for call in (*built.forward.values(), *built.backward.values()):
        call()
        call()  # a backward runs again and again


def test_a_peer_that_breaks_the_context_is_named_and_then_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    broken: list[bool] = []

    def fault(**tensors: Tensor) -> Tensor:
        broken.append(True)
        return tensors["x"]

    def wait(device: torch.device) -> None:
        if broken:
            raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(bench, "wait_for", wait)
    peer = Peer("faulty", lambda _: fault)
    with pytest.raises(PartBroke, match=r"faulty broke .*assert triggered"):
        build(peer)
    broken.clear()
    built = build(*bench.left_out([peer], {"faulty": "it broke", "another": "no"}))
    assert list(built.forward) == [OURS] and built.absent == [("faulty", way, "it broke") for way in bench.DIRECTIONS]


def test_a_failure_of_ours_is_no_footnote() -> None:
    with pytest.raises(ZeroDivisionError):
        bench._built(Peer(OURS, lambda _: lambda **tensors: 1 / 0), small())  # type: ignore[return-value]


@pytest.fixture
def on_the_host(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A shape is benched on the host, with times that are made up; what is told of it in order."""
    told: list[str] = []

    def time(calls: Mapping[str, Any], *, rounds: int, part: Any) -> dict[str, list[float]]:
        for name, call in calls.items():
            with part(name):
                call()
        return {name: [1.0 + at] * rounds for at, name in enumerate(calls)}

    monkeypatch.setattr(bench, "time_in_turns", time)
    monkeypatch.setattr(bench, "_ours", lambda examples: OURS_HERE)
    monkeypatch.setattr(bench, "_cost_of", lambda call: None)
    monkeypatch.setattr(bench, "_work", lambda *_: (0.0, 1e9))
    return told


def bench_small(told: list[str], *peers: Peer) -> list[BenchRow]:
    def so_far(rows: list[BenchRow]) -> None:
        told.append(f"so far {[row.implementation for row in rows if row.ms]}")
        told.extend(f"{row.implementation}: {row.reason}" for row in rows if row.reason and row.direction == "forward")

    @contextmanager
    def part(name: str) -> Iterator[None]:
        told.append(f"{name} begins")
        yield
        told.append(f"{name} ends")

    examples = replace(EXAMPLES, shapes={"small": {"rows": 6, "width": 8, "weight": True}})
    return bench._bench_shape("rms_norm", "small", examples, CPU, CALIBRATION, peers, 2, Watch(part, so_far))


def test_our_time_stands_before_any_peer_begins(on_the_host: list[str]) -> None:
    rows = bench_small(on_the_host, Peer("refuses", refuse), *PEERS_BY_OP["rms_norm"][:1])
    building = [f"{name} {what}" for name in ("refuses", "F.rms_norm") for what in ("begins", "ends")]
    standing = ["so far ['mfubench', 'mfubench']", "refuses: not reached", "F.rms_norm: not reached"]
    assert on_the_host == [*standing, *building, *building[2:], *building[2:]], "warming up is a peer's part, too"
    assert [(row.implementation, row.reason) for row in rows if row.direction == "forward"] == [
        (OURS, None), ("F.rms_norm", None), ("refuses", "it takes no norms"),
    ]  # fmt: skip


def test_our_time_stands_where_peers_leave_no_memory(on_the_host: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def add(*_: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(bench, "_add", add)
    rows = bench_small(on_the_host, *PEERS_BY_OP["rms_norm"][:1])
    assert [row.implementation for row in rows if row.ms] == [OURS, OURS]
    assert {row.reason for row in rows if not row.ms} == {"out of memory beside ours"}


def test_ours_alone_is_timed_once(on_the_host: list[str]) -> None:
    assert [row.implementation for row in bench_small(on_the_host)] == [OURS, OURS] and on_the_host == []


def check_by_word(watch: Watch, *, op: str, part: tuple[int, int], without: Mapping[str, str], **_: Any) -> OpResult:
    """Three cases of LayerNorm's second part fail: one hangs, one crashes, one breaks the device."""
    found = OpResult(op)
    for name in ("right", *(("hangs", "crashes", "faults") if (op, part[0]) == ("layer_norm", 1) else ())):
        if name not in without:
            with watch.part(name):
                match name:
                    case "hangs":
                        time.sleep(60)
                    case "crashes":
                        os._exit(9)
                    case "faults":
                        raise PartBroke(name, "wrote elsewhere")
        found.cases.append(CaseResult({"name": name}, (), [without[name]] if name in without else []))
    return found


def test_a_check_goes_on_after_cases_that_hang_or_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "check_work", check_by_word)
    monkeypatch.setitem(apart.CASE_LIMITS_S, "cpu", 2.0)
    told: list[str] = []
    found = apart.check_all(["layer_norm", "rms_norm"], CPU, progress=lambda stage, done: told.append(stage))
    assert [(case.case["name"], case.faults) for case in found[0].failed] == [
        ("hangs", ["took over 2 s"]), ("crashes", ["its process ended with code 9"]), ("faults", ["wrote elsewhere"]),
    ]  # fmt: skip
    assert [op.op for op in found] == ["layer_norm", "rms_norm"] and not found[1].failed
    assert {len(op.cases) - len(op.failed) for op in found} == {apart.CONTRACT_PARTS}
    assert told.count("layer_norm: checking its numbers") == apart.CONTRACT_PARTS and "layer_norm: right" in told


def wrong_layer_norm(watch: Watch, *, op: str, part: tuple[int, int], **_: Any) -> OpResult:
    """Three cases of LayerNorm's second part are wrong."""
    wrong = [["wrong"]] * 3 if (op, part[0]) == ("layer_norm", 1) else []
    return OpResult(op, [CaseResult({}, (), faults) for faults in ([], *wrong)])


def bench_by_word(watch: Watch, *, shape: str, without: Mapping[str, str], skipped: Any, **_: Any) -> list[BenchRow]:
    ours = BenchRow("rms_norm", shape, "forward", OURS, True, ms=(1, 1, 1))
    watch.so_far([ours, BenchRow("rms_norm", shape, "forward", "peer", True, reason=bench.NOT_REACHED)])
    if "hangs" not in without:
        with watch.part("hangs"):
            time.sleep(60)
    if shape == "norm 295k x 512":
        os._exit(9)
    return [ours, BenchRow("rms_norm", shape, "forward", "hangs", True, reason=f"{without['hangs']}, {skipped}")]


def test_the_command_goes_on_without_what_hangs_or_crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "check_work", wrong_layer_norm)
    monkeypatch.setattr(apart, "bench_work", bench_by_word)
    rows, won = apart.bench_all(
        ["layer_norm", "rms_norm"], CPU, shapes=[], peers=[], without={"F.rms_norm": "left out"}, rounds=2, tune=False,
        peer_limit_s=2,
    )  # fmt: skip
    reasons = [(row.op, row.shape, row.implementation, row.reason) for row in rows if row.direction == "forward"]
    why = "3 cases fail the numeric contract; see `mfubench kernels check layer_norm`"
    assert reasons[:1] == [("layer_norm", "norm 1.18M x 512", OURS, why)] and won == []
    assert reasons[-4:] == [
        ("rms_norm", "norm 1.18M x 512", OURS, None),
        ("rms_norm", "norm 1.18M x 512", "hangs", "took over 2 s, {'F.rms_norm': 'left out'}"),
        ("rms_norm", "norm 295k x 512", OURS, None),
        ("rms_norm", "norm 295k x 512", "peer", "not reached: its process ended with code 9"),
    ]


def test_a_named_peer_that_is_not_there_ends_the_command_at_once() -> None:
    with pytest.raises(BadInput, match="--peer nowhere:f"):
        apart.bench_all(
            ["rms_norm"], CPU, shapes=[], peers=["nowhere:f"], without={}, rounds=2, tune=False, peer_limit_s=2
        )


def test_a_peer_to_leave_out_that_is_none_is_refused() -> None:
    with pytest.raises(BadInput, match=r"--without F.rms_nrom: none of these ops has that peer; they have: F.rms_norm"):
        apart.bench_all(
            ["rms_norm"], CPU, shapes=[], peers=[], without={"F.rms_nrom": "left out"}, rounds=2, tune=False,
            peer_limit_s=2,
        )  # fmt: skip


def test_a_row_holds_rates_floor_and_paired_ratio() -> None:
    samples, ours = [2.0, 2.2, 1.8], [1.0, 1.1, 0.9]
    row = bench._row("gdpa", "X", "forward", "peer", True, samples, ours, (4e9, 1e9), CALIBRATION)
    assert row.ms and row.ms[0] == 2.0 and row.times_ours and row.times_ours[0] == pytest.approx(2.0)
    assert row.tflops == pytest.approx(2.0) and row.gb_s == pytest.approx(500)
    assert row.floor_ms == pytest.approx(1.0)  # 1 GB at 1000 GB/s takes longer than 4 GFLOP at 100 TFLOP/s
    assert row.share_of_floor == pytest.approx(0.5)


def test_an_attention_backward_counts_as_two_and_a_half_forwards() -> None:
    def run() -> Tensor:
        q, (k, v) = torch.randn(4, 2, 8), torch.randn(2, 1, 3, 2, 8)
        return gdpa(q, k, v, torch.tensor([0, 4]), impl="reference")

    cost = bench._cost_of(run)
    forward, backward = (bench._work("gdpa", cost, way)[0] for way in ("forward", "backward"))
    assert forward == 2 * 2 * 4 * 3 * 2 * 8 and backward == 2.5 * forward


def test_every_table_of_peers_is_of_an_op() -> None:
    assert PEERS_BY_OP.keys() <= OPS.keys()


def test_a_peer_by_name() -> None:
    (compiled, *_, named) = peers_of("rms_norm", EXAMPLES, [f"{__name__}:wrong"])
    assert [peer.name for peer in peers_of("rms_norm", EXAMPLES, [named.name], builtin=False)] == [named.name]
    assert compiled.name == "torch.compile(reference)" and named.name == f"{__name__}:wrong"
    x = torch.randn(6, 8)
    call = named.make(Inputs({"x": x, "weight": torch.ones(8)}))
    assert torch.equal(call(x=x, weight=torch.ones(8)), x)


@pytest.mark.parametrize("lengths", [(16, 16, 16), (3, 16, 9)], ids=["batch", "end to end"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_sees_what_window_attention_does(
    lengths: tuple[int, ...], causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both as a batch of rows of one length and as rows end to end."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    q, k, v = (torch.randn(sum(lengths), 2, 16) for _ in range(3))
    others = {"offsets": offsets, "window": 4, "causal": causal, "scale": 0.3, "max_length": 16}
    attended = peers._flex(Inputs({"q": q, "k": k, "v": v}, others))(q, k, v)
    torch.testing.assert_close(attended, window_attention(q, k, v, **others, impl="reference"))


NOT_THERE = ["nowhere:f", f"{__name__}:nothing", f"{__name__}:CALIBRATION", "no_colon", ":f", "..relative:f"]


@pytest.mark.parametrize("target", NOT_THERE)
def test_a_peer_that_is_not_there(target: str) -> None:
    with pytest.raises(BadInput, match="--peer"):
        named_peer(target)


@pytest.mark.parametrize("source", ["def f(:", "raise RuntimeError('no')", "raise SystemExit(3)"])
def test_a_peer_whose_module_does_not_import(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_peer.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BadInput, match="--peer broken_peer:f: cannot import broken_peer: "):
        named_peer("broken_peer:f")


def test_a_peer_in_the_working_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "peer_at_hand.py").write_text("def twice(x, weight, eps): return 2 * x")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    given = small()
    assert torch.equal(named_peer("peer_at_hand:twice").make(given)(**given.tensors), 2 * given.tensors["x"])


def test_without_a_gpu_nothing_is_timed() -> None:
    with pytest.raises(BadInput, match="on a GPU only"):
        bench_op("rms_norm", EXAMPLES, CPU)


def test_every_shape_s_reference_is_compiled_however_many_went_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dynamo runs a function eagerly once it has been compiled eight times; a peer so timed would be another one."""
    compiled: list[int] = []

    def count(graph: torch.fx.GraphModule, _inputs: Any) -> Any:
        compiled.append(1)
        return graph

    monkeypatch.setattr(peers, "_compiled", lambda function: torch.compile(function, dynamic=False, backend=count))
    monkeypatch.setattr(bench, "load_or_calibrate", lambda *_: CALIBRATION)

    def reference(_op: str, shape: str, *_: Any) -> list[BenchRow]:
        inputs = EXAMPLES.make({"rows": int(shape), "width": 8, "weight": True}, Draw(torch.float32, CPU))
        peers._compiled_reference(EXAMPLES, inputs)(**inputs.tensors)
        return []

    monkeypatch.setattr(bench, "_bench_shape", reference)
    shapes = [str(rows) for rows in range(2, 13)]
    examples = replace(EXAMPLES, shapes={shape: {} for shape in shapes})
    bench_op("rms_norm", examples, torch.device("cuda"), shapes=shapes)
    assert len(compiled) == len(shapes)


def test_an_unknown_shape_names_those_there_are() -> None:
    with pytest.raises(BadInput, match=r"norm 1\.18M x 512"):
        bench.named_shapes("rms_norm", EXAMPLES, ["X1"])


def test_the_page_shows_what_was_not_timed_and_why() -> None:
    rows = [
        bench._row("rms_norm", "S", "forward", OURS, True, [1.0, 1.1], [1.0, 1.1], (0, 1e9), CALIBRATION),
        BenchRow("rms_norm", "S", "forward", "varlen_attn", False, reason="rows of unlike lengths"),
    ]
    peak = {"measured_tflops": 100.0, "bandwidth_gb_s": 1000.0}
    told: Mapping[str, Any] = {
        "environment": {"device_name": "a GPU"}, "toolchain": {"triton": "3.9.0"}, "dtype": "bf16",
        "flop_convention": "2 per multiply-add", "peak": peak, "rows": [asdict(row) for row in rows],
    }  # fmt: skip
    text = render_page(bench_page(told))
    assert "rows of unlike lengths" in text and "other mathematics" in text and "a GPU" in text


@pytest.mark.gpu
def test_on_a_gpu_ours_and_a_peer_are_timed_in_one_run() -> None:
    peers = peers_of("rms_norm", EXAMPLES)
    rows = bench_op("rms_norm", EXAMPLES, torch.device("cuda"), shapes=["norm 295k x 512"], peers=peers, rounds=3)
    timed = {(row.direction, row.implementation): row for row in rows if row.ms}
    assert (OURS in {name for _, name in timed}) and ("backward", "F.rms_norm") in timed
    assert all(0 < (row.share_of_floor or 0) < 1.2 for row in timed.values())
