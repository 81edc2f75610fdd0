"""Compile kernels for a GPU that is not here: just enough of a Triton driver for its compiler, with no device behind.

It takes the place of the process's driver, so it belongs into a process of its own.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from mfu_kernels.examples import Case, Draw, Examples, Inputs
from mfu_kernels.modes import Compiled, Wanted, compile_ahead

from .targets import Target

DTYPE = torch.bfloat16  # what the kernels run in on a GPU


class AheadDriver:
    """Answers what Triton's compiler asks of a driver, for one target."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.utils = self

    def get_device_properties(self, _device: int) -> Mapping[str, int]:
        """Limits of the target."""
        target = self.target
        return {
            "max_shared_mem": target.block_shared,
            "multiprocessor_count": target.processors,
            "max_num_regs": target.registers,
            "warpSize": 32,
        }

    def get_current_target(self) -> Any:
        """The target in Triton's words."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.target.capability, 32)

    def get_current_device(self) -> int:
        """A number of its own for each target: Triton keeps compiled kernels by device."""
        return self.target.capability

    def get_current_stream(self, _device: int | None = None) -> int:
        """No stream: nothing is launched."""
        return 0


def activate(target: Target) -> None:
    """Make ``target`` the one that this process compiles for."""
    from triton.runtime.driver import driver

    driver.set_active(AheadDriver(target))


def compile_op(examples: Examples, shape: Case, sink: Callable[[Compiled], None], wanted: Wanted) -> None:
    """Compile what is ``wanted`` of one op's forward and backward at ``shape``, for the active target."""
    inputs = examples.make(shape, Draw(DTYPE, torch.device("meta")))
    with compile_ahead(sink, wanted):
        call_both_ways(examples, inputs)


def call_both_ways(examples: Examples, inputs: Inputs) -> None:
    """The op's forward and backward with its kernels on ``inputs`` that need no numbers."""
    leaves = {name: tensor.requires_grad_() for name, tensor in inputs.tensors.items()}
    out = examples.function(**leaves, **inputs.others, impl="triton")
    out.backward(torch.empty_like(out))
