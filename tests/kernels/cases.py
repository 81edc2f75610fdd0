"""Every op with small inputs and its oracle, and how the shared tests build, run and watch them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mfu_kernels import (
    cross_attention,
    embedding,
    gdpa,
    gdpa_block,
    hash_pool,
    hstu_attention,
    jagged_gru,
    jagged_linear,
    jagged_pool,
    jagged_softmax,
    layer_norm,
    rms_norm,
    rotary_time,
    seed_pooling,
    seed_pooling_absorbed,
    sum_kron_linear,
    weighted_pool,
    window_attention,
)
from mfu_kernels.cost import OpCost, observing
from tests.kernels import oracles

SIZES = {"H": 2, "d": 4, "d_v": 3, "d/2": 2, "n_kv": 3, "S": 5, "R": 2, "M": 3, "D": 6, "E": 5, "3d": 12, "V": 4}
LENGTHS = ([3, 5, 2], [0, 4, 0, 6, 1, 0], [0, 0], [1])


@dataclass(frozen=True)
class Case:
    """A call of ``function`` with tensors of ``shapes``, such as ``"T H d"``, and other ``options``.

    ``constants`` are tensors that have no gradient; ``vocabs`` how many ids there are in each column of an embedding's.
    """

    name: str
    function: Callable[..., Tensor]
    oracle: Callable[..., Tensor]
    shapes: Mapping[str, str]
    options: Mapping[str, Any] = field(default_factory=dict)
    jagged: bool = True
    constants: tuple[str, ...] = ()
    vocabs: tuple[int, ...] = ()

    def offsets(self, lengths: Sequence[int], dtype: torch.dtype = torch.int64) -> dict[str, Tensor]:
        """The argument ``offsets``, where the op has it; an embedding's beside ``ids`` of as many as the rows have."""
        if self.vocabs:
            drawn = torch.rand(sum(lengths), len(self.vocabs), generator=torch.Generator().manual_seed(6))
            return {"ids": (drawn * torch.tensor(self.vocabs)).to(dtype), "offsets": offsets_of(self.vocabs, dtype)}
        return {"offsets": offsets_of(lengths, dtype)} if self.jagged else {}

    def bound(self, max_length: int) -> dict[str, int]:
        """The argument ``max_length``, where the op has it."""
        return {"max_length": max_length} if self.jagged else {}

    def tensors(self, lengths: Sequence[int], dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
        """Random leaves that need gradients, but for the constants."""
        sizes = SIZES | {"T": sum(lengths), "B": len(lengths)}
        generator = torch.Generator().manual_seed(7)
        shapes = {name: [sizes[letter] for letter in dims.split()] for name, dims in self.shapes.items()}
        return {
            name: torch.randn(shape, dtype=dtype, generator=generator).requires_grad_(name not in self.constants)
            for name, shape in shapes.items()
        }

    def run(self, tensors: Mapping[str, Tensor], **others: Any) -> Tensor:
        return self.function(**tensors, **self.options, **others)

    def expect(self, tensors: Mapping[str, Tensor], **others: Any) -> Tensor:
        return self.oracle(**tensors, **self.options, **others)


_GDPA = {"q": "T H d", "k": "B n_kv H d", "v": "B n_kv H d"}
_BLOCK = {"x": "T H d", "k": "B n_kv H d", "v": "B n_kv H d"}
_QKV = {"q": "T H d", "k": "T H d", "v": "T H d"}
_HSTU = {"q": "T H d", "k": "T H d", "v": "T H d_v"}
_CROSS = {"q": "B M H d", "k": "T H d", "v": "T H d"}
_CROSS_OWN = _CROSS | {"own_k": "B M H d", "own_v": "B M H d"}
_SEEDS = {"seeds": "S H d", "k": "T H d", "v": "T H d"}
_ROTATED = _QKV | {"angles": "T d/2"}
_ABSORBED = {"x": "T D", "seeds": "S H d", "w_k": "H d D", "w_v": "H d D"}
_KRON = {"x": "B S D", "z": "R S M", "w": "R D E"}
_GRU = {"gates": "T 3d", "weight": "d 3d"}
_HASH = {"values": "T D", "hashes": "T d", "query_hashes": "B d"}
_NORM = {"x": "T D", "weight": "D", "bias": "D", "residual": "T D"}

GDPA_CASES = [Case(f"gdpa-{name}", gdpa, oracles.gdpa, _GDPA, {"activation": name}) for name in oracles.ACTIVATIONS]
CASES = [
    *GDPA_CASES,
    Case("gdpa-mixed", gdpa, oracles.gdpa, _GDPA, {"activation": ("silu", "relu2"), "scale": 0.3}),
    Case("gdpa_block", gdpa_block, oracles.gdpa_block, _BLOCK, {"scale": 0.5}),
    Case("window_attention-2", window_attention, oracles.window_attention, _QKV, {"window": 2}),
    Case("window_attention-causal", window_attention, oracles.window_attention, _QKV, {"window": 1, "causal": True}),
    Case("window_attention-all", window_attention, oracles.window_attention, _ROTATED, {"window": None, "scale": 0.7}),
    Case("hstu_attention", hstu_attention, oracles.hstu_attention, _HSTU, {"norm_length": 9}),
    Case(
        "hstu_attention-semi_local",
        hstu_attention,
        oracles.hstu_attention,
        _HSTU | {"bias": "H S"},
        {"norm_length": 9, "window": 1, "first_keys": 2, "num_candidates": 2, "alpha": 0.7},
    ),
    Case("cross_attention", cross_attention, oracles.cross_attention, _CROSS),
    Case("cross_attention-own", cross_attention, oracles.cross_attention, _CROSS_OWN, {"scale": 0.3}),
    Case("seed_pooling", seed_pooling, oracles.seed_pooling, _SEEDS),
    Case("seed_pooling-rotated", seed_pooling, oracles.seed_pooling, _SEEDS | {"angles": "T d/2"}, {"scale": 0.7}),
    Case("seed_pooling_absorbed", seed_pooling_absorbed, oracles.seed_pooling_absorbed, _ABSORBED),
    Case("sum_kron_linear", sum_kron_linear, oracles.sum_kron_linear, _KRON, jagged=False),
    Case("rms_norm-plain", rms_norm, oracles.rms_norm, {"x": "T H D"}, jagged=False),
    Case("rms_norm", rms_norm, oracles.rms_norm, {"x": "T D", "weight": "D"}, {"eps": 0.1}, jagged=False),
    Case("layer_norm-plain", layer_norm, oracles.layer_norm, {"x": "T H D"}, jagged=False),
    Case("layer_norm", layer_norm, oracles.layer_norm, _NORM, {"eps": 0.1}, jagged=False),
    Case("rotary_time", rotary_time, oracles.rotary_time, {"x": "T H d", "angles": "T d/2"}, jagged=False),
    Case("jagged_linear", jagged_linear, oracles.jagged_linear, {"x": "T D", "weight": "B D E"}),
    Case("jagged_pool-mean", jagged_pool, oracles.jagged_pool, {"values": "T D"}, {"mode": "mean"}),
    Case("jagged_pool-sum", jagged_pool, oracles.jagged_pool, {"values": "T D"}, {"mode": "sum"}),
    Case("jagged_softmax", jagged_softmax, oracles.jagged_softmax, {"scores": "T"}),
    Case("jagged_gru-plain", jagged_gru, oracles.jagged_gru, _GRU),
    Case("jagged_gru", jagged_gru, oracles.jagged_gru, _GRU | {"attention": "T"}),
    Case("weighted_pool", weighted_pool, oracles.weighted_pool, {"values": "T D", "weights": "T"}),
    Case("hash_pool", hash_pool, oracles.hash_pool, _HASH, {"bits": 2}, constants=("hashes", "query_hashes")),
    Case("embedding", embedding, oracles.embedding, {"weight": "V D"}, {"vocabs": (3, 1)}, False, vocabs=(3, 1)),
]
ONE_CASE_AN_OP = list({case.function.__name__: case for case in CASES}.values())


def offsets_of(lengths: Sequence[int], dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(dtype)


def gradients(output: Tensor, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of a fixed random weighting of ``output``; zeros for what it does not depend on."""
    leaves = {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}
    if not output.requires_grad:
        return {name: torch.zeros_like(tensor) for name, tensor in leaves.items()}
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    grads = torch.autograd.grad(output, list(leaves.values()), weights.to(output.dtype), materialize_grads=True)
    return dict(zip(leaves, grads, strict=True))


def assert_same(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name in actual:
        torch.testing.assert_close(
            actual[name], expected[name], rtol=1e-10, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}"
        )


@dataclass
class Recorder:
    """An observer that keeps what it is told, in order, and evaluates each cost."""

    events: list[tuple[Any, ...]] = field(default_factory=list)
    costs: list[OpCost] = field(default_factory=list)

    def enter_op(self, name: str, kind: str, impl: str, cost: Callable[[], OpCost]) -> None:
        self.events.append(("enter", name, kind, impl))
        self.costs.append(cost())

    def exit_op(self) -> None:
        self.events.append(("exit",))

    def enter_shared(self, num_samples: int) -> None:
        raise AssertionError("no op does shared work")

    def exit_shared(self) -> None:
        raise AssertionError("no op does shared work")


def cost_of(run: Callable[[], Any]) -> OpCost:
    """The cost that the one op inside ``run`` reports."""
    recorder = Recorder()
    with observing(recorder):
        run()
    (cost,) = recorder.costs
    return cost
