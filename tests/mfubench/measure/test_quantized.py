"""Products of packed and quantized weights, as models are served with, and the operators beside them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, library, nn

from mfubench.caveats import _packed
from mfubench.measure.classify import may_hide_flops, op_class
from mfubench.measure.count import Count, count_step
from mfubench.measure.flops import Flops, dispatched_flops
from mfubench.measure.scopes import BACKWARD, ScopeTracker

ROWS, IN, OUT = 17, 32, 16  # the least that the narrowest of these takes
ONCE = 2 * ROWS * IN * OUT
CODES = (0.1, 0, torch.qint8)  # scale, zero and type
OPS = torch.ops.quantized
in_onednn_s_layout = torch._C._nn.mkldnn_linear

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*quantiz", "ignore:.*TypedStorage is deprecated", "ignore:`torch.jit.script", "ignore:.*reduce_range"
)


def rows(*lead: int) -> Tensor:
    return torch.randn(*(lead or (ROWS,)), IN)


def quantized(*lead: int) -> Tensor:
    return torch.quantize_per_tensor(rows(*lead), 0.1, 0, torch.quint8)


def packed() -> torch.ScriptObject:
    layer: torch.ScriptObject = OPS.linear_prepack(
        torch.quantize_per_tensor(torch.randn(OUT, IN), *CODES), rows(OUT)[:, 0]
    )
    return layer


def in_half(dense: Tensor) -> torch.ScriptObject:
    layer: torch.ScriptObject = OPS.linear_prepack_fp16(dense, None)
    return layer


def counted(run: Callable[[], object]) -> Count:
    with torch.no_grad():
        return count_step(nn.Identity(), lambda _tracker: run())


# What runs, and its products of the rows with a layer.
PRODUCTS: dict[str, tuple[Callable[[], object], int]] = {
    "linear_dynamic": (lambda: OPS.linear_dynamic(rows(), packed()), 1),
    "linear_relu_dynamic": (lambda: OPS.linear_relu_dynamic(rows(), packed()), 1),
    "linear_dynamic_fp16": (lambda: OPS.linear_dynamic_fp16(rows(), in_half(torch.randn(OUT, IN))), 1),
    "linear_relu_dynamic_fp16": (lambda: OPS.linear_relu_dynamic_fp16(rows(), in_half(torch.randn(OUT, IN))), 1),
    "linear": (lambda: OPS.linear(quantized(2, ROWS), packed(), 0.1, 0), 2),
    "linear_relu": (lambda: OPS.linear_relu(quantized(2, ROWS), packed(), 0.1, 0), 2),
    "matmul": (
        lambda: OPS.matmul(
            quantized(), torch.quantize_per_tensor(torch.randn(IN, OUT), *CODES[:2], torch.quint8), 0.1, 0
        ),
        1,
    ),
    "_int_mm": (lambda: torch._int_mm(rows().char(), torch.ones(IN, OUT, dtype=torch.int8)), 1),
    "_weight_int8pack_mm": (
        lambda: torch.ops.aten._weight_int8pack_mm(
            rows().bfloat16(), torch.ones(OUT, IN, dtype=torch.int8), torch.ones(OUT, dtype=torch.bfloat16)
        ),
        1,
    ),
    "mkldnn_linear": (lambda: in_onednn_s_layout(rows().to_mkldnn(), torch.randn(OUT, IN), None), 1),
}


@pytest.mark.parametrize(("run", "times"), PRODUCTS.values(), ids=PRODUCTS.keys())
def test_a_product_with_packed_weights_is_one_of_their_rows_and_columns(run: Callable[[], object], times: int) -> None:
    count = counted(run)
    assert count.total().model == count.total().hardware == times * ONCE and not count.unknown_ops
    assert {key.kind for key, work in count.work.items() if work.hardware} == {"gemm"}


@pytest.mark.parametrize(
    ("name", "dtype"), [("linear_dynamic", "int8"), ("linear", "int8"), ("linear_dynamic_fp16", "float16")]
)
def test_a_product_with_packed_weights_is_of_their_type(name: str, dtype: str) -> None:
    """Whatever they are multiplied with: it is made like them."""
    assert counted(PRODUCTS[name][0]).dtypes().keys() == {dtype}


def test_weights_that_are_packed_are_told_to_be_in_no_memory() -> None:
    net = nn.Sequential(nn.Linear(IN, OUT), nn.ReLU(), nn.Linear(OUT, 1))
    assert not _packed(net)
    (told,) = _packed(torch.ao.quantization.quantize_dynamic(net, {nn.Linear}))
    assert told.startswith("weights that are packed in 2 objects")


def test_a_model_that_torch_has_quantized_counts_as_before() -> None:
    model = nn.Sequential(nn.Linear(IN, OUT), nn.ReLU(), nn.Linear(OUT, 1)).eval()
    for dtype in (torch.qint8, torch.float16):
        served = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=dtype)
        count = counted(lambda served=served: served(rows()))
        assert count.total().model == ONCE + 2 * ROWS * OUT and not count.unknown_ops


def test_the_backward_of_a_layer_in_onednn_s_layout_is_two_products() -> None:
    x, weight = rows().to_mkldnn().requires_grad_(), torch.randn(OUT, IN, requires_grad=True)

    def step(tracker: ScopeTracker) -> None:
        out = in_onednn_s_layout(x, weight, None)
        with tracker.phase(BACKWARD):
            out.to_dense().sum().backward()

    count = count_step(nn.Identity(), step)
    assert (count.total("fwd").model, count.total("bwd").model) == (ONCE, 2 * ONCE) and not count.unknown_ops
    x, grad = rows(), torch.randn(ROWS, OUT)
    aten = torch.ops.aten
    assert dispatched_flops(aten.mkldnn_linear_backward_input.default, ((ROWS, IN), grad, weight), {}, x) == (
        dispatched_flops(aten.mkldnn_linear_backward_weights.default, (grad, x, weight, False), {}, (weight, None))
    )
    assert dispatched_flops(aten.mkldnn_linear_backward_input.default, ((ROWS, IN), grad, weight), {}, x) == Flops(
        ONCE, ONCE
    )


def test_weights_of_four_bits_are_packed_into_any_shape() -> None:
    """A GPU's is [N / 8, K / 128, 32, 4], a CPU's [N, K / 2]."""
    x, out = rows(), torch.empty(ROWS, OUT)
    for name, shape in (("_weight_int4pack_mm", (OUT // 8, 1, 32, 4)), ("_weight_int4pack_mm_for_cpu", (OUT, IN // 2))):
        func = getattr(torch.ops.aten, name).default
        assert dispatched_flops(func, (x, torch.empty(shape), 32, torch.empty(1, OUT, 2)), {}, out) == Flops(ONCE, ONCE)


def test_a_scaled_product_counts_its_factors() -> None:
    narrow, scale = torch.empty(ROWS, IN, dtype=torch.float8_e4m3fn), torch.ones(())
    weight = torch.empty(OUT, IN, dtype=torch.float8_e4m3fn).t()
    args = (narrow, weight, scale, scale, None, None, torch.bfloat16)
    assert dispatched_flops(torch.ops.aten._scaled_mm.default, args, {}, torch.empty(ROWS, OUT)) == Flops(ONCE, ONCE)


def test_a_factor_of_which_half_is_zero_counts_the_numbers_that_it_holds() -> None:
    weight, meta, x = torch.empty(OUT, IN // 2), torch.empty(OUT, 2), rows()
    half = Flops(ONCE // 2, ONCE // 2)
    aten = torch.ops.aten
    assert dispatched_flops(aten._sparse_semi_structured_mm.default, (weight, meta, x.t()), {}, None) == half
    added = (torch.empty(OUT), weight, meta, x.t())
    assert dispatched_flops(aten._sparse_semi_structured_addmm.default, added, {}, None) == half
    assert dispatched_flops(aten._sparse_semi_structured_linear.default, (x, weight, meta), {}, None) == half


def test_a_product_and_what_follows_it_in_one() -> None:
    args = (torch.randn(OUT), rows(), torch.randn(IN, OUT))
    assert dispatched_flops(torch.ops.aten._addmm_activation.default, args, {}, None) == Flops(ONCE, ONCE)


def test_a_foreign_operator_is_not_known_by_a_name_of_torch_s() -> None:
    """It may take anything, and do anything with it."""
    names = library.Library("mfubench_test_names", "DEF")
    names.define("linear(Tensor x, int width) -> Tensor")
    names.define("_int_mm(Tensor x) -> Tensor")
    for name in ("linear", "_int_mm"):
        names.impl(name, lambda x, *_: x.clone(), "CPU")
    count = counted(
        lambda: (torch.ops.mfubench_test_names.linear(rows(), 3), torch.ops.mfubench_test_names._int_mm(rows()))
    )
    assert count.total().hardware == 0
    assert count.unknown_ops == {"mfubench_test_names::linear", "mfubench_test_names::_int_mm"}


def test_tables_of_bytes_multiply_nothing_and_read_the_rows_that_they_sum() -> None:
    table, ids, bags = OPS.embedding_bag_byte_prepack(torch.randn(900, 4)), torch.arange(6), torch.tensor([0, 3])
    count = counted(lambda: OPS.embedding_bag_byte_rowwise_offsets(table, ids, bags, False, 0))
    assert count.total().hardware == 0 and not count.unknown_ops
    (work,) = (work for key, work in count.work.items() if key.kind == "embedding")
    assert work.bytes == 6 * (4 + 8) + 6 * 8 + 2 * 8 + 2 * 4 * 4  # a row's scale and its zero stand beside its numbers


def test_packed_weights_are_read() -> None:
    weights, halves, x = packed(), in_half(torch.randn(OUT, IN)), rows()
    in_and_out = 4 * ROWS * (IN + OUT)
    assert counted(lambda: OPS.linear_dynamic(x, weights)).total().bytes == in_and_out + IN * OUT
    assert counted(lambda: OPS.linear_dynamic_fp16(x, halves)).total().bytes == in_and_out + 2 * IN * OUT
    there, weight = x.to_mkldnn(), torch.randn(OUT, IN).to_mkldnn()
    assert counted(lambda: in_onednn_s_layout(there, weight, None)).total().bytes == in_and_out + 4 * OUT * IN


@pytest.mark.parametrize(
    ("name", "kind"),
    {
        "quantized::embedding_bag_4bit_rowwise_offsets": "embedding",
        "quantized::embedding_byte": "embedding",
        "quantized::embedding_bag_byte_prepack": "copy",
        "quantized::linear_prepack_fp16": "copy",
        "quantized::conv2d_unpack": "copy",
        "quantized::cat_relu": "copy",
        "quantized::add_relu": "elementwise",
        "quantized::leaky_relu": "elementwise",
        "quantized::batch_norm2d_relu": "norm",
        "quantized::softmax": "reduction",
        "quantized::conv2d_stride": "other",
        "quantized_decomposed::choose_qparams_symmetric": "reduction",
        "quantized_decomposed::quantize_per_tensor": "elementwise",
        "quantized_decomposed::dequantize_per_channel": "elementwise",
        "quantized_decomposed::convert_element_type": "elementwise",
    }.items(),
)
def test_quantized_operators_that_are_no_products(name: str, kind: str) -> None:
    assert op_class(name) == kind and not may_hide_flops(name)


@pytest.mark.parametrize(
    "name",
    ["quantized::conv2d_relu", "quantized::quantized_lstm_cell_dynamic", "_quantized::conv_transpose2d"],
)
def test_quantized_products_without_a_formula_are_suspected(name: str) -> None:
    assert op_class(name) == "gemm" and may_hide_flops(name)


def test_what_a_later_torch_has_there_is_suspected() -> None:
    assert op_class("quantized::something_new") == "other" and may_hide_flops("quantized::something_new")
