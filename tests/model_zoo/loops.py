"""Running a model with its ops replaced by plain-loop oracles, which pad nothing and mask nothing."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from torch import Tensor

import mfu_kernels
from tests.kernels import oracles

PACKED = {"window_attention_qkvpacked": "window_attention", "seed_pooling_kvpacked": "seed_pooling"}


@contextmanager
def ops_as_loops() -> Iterator[None]:
    """Inside, every op of the kernel library runs as ``tests.kernels.oracles`` has it."""
    with ExitStack() as stack:
        for name in mfu_kernels.OPS:
            stack.enter_context(patch.object(mfu_kernels, name, _loop(getattr(oracles, name))))
        for name, op in PACKED.items():
            stack.enter_context(patch.object(mfu_kernels, name, _loop(_unpacked(getattr(oracles, op), 1))))
        stack.enter_context(patch.object(mfu_kernels, "gdpa_block_kvpacked", _block_and_x))
        yield


def _block_and_x(x: Tensor, *others: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    return _loop(_unpacked(oracles.gdpa_block, 2))(x, *others, **options), x


def _unpacked(oracle: Callable[..., Tensor], dim: int) -> Callable[..., Tensor]:
    """``oracle`` of a last tensor that holds several side by side along ``dim``."""

    def run(*tensors: Tensor, **options: Any) -> Tensor:
        *others, packed, offsets = tensors
        return oracle(*others, *packed.unbind(dim), offsets, **options)

    return run


def _loop(oracle: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(*tensors: Tensor | None, impl: str, max_length: int | None = None, **options: Any) -> Tensor:
        out = oracle(*tensors, **options)
        # A loop over no events leaves its inputs out of the graph. Shapes decide what a model needs, so their (zero)
        # gradients are due all the same: what feeds them is counted as it is for a sample that has events.
        inputs = [tensor for tensor in tensors if tensor is not None and tensor.is_floating_point()]
        return out + sum(0 * tensor.sum() for tensor in inputs)

    return run
