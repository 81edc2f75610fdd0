"""What the tests of the search share: kernels that stand in, and a compiler that is quick."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mfu_kernels import OPS

STAND_IN = "triton"


@pytest.fixture
def sparse_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The zoo's tables have row-sparse gradients, as large ones do, whatever their size."""
    monkeypatch.setattr("mfu_models.common.embedding.MAX_DENSE_ROWS", 0)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Every op has a kernel that counts its calls and gives its reference's result, a rounding error apart."""
    calls: dict[str, int] = {}

    def counting(name: str, reference: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def kernel(*args: Any, **kwargs: Any) -> Tensor:
            calls[name] = calls.get(name, 0) + 1
            return reference(*args, **kwargs) * (1 + 2.0**-20)

        return kernel

    for name, op in OPS.items():
        monkeypatch.setitem(op.implementations, STAND_IN, counting(name, op.implementations["reference"]))  # type: ignore[arg-type]
    monkeypatch.setattr("mfu_kernels.registry._check_triton_runs", lambda op, device: None)
    return calls


@pytest.fixture
def quick_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """A backend that runs the captured graphs as they are, and notes them."""
    graphs: list[Any] = []

    def backend(graph: Any, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    compile_ = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: compile_(self, **options | {"backend": backend}))
    torch.compiler.reset()
    yield graphs
    torch.compiler.reset()
