"""What Inductor tells of the kernels that it makes: on a small model that is really compiled."""

import logging
import shutil
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from mfubench.measure.compiled import TRACE_LOG, Compilation, CompiledKernel, compiler_loaded, run_eagerly, watched
from mfubench.measure.scopes import ROOT, module_names

# torch warns of parts of its own when its compiler is loaded.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler on a CPU")
D, B = 32, 8


class Block(nn.Module):
    """Its input is wanted twice, so that its gradient is a sum that merges with a product's."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(D, 2 * D, bias=False), nn.GELU(), nn.Linear(2 * D, D)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(self.act(self.up(x)))
        return out


class Net(nn.Module):
    """Two blocks, of which the second is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.first, self.second = nn.LayerNorm(D), Block(), Block()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.second(self.first(self.norm(x)))) * 2
        return out


@pytest.fixture(scope="module")
def seen() -> Iterator[Compilation]:
    """Everything that compiling and differentiating ``Net`` tells."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a mark does not reach a fixture of the module
        compiled = torch.compile(Net(), dynamic=True)
    with watched(module_names(compiled)) as compilation:  # type: ignore[arg-type]
        for rows in (B,):
            compiled(torch.randn(rows, D)).sum().backward()
    yield compilation
    torch.compiler.reset()


def kernels(compilation: Compilation, direction: str) -> list[CompiledKernel]:
    (region,) = {region for region, _ in compilation.graphs}
    return compilation.graphs[region, direction]


@needs_compiler
def test_products_are_their_layers_own(seen: Compilation) -> None:
    """Also the gradient of an input that is merged with a sum that has no module."""
    layers = [f"{block}.{layer}" for block in ("first", "second", "second") for layer in ("up", "down")]
    forward = [kernel for kernel in kernels(seen, "fwd") if kernel.kind == "gemm"]
    assert [kernel.owners for kernel in forward] == [(layer,) for layer in layers]
    assert not any(kernel.generated or kernel.repeated for kernel in forward)
    backward = [kernel for kernel in kernels(seen, "bwd") if kernel.kind == "gemm"]
    assert sorted(kernel.owners for kernel in backward) == sorted((layer,) for layer in layers for _ in range(2))


@needs_compiler
def test_fused_kernels_belong_to_all_that_went_into_them(seen: Compilation) -> None:
    """The last sum of one block and the scaling of the whole model are one kernel's."""
    forward = [kernel for kernel in kernels(seen, "fwd") if kernel.generated]
    owners = {owner for kernel in forward for owner in kernel.owners}
    assert owners == {"norm", "first", "first.act", "second", "second.act", None}
    assert set(forward[-1].owners) == {"second", None}
    assert any(kernel.kind == "norm" for kernel in forward)
    backward = {owner for kernel in kernels(seen, "bwd") if kernel.generated for owner in kernel.owners}
    assert {"norm", "first.act", "second.act"} <= backward


@needs_compiler
def test_bytes_are_what_goes_in_and_out(seen: Compilation) -> None:
    """At the batch that was compiled first, each value of four bytes: not what stays inside the kernel."""
    (norm,) = (kernel for kernel in kernels(seen, "fwd") if kernel.kind == "norm")
    statistics = 2 * B  # that the backward wants
    assert norm.bytes == 4 * (2 * B * D + 2 * D + statistics)
    up = next(kernel for kernel in kernels(seen, "fwd") if kernel.owners == ("first.up",))
    assert up.bytes == 4 * (B * D + 2 * D * D + 2 * B * D)


@needs_compiler
def test_a_watch_leaves_nothing_behind(seen: Compilation) -> None:
    import torch._inductor.config as config

    assert seen.happened and seen.blind is None
    assert config.post_grad_custom_pre_pass is None and config.post_grad_custom_post_pass is None
    assert config.trace.provenance_tracking_level == 0 and not config.cpp.enable_kernel_profile
    assert not any(type(handler).__name__ == "_Watch" for handler in logging.getLogger(TRACE_LOG).handlers)


def test_what_is_compiled_can_run_as_written_and_stays_compiled() -> None:
    happened = []

    def backend(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., Any]:
        happened.append("compiled")

        def run(*inputs: Tensor) -> Any:
            happened.append("ran")
            return graph(*inputs)

        return run

    compiled = torch.compile(lambda x: x + 1, backend=backend)
    compiled(torch.ones(2))
    with run_eagerly():
        assert torch.equal(compiled(torch.ones(2)), torch.full((2,), 2.0))
    assert happened == ["compiled", "ran"] and compiler_loaded()
    compiled(torch.ones(2))
    assert happened == ["compiled", "ran", "ran"]


def test_another_backend_tells_nothing() -> None:
    with watched({}) as compilation:
        torch.compile(lambda x: x + 1, backend="eager")(torch.ones(3))
    assert compilation.happened and not compilation.graphs and "another compiler" in str(compilation.blind)


def broken(x: torch.Tensor) -> torch.Tensor:
    torch._dynamo.graph_break()
    return x + 1


def test_why_graphs_were_broken_is_noted() -> None:
    """Of what is compiled inside alone."""
    counters["graph_break"]["earlier"] += 2
    with watched({}) as whole:
        torch.compile(lambda x: x * 3, backend="eager")(torch.ones(3))
    with watched({}) as compilation:
        torch.compile(broken, backend="eager")(torch.ones(3))
    assert whole.breaks.total() == 0 and compilation.breaks.total() == 1
    assert "torch._dynamo.graph_break()" in next(iter(compilation.breaks))


def test_settings_that_the_model_uses_itself_are_left_to_it() -> None:
    import torch._inductor.config as config

    def own(graph: torch.fx.Graph) -> None:
        pass

    with config.patch(post_grad_custom_post_pass=own), watched({}) as compilation:  # type: ignore[attr-defined]
        assert config.post_grad_custom_post_pass is own
    assert "post_grad_custom_post_pass" in str(compilation.blind)


@pytest.mark.parametrize("name", ["PASSES", "TELLS"])
def test_an_inductor_that_cannot_be_asked_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch keeps for itself may go: then it is said, and nothing breaks."""
    gone = "of_yesterday"
    monkeypatch.setattr(f"mfubench.measure.compiled.{name}", gone if name == "TELLS" else (gone, gone))
    with watched({}) as compilation:
        pass
    assert gone in str(compilation.blind) and torch.__version__ in str(compilation.blind)


def test_names_are_those_of_the_model_without_its_wrapper() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.GELU()))
    model[1] = torch.compile(model[1])
    names = list(module_names(torch.compile(model)).values())  # type: ignore[arg-type]
    assert names == [ROOT, ROOT, "0", "1", "1", "1.0"]
