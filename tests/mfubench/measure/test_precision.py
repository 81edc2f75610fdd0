"""Whether fp32 products round their factors: as a workload asks for inside, and as the process has it outside."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mfubench.measure.precision import fp32_products, rounds_factors
from mfubench.workload.prepare import prepare
from mfubench.workload.spec import WorkloadSpec
from mfubench.workload.step import run_step

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
backends: Any = torch.backends
PLACES = (backends.cuda.matmul, backends.mkldnn.matmul, backends.cudnn.conv, backends.cudnn.rnn)
Set = Callable[[], object]
SETTINGS: dict[str, tuple[Set, bool]] = {  # what a script does, and whether its products then round
    "nothing": (lambda: None, False),
    "high": (lambda: torch.set_float32_matmul_precision("high"), True),
    "highest": (lambda: torch.set_float32_matmul_precision("highest"), False),
    "allow_tf32": (lambda: setattr(backends.cuda.matmul, "allow_tf32", True), True),
    "the new name": (lambda: setattr(backends.cuda.matmul, "fp32_precision", "tf32"), True),
    "cuDNN's alone": (lambda: setattr(backends.cudnn.conv, "fp32_precision", "ieee"), False),
    "for all": (lambda: setattr(backends, "fp32_precision", "tf32"), True),
}


def state() -> list[Any]:
    """All that is set; what the old name says only where it can be read."""
    found: list[Any] = [place.fp32_precision for place in (backends, *PLACES)]
    for read in (torch.get_float32_matmul_precision, lambda: backends.cudnn.allow_tf32):
        try:
            found.append(read())
        except RuntimeError:
            found.append(None)
    return found


@pytest.fixture(autouse=True)
def as_at_the_start() -> Iterator[None]:
    yield
    torch.set_float32_matmul_precision("highest")
    for place in (backends, *PLACES):
        place.fp32_precision = "none"
    backends.cudnn.allow_tf32 = True


@pytest.mark.parametrize("case", SETTINGS)
def test_products_are_as_asked_for_and_then_as_they_were(case: str) -> None:
    set_, rounds = SETTINGS[case]
    set_()
    before = state()
    assert rounds_factors(CUDA) == rounds
    with fp32_products("highest"):
        assert not rounds_factors(CUDA) and not rounds_factors(CPU)
        assert backends.cudnn.conv.fp32_precision == backends.cudnn.rnn.fp32_precision == "ieee"
        assert not backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "highest", "which compilers read"
    with fp32_products("high"):
        assert rounds_factors(CUDA) and torch.get_float32_matmul_precision() == "high"
        assert backends.cudnn.conv.fp32_precision == "tf32" and backends.cudnn.allow_tf32
    assert state() == before


class Asks(nn.Module):
    """Notes what its products are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.found = nn.Linear(3, 1), set[bool]()

    def forward(self, x: Tensor) -> Tensor:
        self.found.add(rounds_factors(CUDA))
        out: Tensor = self.layer(x)
        return out


def build() -> Any:
    torch.set_float32_matmul_precision("high")
    return Asks(), lambda batch_size, device: (torch.ones(batch_size, 3),)


@pytest.mark.parametrize(("dtype", "rounds", "told"), [("fp32", False, True), ("bf16", True, False)])
def test_a_build_that_lets_them_round_runs_as_the_dtype_says(dtype: str, rounds: bool, told: bool) -> None:
    """An fp32 run is held against the fp32 peak; where autocast takes products, it is as the build has it."""
    workload = prepare(WorkloadSpec(f"{__name__}:build", device="cpu", dtype=dtype, batch_size=2, steps=1))
    run_step(workload, 0)
    assert workload.module.found == {rounds}
    warned = [text for text in workload.warnings if "round their factors" in text]
    assert len(warned) == told and torch.get_float32_matmul_precision() == "high"
