"""Least bytes of single operators against numbers by hand."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, library, nn

from mfubench.measure.operators import OperatorMode, operator_name
from mfubench.measure.traffic import dispatched_bytes

FLOAT = 4


def calls(run: Callable[[], object]) -> list[tuple[str, int]]:
    """Name and bytes of every operator that ``run`` dispatches."""
    seen: list[tuple[str, int]] = []
    with OperatorMode(lambda func, *call: seen.append((operator_name(func), dispatched_bytes(func, *call)))):
        run()
    return seen


# What runs, on which tensors, and the bytes of each operator.
BYTES: dict[str, tuple[Callable[..., object], tuple[Tensor, ...], dict[str, int]]] = {
    "each operand once": (torch.add, (torch.ones(3, 4), torch.ones(4)), {"add": 4 * (12 + 4 + 12)}),
    "half the width": (torch.exp, (torch.ones(3, 4, dtype=torch.bfloat16),), {"exp": 2 * 24}),
    "views": (lambda x: x.t()[1:].unsqueeze(0), (torch.ones(3, 4),), {"t": 0, "slice": 0, "unsqueeze": 0}),
    "an expanded input": (torch.exp, (torch.ones(4).expand(3, 4),), {"exp": 4 * (4 + 12)}),
    "views of what nobody else has": (
        lambda x, w: (x @ w, x.unsafe_split(1), x.unsafe_chunk(2)),
        (torch.ones(2, 3, 4), torch.ones(4, 5)),
        {"view": 0, "mm": 4 * (24 + 20 + 30), "_unsafe_view": 0, "unsafe_split": 0},
    ),
    "memory not written": (lambda: torch.empty(9), (), {"empty": 0}),
    "a shape that is read, not its numbers": (torch.zeros_like, (torch.ones(3),), {"zeros_like": 4 * 3}),
    "a type that is read": (lambda x: x.new_zeros(5), (torch.ones(3),), {"new_zeros": 4 * 5}),
    "a list": (lambda x, y: torch.cat([x, y]), (torch.ones(3), torch.ones(2)), {"cat": 4 * 10}),
    "rows of a table": (F.embedding, (torch.tensor([1, 1]), torch.ones(9, 4)), {"embedding": 16 + 4 * 8 + 4 * 8}),
    "rows of a small table": (F.embedding, (torch.ones(99).long(), torch.ones(9, 4)), {"embedding": 792 + 144 + 1584}),
    "rows picked": (lambda x, i: x[i], (torch.ones(9, 4), torch.tensor([2, 0])), {"index": 16 + 4 * 8 + 4 * 8}),
    "rows selected": (
        lambda x, i: x.index_select(0, i),
        (torch.ones(9, 4), torch.tensor([2, 0])),
        {"index_select": 16 + 4 * 8 + 4 * 8},
    ),
    "numbers gathered": (
        lambda x, i: x.gather(0, i),
        (torch.ones(9, 4), torch.tensor([[2, 0, 1, 1]])),
        {"gather": 32 + 4 * 4 + 4 * 4},
    ),
    "in place": (lambda x: x.mul_(2.0), (torch.ones(3),), {"mul_": 4 * 6}),
    "in place, of two": (torch.Tensor.add_, (torch.ones(3), torch.ones(3)), {"add_": 4 * 9}),
    "a copy": (torch.Tensor.copy_, (torch.ones(3), torch.ones(3)), {"copy_": 4 * 6}),
    "a copy of another width": (torch.Tensor.copy_, (torch.ones(3), torch.ones(3).half()), {"copy_": 4 * 3 + 2 * 3}),
    "filled": (lambda x: x.fill_(2.0), (torch.ones(3),), {"fill_": 4 * 3}),
    "zeros": (torch.Tensor.zero_, (torch.ones(3),), {"zero_": 4 * 3}),
    "drawn": (torch.Tensor.normal_, (torch.ones(3),), {"normal_": 4 * 3}),
    "a view in place": (torch.Tensor.t_, (torch.ones(3, 4),), {"t_": 0}),
    "into a given output": (lambda x, y: torch.exp(x, out=y), (torch.ones(3), torch.ones(3)), {"exp": 4 * 6}),
    "lists in place": (
        lambda x, y: torch._foreach_add_([x], [y]),
        (torch.ones(3), torch.ones(3)),
        {"_foreach_add_": 4 * 9},
    ),
    "rows written": (
        lambda table, rows, new: table.__setitem__(rows, new),
        (torch.ones(1000, 4), torch.tensor([3, 7]), torch.ones(2, 4)),
        {"index_put_": 2 * 8 + 2 * 4 * 8},  # which; the new ones are read, and written
    ),
    "rows written with one number": (
        lambda table, rows, one: torch.ops.aten.index_put_(table, [None, rows], one),
        (torch.ones(4, 1000), torch.tensor([3, 7]), torch.ones(())),
        {"index_put_": 2 * 8 + 4 + 4 * 8},
    ),
    "rows added to": (
        lambda table, rows, more: table.index_put_((rows,), more, accumulate=True),
        (torch.ones(1000, 4), torch.tensor([3, 7]), torch.ones(2, 4)),
        {"index_put_": 2 * 8 + 3 * 4 * 8},
    ),
    "rows written by a mask": (  # which numbers they are only the mask says
        lambda table, mask, one: torch.ops.aten.index_put_(table, [mask], one),
        (torch.ones(1000, 4), torch.ones(1000, dtype=torch.bool), torch.ones(())),
        {"index_put_": 1000 + 4 + 4 * 4000},
    ),
    "sums of rows": (
        lambda table, rows, more: table.index_add_(0, rows, more),
        (torch.ones(1000, 4), torch.tensor([3, 7]), torch.ones(2, 4)),
        {"index_add_": 2 * 8 + 3 * 4 * 8},
    ),
    "rows copied": (
        lambda table, rows, new: table.index_copy_(0, rows, new),
        (torch.ones(1000, 4), torch.tensor([3, 7]), torch.ones(2, 4)),
        {"index_copy_": 2 * 8 + 2 * 4 * 8},
    ),
    "rows filled": (
        lambda table, rows: table.index_fill_(1, rows, 0.0),
        (torch.ones(4, 1000), torch.tensor([3, 7])),
        {"index_fill_": 2 * 8 + 4 * 8},
    ),
    "scattered numbers": (
        lambda table, at, new: table.scatter_(0, at, new),
        (torch.ones(1000), torch.tensor([3, 7]), torch.ones(2)),
        {"scatter_": 2 * 8 + 2 * 4 * 2},
    ),
    "scattered sums": (
        lambda table, at, new: table.scatter_add_(0, at, new),
        (torch.ones(1000), torch.tensor([3, 7]), torch.ones(2)),
        {"scatter_add_": 2 * 8 + 3 * 4 * 2},
    ),
    "scattered products": (
        lambda table, at, new: table.scatter_reduce_(0, at, new, "prod"),
        (torch.ones(1000), torch.tensor([3, 7]), torch.ones(2)),
        {"scatter_reduce_": 2 * 8 + 3 * 4 * 2},
    ),
    "numbers taken": (torch.take, (torch.ones(1000), torch.tensor([3, 7])), {"take": 2 * 8 + 2 * 4 * 2}),
    "one score of each row": (  # of 2 and 3 numbers of a batch: its mean, and what that was divided by
        lambda scores, label: F.nll_loss(scores, label),
        (torch.ones(8, 1000), torch.zeros(8, dtype=torch.int64)),
        {"nll_loss_forward": 8 * 8 + 4 * 8 + 2 * 4},
    ),
    "lists of zeros": (lambda x: torch._foreach_zero_([x]), (torch.ones(3),), {"_foreach_zero_": 4 * 3}),
    "lists copied": (
        lambda x, y: torch._foreach_copy_([x], [y]),
        (torch.ones(3), torch.ones(3)),
        {"_foreach_copy_": 4 * 6},
    ),
}


@pytest.mark.parametrize(("function", "inputs", "expected"), BYTES.values(), ids=BYTES.keys())
def test_least_bytes(function: Callable[..., object], inputs: tuple[Tensor, ...], expected: dict[str, int]) -> None:
    assert {name.removeprefix("aten::"): moved for name, moved in calls(lambda: function(*inputs))} == expected


def test_the_gradient_of_one_score_of_each_row_is_written_and_the_scores_are_not_read() -> None:
    scores, label = torch.ones(8, 1000, requires_grad=True), torch.zeros(8, dtype=torch.int64)
    found = dict(calls(lambda: F.nll_loss(scores, label).backward()))
    assert found["aten::nll_loss_backward"] == 4 * 8000 + 8 * 8 + 2 * 4  # labels, the mean's gradient and its divisor


def test_a_stream_that_is_to_keep_memory_moves_none() -> None:
    assert dispatched_bytes(torch.ops.aten.record_stream.default, (torch.ones(9), object()), {}, None) == 0


@pytest.mark.parametrize("function", [F.silu, F.mish])
def test_a_backward_that_torch_could_take_apart_is_one_operator(function: Callable[[Tensor], Tensor]) -> None:
    """It runs as one: reads the gradient and the input, writes another gradient, and makes nothing between them."""
    x = torch.ones(1000, requires_grad=True)
    found = dict(calls(lambda: function(x).backward(torch.ones(1000))))
    assert found[f"aten::{function.__name__}_backward"] == 3 * 1000 * FLOAT
    assert not {"aten::sigmoid", "aten::mul"} & found.keys()


def test_a_bag_reads_the_rows_that_it_sums() -> None:
    """Two bags of three of a table's rows; beside their sums it gives what its backward wants."""
    table, ids = torch.ones(900, 4), torch.tensor([[1, 2, 3], [4, 5, 6]])
    (moved,) = (moved for name, moved in calls(lambda: F.embedding_bag(ids, table)) if "_embedding_bag" in name)
    assert 6 * 16 + 6 * 8 + 2 * 16 <= moved < 900 * 16


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # of torch 2.11, although they are turned off aloud
def test_a_sparse_gradient_counts_what_it_holds() -> None:
    table = nn.Embedding(1000, 4, sparse=True)
    gradient = torch.sparse_coo_tensor(torch.tensor([[1, 7]]), torch.randn(2, 4), (1000, 4), check_invariants=False)
    held = 2 * 8 + 2 * 4 * 4
    with torch.no_grad():
        (moved,) = (size for name, size in calls(lambda: table.weight.add_(gradient)) if name == "aten::add_")
    assert moved == 2 * (2 * 4 * 4) + held  # of the dense table the rows alone are read and written


def test_an_optimizer_of_sparse_gradients_moves_rows() -> None:
    table = nn.Embedding(100_000, 4, sparse=True)
    optimizer = torch.optim.SparseAdam(table.parameters())
    for _ in range(2):
        table(torch.tensor([1, 7])).sum().backward()
        moved = sum(size for _, size in calls(optimizer.step))
        optimizer.zero_grad()
    assert moved < 100_000


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_a_matrix_of_compressed_rows_counts_what_it_holds() -> None:
    sparse, dense = torch.eye(100).to_sparse_csr(), torch.ones(100, 3)
    held = 100 * 4 + 101 * 8 + 100 * 8
    assert [size for name, size in calls(lambda: sparse @ dense) if name == "aten::mm"] == [held + 2 * 300 * 4]


@pytest.mark.parametrize(
    ("fused", "copies"),
    [
        (lambda p: torch.optim.AdamW(p, fused=True), 7),  # three of four are written: not the gradient
        (lambda p: torch.optim.AdamW(p, fused=True, amsgrad=True), 9),
        (lambda p: torch.optim.SGD(p, fused=True, lr=0.1), 3),
        (lambda p: torch.optim.SGD(p, fused=True, lr=0.1, momentum=0.9), 5),
        (lambda p: torch.optim.Adagrad(p, fused=True), 5),
    ],
    ids=["adamw", "amsgrad", "sgd", "momentum", "adagrad"],
)
def test_a_fused_optimizer_writes_what_it_changes(fused: Callable[..., torch.optim.Optimizer], copies: int) -> None:
    """It returns nothing, so its arguments are all that tells of it; a count of steps is beside them."""
    parameter = nn.Parameter(torch.ones(1000))
    optimizer = fused([parameter])
    parameter.grad = torch.ones(1000)
    optimizer.step()
    (moved,) = (size for name, size in calls(optimizer.step) if "_fused_" in name)
    assert copies * 1000 * FLOAT <= moved <= copies * 1000 * FLOAT + 2 * FLOAT


def test_gradients_are_written_where_their_scale_is_taken_off() -> None:
    x = torch.ones(1000)
    func = torch.ops.aten._fused_sgd_.default
    args = [x], [x], []
    scale = torch.ones(())
    assert dispatched_bytes(func, args, {}, None) == 3 * 1000 * FLOAT
    assert dispatched_bytes(func, args, {"grad_scale": scale, "found_inf": None}, None) == 4 * 1000 * FLOAT + FLOAT


def test_rows_of_a_table_that_an_update_in_the_backward_touches() -> None:
    """As FBGEMM's, which also has its optimizer's state there: read and written, by rows."""
    made = library.Library("mfubench_test", "FRAGMENT")
    made.define(
        "table_update(Tensor grad, Tensor(a!) host_weights, Tensor(b!) momentum1_host, Tensor indices, int max_D) -> ()"
    )
    table, indices = torch.ones(900, 4), torch.tensor([3, 5])
    args = (torch.ones(2, 4), table, table.clone(), indices, 4)
    moved = dispatched_bytes(torch.ops.mfubench_test.table_update.default, args, {}, None)
    assert moved == 2 * 16 + 2 * 8 + 2 * (2 * 2 * 16)
