"""Gluon kernels for Hopper without a GPU: their Python run as it stands, on an emulated multiprocessor.

Triton's interpreter knows no Gluon. This runs a kernel's own source with tensors in place of registers, and finds what
numbers alone would not: races, reads of what has not landed, buffers overwritten in flight, missing fences, accesses
out of bounds, deadlocks, and work left in flight. Warpgroups take turns in an order drawn from a seed. Layouts are not
emulated, nor are approximate instructions: activations are those of torch. Global memory is not watched for races.
"""

from .running import Emulated, emulated
from .warpgroups import Fault

__all__ = ["Emulated", "Fault", "emulated"]
