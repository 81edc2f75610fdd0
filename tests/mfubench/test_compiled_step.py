"""A profile of a compiled step is about that step: its kernels, by the sets of modules that they serve."""

import shutil
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from mfubench.attribute.attribution import UNOWNED
from mfubench.errors import BadInput
from mfubench.profiling import profile_workload
from mfubench.run import Run
from mfubench.workload.compilation import settling_steps
from mfubench.workload.regions import compile_in_place
from mfubench.workload.spec import Workload
from mfubench.workload.step import make_optimizers

pytestmark = [
    pytest.mark.usefixtures("fixed_calibration"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch"),  # of its own parts
    pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler on a CPU"),
]
B, D, H = 64, 32, 128


class Net(nn.Module):
    """A table whose gradients are sparse, and two layers with something between them that is fused."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(50, D, sparse=True, mode="sum")
        self.up, self.act, self.norm, self.down = nn.Linear(D, H), nn.GELU(), nn.LayerNorm(H), nn.Linear(H, D)

    def forward(self, ids: Tensor, x: Tensor) -> dict[str, Tensor]:
        return {"score": self.down(self.norm(self.act(self.up(self.table(ids) + x))))}


def workload_of(zoo: Callable[..., Workload], module: nn.Module, **options: str) -> Workload:
    """A user's module as a workload: the mean of its score as loss."""
    inputs = [(torch.randint(50, (B, 3)), torch.randn(B, D)) for _ in range(2)]
    made = zoo(steps=2)
    return replace(
        made,
        spec=replace(made.spec, **options),  # type: ignore[arg-type]
        module=module.train(),
        inputs=inputs,
        num_samples=[B, B],
        forward=lambda model, batch: model(*batch),
        loss=lambda output, batch: output["score"].mean(),
        to_device=lambda batch: batch,
        optimizers=make_optimizers(module),
        needed=None,
        may_be_compiled=True,
    )


def test_a_step_that_fails_later_is_not_said_to_be_compiled(zoo: Callable[..., Workload]) -> None:
    """Where a compiler was only imported, as it may have been by a user's model."""
    workload, calls = workload_of(zoo, Net()), []

    def forward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        calls.append(batch)
        return model(*batch if len(calls) == 1 else (batch[0], batch[1][:, :2]))  # type: ignore[no-any-return]

    workload.forward = forward  # type: ignore[assignment]
    with pytest.raises(BadInput, match="the model's step failed after others did not: RuntimeError"):
        profile_workload(workload)


def holds(run: Run) -> None:
    """The books of a compiled step of ``Net`` balance, and name its modules."""
    step_ms = run.step["time_ms"]["median"]
    assert sum(line.ms for line in run.ledger) == pytest.approx(step_ms, rel=1e-3)
    assert sum(row.fwd_model_flops + row.bwd_model_flops for row in run.modules) == run.flops["model"]
    assert (run.flops["fwd_model"], run.flops["bwd_model"]) == (4 * B * D * H, 8 * B * D * H)
    assert run.flops["coverage"] == 1.0
    fused = {row.name for row in run.modules if row.type == "fused"}
    assert any({"act", "norm"} <= set(name.split(" + ")) for name in fused), fused
    products = {(row.module, row.direction) for row in run.kernels if row.kind == "gemm"}
    assert products == {(name, direction) for name in ("up", "down") for direction in ("fwd", "bwd")}
    assert any(row.operator.startswith("cpp_fused") for row in run.kernels)
    assert any(row.module == "table" and row.kind == "embedding" for row in run.kernels)  # as it was written
    assert run.trace["attributed_share"] > 0.3  # of so small a step; what is called is little of it on a busy machine
    told = " ".join(run.not_measured)
    assert "memory of the compiled step" in told and "names none" not in told


@pytest.mark.parametrize("who", ["the tool", "its author"])
def test_a_compiled_step_is_known_by_its_own_kernels(who: str, zoo: Callable[..., Workload]) -> None:
    """Whoever has compiled it; an author's may have run before."""
    if who == "the tool":
        holds(profile_workload(workload_of(zoo, Net(), compile="model")))
        return
    module = Net()
    module.table.forward = torch.compiler.disable(module.table.forward)  # type: ignore[method-assign]
    compiled = torch.compile(module)
    compiled(torch.randint(50, (B, 3)), torch.randn(B, D))
    holds(profile_workload(workload_of(zoo, compiled)))  # type: ignore[arg-type]


class Twins(nn.Module):
    """Two equal blocks, which regional compilation compiles once."""

    def __init__(self) -> None:
        super().__init__()
        self.twins = nn.ModuleList(Twin() for _ in range(2))

    def forward(self, ids: Tensor, x: Tensor) -> dict[str, Tensor]:
        for twin in self.twins:
            x = twin(x)
        return {"score": x}


class Twin(nn.Module):
    """A block with a product and what is fused behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(D, D), nn.LayerNorm(D)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(torch.sigmoid(self.linear(x)))


def test_modules_that_share_a_compilation_are_told_apart(zoo: Callable[..., Workload]) -> None:
    run = profile_workload(workload_of(zoo, Twins(), compile="regions"))
    products = {(row.module, row.direction) for row in run.kernels if row.kind == "gemm"}
    assert products == {(f"twins.{at}.linear", direction) for at in range(2) for direction in ("fwd", "bwd")}
    fused = {row.module for row in run.kernels if row.operator.startswith("cpp_fused")}
    assert fused and all(len({part.split(".")[1] for part in name.split(" + ")}) == 1 for name in fused), fused


def test_a_part_that_another_compiler_made_is_not_attributed(zoo: Callable[..., Workload]) -> None:
    module = Net()
    module.up = torch.compile(module.up, backend="eager")  # type: ignore[assignment]
    run = profile_workload(workload_of(zoo, module))
    assert "another compiler than Inductor" in " ".join(run.not_measured)
    assert sum(line.ms for line in run.ledger) == pytest.approx(run.step["time_ms"]["median"], rel=1e-3)
    assert {line.cause for line in run.ledger} >= {"useful", "not_attributed"}
    products = {(row.module, row.direction) for row in run.kernels if row.kind == "gemm"}
    assert (UNOWNED, "fwd") in products and ("down", "fwd") in products and ("up", "fwd") not in products


def test_a_step_that_is_not_compiled_says_nothing_of_it(zoo: Callable[..., Workload]) -> None:
    run = profile_workload(workload_of(zoo, Net()))
    assert not any("compiled" in line for line in run.not_measured)


def test_compiling_twice_is_refused(zoo: Callable[..., Workload]) -> None:
    with pytest.raises(BadInput, match="--compile model: the model is wrapped"):
        profile_workload(workload_of(zoo, torch.compile(Net()), compile="model"))  # type: ignore[arg-type]


def test_a_step_that_does_not_compile_is_bad_input(
    zoo: Callable[..., Workload], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> None:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(
        "mfubench.workload.regions.compile_in_place", lambda module, **_: compile_in_place(module, backend=broken)
    )
    with pytest.raises(
        BadInput, match=r"compiled step failed; --compile none, and no recipe, runs it eagerly.*no compiler here"
    ):
        profile_workload(workload_of(zoo, Net(), compile="model"))


def test_a_graph_of_each_input_set_is_captured_before_steps_are_timed(zoo: Callable[..., Workload]) -> None:
    """One run compiles, one warms up and one records, of each; without graphs one is enough."""
    workload = zoo(steps=3)
    assert settling_steps(workload) == settling_steps(replace(workload, may_be_compiled=True)) == 3
    on_a_gpu = replace(workload, device=torch.device("cuda"))
    assert settling_steps(on_a_gpu) == 3 and settling_steps(replace(on_a_gpu, may_be_compiled=True)) == 9
    asked = replace(on_a_gpu, spec=replace(workload.spec, compile="cudagraphs"))
    assert settling_steps(asked) == 9
