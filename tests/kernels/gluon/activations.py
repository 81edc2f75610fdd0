"""Each activation in a small Gluon kernel, compiled for sm_90: a process of its own, which prints their names.

The emulator computes activations by itself, and a form that is compiled for tests has a few of them.
"""

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from mfu_kernels.activations import ACTIVATIONS
from mfu_kernels.activations_device import weights_and_changes, weights_of
from mfubench.kernels.ahead import activate
from mfubench.kernels.targets import TARGETS

COUNT = gl.constexpr(256)


@gluon.jit
def activate_kernel(x, out, NAME: gl.constexpr):
    """Weights of forward and backward, and changes, side by side."""
    at = gl.arange(0, COUNT, gl.BlockedLayout([2], [32], [4], [0]))
    scores = gl.load(x + at)
    weights, changes = weights_and_changes(scores, gl.load(x + COUNT + at), NAME, gl.bfloat16)
    gl.store(out + at, weights_of(scores, NAME, gl.bfloat16))
    gl.store(out + COUNT + at, weights)
    gl.store(out + 2 * COUNT + at, changes)


if __name__ == "__main__":
    activate(TARGETS["sm_90"])
    x, out = torch.empty(512, device="meta"), torch.empty(768, dtype=torch.bfloat16, device="meta")
    for name in ACTIVATIONS:
        activate_kernel.warmup(x, out, NAME=name, grid=(1,))
        print(name)
