"""Products that hide: in distances, in a bilinear layer, in rows of nested tensors, and of complex numbers."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mfubench.measure.classify import may_hide_flops, op_class
from mfubench.measure.count import Count, count_step
from mfubench.measure.flops import Flops, dispatched_flops
from mfubench.measure.scopes import BACKWARD, ScopeTracker

POINTS, CODES, WIDTH = 30, 9, 4
HEADS = 2
LENGTHS = (3, 1, 5)  # of rows
PAIRS = 3 * 3 + 1 + 5 * 5


def rand(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def counted(run: Callable[[], Tensor]) -> Count:
    """A forward, and the backward of its output's sum."""

    def step(tracker: ScopeTracker) -> None:
        output = run()
        loss = torch.view_as_real(output).sum() if output.is_complex() else output.sum()
        with tracker.phase(BACKWARD):
            loss.backward()

    return count_step(nn.Identity(), step)


def model_flops(count: Count) -> tuple[int, int]:
    assert count.total().model == count.total().padded == count.total().hardware
    return count.total("fwd").model, count.total("bwd").model


@pytest.mark.parametrize("batch", [(), (3,)], ids=["points", "batches"])
def test_euclidean_distances_are_a_product_with_two_more_columns(batch: tuple[int, ...]) -> None:
    """Of -2 x, its squared length and a one with y, a one and its squared length; the backward's are of x and y."""
    x, y = rand(*batch, POINTS, WIDTH), rand(*batch, CODES, WIDTH)
    count = counted(lambda: torch.cdist(x, y))
    product = 2 * POINTS * CODES * (3 if batch else 1)
    assert model_flops(count) == (product * (WIDTH + 2), 2 * product * WIDTH)
    assert {key.kind for key, work in count.work.items() if work.hardware} == {"gemm"} and not count.unknown_ops


@pytest.mark.parametrize(
    "distances",
    [
        lambda x, y: torch.cdist(x, y, p=1.0),
        lambda x, y: torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist"),
        lambda x, y: torch.cdist(x[:25], y),
    ],
    ids=["another norm", "without a product", "few points"],
)
def test_distances_one_by_one_are_no_product(distances: Callable[[Tensor, Tensor], Tensor]) -> None:
    x, y = rand(POINTS, WIDTH), rand(CODES, WIDTH)
    count = counted(lambda: distances(x, y))
    assert model_flops(count) == (0, 0) and not count.unknown_ops


def test_distances_may_be_a_product_inside_an_operator_that_has_both_ways() -> None:
    x, y = rand(POINTS, WIDTH), rand(CODES, WIDTH)

    def flops(norm: float, mode: int | None, points: Tensor = x) -> int:
        found = dispatched_flops(torch.ops.aten._cdist_forward.default, (points, y, norm, mode), {}, None)
        assert found is not None
        return found.hardware

    assert flops(2.0, None) == flops(2.0, 0) == flops(2.0, 1) == 2 * POINTS * CODES * (WIDTH + 2)
    assert flops(2.0, 1, x[:8]) == 2 * 8 * CODES * (WIDTH + 2)
    assert flops(2.0, None, x[:8]) == flops(2.0, 2) == flops(1.0, 1) == 0


@pytest.mark.parametrize("learned", [(True, True), (True, False), (False, True), (False, False)], ids=str)
def test_a_bilinear_layer_is_a_product_with_each_side_for_every_feature(learned: tuple[bool, bool]) -> None:
    """First with x, then what that makes with y; backward one product for each gradient, the rest elementwise.

    So many has the ``bmm`` that torch's profiler sees inside.
    """
    rows, left, right, features = 7, 4, 5, 3
    layer = nn.Bilinear(left, right, features)
    x, y = torch.randn(rows, left, requires_grad=learned[0]), torch.randn(rows, right, requires_grad=learned[1])
    count = counted(lambda: layer(x, y))
    once = 2 * rows * features * left * right
    assert model_flops(count) == (once + 2 * rows * features * right, (1 + sum(learned)) * once)
    assert {key.kind for key, work in count.work.items() if work.hardware} == {"gemm"} and not count.unknown_ops


def test_a_bilinear_layer_of_no_rows_multiplies_nothing() -> None:
    layer = nn.Bilinear(4, 5, 3)
    assert model_flops(counted(lambda: layer(torch.randn(0, 4), torch.randn(0, 5)))) == (0, 0)


def jagged(*shape: int) -> Tensor:
    """Rows as a model with packed sequences has them."""
    return torch.nested.nested_tensor([torch.randn(length, *shape) for length in LENGTHS], layout=torch.jagged)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_attention_of_jagged_rows_on_a_cpu_counts_the_pairs_of_each_row() -> None:
    """Torch makes nested tensors of the older kind there, and takes an error of the counter's for its own."""
    projections = [nn.Linear(HEADS * WIDTH, HEADS * WIDTH, bias=False) for _ in range(3)]
    rows = jagged(HEADS * WIDTH)

    def attend() -> Tensor:
        q, k, v = (each(rows).unflatten(-1, (HEADS, WIDTH)).transpose(1, 2) for each in projections)
        out: Tensor = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).values()
        return out

    count = counted(attend)
    projected, attended = 3 * 2 * sum(LENGTHS) * (HEADS * WIDTH) ** 2, 2 * 2 * HEADS * WIDTH * PAIRS
    assert model_flops(count) == (projected + attended, projected + 2 * attended)  # the rows want no gradient
    assert not count.unknown_ops
    with torch.no_grad():
        inferred = count_step(nn.Identity(), lambda _tracker: attend())
    assert inferred.total().model == projected + attended


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_rows_are_multiplied_row_by_row() -> None:
    first = torch.nested.nested_tensor([torch.randn(length, WIDTH) for length in LENGTHS])
    second = torch.nested.nested_tensor([torch.randn(WIDTH, length) for length in LENGTHS])
    for product in (torch.bmm, torch.matmul):
        count = count_step(nn.Identity(), lambda _tracker, product=product: product(first, second))
        assert count.total().model == 2 * WIDTH * PAIRS and not count.unknown_ops
    heads, dense = torch.nested.nested_tensor([torch.randn(n, HEADS, WIDTH) for n in LENGTHS]), torch.randn(WIDTH, 7)
    count = count_step(nn.Identity(), lambda _tracker: torch.matmul(heads, dense))
    assert count.total().model == 2 * sum(LENGTHS) * HEADS * WIDTH * 7 and not count.unknown_ops


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_fused_attention_of_nested_rows_counts_the_pairs_of_each_row() -> None:
    """A GPU's operators take them whole; a CPU has none that do."""
    heads = torch.nested.nested_tensor([torch.randn(HEADS, length, WIDTH) for length in LENGTHS])
    func = torch.ops.aten._scaled_dot_product_efficient_attention.default
    product = 2 * HEADS * WIDTH * PAIRS
    assert dispatched_flops(func, (heads, heads, heads, None, False), {}, None) == Flops(2 * product, 2 * product)


COMPLEX = torch.complex64
# What runs, and its multiply-adds of complex numbers.
OF_COMPLEX: dict[str, tuple[Callable[..., Tensor], tuple[tuple[int, ...], ...], int]] = {
    "mm": (torch.mm, ((3, 4), (4, 5)), 60),
    "mm of a conjugate": (lambda a, b: a @ b.conj().T, ((3, 4), (5, 4)), 60),
    "addmm": (torch.addmm, ((5,), (3, 4), (4, 5)), 60),
    "bmm": (torch.bmm, ((2, 3, 4), (2, 4, 5)), 120),
    "einsum": (lambda a, b: torch.einsum("bfd,fde->bfe", a, b), ((2, 3, 4), (3, 4, 5)), 120),
    "linear": (F.linear, ((2, 3, 4), (5, 4)), 120),
    "mv": (torch.mv, ((3, 4), (4,)), 12),
}


@pytest.mark.parametrize(("run", "shapes", "multiply_adds"), OF_COMPLEX.values(), ids=OF_COMPLEX.keys())
def test_a_multiply_add_of_complex_numbers_is_eight_flops(
    run: Callable[..., Tensor], shapes: tuple[tuple[int, ...], ...], multiply_adds: int
) -> None:
    factors = [rand(*shape, dtype=COMPLEX) for shape in shapes]
    count = counted(lambda: run(*factors))
    once = 8 * multiply_adds
    # torch differentiates a matrix and a vector by an outer product, which is elementwise, and a product of its own
    assert model_flops(count) == (once, once if run is torch.mv else 2 * once)
    assert count.dtypes().keys() == {"float32"}  # whose peak they are to be held against: that of their parts
    real = counted(lambda: run(*[rand(*shape) for shape in shapes]))
    assert count.total().hardware == 4 * real.total().hardware


def test_a_real_factor_of_a_complex_one_counts_as_what_it_is_made() -> None:
    """Torch refuses the two together: who multiplies them has a complex one made first."""
    a, b = rand(3, 4, dtype=COMPLEX), rand(4, 5)
    with pytest.raises(RuntimeError, match="dtype"):
        torch.mm(a, b)
    assert model_flops(counted(lambda: a @ b.to(COMPLEX))) == (8 * 60, 16 * 60)


def test_a_complex_convolution_is_three_real_ones() -> None:
    x, weight = rand(2, 3, 10, dtype=COMPLEX), rand(5, 3, 4, dtype=COMPLEX)
    once = 2 * 2 * 5 * 7 * 3 * 4
    assert model_flops(counted(lambda: F.conv1d(x, weight))) == (3 * once, 6 * once)


def test_double_precision_is_told_of_complex_numbers_too() -> None:
    a = rand(3, 3, dtype=torch.complex128)
    assert counted(lambda: a @ a).dtypes() == {"float64": 3 * 8 * 27}


def test_operators_that_are_products_have_their_class() -> None:
    assert op_class("aten::_euclidean_dist") == op_class("aten::matmul_backward") == "gemm"
    assert may_hide_flops("aten::_euclidean_dist") and not may_hide_flops("aten::_cdist_backward")
