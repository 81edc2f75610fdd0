"""Window attention's backward for Hopper: its numbers, emulated; what it takes; that its code fits."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from mfu_kernels.examples import Inputs
from mfu_kernels.window_attention.examples import EXAMPLES
from mfu_kernels.window_attention.kernel import forward
from mfu_kernels.window_attention.kernel_bwd import DKV, backward
from mfu_kernels.window_attention.kernel_sm90 import fits
from tests.kernels.gluon import contract
