"""What the operator boundary of a kernel costs a call, in microseconds of host time: nothing is computed.

    python tests/benchmarks/boundary.py [ROUNDS]

The same empty launcher is called directly, through `mfu_kernels.boundary.define` as our kernels are, through the
autograd function around that, and through PyTorch's ``custom_op``; in turns, so that what drifts, drifts for all.
"""

import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, library

from mfu_kernels import boundary
from mfu_kernels.boundary import define
from mfubench.measure.stats import median_ci

CALLS = 2000


def launch(x: Tensor, eps: float) -> Tensor:
    """A launcher that allocates its output and launches nothing."""
    return torch.empty_like(x)


_thin = define("boundary_benchmark(Tensor x, float eps) -> Tensor", launcher=f"{__name__}:launch", outputs=launch)


class _WithAutograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        out: Tensor = _thin(x, eps)
        ctx.save_for_backward(x)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


@library.custom_op("mfubench_benchmark::custom", mutates_args=())
def _custom(x: Tensor, eps: float) -> Tensor:
    return torch.empty_like(x)


def microseconds(call: Callable[[Tensor, float], Tensor], x: Tensor) -> float:
    """Of one of many calls in a row."""
    start = perf_counter()
    for _ in range(CALLS):
        call(x, 1e-6)
    return 1e6 * (perf_counter() - start) / CALLS


def main() -> None:
    """Print each way's time a call, as median and 95 % interval, and what it adds to the direct call."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    vars(boundary)["_check_interpreter"] = lambda name, args: None  # which a call on a GPU has not
    leaf = torch.randn(4, 4, requires_grad=True)
    plain = leaf.detach()
    ways: dict[str, tuple[Callable[[Tensor, float], Tensor], Tensor]] = {
        "direct call": (launch, plain),
        "define, as our kernels": (_thin, plain),
        "autograd function around it": (_WithAutograd.apply, leaf),
        "custom_op": (_custom, plain),
    }
    for call, x in ways.values():
        microseconds(call, x)
    samples: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (call, x) in ways.items():
            samples[name].append(microseconds(call, x))
    direct = samples["direct call"]
    print(f"torch {torch.__version__}, {rounds} rounds of {CALLS} calls")
    for name, values in samples.items():
        middle, low, high = median_ci(values)
        added = median_ci([value - base for value, base in zip(values, direct, strict=True)])[0]
        print(f"{name:30} {middle:6.2f} us [{low:.2f}, {high:.2f}], {added:+.2f} us on the direct call")


if __name__ == "__main__":
    main()
