"""Hotspots say what could be won at most, which is never more than was spent."""

from dataclasses import replace

import pytest

from mfubench.attribute.attribution import UNOWNED
from mfubench.attribute.hotspots import NUM_HOTSPOTS, WINNABLE, advice, hotspots
from mfubench.attribute.roofline import winnable
from mfubench.measure.scopes import BACKWARD, DATA, FORWARD, OPTIMIZER
from mfubench.optimize.remedies import cells_of
from mfubench.run import KernelRow, ModuleRow
from tests.mfubench.report.factory import a_run

STEP_MS = 50.0


def a_row(name: str, time_ms: float = 10.0, kind: str = "Linear", **causes: float) -> ModuleRow:
    split = {cause.replace("__", "."): ms for cause, ms in causes.items()}
    return replace(a_run().modules[0], name=name, type=kind, time_ms=time_ms, causes=split)


def test_they_are_ranked_by_what_could_be_won() -> None:
    rows = [
        a_row("a", useful=1.0, launch=5.0, inefficiency__gemm=4.0),
        a_row(OPTIMIZER, optimizer=7.0),
        a_row(DATA, data=3.0),
        a_row(UNOWNED, not_attributed=9.0, launch=9.0),
        a_row(FORWARD, launch=8.0),
        a_row(BACKWARD, launch=8.0),
    ]
    spots = hotspots(rows, [], {"optimizer": 0.4}, STEP_MS)
    assert [(spot["module"], spot["cause"], spot["won_ms"]) for spot in spots] == [
        (OPTIMIZER, "optimizer", pytest.approx(6.6)),  # but for its own bytes
        ("a", "launch", 5.0),
        ("a", "inefficiency.gemm", 4.0),
        (DATA, "data", 3.0),
    ]
    assert all(spot["advice"] and spot["share"] == pytest.approx(spot["won_ms"] / STEP_MS) for spot in spots)


def test_there_are_only_so_many() -> None:
    assert len(hotspots([a_row(f"m{index}", launch=1.0) for index in range(50)], [], {}, STEP_MS)) == NUM_HOTSPOTS


def test_operators_below_their_floor_lost_no_more_than_they_took() -> None:
    """Bytes that stay in a cache were not moved at the copy bandwidth."""
    beaten = {"useful": 0.2, "memory_bound.elementwise": 2.0, "inefficiency.elementwise": -1.7, "launch": 0.1}
    assert winnable(beaten) == pytest.approx({"useful": 0.2, "memory_bound.elementwise": 0.3, "launch": 0.1})
    assert "memory_bound.copy" not in winnable({"memory_bound.copy": 1.0, "inefficiency.copy": -1.0})
    other_kind = {"memory_bound.copy": 1.0, "inefficiency.norm": -0.5}
    assert winnable(other_kind) == {"memory_bound.copy": 1.0}
    (spot,) = hotspots([a_row("a", time_ms=0.4, memory_bound__copy=3.0)], [], {}, STEP_MS)
    assert spot["won_ms"] == 0.4


def test_a_search_is_promised_no_more() -> None:
    run = a_run(modules=[a_row("a", memory_bound__copy=2.0, inefficiency__copy=-1.5)])
    assert cells_of(run) == {("a", "memory_bound.copy"): 0.5}


def test_modules_that_repeat_are_one() -> None:
    rows = [a_row(f"blocks.{index}.mlp", launch=1.0) for index in range(3)]
    for name in ("item", "user"):
        table = a_row(f"tables.{name}", kind="EmbeddingBag", inefficiency__embedding=2.0)
        rows.append(replace(table, fwd_time_ms=1.0, bwd_time_ms=9.0))
    rows += [a_row("tables.head", inefficiency__embedding=0.5), a_row("blocks.0.norm", launch=0.5)]
    found = {spot["module"]: spot for spot in hotspots(rows, [], {}, STEP_MS)}
    assert list(found) == ["tables.*", "blocks.*.mlp", "tables.head", "blocks.0.norm"]
    assert found["tables.*"]["modules"] == ["tables.item", "tables.user"] and found["tables.*"]["won_ms"] == 4.0
    assert found["blocks.*.mlp"]["time_ms"] == 30.0
    assert "sparse=True" in found["tables.*"]["advice"] and "sparse=True" not in found["tables.head"]["advice"]


def test_operators_that_take_the_time_are_named() -> None:
    rows = [a_row("a.0", inefficiency__copy=4.0), a_row("a.1", inefficiency__copy=3.0), a_row("b", launch=1.0)]
    kernels = [
        KernelRow("a.0", "fwd", "aten::cat", "copy", 1.0, 1.0),
        KernelRow("a.1", "bwd", "aten::cat", "copy", 1.0, 1.0),
        KernelRow("a.1", "bwd", "void at::native::(anonymous namespace)::Cat<float, 4>(int)", "copy", 3.0, 1.0),
        KernelRow("a.0", "fwd", "aten::copy_", "copy", 1.5, 1.0),
        KernelRow("a.0", "fwd", "aten::mm", "gemm", 9.0, 1.0),
        KernelRow("b", "fwd", "aten::cat", "copy", 9.0, 1.0),
    ]
    copies, waiting = hotspots(rows, kernels, {}, STEP_MS)
    assert copies["operators"] == ["Cat", "cat"] and waiting["operators"] == []


@pytest.mark.parametrize(("operator", "fused"), [("aten::_fused_adamw_", True), ("aten::_foreach_add_", False)])
def test_a_fused_update_is_not_told_to_be_fused(operator: str, fused: bool) -> None:
    kernels = [
        KernelRow(OPTIMIZER, "fwd", name, "other", ms, 1.0) for name, ms in ((operator, 3.0), ("aten::zero_", 1.0))
    ]
    (spot,) = hotspots([a_row(OPTIMIZER, optimizer=4.0)], kernels, {}, STEP_MS)
    assert ("fused already" in spot["advice"], "fused=True" in spot["advice"]) == (fused, not fused)


def test_modules_of_a_bare_list_are_named_one_by_one() -> None:
    rows = [a_row(str(index), launch=1.0) for index in range(5)]
    assert hotspots(rows[:2], [], {}, STEP_MS)[0]["module"] == "0, 1"
    assert hotspots(rows, [], {}, STEP_MS)[0]["module"] == "0, 1, 2 and 2 more"


@pytest.mark.parametrize("family", WINNABLE)
def test_every_cause_that_can_be_won_has_advice(family: str) -> None:
    assert advice(family) and advice(f"{family}.gemm")


@pytest.mark.parametrize(("fwd_ms", "bwd_ms", "told"), [(1.0, 9.0, True), (9.0, 1.0, False)])
def test_only_a_table_whose_backward_takes_longer_is_told_of_its_gradient(
    fwd_ms: float, bwd_ms: float, told: bool
) -> None:
    table = replace(a_row("table", kind="Embedding", inefficiency__embedding=2.0), fwd_time_ms=fwd_ms)
    (spot,) = hotspots([replace(table, bwd_time_ms=bwd_ms)], [], {}, STEP_MS)
    assert ("sparse=True" in spot["advice"]) == told


@pytest.mark.parametrize(("fused_ms", "fused"), [(1.0, False), (3.0, True)])
def test_an_update_is_fused_if_most_of_its_time_is(fused_ms: float, fused: bool) -> None:
    times = {"aten::_fused_adamw_": fused_ms, "aten::_foreach_add_": 4.0 - fused_ms}
    kernels = [KernelRow(OPTIMIZER, "fwd", name, "other", ms, 1.0) for name, ms in times.items()]
    (spot,) = hotspots([a_row(OPTIMIZER, optimizer=4.0)], kernels, {}, STEP_MS)
    assert ("fused already" in spot["advice"], "fused=True" in spot["advice"]) == (fused, not fused)
