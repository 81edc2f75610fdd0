"""Where counts differ: the largest places first, named so that a reader finds them."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mfubench.gate.rows import Row
from mfubench.gate.side import COUNTS
from mfubench.gate.where import Difference, Entry, differences, places, sources
from mfubench.measure.count import count_step
from mfubench.measure.memory import peak_of_step
from mfubench.measure.scopes import OPTIMIZER
from mfubench.workload.step import make_optimizers
from tests.mfubench.steps import training_step

MEBI = 1 << 20
BASE: list[Entry] = [("items", "gemm", "forward", 100), ("items", "gemm", "backward", 200), ("users", "norm", "", 7)]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.tied = self.layers[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x.clone()).relu()
        return x


def found(head: list[Entry], base: list[Entry] = BASE) -> list[tuple[str, str, str, int]]:
    return [(each.module, each.operators, each.part, each.more) for each in differences(base, head)[0]]


def in_list(*numbers: int, more: int = 0) -> list[Entry]:
    return [(f"net.layers.{number}.mlp", "gemm", "forward", 100 + more) for number in numbers]


def test_the_same_has_no_differences() -> None:
    assert differences(BASE, [list(entry) for entry in BASE]) == ((), 0)  # as JSON has them
    assert differences([], []) == ((), 0)


def test_the_largest_come_first_and_the_rest_is_counted() -> None:
    more = [("a", "copy", "forward", 5), ("b", "copy", "forward", 4), ("c", "copy", "forward", 3)]
    head = [("items", "gemm", "forward", 100), ("items", "gemm", "backward", 150), ("users", "norm", "", 8), *more]
    shown, others = differences(BASE, head)
    assert [each.more for each in shown] == [-50, 5, 4] and others == 2
    assert shown[0] == Difference("items", "gemm", "backward", 200, 150)


def test_a_module_of_one_side_alone_is_held_against_nothing() -> None:
    assert found([*BASE, ("new", "copy", "forward", 9)]) == [("new", "copy", "forward", 9)]
    assert found(BASE[:2]) == [("users", "norm", "", -7)]


def test_what_only_moves_hides_nothing() -> None:
    """As where a module is renamed: what it does besides is what differs."""
    renamed = [(f"net.{module}", *rest) for module, *rest in BASE]
    assert found(renamed) == []
    assert found([*renamed, ("net.items", "copy", "forward", 3)]) == [("net.items", "copy", "forward", 3)]


def test_a_module_that_is_renamed_and_changed_is_held_against_itself() -> None:
    """By what is the same in both; one that has nothing in common with it is another."""
    head = [
        ("products", "gemm", "forward", 100),
        ("products", "gemm", "backward", 210),
        ("other", "gemm", "forward", 9),
    ]
    assert found([*head, BASE[2]]) == [("products", "gemm", "backward", 10), ("other", "gemm", "forward", 9)]
    assert differences(in_list(0, 1), [(f"a.{module}", *rest) for module, *rest in in_list(0, 1)]) == ((), 0)


def test_the_modules_of_a_list_are_one_place() -> None:
    shown, others = differences(in_list(0, 1, 2), in_list(0, 1, 2, more=5))
    assert shown == (Difference("net.layers.*.mlp", "gemm", "forward", 300, 315, modules=3),) and others == 0


def test_one_module_of_a_list_is_called_by_its_name() -> None:
    head = [*in_list(0, 2), *in_list(1, more=5)]
    assert found(head, in_list(0, 1, 2)) == [("net.layers.1.mlp", "gemm", "forward", 5)]
    assert found(in_list(0, 1, 2, 3), in_list(0, 1, 2)) == [("net.layers.3.mlp", "gemm", "forward", 100)]


def test_gains_and_losses_in_a_list_are_summed() -> None:
    head = [*in_list(0, more=7), *in_list(1, more=-3)]
    assert differences(in_list(0, 1), head)[0] == (Difference("net.layers.*.mlp", "gemm", "forward", 200, 204, 2),)


@pytest.mark.parametrize(
    ("unit", "base", "head", "words"),
    [
        ("B", 0, 12.5 * MEBI, "items: +12.5 MiB copy, forward; and -1.00 MiB in 2 more places"),
        ("FLOP", 0, 3000, "items: +3.00 kFLOP copy, forward; and -1.05 MFLOP in 2 more places"),
        ("", 3, 1, "items: -2 copy, forward; and -1\u00a0048\u00a0576 in 2 more places"),
    ],
)
def test_differences_in_words(unit: str, base: int, head: int, words: str) -> None:
    where = (Difference("items", "copy", "forward", base, int(head)),)
    row = Row("FAIL", "net", "model", "bytes", base, head - MEBI, "more", unit=unit, where=where, elsewhere=2)
    assert row.located == words and row.explanation == f"more; {words}"
    assert Row("FAIL", "net", "model", "bytes", 1, 2, "more").explanation == "more"


def test_words_of_a_list_and_of_what_no_operator_made() -> None:
    where = (Difference("a.*", "", "gradients", 0, 4, 2), Difference("b", "", "", 0, 4))
    row = Row("FAIL", "net", "model", "peak_memory", 0, 8, "", unit="B", where=where)
    assert row.explanation == "a.* (2 modules): +4.00 B gradients; b: +4.00 B"


def test_places_sum_up_to_what_is_counted() -> None:
    model, x = Net(), torch.randn(4, 8)
    optimizers = make_optimizers(model)
    step = training_step(model, x, optimizers=optimizers)
    count, peak = count_step(model, step), peak_of_step(model, optimizers, step)
    found, total = places(model, count, peak, "fp32"), count.total()
    assert set(found) == set(COUNTS)
    assert {name: sum(entry[-1] for entry in entries) for name, entries in found.items()} == {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "model_flops": total.model,
        "hardware_flops": total.hardware,
        "wide_flops": 0,
        "bytes": total.bytes,
        "operators": count.operators.total(),
        "kept_activations": peak.kept_activations.total(),
        "peak_memory": peak.peak_bytes,
    }
    assert ("layers.1", "gemm", "forward", 2 * 4 * 8 * 8) in found["model_flops"]
    assert ("(model)", "copy", "forward", 2) in found["operators"]
    assert ("(model)", "copy", "", 2 * 4 * 4 * 8) in found["kept_activations"]
    parts = {entry[0]: entry[2] for entry in found["operators"]}
    assert parts[OPTIMIZER] == ""


class Upcast(nn.Module):
    """Two products, of which the second is in another type."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        first: Tensor = self.first(x)
        return first + self.second(x.to(self.second.weight.dtype))


WIDE = {  # of what the second product's type is, and the step's: the modules whose products are wider
    (torch.float64, "fp32"): {"second"},
    (torch.float32, "fp32"): set(),
    (torch.float32, "tf32"): set(),
    (torch.bfloat16, "bf16"): {"first"},
    (torch.float32, "bf16"): {"first", "second"},
}


@pytest.mark.parametrize(("of_second", "of_step"), WIDE)
def test_a_product_in_a_wider_type_than_the_steps_is_wide(of_second: torch.dtype, of_step: str) -> None:
    model = Upcast(of_second)
    optimizers = make_optimizers(model)
    step = training_step(model, torch.randn(4, 8), optimizers=optimizers)
    count, peak = count_step(model, step), peak_of_step(model, optimizers, step)
    product = 2 * 4 * 8 * 8
    expected = {(name, "gemm", part, product) for name in WIDE[of_second, of_step] for part in ("forward", "backward")}
    assert set(places(model, count, peak, of_step)["wide_flops"]) == expected


def test_a_modules_source_is_its_forward_or_its_parents() -> None:
    here = Path(__file__).resolve()
    found = sources(Net(), here.parent)
    file, line = found["(model)"]
    assert file == here.name and here.read_text("utf-8").splitlines()[line - 1].startswith("    def forward(")
    assert found["layers.0"] == found["layers.*"] == found["layers"] == found["(model)"]
    assert sources(nn.Linear(2, 2), here.parent) == {}


def test_what_is_installed_in_the_repository_is_not_its_source() -> None:
    assert sources(nn.Linear(2, 2), Path(torch.__file__).resolve().parents[3]) == {}
