"""The count pass: which module, direction and class work is booked on, and that its rows sum to the total."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, library, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode, flop_registry, register_flop_formula

from mfu_kernels import gdpa, layer_norm
from mfu_kernels.cost import OpCost, PassCost, once_for_batch
from mfu_kernels.registry import Op
from mfubench.measure.count import Count, CountTracker, Work, WorkKey, _operand_dtype, by_module, count_step
from mfubench.measure.scopes import BACKWARD, OPTIMIZER, ROOT, ScopeTracker
from tests.mfubench.steps import training_step

N = 5  # samples
PRODUCT = 2 * N * 4 * 4  # of N rows and a 4 x 4 matrix


def count(model: nn.Module, *inputs: Tensor, optimizer: torch.optim.Optimizer | None = None) -> Count:
    """One training step of ``model``, with the sum of its output as loss."""
    return count_step(model, training_step(model, *inputs, optimizers=[optimizer] if optimizer else []))


def model_flops(counted: Count) -> dict[str, tuple[int, int]]:
    """Forward and backward model FLOPs by module, where there are any."""
    rows = {name: (work["fwd"].model, work["bwd"].model) for name, work in by_module(counted.work).items()}
    return {name: row for name, row in rows.items() if any(row)}


def layers(num: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(num)))


@pytest.fixture
def x() -> Tensor:
    return torch.randn(N, 4)


def test_the_first_layer_has_two_of_three_products(x: Tensor) -> None:
    """Three times the forward over-counts: nobody needs the gradient of the batch."""
    model = layers(2)
    counted = count(model, x)
    assert model_flops(counted) == {"0": (PRODUCT, PRODUCT), "1": (PRODUCT, 2 * PRODUCT)}
    assert model_flops(count(model, x.clone().requires_grad_()))["0"] == (PRODUCT, 2 * PRODUCT)
    model[0].requires_grad_(False)
    assert model_flops(count(model, x)) == {"0": (PRODUCT, 0), "1": (PRODUCT, PRODUCT)}


def test_without_a_backward_there_is_only_a_forward(x: Tensor) -> None:
    model = layers(2)
    with torch.no_grad():
        counted = count_step(model, lambda tracker: model(x))
    assert counted.total("bwd") == Work() and counted.total().model == counted.total("fwd").model == 2 * PRODUCT


class Tangled(nn.Module):
    """What misleads a counter: a module under two names, a method called past forward, and a checkpoint cut short."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.second = layers(1)
        self.head = Methods()
        self.block = layers(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x))
        x = checkpoint(self.block, x, use_reentrant=False)
        return self.head.score(x)


class Methods(nn.Module):
    """A weight that is used by a method and not by forward."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def score(self, x: Tensor) -> Tensor:
        return x @ self.weight


def test_rows_sum_to_the_total_where_a_module_tree_does_not(x: Tensor) -> None:
    """Own work of each module, once: torch's counter gives parents sums that their children contradict."""
    model = Tangled()
    with FlopCounterMode(display=False) as oracle:
        model(x).sum().backward()
    counted = count(model, x)
    assert model_flops(counted) == {
        "first.0": (2 * PRODUCT, 3 * PRODUCT),
        "block.0": (PRODUCT, 2 * PRODUCT),
        "block.1": (PRODUCT, 2 * PRODUCT),
        ROOT: (PRODUCT, 2 * PRODUCT),
    }
    rows = [work for row in by_module(counted.work).values() for work in row.values()]
    for name in ("model", "padded", "hardware", "recomputed", "bytes"):
        assert sum(getattr(work, name) for work in rows) == getattr(counted.total(), name)
    assert counted.total().hardware == oracle.get_total_flops()
    assert counted.total().hardware - counted.total().recomputed == counted.total().model == 14 * PRODUCT


class Checkpointed(nn.Module):
    """A block that is repeated in the backward pass, or not."""

    def __init__(self, block: nn.Module, reentrant: bool | None) -> None:
        super().__init__()
        self.first, self.block, self.reentrant = layers(1), block, reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.reentrant is None:
            plain: Tensor = self.block(x)
            return plain
        repeated: Tensor = checkpoint(self.block, x, use_reentrant=self.reentrant)
        return repeated


@pytest.mark.parametrize(("reentrant", "repeated"), [(True, 2), (False, 1)], ids=["reentrant", "early_stop"])
def test_checkpointing_is_hardware_work_only(x: Tensor, reentrant: bool, repeated: int) -> None:
    """Early stop leaves out the last layer's product, whose result the backward does not need."""
    block = layers(2)
    plain, checkpointed = count(Checkpointed(block, None), x), count(Checkpointed(block, reentrant), x)
    assert plain.total().recomputed == 0 and plain.total().hardware == plain.total().model
    assert checkpointed.total().model == plain.total().model == 8 * PRODUCT
    assert checkpointed.total().recomputed == repeated * PRODUCT
    assert checkpointed.total().hardware == plain.total().hardware + repeated * PRODUCT
    assert model_flops(checkpointed) == model_flops(plain)


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "early_stop"])
def test_what_is_repeated_has_a_direction_of_its_own(x: Tensor, reentrant: bool) -> None:
    """No useful FLOP stands there, and all that is recomputed does; the two other directions are as without it."""
    block = layers(2)
    plain, checkpointed = count(Checkpointed(block, None), x), count(Checkpointed(block, reentrant), x)
    repeated = checkpointed.total("recompute")
    assert repeated.model == repeated.padded == 0
    assert repeated.hardware == repeated.recomputed == checkpointed.total().recomputed > 0
    modules = {key.module for key, work in checkpointed.work.items() if key.direction == "recompute" and work.hardware}
    assert modules == ({"block.0", "block.1"} if reentrant else {"block.0"})
    for direction in ("fwd", "bwd"):
        assert checkpointed.total(direction).hardware == plain.total(direction).hardware
        assert checkpointed.total(direction).recomputed == 0
    assert not any(key.direction == "recompute" for key in plain.work)


class Jagged(nn.Module):
    """GDPA over rows of 1 and 3 events, padded to 4 by the reference: its model FLOPs are a formula's."""

    def __init__(self) -> None:
        super().__init__()
        self.kv = nn.Parameter(torch.randn(2, 6, 1, 4))
        self.register_buffer("offsets", torch.tensor([0, 1, 4]))

    def forward(self, x: Tensor) -> Tensor:
        return gdpa(x[:4].unsqueeze(1), self.kv, self.kv, self.offsets, max_length=4, impl="reference").squeeze(1)


JAGGED_MODEL = 2 * (2 * 4 * 6) * 4  # two products, each 2 H d n_kv FLOPs an event
JAGGED_HARDWARE = 2 * (2 * 4 * 6) * 2 * 4


def test_a_jagged_op_needs_less_than_its_reference_executes(x: Tensor) -> None:
    """Model FLOPs from the op's formula, hardware FLOPs from the padded aten operators that run."""
    counted = count(Jagged(), x.requires_grad_())
    total = by_module(counted.work)[ROOT]
    assert (total["fwd"].model, total["bwd"].model) == (JAGGED_MODEL, 2 * JAGGED_MODEL)
    assert (total["fwd"].hardware, total["bwd"].hardware) == (JAGGED_HARDWARE, 2 * JAGGED_HARDWARE)
    assert total["fwd"].padded == 2 * (2 * 4 * 6) * 2 * 3
    assert {key.kind for key, work in counted.work.items() if work.hardware} == {"attention"}
    assert counted.impls == {"gdpa": "reference"} and not counted.unknown_ops


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "early_stop"])
def test_a_checkpointed_op_is_useful_once(x: Tensor, reentrant: bool) -> None:
    block = Jagged()
    plain, checkpointed = count(Checkpointed(block, None), x), count(Checkpointed(block, reentrant), x)
    assert checkpointed.total("fwd").model == plain.total("fwd").model
    assert checkpointed.total("bwd").model == plain.total("bwd").model == PRODUCT + 2 * JAGGED_MODEL
    assert checkpointed.total().recomputed > 0


def product_cost(x: Tensor, weight: Tensor, *, impl: str) -> OpCost:
    return OpCost(PassCost(7, 8, 9, 10), PassCost(70, 80, 90, 100, recomputed=20))


# Its "triton" runs an operator too, as kernels do beside themselves: the formula has all that the op executes.
TOY = Op("toy", "gemm", product_cost, {"reference": torch.matmul, "triton": torch.matmul})


class Toy(nn.Module):
    def __init__(self, impl: str) -> None:
        super().__init__()
        self.weight, self.impl = nn.Parameter(torch.randn(4, 4)), impl

    def forward(self, x: Tensor) -> Tensor:
        return TOY.run(self.impl, x.device, x, self.weight)


def test_a_kernel_brings_its_own_hardware_flops_and_bytes(x: Tensor) -> None:
    work = count(Toy("triton"), x).work
    fwd, bwd = work[WorkKey(ROOT, "fwd", "gemm")], work[WorkKey(ROOT, "bwd", "gemm")]
    assert (fwd.model, fwd.padded, fwd.hardware, fwd.bytes, fwd.recomputed) == (7, 8, 9, 10, 0)
    assert (bwd.model, bwd.padded, bwd.hardware, bwd.bytes, bwd.recomputed) == (70, 80, 90, 100, 20)
    reference = count(Toy("reference"), x).work
    assert reference[WorkKey(ROOT, "fwd", "gemm")].hardware == PRODUCT
    assert reference[WorkKey(ROOT, "bwd", "gemm")].recomputed == 0


def test_the_configs_of_kernels_that_ran_are_noted(x: Tensor) -> None:
    class Norm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return layer_norm(x, impl="triton")

    configs = count(Norm(), x.requires_grad_()).configs
    assert [kernel for kernel, _ in configs] == ["layer_norm_fwd_kernel", "layer_norm_bwd_kernel"]
    for (_, key), (config, origin) in configs.items():
        assert "width=4" in key and "num_warps=" in config and origin == "default"
    assert not count(Jagged(), x).configs


def test_an_op_inside_an_op_adds_nothing(x: Tensor) -> None:
    """The outer formula has it, backward too, although only the inner op makes nodes."""
    outer = Op("outer", "gemm", product_cost, {"reference": lambda *args: TOY.run("reference", x.device, *args)})

    class Nested(Toy):
        def forward(self, x: Tensor) -> Tensor:
            return outer.run("reference", x.device, x, self.weight)

    counted = count(Nested("reference"), x)
    assert model_flops(counted) == {ROOT: (7, 70)} and counted.impls == {"outer": "reference"}


def test_a_kernel_that_is_repeated_is_executed_twice_and_useful_once(x: Tensor) -> None:
    bwd = by_module(count(Checkpointed(Toy("triton"), reentrant=False), x).work)["block"]["bwd"]
    assert (bwd.model, bwd.hardware, bwd.recomputed, bwd.bytes) == (70, 90 + 9, 20 + 9, 100 + 10)


class Shared(nn.Module):
    """A product that is executed once for N samples, before one that each sample pays for."""

    def __init__(self) -> None:
        super().__init__()
        self.seeds, self.project, self.own = nn.Parameter(torch.randn(1, 4)), layers(1), layers(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.own(x) + once_for_batch(self.project, self.seeds, num_samples=N)


def test_work_for_the_whole_batch_counts_for_each_sample_in_model_flops_only(x: Tensor) -> None:
    """Each sample alone would need it; the hardware executes it once."""
    work = by_module(count(Shared(), x).work)
    fwd, bwd = work["project.0"]["fwd"], work["project.0"]["bwd"]
    assert (fwd.model, fwd.padded, fwd.hardware) == (PRODUCT, PRODUCT, PRODUCT // N)
    assert (bwd.model, bwd.padded, bwd.hardware) == (2 * PRODUCT, 2 * PRODUCT, 2 * PRODUCT // N)
    assert work["own.0"]["fwd"].model == work["own.0"]["fwd"].hardware == PRODUCT


def test_lookups_and_the_optimizer_move_bytes_and_need_no_flops() -> None:
    model = nn.EmbeddingBag(50, 4, mode="sum")
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    counted = count(model, torch.zeros(N, 3, dtype=torch.long), optimizer=optimizer)
    rows = by_module(counted.work)
    assert counted.total().hardware == counted.total().model == 0 and not counted.unknown_ops
    assert rows[ROOT]["fwd"].bytes > 0 and rows[ROOT]["bwd"].bytes > 0
    assert rows[OPTIMIZER]["fwd"].bytes >= 7 * 4 * 200  # parameter and two moments, read and written, and the gradient
    assert any(key == WorkKey(ROOT, "fwd", "embedding") for key in counted.work)


def test_operators_are_counted_where_they_run(x: Tensor) -> None:
    operators = count(layers(2), x).operators
    assert operators[WorkKey("0", "fwd", "gemm")] == 1 and operators[WorkKey("1", "bwd", "gemm")] == 2
    assert all(operators.values())


def test_views_move_nothing(x: Tensor) -> None:
    class Views(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.t().unsqueeze(0)[:, 1:].squeeze(0).permute(1, 0).view_as(x[:, 1:])

    counted = count_step(model := Views(), lambda tracker: model(x))
    assert counted.work and counted.total().bytes == 0


def test_accumulating_a_gradient_belongs_to_the_module_that_made_it(x: Tensor) -> None:
    """The node that adds to .grad has no number of its own; without its owner, it would be the phase's work."""
    model = layers(1)
    first, again = count(model, x), count(model, x)
    key = WorkKey("0", "bwd", "elementwise")
    assert again.work[key].bytes - first.work[key].bytes == 3 * 4 * 16
    assert all(not work.bytes or key.kind == "copy" for key, work in again.work.items() if key.module == BACKWARD)


def test_flops_are_kept_by_operand_type(x: Tensor) -> None:
    model = layers(2)

    def step(tracker: ScopeTracker) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            half = model[0](x)
        model[1](half.float())

    counted = count_step(model, step)
    assert counted.work[WorkKey("0", "fwd", "gemm")].dtypes == {"bfloat16": PRODUCT}
    assert counted.work[WorkKey("1", "fwd", "gemm")].dtypes == {"float32": PRODUCT}
    assert counted.total().dtypes == {"bfloat16": PRODUCT, "float32": PRODUCT}


BF16 = torch.bfloat16


def dtypes(run: Callable[[], object]) -> dict[str, int]:
    """Hardware FLOPs by operand type of what ``run`` dispatches."""
    model = nn.Identity()
    return count_step(model, lambda tracker: run()).total().dtypes


def half(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=BF16, requires_grad=True)


def fp8(*shape: int) -> Tensor:
    return torch.randn(*shape).to(torch.float8_e4m3fn)


PRODUCTS_OF_HALF: dict[str, Callable[[], object]] = {
    "mm": lambda: half(3, 4) @ half(4, 5),
    "addmm": lambda: torch.addmm(half(5), half(3, 4), half(4, 5)),
    "baddbmm": lambda: torch.baddbmm(half(2, 3, 5), half(2, 3, 4), half(2, 4, 5)).sum().backward(),
    "addbmm": lambda: torch.addbmm(half(3, 5), half(2, 3, 4), half(2, 4, 5)),
    "addmv": lambda: torch.addmv(half(3), half(3, 4), half(4)),
    "linear": lambda: nn.functional.linear(half(3, 4), half(5, 4), half(5)).sum().backward(),
    "convolution": lambda: nn.functional.conv1d(half(2, 3, 10), half(5, 3, 4), half(5)).sum().backward(),
}


@pytest.mark.parametrize("run", PRODUCTS_OF_HALF.values(), ids=PRODUCTS_OF_HALF.keys())
def test_products_of_half_count_as_half(run: Callable[[], object]) -> None:
    assert dtypes(run).keys() == {"bfloat16"}


def test_attention_of_half_counts_as_half_forward_and_backward() -> None:
    """Its backward also takes the scores' logarithmic sums, in fp32."""
    q = half(2, 3, 8, 4)
    product = 2 * 2 * 3 * 8 * 8 * 4
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        found = dtypes(lambda: nn.functional.scaled_dot_product_attention(q, q, q).sum().backward())
    assert found == {"bfloat16": 7 * product}


def test_a_scaled_product_counts_as_what_it_multiplies() -> None:
    """Its scales are fp32, its result is bf16."""
    one = torch.ones(())
    assert dtypes(lambda: torch._scaled_mm(fp8(16, 16), fp8(16, 16).t(), one, one, out_dtype=BF16)).keys() == {
        "float8_e4m3fn"
    }


# What does not run on a CPU, or has no formula: what comes after the factors, or before, is of another type.
OTHER_TYPES: dict[str, tuple[str, tuple[object, ...], str]] = {
    "a wider addend": ("aten::addmm", (torch.ones(5), half(3, 4), half(4, 5), torch.float32), "bfloat16"),
    "a wider batch of addends": ("aten::baddbmm", (torch.ones(2, 3, 5), half(2, 3, 4), half(2, 4, 5)), "bfloat16"),
    "groups": ("aten::_grouped_mm", (half(8, 16), half(2, 16, 16), torch.tensor([4, 8])), "bfloat16"),
    "scales by row": (
        "aten::_scaled_mm",
        (fp8(16, 16), fp8(16, 16).t(), torch.ones(16, 1), torch.ones(1, 16)),
        "float8_e4m3fn",
    ),
    "flash": (
        "aten::_scaled_dot_product_flash_attention_backward",
        (*[half(1, 1, 2, 8)] * 5, torch.ones(1, 1, 2), None, None, 2, 2, 0.0, False, torch.ones(2), torch.ones(2)),
        "bfloat16",
    ),
    "integers": ("aten::_int_mm", (torch.ones(3, 4, dtype=torch.int8), torch.ones(4, 5, dtype=torch.int8)), "int8"),
    "a list": ("aten::_foreach_mm", ([half(3, 4)], [half(4, 5)]), "bfloat16"),
    "nothing": ("mylib::product", (), "unknown"),
}


@pytest.mark.parametrize(("name", "args", "dtype"), OTHER_TYPES.values(), ids=OTHER_TYPES.keys())
def test_the_type_of_a_call_is_its_factors(name: str, args: tuple[object, ...], dtype: str) -> None:
    assert _operand_dtype(name, args, {}) == dtype


@library.custom_op("mfubench_test::product", mutates_args=())
def product(x: Tensor, weight: Tensor) -> Tensor:
    return x @ weight


@library.custom_op("mfubench_test::product_backward", mutates_args=())
def product_backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return grad @ weight.t(), x.t() @ grad


product.register_autograd(
    lambda ctx, grad: product_backward(grad, *ctx.saved_tensors),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return product(x, self.weight)


@pytest.fixture
def formulas() -> Iterator[Callable[..., None]]:
    """Registers FLOP formulas for as long as a test lasts."""
    added = []

    def register(operator: object, formula: Callable[..., int]) -> None:
        register_flop_formula(operator)(formula)
        added.append(operator)

    yield register
    for operator in added:
        del flop_registry[operator]


def test_an_operator_without_a_formula_is_named(x: Tensor) -> None:
    """Silence would mean a FLOP count that is too small and looks whole."""
    counted = count(Custom(), x)
    assert counted.unknown_ops == {"mfubench_test::product", "mfubench_test::product_backward"}
    assert counted.total().model == 0


def test_a_registered_formula_counts(x: Tensor, formulas: Callable[..., None]) -> None:
    formulas(torch.ops.mfubench_test.product, lambda a, b, *_, **__: 2 * a[0] * a[1] * b[1])
    formulas(torch.ops.mfubench_test.product_backward, lambda g, a, b, *_, **__: 4 * a[0] * a[1] * b[1])
    counted = count(Custom(), x)
    assert not counted.unknown_ops and model_flops(counted) == {ROOT: (PRODUCT, 2 * PRODUCT)}


def test_an_operator_inside_an_op_is_covered_by_the_ops_formula(x: Tensor) -> None:
    op = Op("covered", "gemm", product_cost, {"reference": product})

    class Covered(Custom):
        def forward(self, x: Tensor) -> Tensor:
            return op.run("reference", x.device, x, self.weight)

    assert not count(Covered(), x).unknown_ops


def test_a_step_is_counted_anew_each_time(x: Tensor) -> None:
    model = Tangled()
    first = count(model, x)
    assert model_flops(count(model, x)) == model_flops(first)
    assert count(model, x).total().hardware == first.total().hardware


def test_sums_and_means_of_work() -> None:
    total = Work()
    one = Work(model=3, padded=4, hardware=5, recomputed=1, bytes=7)
    one.dtypes["float32"] = 5
    total.add(one, 3)
    total.add(Work(model=1))
    assert (total.model, total.padded, total.hardware, total.recomputed, total.bytes) == (10, 12, 15, 3, 21)
    assert total.dtypes == {"float32": 15}
    total.divide(4)
    assert (total.model, total.padded, total.hardware, total.recomputed, total.bytes) == (2, 3, 4, 1, 5)
    assert total.dtypes == {"float32": 4}  # still what its hardware FLOPs are made of


def test_the_tracker_leaves_the_step_as_it_was(x: Tensor) -> None:
    """Counting must not change what is computed."""
    model = Tangled()
    model(x).sum().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    with CountTracker(model).attached():
        model(x).sum().backward()
    assert all(torch.equal(parameter.grad, grad) for parameter, grad in zip(model.parameters(), expected, strict=True))
