"""FLOPs of single operators against numbers by hand, and which operators may hide FLOPs."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, library, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mfubench.errors import BadInput
from mfubench.measure.classify import may_hide_flops, op_class
from mfubench.measure.count import CountTracker
from mfubench.measure.flops import Flops, dispatched_flops
from mfubench.measure.operators import OperatorMode, operator_name

Run = Callable[[], object]
B, H, S, D = 2, 3, 8, 4  # of attention
UNIT = 2 * B * H * S * S * D  # one of its matrix products


def calls(run: Run) -> list[tuple[str, Flops | None]]:
    """Name and FLOPs of every operator that ``run`` dispatches."""
    seen: list[tuple[str, Flops | None]] = []
    with OperatorMode(lambda func, *call: seen.append((operator_name(func), dispatched_flops(func, *call)))):
        run()
    return seen


def flops(run: Run) -> Flops:
    """All FLOPs of ``run``."""
    found = [counted for _, counted in calls(run) if counted is not None]
    return Flops(*(sum(parts) for parts in zip(*found, strict=True))) if found else Flops(0, 0)


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape)


def heads(length: int = S, width: int = D) -> Tensor:
    return torch.randn(B, H, length, width, requires_grad=True)


# What runs, and how many multiply-adds it needs.
PRODUCTS: dict[str, tuple[Run, int]] = {
    "mm": (lambda: rand(3, 4) @ rand(4, 5), 60),
    "addmm": (lambda: torch.addmm(rand(5), rand(3, 4), rand(4, 5)), 60),
    "linear of three dimensions": (lambda: F.linear(rand(2, 3, 4), rand(5, 4), rand(5)), 120),
    "bmm": (lambda: torch.bmm(rand(2, 3, 4), rand(2, 4, 5)), 120),
    "baddbmm": (lambda: torch.baddbmm(rand(2, 3, 5), rand(2, 3, 4), rand(2, 4, 5)), 120),
    "addbmm": (lambda: torch.addbmm(rand(3, 5), rand(2, 3, 4), rand(2, 4, 5)), 120),
    "einsum": (lambda: torch.einsum("ij,kj->ik", rand(3, 4), rand(5, 4)), 60),
    "mv": (lambda: torch.mv(rand(3, 4), rand(4)), 12),
    "addmv": (lambda: torch.addmv(rand(3), rand(3, 4), rand(4)), 12),
    "dot": (lambda: torch.dot(rand(4), rand(4)), 4),
    "vdot": (lambda: torch.vdot(rand(4), rand(4)), 4),
    "conv1d": (lambda: F.conv1d(rand(2, 3, 10), rand(5, 3, 4)), 2 * 5 * 7 * 3 * 4),
    "conv2d": (lambda: F.conv2d(rand(2, 3, 6, 6), rand(5, 3, 3, 3), padding=1), 2 * 5 * 36 * 3 * 9),
    "elementwise": (lambda: rand(3, 4) * rand(3, 4), 0),
    "outer product": (lambda: torch.einsum("bi,bj->bij", rand(3, 4), rand(3, 5)), 0),
    "softmax and norm": (lambda: F.layer_norm(rand(3, 4).softmax(-1), (4,)), 0),
    "embedding": (lambda: F.embedding_bag(torch.zeros(3, 2, dtype=torch.long), rand(9, 4)), 0),
}


@pytest.mark.parametrize(("run", "multiply_adds"), PRODUCTS.values(), ids=PRODUCTS.keys())
def test_two_flops_a_multiply_add(run: Run, multiply_adds: int) -> None:
    assert flops(run) == Flops(2 * multiply_adds, 2 * multiply_adds, 0)


@pytest.mark.filterwarnings("ignore:Sparse CS[RC] tensor support is in beta")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc], ids=str)
def test_a_sparse_factor_counts_the_numbers_that_it_holds(layout: torch.layout) -> None:
    """As the graph of users and items in a recommender does, of which a dense matrix has a million times as many."""
    graph = torch.zeros(6, 5).index_put_((torch.tensor([0, 1, 1, 3]), torch.tensor([0, 2, 1, 4])), torch.ones(()))
    sparse, nodes = graph.to_sparse(layout=layout), rand(5, 3).requires_grad_()
    for run in (lambda: torch.sparse.mm(sparse, nodes), lambda: sparse @ nodes):
        assert flops(run).model == 2 * 4 * 3
        assert flops(lambda run=run: run().sum().backward()).model == 2 * 2 * 4 * 3
    assert flops(lambda: sparse @ rand(5)).model == 2 * 4
    assert flops(lambda: rand(2, 6) @ sparse).model == 2 * 4 * 2


def test_a_product_of_two_sparse_factors_is_not_known() -> None:
    graph = torch.eye(3).to_sparse()
    assert [counted for name, counted in calls(lambda: graph @ graph) if may_hide_flops(name)] == [None]


def test_backward_of_a_product_is_two_and_of_a_convolution_too() -> None:
    a, b = rand(3, 4).requires_grad_(), rand(4, 5).requires_grad_()
    assert flops(lambda: (a @ b).sum().backward()).model == 3 * 2 * 60
    weight, image = rand(5, 3, 3, 3).requires_grad_(), rand(2, 3, 6, 6).requires_grad_()
    once = flops(lambda: F.conv2d(image, weight)).model
    assert flops(lambda: F.conv2d(image, weight).sum().backward()).model == 3 * once == 6 * 2 * 5 * 16 * 3 * 9


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("kind", [nn.Conv1d, nn.ConvTranspose1d])
def test_gradients_of_a_convolution_in_groups_count_like_its_forward(
    kind: type[nn.Module], groups: int, learned: bool
) -> None:
    """Depthwise, as in front of a state space model, torch's own counter has as many times as there are channels."""
    layer, rows = kind(4, 8, 3, stride=2, groups=groups), rand(2, 4, 11).requires_grad_(learned)
    steps = 5 if kind is nn.Conv1d else 11  # of what comes out, and of what goes in
    forward = 2 * 2 * steps * 4 * 8 * 3 // groups
    assert flops(lambda: layer(rows)).model == forward
    assert flops(lambda: layer(rows).sum().backward()).model == (3 if learned else 2) * forward


@pytest.mark.parametrize(
    ("queries", "keys", "causal", "pairs"),
    [
        (8, 8, False, 64),
        (8, 8, True, 36),  # 1 + 2 + .. + 8
        (8, 5, False, 40),
        (8, 5, True, 1 + 2 + 3 + 4 + 5 + 3 * 5),  # aligned at the upper left corner: the last rows see all five
        (5, 8, True, 1 + 2 + 3 + 4 + 5),
    ],
)
def test_attention_counts_the_pairs_that_its_mask_keeps(queries: int, keys: int, causal: bool, pairs: int) -> None:
    """torch's own counter never discounts a causal mask; the model does not need what the mask drops."""
    product = 2 * B * H * pairs * D
    q, k, v = heads(queries), heads(keys), heads(keys)

    def attention() -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        assert flops(attention) == Flops(2 * product, 2 * product, 0)
        trained = flops(lambda: attention().sum().backward())
    # Four products backward, and a fifth that makes the scores again: useful only to the hardware.
    assert trained == Flops(6 * product, 7 * product, product)


CAUSAL = torch.ones(S, S, dtype=torch.bool).tril()
LAST_TWO_PADDED = torch.arange(S).expand(B, 1, 1, S) < torch.tensor([S, S - 2]).view(B, 1, 1, 1)
MASKED = {
    "causal": (CAUSAL, 36 / 64),
    "causal, for each head": (CAUSAL.expand(B, H, S, S), 36 / 64),
    "causal, as infinities": (torch.zeros(S, S).masked_fill(~CAUSAL, float("-inf")), 36 / 64),
    "causal, as the least number": (torch.zeros(S, S).masked_fill(~CAUSAL, torch.finfo(torch.float32).min), 36 / 64),
    "padded keys": (LAST_TWO_PADDED, (S + S - 2) / (2 * S)),
    "a learned bias": (torch.randn(1, H, S, S), 1.0),
}


@pytest.mark.parametrize("mask", MASKED)
def test_a_mask_in_a_tensor_is_executed_and_what_it_drops_is_not_needed(mask: str) -> None:
    """No kernel skips it, unlike ``is_causal``: the difference is padding."""
    q, k, v = heads(), heads(), heads()
    given, share = MASKED[mask]

    def attention() -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=given)

    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        assert flops(attention) == Flops(int(2 * UNIT * share), 2 * UNIT, 0)
        trained = flops(lambda: attention().sum().backward())
    assert trained == Flops(int(6 * UNIT * share), 7 * UNIT, UNIT)


@pytest.mark.parametrize(
    ("operator", "place"),
    [("_scaled_dot_product_efficient_attention", 3), ("_scaled_dot_product_efficient_attention_backward", 4),
     ("_scaled_dot_product_cudnn_attention", 3), ("_scaled_dot_product_cudnn_attention_backward", 8)],
)  # fmt: skip
def test_a_gpu_s_attentions_have_their_masks_elsewhere(operator: str, place: int) -> None:
    q, backward = heads(), operator.endswith("_backward")
    args: list[Any] = [q] * (4 if backward else 3) + [None] * 8
    args[place] = torch.zeros(S, S).masked_fill(~CAUSAL, float("-inf"))
    counted = dispatched_flops(getattr(torch.ops.aten, operator).default, args[:12], {}, None)
    assert counted is not None and counted.model == (4 if backward else 2) * UNIT * 36 // 64


def test_a_mask_without_numbers_drops_nothing() -> None:
    with FakeTensorMode():
        q, mask = torch.empty(B, H, S, D), torch.empty(S, S)
        args = (q, q, q, mask, False)
        counted = dispatched_flops(torch.ops.aten._scaled_dot_product_efficient_attention.default, args, {}, None)
    assert counted == Flops(2 * UNIT, 2 * UNIT, 0)


def test_attention_with_values_of_another_width() -> None:
    q, k, v = heads(), heads(), heads(width=2 * D)
    assert flops(lambda: F.scaled_dot_product_attention(q, k, v)).model == UNIT + 2 * UNIT


def test_model_flops_do_not_depend_on_the_attention_backend() -> None:
    """A raw total is 6 products for one backend and 7 for the other: neither is MFU's numerator alone."""
    q, k, v = heads(), heads(), heads()
    counted = {}
    for backend in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION):
        with sdpa_kernel(backend):
            counted[backend] = flops(lambda: F.scaled_dot_product_attention(q, k, v).sum().backward())
    assert {found.model for found in counted.values()} == {6 * UNIT}
    assert [found.hardware for found in counted.values()] == [6 * UNIT, 7 * UNIT]


# Attention on jagged rows, which a CPU does not run; its operators are there.
QUERIES, KEYS = (3, 0, 5), (3, 2, 4)  # of three rows
PAIRS = {
    "full": 3 * 3 + 5 * 4,
    "causal": 6 + (0 + 1 + 2 + 3 + 4),  # at the lower right corner: the last query sees all, the first may see none
    "causal at the upper left": 6 + (1 + 2 + 3 + 4 + 4),
    "one back": (1 + 2 + 2) + (0 + 1 + 2 + 2 + 2),
}


def offsets(lengths: tuple[int, ...], device: str = "cpu") -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)


def flash(direction: str, mask: str, cum_q: Tensor | None, cum_k: Tensor | None, q: Tensor, k: Tensor) -> Flops:
    """FLOPs of a call of flash attention's operator for rows between offsets."""
    window = {"window_size_left": 1, "window_size_right": 0} if mask == "one back" else {}
    middle = (q, torch.empty(H, 8)) if direction == "backward" else ()  # output and logsumexp
    grad = (q,) if direction == "backward" else ()
    last = (torch.empty(2), torch.empty(0)) if direction == "backward" else (False,)
    args = (*grad, q, k, k, *middle, cum_q, cum_k, 5, 4, 0.0, mask == "causal", *last)
    func = getattr(torch.ops.aten, f"_flash_attention_{direction}").default
    return dispatched_flops(func, args, window, (q,))


def efficient(direction: str, mask: str, cum_q: Tensor | None, cum_k: Tensor | None, q: Tensor, k: Tensor) -> Flops:
    """The same of memory-efficient attention's, whose tensors have a batch of one in front."""
    variant = {"full": 0, "causal at the upper left": 1, "causal": 2}[mask]
    if direction == "forward":
        args: tuple[object, ...] = (q, k, k, None, cum_q, cum_k, 5, 4, 0.0, variant, True)
    else:
        seed = torch.empty((), dtype=torch.long)
        args = (q, q, k, k, None, q, cum_q, cum_k, 5, 4, torch.empty(1, H, 8), 0.0, seed, seed, variant, False)
    return dispatched_flops(getattr(torch.ops.aten, f"_efficient_attention_{direction}").default, args, {}, (q,))


@pytest.mark.parametrize(
    ("attention", "lead", "mask"),
    [
        *((flash, (), mask) for mask in ("full", "causal", "one back")),
        *((efficient, (1,), mask) for mask in ("full", "causal", "causal at the upper left")),
    ],
)
def test_attention_on_jagged_rows_counts_the_pairs_of_each_row(
    attention: Callable[..., Flops], lead: tuple[int, ...], mask: str
) -> None:
    """As `_attention` of rows that are all as long; torch's own formula has neither masks nor what is repeated."""
    q, k = rand(*lead, sum(QUERIES), H, D), rand(*lead, sum(KEYS), H, D)
    rows = offsets(QUERIES), offsets(KEYS)
    product = 2 * H * D * PAIRS[mask]
    assert attention("forward", mask, *rows, q, k) == Flops(2 * product, 2 * product, 0)
    assert attention("backward", mask, *rows, q, k) == Flops(4 * product, 5 * product, product)


@pytest.mark.parametrize("attention", [flash, efficient])
def test_attention_without_offsets_is_on_rows_that_are_all_as_long(attention: Callable[..., Flops]) -> None:
    q, k = rand(B, 5, H, D), rand(B, 4, H, D)
    product = 2 * B * H * D * (0 + 1 + 2 + 3 + 4)
    assert attention("forward", "causal", None, None, q, k) == Flops(2 * product, 2 * product, 0)


@pytest.mark.parametrize("device", ["meta", "fake"])
@pytest.mark.parametrize("attention", [flash, efficient])
def test_offsets_without_numbers_are_refused(attention: Callable[..., Flops], device: str) -> None:
    """As rows that are all the longest they would pass for a count."""
    with FakeTensorMode() if device == "fake" else nullcontext():
        rows = offsets(QUERIES, "cpu" if device == "fake" else device)
    with pytest.raises(BadInput, match=r"^_\w+_attention_forward: its FLOPs depend on its rows' lengths.*without num"):
        attention("forward", "full", rows, rows, rand(8, H, D), rand(8, H, D))


def test_attention_of_varlen_attn_counts_like_the_operator_below_it() -> None:
    from torch.nn.attention import varlen  # registers torch's own formulas, which these stand before

    q, k = rand(sum(QUERIES), H, D), rand(sum(KEYS), H, D)
    func = torch.ops.torch_attn._varlen_attn.default
    for mask, window in {"full": [-1, -1], "causal": [-1, 0], "one back": [1, 0]}.items():
        args = (q, k, k, offsets(QUERIES), offsets(KEYS), 5, 4, mask == "causal", None, window)
        product = 2 * H * D * PAIRS[mask]
        assert varlen and dispatched_flops(func, args, {}, (q,)) == Flops(2 * product, 2 * product, 0)
    used = {"seqused_k": torch.tensor([1, 0, 2], dtype=torch.int32)}
    assert dispatched_flops(func, (q, k, k, offsets(QUERIES), None, 5, 4), used, (q,)).model == 2 * 2 * H * D * 13


def test_flash_attention_on_a_gpu_aligns_its_mask_at_the_lower_right_corner() -> None:
    """Where there are more keys than queries, as for the last of a request's candidates, the two corners differ."""
    q, k = rand(B, H, 5, D), rand(B, H, 8, D)
    func = torch.ops.aten._scaled_dot_product_flash_attention.default
    assert dispatched_flops(func, (q, k, k, 0.0, True), {}, (q,)).model == 2 * 2 * B * H * D * (4 + 5 + 6 + 7 + 8)


def a_stack() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(nn.Conv1d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 6, 16), nn.ReLU(), nn.Linear(16, 2))
    return model, rand(5, 3, 8)


def test_agrees_with_torchs_counter_where_there_is_no_attention() -> None:
    """An oracle that shares no code with the counts of vectors and attention."""
    model, x = a_stack()
    with FlopCounterMode(display=False) as oracle:
        model(x).sum().backward()
    assert flops(lambda: model(x).sum().backward()) == Flops(*(2 * [oracle.get_total_flops()]))


def test_inference_mode_hides_nothing() -> None:
    """There, composite operators arrive whole: linear has no formula, and used to count as none."""
    model, x = a_stack()
    attention = heads()
    with torch.no_grad():
        expected = flops(lambda: model(x)), flops(lambda: F.scaled_dot_product_attention(*[attention] * 3))
    with torch.inference_mode():
        assert (flops(lambda: model(x)), flops(lambda: F.scaled_dot_product_attention(*[attention] * 3))) == expected
    assert expected[0].model > 0 and expected[1].model == 2 * UNIT


@pytest.mark.parametrize("keys", [6, 9], ids=["self_attention", "cross_attention"])
def test_the_fast_path_of_multihead_attention_counts_like_the_slow_one(keys: int) -> None:
    """Outside training torch runs it as one operator that its registry does not know."""
    attention = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    query = rand(2, 6, 16)
    context = query if keys == 6 else rand(2, keys, 16)
    counted = {}
    for fast in (True, False):
        torch.backends.mha.set_fastpath_enabled(fast)
        try:
            with torch.no_grad():
                counted[fast] = flops(lambda: attention(query, context, context, need_weights=False))
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
    by_hand = 2 * 2 * 16 * ((2 * 6 + 2 * keys) * 16 + 2 * 6 * keys)
    assert counted == {True: Flops(by_hand, by_hand), False: Flops(by_hand, by_hand)}


def recurrent(kind: type[nn.RNNBase], rows: Tensor, **options: Any) -> tuple[Flops, Flops]:
    """FLOPs of two layers' forward and backward, step by step: so torch runs them in double precision on a CPU."""
    network = kind(3, 5, num_layers=2, batch_first=True, dtype=torch.double, **options)
    whole, forward = flops(lambda: network(rows.double())[0].sum().backward()), flops(lambda: network(rows.double()))
    return forward, Flops(whole.model - forward.model, whole.hardware - forward.hardware)


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_a_lstm_that_is_one_operator_counts_like_its_steps(bidirectional: bool, learned: bool) -> None:
    rows = rand(4, 6, 3).requires_grad_(learned)
    forward, backward = recurrent(nn.LSTM, rows, bidirectional=bidirectional)
    network = nn.LSTM(3, 5, num_layers=2, batch_first=True, bidirectional=bidirectional)
    assert "aten::mkldnn_rnn_layer_backward" in dict(calls(lambda: network(rows)[0].sum().backward()))
    assert flops(lambda: network(rows)) == forward
    trained = flops(lambda: network(rows)[0].sum().backward())
    assert trained.model == forward.model + backward.model and trained.hardware >= trained.model


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"bias": False}], ids=str)
@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_cudnns_recurrent_networks_count_like_their_steps(
    kind: type[nn.RNNBase], options: dict[str, Any], learned: bool
) -> None:
    """A CPU does not run them; their operators are there."""
    rows = rand(4, 6, 3).requires_grad_(learned)
    network = kind(3, 5, num_layers=2, batch_first=True, **options)
    weights, both = list(network.parameters()), options.get("bidirectional", False)
    state = rand(2 * (1 + both), 4, 5)
    first = (rows, weights, 4 if options.get("bias", True) else 2, None, state, None)
    last = (3, 5, 0, 2, True, 0.0, True, both, [], None)
    mask = (rows, [learned, False, False, True])
    found = (
        dispatched_flops(torch.ops.aten._cudnn_rnn.default, (*first, *last), {}, None),
        dispatched_flops(
            torch.ops.aten._cudnn_rnn_backward.default, (*first, rows, rows, None, None, *last, *mask), {}, None
        ),
    )
    by_step = recurrent(kind, rows, **options)
    assert [counted.model for counted in found if counted] == [counted.model for counted in by_step]
    assert found[1] and found[1].hardware - found[1].unwanted == found[1].model


def test_a_tensor_subclass_hides_nothing() -> None:
    """A nested tensor arrives as one call on the wrapper; its true lengths are in the operators on its parts."""
    rows = [rand(length, 4) for length in (1, 5, 2)]
    nested = torch.nested.nested_tensor(rows, layout=torch.jagged)
    assert flops(lambda: F.linear(nested, rand(3, 4))).model == 2 * 8 * 4 * 3


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_rows_of_a_nested_tensor_that_is_no_subclass_count_as_long_as_they_are() -> None:
    """It has no shape to ask for; torch packs padded rows into one where a transformer's encoder is not trained."""
    nested = torch.nested.nested_tensor([rand(length, 4) for length in (1, 5, 2)])
    weight = rand(3, 4).requires_grad_()
    assert flops(lambda: F.linear(nested, weight)).model == 2 * 8 * 4 * 3
    assert flops(lambda: F.linear(nested, weight).to_padded_tensor(0.0).sum().backward()).model == 2 * 2 * 8 * 4 * 3
    attention = nn.MultiheadAttention(4, 2, batch_first=True).eval()
    with torch.no_grad():
        counted = flops(lambda: attention(nested, nested, nested, need_weights=False)).model
    assert counted == 2 * (4 * 8 * 4 * 4 + 2 * 4 * (1 + 25 + 4))
    heads = torch.nested.nested_tensor([rand(2, length, 4) for length in (1, 5)])
    assert flops(lambda: torch.matmul(heads, heads.transpose(-1, -2))).model == 2 * 2 * 4 * (1 + 25)


@library.custom_op("mfubench_test::unknown", mutates_args=())
def unknown(x: Tensor) -> Tensor:
    return x @ x


def test_no_formula_is_none_and_not_zero() -> None:
    found = {name: counted for name, counted in calls(lambda: unknown(rand(3, 3)).relu())}
    assert found["mfubench_test::unknown"] is None and found["aten::relu"] is None


@pytest.mark.parametrize(
    "name",
    [
        *("aten::_grouped_mm", "aten::_int_mm", "aten::_scaled_mm_v2", "aten::_addmm_activation", "aten::_foreach_mm"),
        *("aten::miopen_rnn", "aten::quantized_gru_cell", "aten::_transformer_encoder_layer_fwd"),
        *("aten::_linalg_solve_ex", "aten::cholesky_solve", "aten::triangular_solve", "aten::_trilinear"),
        *("aten::slow_conv_transpose2d", "aten::mkldnn_linear", "aten::_weight_int4pack_mm", "aten::_fft_r2c"),
        *("torchvision::roi_align", "mylib::attention", "higher_order::flex_attention"),
        *("fbgemm::jagged_dense_bmm", "fbgemm::batched_dense_vec_jagged_2d_mul", "fbgemm::f8f8bf16_rowwise"),
        "fbgemm::permute102_baddbmm_permute102",
    ],
)
def test_what_may_hide_flops_is_suspected(name: str) -> None:
    """Nothing that multiplies matrices may pass as an operator of no FLOPs: coverage would stay at 100 %."""
    assert may_hide_flops(name)


@pytest.mark.parametrize(
    "name",
    [
        *("aten::add", "aten::embedding_bag", "aten::_softmax", "aten::native_layer_norm", "aten::_fused_adamw_"),
        *("aten::resolve_conj", "aten::_convert_indices_from_coo_to_csr", "aten::linalg_vector_norm", "aten::lgamma"),
        *("aten::_linalg_check_errors", "aten::upsample_linear1d", "aten::upsample_trilinear3d", "aten::logcumsumexp"),
        *("aten::_foreach_add_", "aten::index_put_", "prim::device", "aten::_prelu_kernel", "aten::cummax"),
        *("aten::_thnn_fused_gru_cell", "aten::_thnn_fused_lstm_cell_backward"),  # their gates are products made before
        *("fbgemm::bounds_check_indices", "fbgemm::split_embedding_codegen_forward_unweighted_pt2_wrapper"),
        *("fbgemm::asynchronous_complete_cumsum", "fbgemm::permute_2D_sparse_data", "fbgemm::jagged_to_padded_dense"),
    ],
)
def test_what_multiplies_no_matrices_is_not_suspected(name: str) -> None:
    assert not may_hide_flops(name)


@pytest.mark.parametrize(
    ("name", "kind"),
    {
        "aten::addmm": "gemm",
        "convolution_backward": "gemm",
        "aten::_scaled_dot_product_flash_attention_for_cpu": "attention",
        "aten::_native_multi_head_attention": "attention",
        "aten::native_layer_norm_backward": "norm",
        "aten::gelu": "elementwise",
        "aten::add_": "elementwise",
        "aten::_softmax": "reduction",
        "aten::embedding_dense_backward": "embedding",
        "aten::copy_": "copy",
        "aten::bucketize": "other",
        "mylib::gelu": "other",
        "fbgemm::split_embedding_backward_codegen_sgd_unweighted_pt2_wrapper": "embedding",
        "fbgemm::permute_pooled_embs_auto_grad": "embedding",
        "fbgemm::block_bucketize_sparse_features": "copy",
        "fbgemm::jagged_jagged_bmm": "gemm",
        "torch::autograd::AccumulateGrad": "other",
        "": "other",
    }.items(),
)
def test_class_of_an_operator(name: str, kind: str) -> None:
    assert op_class(name) == kind


def test_the_name_of_an_operator() -> None:
    assert operator_name(torch.ops.aten.add.Tensor) == "aten::add"
    assert operator_name(torch.ops.higher_order.cond) == "higher_order::cond"


def test_a_higher_order_operator_runs_and_is_named() -> None:
    """flex_attention is one; a mode that does not take them makes such a model impossible to count."""
    x = rand(3)
    seen: list[str] = []
    with OperatorMode(lambda func, *_: seen.append(operator_name(func))):
        out = torch.ops.higher_order.cond(torch.tensor(True), torch.sin, torch.cos, (x,))
    assert "higher_order::cond" in seen and torch.equal(out, x.sin())


@pytest.mark.parametrize("name", ["mm", "bmm", "addmm", "baddbmm"])
def test_a_product_into_a_type_of_its_own_is_counted_as_any(name: str) -> None:
    """Such an overload, which a GPU alone runs, takes the type as a further argument behind its factors."""
    shape = (3, 8, 8) if "bmm" in name else (8, 8)
    factors = [torch.randn(shape)] * (3 if "add" in name else 2)
    packet = getattr(torch.ops.aten, name)
    out = packet(*factors)
    plain = dispatched_flops(packet.default, factors, {}, out)
    assert dispatched_flops(packet.dtype, [*factors, torch.float32], {}, out) == plain is not None
    tracker = CountTracker(nn.Identity())
    tracker.book(packet.dtype, [*factors, torch.float32], {}, out)
    assert tracker.count.total().model == plain.model
