"""Modules with all inside them: each sums what is below it, and what several share stands where they meet."""

from mfubench.report.tree import LEAST_SHARE, module_tree
from mfubench.run import ModuleRow
from tests.mfubench.report.factory import a_module, a_run

STEP_MS = 10.0


def module(name: str, ms: float, flops: int = 300) -> ModuleRow:
    """``flops`` in billions, of which a third is forward."""
    share, forward = ms / STEP_MS, flops * 10**9 // 3
    numbers = {"time_ms": ms, "share": share, "fwd_model_flops": forward, "bwd_model_flops": 2 * forward}
    return a_module(name, **numbers, memory_bytes=2**20)


ROWS = [
    *(module("tower.layers.0.ffn", 3.0), module("tower.layers.1.ffn", 1.5), module("tower.layers.0", 0.5, 0)),
    *(module("tower.layers.0.ffn + tower.layers.1.norm", 2.0, 0), module("head.out", 0.4), module("small", 0.2)),
    *(module("head.out + tower.norm", 1.0, 0), module("(optimizer)", 1.4, 0)),
]


def rows(**changes: object) -> dict[str, list[str]]:
    """Cells by module."""
    (table,) = module_tree(a_run(modules=ROWS, trace={"steps": 2}, peak={"measured_tflops": 500.0}, **changes))
    return {name: cells for name, *cells in table.rows}


def test_each_module_sums_what_is_inside_it() -> None:
    told = rows()
    assert {name: float(ms) for name, (ms, *_) in told.items()} == {
        **{"tower.layers": 7.0, "tower.layers.0": 3.5, "tower.layers.0.ffn": 3.0, "tower.layers.1.ffn": 1.5},
        **{"(optimizer)": 1.4, "(several modules)": 1.0, "head.out": 0.4},
    }
    assert told["tower.layers"][1] == "70.0" and told["tower.layers"][3] == "4.00"
    assert float(told["tower.layers"][2]) == 17.1, "600 billion in 7 ms at 500 TFLOP/s"
    assert told["(optimizer)"][2] == told["(several modules)"][2] == "n/a"


def test_a_module_comes_before_its_parts_and_the_longest_first() -> None:
    """A module that is no more than its only part is not told twice, and what is small is left out."""
    names = list(rows())
    assert names[:4] == ["tower.layers", "tower.layers.0", "tower.layers.0.ffn", "tower.layers.1.ffn"]
    assert "tower" not in names and "head" not in names and "small" not in names and LEAST_SHARE > 0.02


def test_what_was_not_measured_is_not_told() -> None:
    assert module_tree(a_run(modules=ROWS, trace={"steps": 0})) == []
    assert rows(flops={"model": None})["tower.layers"][2] == "n/a"
    assert rows(memory={"peak_bytes": None})["tower.layers"][3] == "n/a"
