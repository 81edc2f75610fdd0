"""DLRMv2: its FLOPs three ways, its sizes, and that it computes what its equations say."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from mfu_kernels.errors import InvalidArgument
from mfu_models import MODELS
from mfu_models.common.layers import CrossLayer
from mfu_models.dlrm.config import DlrmConfig
from mfu_models.dlrm.flops import components
from tests.model_zoo import zoo_checks
from tests.model_zoo.zoo_checks import AWKWARD, RECORDED

DLRM = MODELS["dlrm"]
CONFIG = DlrmConfig(
    AWKWARD, max_length=12, width=7, bottom_mlp=(9, 8), num_cross=2, cross_rank=3, over_mlp=(10, 4), pooling="mean"
)
SETTINGS = {
    "default": CONFIG,
    "sum": replace(CONFIG, pooling="sum"),
    "one-layer": replace(CONFIG, num_cross=1, bottom_mlp=(), over_mlp=()),
    "tiny": DLRM.config("tiny"),
}
SAMPLES = ((0, 0), (3, 4), (0, 0), (12, 1), (0, 0))
in_every_setting = pytest.mark.parametrize("config", SETTINGS.values(), ids=SETTINGS)


@in_every_setting
def test_flops(config: DlrmConfig) -> None:
    zoo_checks.check_flops(DLRM, config, zoo_checks.lengths_of(config, SAMPLES))


def test_flops_of_the_small_size() -> None:
    config = DLRM.config("small")
    zoo_checks.check_flops(DLRM, config, zoo_checks.lengths_of(config, [(0, 128), (128, 3)]))


@in_every_setting
def test_gradients(config: DlrmConfig) -> None:
    zoo_checks.check_gradients(DLRM, config, zoo_checks.lengths_of(config, SAMPLES))


@in_every_setting
def test_a_sample_does_not_see_the_others(config: DlrmConfig) -> None:
    zoo_checks.check_alone(DLRM, config, zoo_checks.lengths_of(config, SAMPLES))


@pytest.mark.parametrize("source", RECORDED)
def test_schemas_of_recorded_data(source: str) -> None:
    config = DLRM.config("tiny", RECORDED[source])
    lengths = zoo_checks.lengths_of(config, [(0, 2, 5), (3, 0, 0)])
    zoo_checks.check_alone(DLRM, config, lengths)
    zoo_checks.check_gradients(DLRM, config, lengths)


@pytest.mark.parametrize(
    ("size", "gflops", "decimals", "dense_params"),
    [
        ("tiny", 0.00007, 5, 0.036e6),
        ("small", 0.00222, 5, 1.1e6),
        ("base", 0.043, 3, 21.3e6),
        ("large", 1.449, 3, 724.6e6),
        ("xl", 9.359, 3, 4.68e9),
    ],
)
def test_sizes(size: str, gflops: float, decimals: int, dense_params: float) -> None:
    config = DLRM.config(size)
    zoo_checks.check_size(DLRM, config, gflops, dense_params)
    assert round(DLRM.full_length_flops(config).fwd / 1e9, decimals) == gflops


def test_flops_do_not_depend_on_lengths() -> None:
    config = DLRM.config("base")
    names = DLRM.max_lengths(config)
    assert len(names) == 4
    empty, full = ({name: [length] for name in names} for length in (0, 256))
    assert components(config, empty) == components(config, full)


def test_the_cross_layer_multiplies_the_first_input_with_a_map_of_the_last() -> None:
    layer = CrossLayer(8, 3)
    x0, x = torch.randn(2, 5, 8)
    low_rank = layer.u.weight @ layer.v.weight
    expected = torch.stack([a * (low_rank @ b + layer.u.bias) + b for a, b in zip(x0, x, strict=True)])
    torch.testing.assert_close(layer(x0, x), expected)
    assert layer.v.bias is None


@pytest.mark.parametrize("num_cross", [1, 2, 3])
def test_each_cross_layer_raises_the_order_of_interaction_by_one(num_cross: int) -> None:
    """With x_l in place of x_0, the order would double."""
    config = replace(CONFIG, num_cross=num_cross, over_mlp=())
    model = zoo_checks.build(DLRM, config, torch.float64)
    features = 3 * torch.randn(9 * 7, dtype=torch.float64)
    shuffled = torch.randperm(9 * 7)

    def scores(x0: torch.Tensor) -> torch.Tensor:
        x0 = x = x0[:, shuffled]
        for layer in model.cross:
            x = layer(x0, x)
        return model.over(x)

    highest = num_cross + 1
    assert zoo_checks.joint_term(scores, features, highest).abs().max() > 1e-8
    assert zoo_checks.joint_term(scores, features, highest + 1).abs().max() < 1e-12


def test_the_model_is_its_equations() -> None:
    config = replace(CONFIG, num_cross=3)
    model = zoo_checks.build(DLRM, config)
    batch = zoo_checks.batch_of(config, zoo_checks.lengths_of(config, SAMPLES))
    x0 = x = model.tokens(batch).flatten(1)
    for layer in model.cross:
        x = x0 * (x @ layer.v.weight.T @ layer.u.weight.T + layer.u.bias) + x
    hidden = x
    for i, layer in enumerate(model.over.layers):
        hidden = (hidden if i == 0 else torch.nn.functional.gelu(hidden)) @ layer.weight.T + layer.bias
    assert len(model.over.layers) == 3
    torch.testing.assert_close(model(batch), hidden[:, 0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_length": 0}, "max_length=0; allowed: at least 1"),
        ({"num_cross": 0}, "num_cross=0; allowed: at least 1"),
        ({"cross_rank": 0}, "cross_rank=0; allowed: at least 1"),
        ({"bottom_mlp": (8, 0)}, r"bottom_mlp=\(8, 0\); allowed: widths of at least 1"),
        ({"over_mlp": (-1,)}, r"over_mlp=\(-1,\); allowed: widths of at least 1"),
        ({"width": 5}, "width=5; allowed: at least 6"),
        ({"pooling": "max"}, "pooling='max'; allowed: mean, sum"),
        ({"schema": replace(AWKWARD, sequences=())}, "source test has no event sequence; dlrm needs one"),
    ],
)
def test_bad_configs(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        replace(CONFIG, **change)
