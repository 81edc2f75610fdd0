"""A GPU's autocast where there is none: what it keeps in fp32 and a CPU's leaves in the shorter dtype.

Which functions these are: PyTorch's documentation, "CUDA Ops that can autocast to float32", and ATen/autocast_mode.h.
"""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

# Those that widen what they are given, and those that only widen what they give.
WIDENED = frozenset(
    (
        *("acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal", "rsqrt"),
        *("sinh", "tan", "pow", "__pow__", "__rpow__", "__rdiv__", "__rtruediv__", "softplus", "layer_norm"),
        *("native_layer_norm", "rms_norm", "group_norm", "cosine_similarity", "dist", "pdist", "cdist", "renorm"),
        *("logsumexp", "nll_loss", "kl_div", "l1_loss", "smooth_l1_loss", "huber_loss", "mse_loss"),
        *("margin_ranking_loss", "soft_margin_loss", "binary_cross_entropy_with_logits", "interpolate"),
    )
)
RESULT_WIDENED = frozenset(("prod", "softmax", "log_softmax", "cumprod", "cumsum", "sum"))


class GpuAutocast(TorchFunctionMode):
    """Inside, a CPU's autocast widens what a GPU's would; without autocast nothing changes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in WIDENED | RESULT_WIDENED and torch.is_autocast_enabled("cpu"):
            if name in WIDENED:
                args, kwargs = tree_map(_widened, (args, kwargs))
            elif kwargs.get("dtype") is None and args and _is_short(args[0]):
                kwargs = {**kwargs, "dtype": torch.float32}
        return func(*args, **kwargs)


def _is_short(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype in (torch.bfloat16, torch.float16)


def _widened(value: Any) -> Any:
    return value.float() if _is_short(value) else value
