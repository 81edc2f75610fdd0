"""Wukong: its FLOPs three ways, its sizes, and that its interactions are those of the paper's equations."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

import mfu_kernels
from mfu_kernels.errors import InvalidArgument
from mfu_models import MODELS
from mfu_models.common.wukong import BlockShape, WukongBlock
from mfu_models.wukong.config import WukongConfig
from tests.kernels import oracles
from tests.model_zoo import zoo_checks
from tests.model_zoo.zoo_checks import AWKWARD, RECORDED

WUKONG = MODELS["wukong"]
# 9 tokens become 3 + 4, so that the first layer's residual is a linear map and the second's is the identity.
CONFIG = WukongConfig(
    AWKWARD,
    max_length=12,
    width=10,
    num_layers=2,
    num_fm=3,
    num_linear=4,
    fm_rank=5,
    fm_mlp=(13, 6),
    head_mlp=(12, 8),
    dense_mlp=(11,),
    y_tokens=2,
)
SETTINGS = {
    "attentive": CONFIG,
    "fixed": replace(CONFIG, y="fixed"),
    "identity-residual": replace(CONFIG, num_fm=5, num_layers=3, fm_mlp=(), dense_mlp=(), head_mlp=()),
    "tiny": WUKONG.config("tiny"),
    "tiny-fixed": WUKONG.config("tiny", overrides={"y": "fixed"}),
}
SAMPLES = ((0, 0), (3, 4), (0, 0), (12, 1), (0, 0))
in_every_setting = pytest.mark.parametrize("config", SETTINGS.values(), ids=SETTINGS)


@in_every_setting
def test_flops(config: WukongConfig) -> None:
    zoo_checks.check_flops(WUKONG, config, zoo_checks.lengths_of(config, SAMPLES))


@pytest.mark.parametrize("y", ["attentive", "fixed"])
def test_flops_of_the_small_size(y: str) -> None:
    config = WUKONG.config("small", overrides={"y": y})
    zoo_checks.check_flops(WUKONG, config, zoo_checks.lengths_of(config, [(0, 128), (128, 3)]))


@in_every_setting
def test_gradients(config: WukongConfig) -> None:
    zoo_checks.check_gradients(WUKONG, config, zoo_checks.lengths_of(config, SAMPLES))


@in_every_setting
def test_a_sample_does_not_see_the_others(config: WukongConfig) -> None:
    zoo_checks.check_alone(WUKONG, config, zoo_checks.lengths_of(config, SAMPLES))


@pytest.mark.parametrize("source", RECORDED)
def test_schemas_of_recorded_data(source: str) -> None:
    config = WUKONG.config("tiny", RECORDED[source])
    lengths = zoo_checks.lengths_of(config, [(0, 2, 5), (3, 0, 0)])
    zoo_checks.check_alone(WUKONG, config, lengths)
    zoo_checks.check_gradients(WUKONG, config, lengths)


@pytest.mark.parametrize(
    ("size", "tokens", "gflops", "decimals", "dense_params"),
    [
        ("tiny", 10, 0.00039, 5, 0.188e6),
        ("small", 20, 0.00199, 4, 0.922e6),  # 0.00198 here; all others to the ladder's last digit
        ("base", 40, 0.053, 3, 24.8e6),
        ("large", 160, 1.159, 3, 557.9e6),
        ("xl", 720, 6.600, 3, 3.18e9),
    ],
)
def test_sizes(size: str, tokens: int, gflops: float, decimals: int, dense_params: float) -> None:
    """The ladder counts a fixed Y; making Y adds less than 1 %."""
    fixed, attentive = WUKONG.config(size, overrides={"y": "fixed"}), WUKONG.config(size)
    assert attentive.y == "attentive"
    assert fixed.blocks[0].num_tokens == tokens
    for config in (fixed, attentive):
        zoo_checks.check_size(WUKONG, config, gflops, dense_params)
    plain, full = (WUKONG.full_length_flops(config).fwd for config in (fixed, attentive))
    assert round(plain / 1e9, decimals) == round(gflops, decimals)
    assert plain < full < 1.01 * plain


def by_hand(block: WukongBlock, x: Tensor, residual: Tensor) -> Tensor:
    """The block on one sample's tokens [n, d], from the paper's equations: all pairs first, and ``residual`` given."""
    y = block.y
    if not isinstance(y, nn.Parameter):
        y = mlp(y.mlp, (y.compress.weight @ x).flatten()).reshape(x.shape[0], -1)
    pairs = torch.stack([torch.stack([a @ b for b in x]) for a in x])
    fm = mlp(block.fm_mlp, norm(block.fm_norm, (pairs @ y).flatten())).reshape(-1, x.shape[1])
    return norm(block.norm, torch.cat([fm, block.compress.weight @ x]) + residual)


def mlp(module: nn.Module, x: Tensor) -> Tensor:
    for i, layer in enumerate(module.layers):
        x = layer.weight @ (x if i == 0 else nn.functional.gelu(x)) + layer.bias
    return x


def norm(module: nn.Module, x: Tensor) -> Tensor:
    return oracles.layer_norm(x, module.weight, module.bias)


@pytest.mark.parametrize("y_tokens", [0, 1, 3])
@pytest.mark.parametrize("num_linear", [4, 6], ids=["mapped", "identity"])
def test_a_block_is_its_equations(y_tokens: int, num_linear: int) -> None:
    """No part of it can go missing: without the residual or the linear compression it differs."""
    block = WukongBlock(BlockShape(9, 8, 3, num_linear, 5, (7,), y_tokens), "reference")
    x = torch.randn(6, 9, 8)
    out = block(x)
    residual = x if num_linear == 6 else block.residual.weight @ x
    assert (block.residual is None) == (num_linear == 6)
    torch.testing.assert_close(out, torch.stack([by_hand(block, *pair) for pair in zip(x, residual, strict=True)]))
    without = torch.stack([by_hand(block, one, torch.zeros_like(r)) for one, r in zip(x, residual, strict=True)])
    assert not torch.allclose(out, without, atol=1e-2)
    with torch.no_grad():
        block.compress.weight.zero_()
    assert torch.allclose(out[:, :3], block(x)[:, :3])
    assert not torch.isclose(out[:, 3:], block(x)[:, 3:], atol=1e-3).all(dim=-1).any()


@contextmanager
def without_norms_and_activations() -> Iterator[None]:
    """Inside, what is left of a model is a polynomial of its tokens."""

    def plain(x: Tensor, *_affine: Tensor, residual: Tensor | None = None, **_options: Any) -> Tensor:
        return x if residual is None else x + residual

    with patch.object(mfu_kernels, "layer_norm", plain), patch.object(nn.functional, "gelu", lambda x: x):
        yield


@pytest.mark.parametrize(
    ("y", "num_layers", "order"), [("fixed", 1, 2), ("fixed", 2, 4), ("fixed", 3, 8), ("attentive", 1, 3)]
)
def test_the_order_of_interaction_doubles_with_each_layer(y: str, num_layers: int, order: int) -> None:
    """The score has products of 2^l different tokens and none of more; an attentive Y brings one more factor."""
    model = zoo_checks.build(WUKONG, replace(CONFIG, y=y, num_layers=num_layers), torch.float64)
    tokens = 3 * torch.randn(9, 10, dtype=torch.float64)

    def scores(x: Tensor) -> Tensor:
        for layer in model.layers:
            x = layer(x)
        return model.head(x.flatten(1))

    with without_norms_and_activations():
        joint, beyond = (zoo_checks.joint_term(scores, tokens, count).abs().max() for count in (order, order + 1))
    assert beyond < 1e-8 * joint


def test_y_depends_on_every_token_of_the_sample_if_it_is_attentive() -> None:
    block = WukongBlock(BlockShape(9, 8, 3, 4, 5, (7,), y_tokens=2), "reference")
    x = torch.randn(2, 9, 8, requires_grad=True)
    y = block.y(x)
    assert y.shape == (2, 9, 5)
    assert not torch.allclose(y[0], y[1], atol=1e-3)
    (gradient,) = torch.autograd.grad(y[0].square().sum(), x)
    assert gradient[0].any(dim=-1).all()
    assert not gradient[1].any()
    fixed = WukongBlock(BlockShape(9, 8, 3, 4, 5, (7,)), "reference")
    assert isinstance(fixed.y, nn.Parameter)
    assert fixed.y.shape == (9, 5)


def test_the_model_stacks_its_blocks_between_tokens_and_head() -> None:
    model = zoo_checks.build(WUKONG, CONFIG)
    batch = zoo_checks.batch_of(CONFIG, zoo_checks.lengths_of(CONFIG, SAMPLES))
    tokens, first, second = model.tokens(batch), *model.layers
    logits = []
    for x in tokens:
        x = by_hand(first, x, first.residual.weight @ x)
        logits.append(mlp(model.head, by_hand(second, x, x).flatten()))
    torch.testing.assert_close(model(batch), torch.cat(logits))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_length": 0}, "max_length=0; allowed: at least 1"),
        ({"num_layers": 0}, "num_layers=0; allowed: at least 1"),
        ({"num_fm": 0}, "num_fm=0; allowed: at least 1"),
        ({"num_linear": 0}, "num_linear=0; allowed: at least 1"),
        ({"fm_rank": 0}, "fm_rank=0; allowed: at least 1"),
        ({"y_tokens": 0}, "y_tokens=0; allowed: at least 1"),
        ({"fm_mlp": (8, 0)}, r"fm_mlp=\(8, 0\); allowed: widths of at least 1"),
        ({"head_mlp": (0,)}, r"head_mlp=\(0,\); allowed: widths of at least 1"),
        ({"dense_mlp": (0,)}, r"dense_mlp=\(0,\); allowed: widths of at least 1"),
        ({"width": 5}, "width=5; allowed: at least 6"),
        ({"y": "random"}, "y='random'; allowed: attentive, fixed"),
        ({"schema": replace(AWKWARD, sequences=())}, "source test has no event sequence; wukong needs one"),
    ],
)
def test_bad_configs(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        replace(CONFIG, **change)
