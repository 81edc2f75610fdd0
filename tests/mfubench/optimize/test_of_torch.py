"""What torch's modules and attention compute, our ops compute: values, gradients, and what a mask or padding drops."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mfubench.optimize import swap
from mfubench.optimize.of_torch import padded_rows, torch_modules_of
from tests.mfubench.optimize.conftest import STAND_IN

KERNELS = "triton"  # under its interpreter, where there is no GPU


def both(model: nn.Module, op: str, impl: str, *batch: Tensor, kept: Tensor | None = None, atol: float = 1e-5) -> None:
    """The model and its swapped copy have the same output, where it is ``kept``, and the same gradients."""
    swapped = copy.deepcopy(model)
    swap.use_impl(swapped, op, impl)
    outputs = [m(*batch) for m in (model, swapped)]
    if kept is not None:
        outputs = [output * kept for output in outputs]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=atol)
    for output in outputs:
        (output * torch.linspace(0.5, 1.5, output.numel()).view_as(output)).sum().backward()
    gradients = [[p.grad for p in m.parameters()] for m in (model, swapped)]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=atol)


# Tables -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ids", [torch.tensor(3), torch.tensor([[1, 2, 0], [2, 2, 6]]), torch.zeros(0, 4).long()])
@pytest.mark.parametrize("padding_idx", [None, 0])
@pytest.mark.parametrize("impl", ["reference", KERNELS])
def test_a_table_runs_on_the_op(ids: Tensor, padding_idx: int | None, impl: str) -> None:
    both(nn.Embedding(7, 8, padding_idx=padding_idx), "embedding", impl, ids)


def test_a_row_of_padding_learns_nothing() -> None:
    table = nn.Embedding(5, 4, padding_idx=2)
    swap.use_impl(table, "embedding", "reference")
    with torch.no_grad():
        table.weight[2] = 3.0
    out = table(torch.tensor([2, 4, 2]))
    assert out[0].tolist() == [3.0] * 4  # but is looked up as it is
    out.sum().backward()
    assert table.weight.grad is not None and table.weight.grad.sum(1).tolist() == [0, 0, 0, 0, 4]


@pytest.mark.parametrize("options", [{"sparse": True}, {"max_norm": 1.0}, {"scale_grad_by_freq": True}], ids=str)
def test_a_table_that_does_more_is_torchs(options: dict[str, Any]) -> None:
    assert torch_modules_of(nn.Embedding(5, 4), "embedding")
    assert not torch_modules_of(nn.Embedding(5, 4, **options), "embedding")


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch's default, which it wants said aloud
def test_a_table_may_have_sparse_gradients_later() -> None:
    table = nn.Embedding(5, 4)
    swap.use_impl(table, "embedding", "reference")
    swap.with_sparse_gradients(table, [torch.optim.SGD(table.parameters())])
    table(torch.tensor([1, 4])).sum().backward()
    assert table.weight.grad is not None and table.weight.grad.is_sparse


# Attention --------------------------------------------------------------------------------------------------------

LENGTHS, LONGEST, HEADS = (5, 1, 7, 4), 7, 2
EARLIER = torch.ones(LONGEST, LONGEST, dtype=torch.bool).tril()


class Attends(nn.Module):
    """Attention of padded rows, their mask as it comes."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(16, 48)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.project(x).unflatten(-1, (3, HEADS, 8)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)


def seen(left: bool) -> Tensor:
    """bool [B, L]: what each row has of its padded length, with the padding before or behind it."""
    has = torch.arange(LONGEST) < torch.tensor(LENGTHS)[:, None]
    return has.flip(1) if left else has


MASKS = {
    "bool": lambda has: has[:, None, None],
    "by head": lambda has: has[:, None, None].repeat(1, HEADS, 1, 1),
    "expanded": lambda has: has[:, None, None].expand(-1, HEADS, LONGEST, -1),
    "-inf": lambda has: torch.zeros(has.shape).masked_fill(~has, -torch.inf)[:, None, None],
    "BERT's": lambda has: (1.0 - has[:, None, None].float()) * -10000.0,
    "causal": lambda has: has[:, None, None] & EARLIER,
    "causal, by head": lambda has: (has[:, None, None] & EARLIER).repeat(1, HEADS, 1, 1),
    "causal, BERT's": lambda has: ((1.0 - has[:, None, None].float()) + (1.0 - EARLIER.float())) * -10000.0,
}


@pytest.mark.parametrize("left", [False, True], ids=["behind", "before"])
@pytest.mark.parametrize("mask", MASKS)
def test_attention_of_padded_rows_runs_on_the_op(mask: str, left: bool, stand_in: dict[str, int]) -> None:
    has = seen(left)
    both(Attends(), "window_attention", STAND_IN, torch.randn(4, LONGEST, 16), MASKS[mask](has), kept=has[..., None])
    assert stand_in == {"window_attention": 1}


@pytest.mark.parametrize("mask", MASKS)
def test_a_row_of_nothing_but_padding_is_what_torch_makes_of_it(mask: str, stand_in: dict[str, int]) -> None:
    has = torch.stack([seen(left=False)[0], torch.zeros(LONGEST, dtype=torch.bool)])
    kept = has | ~has.any(1, keepdim=True)  # all of it, as a model that takes the last place may read it
    atol = 1e-3 if "BERT" in mask else 1e-5  # scores at -10000 are multiples of 2**-10 there
    batch = torch.randn(2, LONGEST, 16), MASKS[mask](has)
    both(Attends(), "window_attention", STAND_IN, *batch, kept=kept[..., None], atol=atol)


def test_attention_of_padded_rows_runs_on_the_kernel() -> None:
    has = seen(left=False)
    both(Attends(), "window_attention", KERNELS, torch.randn(4, LONGEST, 16), has[:, None, None], kept=has[..., None])


def test_torchs_encoder_with_padding_runs_on_the_op(stand_in: dict[str, int]) -> None:
    class Encodes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(16, HEADS, 32, dropout=0.0, batch_first=True)
            self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

        def forward(self, x: Tensor, has: Tensor) -> Tensor:
            out: Tensor = self.layers(x, src_key_padding_mask=~has)
            return out

    has = seen(left=False)
    both(Encodes(), "window_attention", STAND_IN, torch.randn(4, LONGEST, 16), has, kept=has[..., None])
    assert stand_in == {"window_attention": 2}


@pytest.mark.parametrize("mask", [EARLIER, torch.full((LONGEST, LONGEST), -torch.inf).triu(1)], ids=["bool", "-inf"])
def test_attention_under_a_causal_mask_runs_on_the_op(mask: Tensor, stand_in: dict[str, int]) -> None:
    both(Attends(), "window_attention", STAND_IN, torch.randn(4, LONGEST, 16), mask)
    assert stand_in == {"window_attention": 1}


def test_a_bias_to_be_learned_stays_torchs(stand_in: dict[str, int]) -> None:
    bias = torch.zeros(LONGEST, LONGEST, requires_grad=True)
    both(Attends(), "window_attention", STAND_IN, torch.randn(4, LONGEST, 16), bias)
    assert not stand_in


NOT_PADDING = {
    "a hole": torch.tensor([[True, False, True]])[:, None, None],
    "a bias": torch.tensor([[0.0, -1.0, -torch.inf]])[:, None, None],
    "heads apart": torch.tensor([[[[True, True, False]], [[True, False, False]]]]),
    "a window": torch.ones(3, 3).tril().triu(-1).bool(),
    "a slope": -torch.arange(3.0).expand(3, 3).tril(),
    "what is earlier": torch.ones(3, 3).triu().bool(),
}


@pytest.mark.parametrize("mask", NOT_PADDING)
def test_a_mask_that_drops_more_is_told(mask: str, stand_in: dict[str, int]) -> None:
    model = Attends()
    swap.use_impl(model, "window_attention", STAND_IN)
    with pytest.raises(RuntimeError, match="drops more than padding and what is later"):
        model(torch.randn(1, 3, 16), NOT_PADDING[mask])


def test_padding_is_rows_of_its_own() -> None:
    has = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 1], [0] * 6, [1] * 6]).bool()
    offsets, pads, nothing = padded_rows(has[:, None, None], len(has))
    assert bool(pads) and nothing.tolist() == [False, False, True, False]
    starts = [[0, 0, 0, 3, 4], [6, 8, 10, 12, 12], [12, 12, 12, 18, 18], [18, 18, 18, 24, 24], [24]]
    assert offsets.tolist() == [start for row in starts for start in row]
