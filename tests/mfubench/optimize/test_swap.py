"""Every swap changes what it says and nothing else; undone, in reverse, the model computes bit for bit what it did."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as attend

import mfu_kernels
from mfu_kernels import OPS
from mfubench.errors import BadInput
from mfubench.optimize import swap
from mfubench.optimize.build import build
from mfubench.optimize.changes import (
    BucketByLength,
    Change,
    Compile,
    SparseGradients,
    UpdateTogether,
    UseBatchSize,
    UseDtype,
    UseImpl,
    WithoutAttentionWeights,
    added,
    from_plain,
    to_plain,
)
from mfubench.optimize.numbers import results
from mfubench.workload.prepare import prepare
from mfubench.workload.regions import MODEL, class_name, compile_region
from mfubench.workload.spec import WorkloadSpec
from tests.mfubench.optimize.conftest import STAND_IN
from tests.mfubench.optimize.small_model import SmallRanker
from tests.mfubench.optimize.small_model import build as build_small

SPEC = WorkloadSpec("kunlun", size="tiny", batch_size=4, steps=2, device="cpu")


def numbers(workload: Any) -> dict[str, Tensor]:
    return results(workload, workload.inputs[0])


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    plain = {key: value.to_dense() if value.is_sparse else value for key, value in a.items()}
    other = {key: value.to_dense() if value.is_sparse else value for key, value in b.items()}
    return plain.keys() == other.keys() and all(torch.equal(plain[key], other[key]) for key in plain)


def test_an_ops_implementation_is_swapped_alone(stand_in: dict[str, int]) -> None:
    workload = prepare(SPEC)
    before = numbers(workload)
    undo = swap.use_impl(workload.module, "seed_pooling", STAND_IN)
    during = numbers(workload)
    assert stand_in.keys() == {"seed_pooling"} and not same(before, during)
    undo()
    stand_in.clear()
    assert same(before, numbers(workload)) and not stand_in


def test_several_ops_are_undone_in_reverse(stand_in: dict[str, int]) -> None:
    workload = prepare(SPEC)
    before, impls = numbers(workload), [getattr(m, "impl", None) for m in workload.module.modules()]
    undos = [swap.use_impl(workload.module, op, STAND_IN) for op in ("layer_norm", "gdpa_block", "window_attention")]
    numbers(workload)
    assert stand_in.keys() == {"layer_norm", "gdpa_block", "window_attention"}
    swap.together(undos)()
    assert same(before, numbers(workload))
    assert impls == [getattr(m, "impl", None) for m in workload.module.modules()]


# The user's own modules -------------------------------------------------------------------------------------------


@pytest.fixture
def small() -> tuple[SmallRanker, dict[str, Tensor]]:
    model, make_batch, *_ = build_small()
    return model, make_batch(3, torch.device("cpu"))


def outputs(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(**batch)
    return out


@pytest.mark.parametrize(("op", "calls"), [("layer_norm", 12), ("rms_norm", 1)])
def test_torchs_norms_run_on_the_op(
    op: str, calls: int, small: tuple[SmallRanker, dict[str, Tensor]], stand_in: dict[str, int]
) -> None:
    model, batch = small
    before = outputs(model, batch)
    undo = swap.use_impl(model, op, STAND_IN)
    after = outputs(model, batch)
    assert stand_in == {op: calls}
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    undo()
    assert torch.equal(outputs(model, batch), before) and all("forward" not in vars(m) for m in model.modules())


def test_a_subclass_of_a_norm_is_left_alone(stand_in: dict[str, int]) -> None:
    class Odd(nn.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1

    model = nn.Sequential(Odd(4), nn.LayerNorm((2, 4)))
    with pytest.raises(BadInput, match="no module of the model has the op layer_norm"):
        swap.use_impl(model, "layer_norm", STAND_IN)
    model(torch.zeros(3, 2, 4))
    assert not stand_in


def test_a_norm_whose_forward_somebody_replaced_is_left_alone(stand_in: dict[str, int]) -> None:
    model = nn.Sequential(nn.LayerNorm(4), nn.LayerNorm(4))
    model[1].forward = lambda x: x + 1
    swap.use_impl(model, "layer_norm", STAND_IN)
    assert float(model[1](torch.zeros(()))) == 1.0 and not stand_in
    model(torch.zeros(3, 4))
    assert stand_in == {"layer_norm": 1}


def test_an_attribute_impl_of_somebody_elses_is_left_alone(stand_in: dict[str, int]) -> None:
    model = nn.Sequential(nn.LayerNorm(4), nn.Identity())
    model[1].impl = "flash"  # type: ignore[assignment]
    swap.use_impl(model, "layer_norm", STAND_IN)
    assert model[1].impl == "flash"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_norm_without_an_eps_has_torchs(dtype: torch.dtype) -> None:
    norm, x = nn.RMSNorm(8).to(dtype), (1e-3 * torch.randn(4, 8)).to(dtype)
    expected = norm(x)
    swap.use_impl(norm, "rms_norm", "reference")
    torch.testing.assert_close(norm(x), expected)


def test_a_copy_of_a_swapped_model_has_its_own_weights(
    small: tuple[SmallRanker, dict[str, Tensor]], stand_in: dict[str, int]
) -> None:
    model, batch = small
    swap.use_impl(model, "layer_norm", STAND_IN)
    swap.use_impl(model, "window_attention", STAND_IN)
    swap.autocast_forward(model)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert outputs(model, batch).abs().max() == 0 and outputs(copied, batch).abs().max() > 0


class Attends(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options, self.scale = options, nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(self.scale * x, x, x, **self.options)


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"scale": 0.3}])
def test_torchs_attention_runs_on_the_op(options: dict[str, Any], stand_in: dict[str, int]) -> None:
    model, x = Attends(**options), torch.randn(2, 3, 5, 4)
    before = model(x)
    undo = swap.use_impl(model, "window_attention", STAND_IN)
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)
    assert stand_in == {"window_attention": 1}
    assert F.scaled_dot_product_attention is torch._C._nn.scaled_dot_product_attention  # outside, as it was
    undo()
    assert torch.equal(model(x), before) and stand_in == {"window_attention": 1}


def test_torchs_attention_is_found_under_a_name_of_ones_own(stand_in: dict[str, int]) -> None:
    class AttendsByName(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return attend(x, x, x)

    model, x = AttendsByName(), torch.randn(2, 3, 5, 4)
    before = model(x)
    undo = swap.use_impl(model, "window_attention", STAND_IN)
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)
    assert stand_in == {"window_attention": 1} and attend is F.scaled_dot_product_attention
    undo()
    assert torch.equal(model(x), before) and stand_in == {"window_attention": 1}


def test_attention_without_weights(small: tuple[SmallRanker, dict[str, Tensor]]) -> None:
    model, batch = small
    before = outputs(model, batch)
    undo = swap.without_attention_weights(model)
    attention = model.blocks[0].attention
    x = torch.randn(2, 4, 32)
    assert attention(x, x, x)[1] is None and attention(x, x, x, need_weights=True)[1] is None
    torch.testing.assert_close(outputs(model, batch), before)
    undo()
    assert torch.equal(outputs(model, batch), before) and attention(x, x, x)[1] is not None


def test_a_bag_of_maxima_has_no_sparse_gradients() -> None:
    model = nn.ModuleDict({mode: nn.EmbeddingBag(5, 4, mode=mode) for mode in ("sum", "mean", "max")})
    optimizers = [torch.optim.SGD(model.parameters())]
    assert [name for name, _ in swap.tables_to_make_sparse(model, optimizers)] == ["sum", "mean"]
    assert [name for name, _ in swap.dense_tables(model)] == ["sum", "mean"]


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch's default, which it wants said aloud
def test_sparse_gradients_only_where_the_optimizer_takes_them() -> None:
    model = nn.Sequential(nn.EmbeddingBag(9, 4), nn.Linear(4, 1))
    ids = torch.tensor([[1, 2], [2, 5]])
    adam, adagrad = torch.optim.Adam(model.parameters()), torch.optim.Adagrad(model.parameters())
    assert not list(swap.tables_to_make_sparse(model, [adam]))
    model(ids).sum().backward()
    dense = model[0].weight.grad
    model.zero_grad()
    undo = swap.with_sparse_gradients(model, [adagrad])
    model(ids).sum().backward()
    assert model[0].weight.grad.is_sparse and torch.equal(model[0].weight.grad.to_dense(), dense)
    adagrad.step()
    undo()
    assert not model[0].sparse


@pytest.mark.parametrize("how", ["fused", "foreach"])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad])
def test_a_looping_optimizer_updates_together(how: str, kind: Any) -> None:
    def trained(steps: int, at: int | None) -> tuple[list[Tensor], Any]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 1))
        optimizer = kind(model.parameters(), lr=0.1, foreach=False)
        for step in range(steps):
            if step == at:
                swap.update_together(model, [optimizer], how)
            model(torch.ones(2, 5)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return [parameter.detach() for parameter in model.parameters()], (model, optimizer)

    plain, _ = trained(4, None)
    for at in (0, 2):  # before its first step, and in the middle of a training
        together, (model, optimizer) = trained(4, at)
        assert optimizer.param_groups[0][how]
        torch.testing.assert_close(together, plain)
        assert swap.looping_optimizers(model, [optimizer], how) == []


def test_steps_that_were_taken_are_counted_where_one_kernel_updates() -> None:
    """An optimizer that loops counts them on the host; another device stands in for a GPU."""
    state: dict[str, Any] = {"step": torch.tensor(3.0, dtype=torch.float64)}
    undo = swap._count_beside(nn.Parameter(torch.empty(2, device="meta")), state)
    assert state["step"].is_meta and state["step"].dtype == torch.float32
    state["step"] = torch.tensor(5.0)  # steps later
    undo()
    assert state["step"].item() == 5.0 and state["step"].dtype == torch.float64
    for beside in ({"step": torch.tensor(3.0)}, {"step": 3}, {}):
        swap._count_beside(nn.Parameter(torch.empty(2)), before := dict(beside))()
        assert before == beside


def test_an_optimizer_of_row_sparse_gradients_is_left_alone(sparse_tables: None) -> None:
    workload = prepare(SPEC)
    assert [type(o).__name__ for o in workload.optimizers] == ["AdamW", "Adagrad"]
    assert swap.looping_optimizers(workload.module, workload.optimizers, "fused") == []


# Compilers --------------------------------------------------------------------------------------------------------


def test_blocks_of_a_class_are_compiled_and_undone(
    small: tuple[SmallRanker, dict[str, Tensor]], quick_compiler: list[Any]
) -> None:
    model, batch = small
    before = outputs(model, batch)
    undo = compile_region(model, class_name(model.blocks[0]), dynamic=False)
    torch.testing.assert_close(outputs(model, batch), before)
    assert len(quick_compiler) == 1  # six equal blocks share it
    undo()
    assert torch.equal(outputs(model, batch), before)
    assert all(m._compiled_call_impl is None and "_compiled_call_impl" not in vars(m) for m in model.modules())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo looks at it
def test_tables_with_sparse_gradients_stay_eager(quick_compiler: list[Any], sparse_tables: None) -> None:
    workload = prepare(replace(SPEC, model="dlrm"))  # whose tables are kunlun's, and which is captured soon
    before = numbers(workload)
    undo = compile_region(workload.module, MODEL, dynamic=True)
    during = numbers(workload)
    assert quick_compiler and during.keys() == before.keys()
    assert any(gradient.is_sparse for gradient in during.values())
    undo()
    assert same(before, numbers(workload))


# Changes ----------------------------------------------------------------------------------------------------------

EVERY = [
    UseImpl("layer_norm", "reference"),
    Compile("mfu_models.common.layers.Mlp", dynamic=False),
    UseDtype("bf16"),
    UseBatchSize(6),
    BucketByLength(),
    UpdateTogether("fused"),
    SparseGradients(),
    WithoutAttentionWeights(),
]


@pytest.mark.parametrize("change", EVERY, ids=lambda change: change.name)
def test_a_change_is_plain_values(change: Change) -> None:
    assert from_plain(to_plain(change)) == change and change.title


def test_changes_of_a_workload_are_in_its_description(quick_compiler: list[Any]) -> None:
    made = EVERY[:5]  # the others find nothing to change in this model and its optimizers
    w = build(SPEC, made)
    assert (w.dtype, w.num_samples, w.description["batch_size"]) == ("bf16", [6, 6], 6)
    assert w.may_be_compiled and not prepare(SPEC).may_be_compiled  # a profile looks for compiled kernels
    assert w.description["compile"] == "Mlp" and w.description["impl"] == "auto,layer_norm=reference"
    assert w.description["changes"] == [change.title for change in made]
    assert w.description["data_hash"] != build(SPEC, [UseBatchSize(6)]).description["data_hash"]


def test_of_one_kind_the_last_stays() -> None:
    kept = added(added((), UseBatchSize(8)), Compile("a.B"))
    assert added(kept, UseBatchSize(16)) == (Compile("a.B"), UseBatchSize(16))
    assert added(kept, Compile("a.C")) == (*kept, Compile("a.C"))


def test_impl_names_ops_one_by_one() -> None:
    from mfu_kernels.registry import with_impl

    cpu = torch.device("cpu")
    impl = with_impl(with_impl("auto", "gdpa", "reference"), "gdpa", "triton")
    assert impl == "auto,gdpa=triton"
    assert OPS["rms_norm"].choose(impl, cpu) == "reference"
    with pytest.raises(mfu_kernels.UnsupportedImpl, match="op=implementation"):
        OPS["rms_norm"].choose("auto,gdpa", cpu)
