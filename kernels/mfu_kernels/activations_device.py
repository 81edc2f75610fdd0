"""The activations of `activations.py` inside a Triton kernel, on fp32 scores, with slopes for a backward.

Each takes ``scores`` and a ``scale``, and means act(scale * scores): the factors are folded, so that a scale costs no
instruction of its own where an activation begins with a multiplication. Slopes are with respect to scale * scores.

``FAST`` is for results that are rounded to 16 bits: tanh is the instruction ``tanh.approx``, of relative error 2^-11, and
gelu is one such tanh of a fitted polynomial. Without it, everything is good to a few units of fp32.

Every activation maps 0 to 0. Kernels rely on it: keys and queries that are padded with zeros weigh nothing.
"""

import triton
import triton.language as tl

from .registry import interpreting

_INTERPRETED = tl.constexpr(interpreting())  # the interpreter has no inline assembly

_LEAKY_SLOPE = tl.constexpr(0.01)
_INVERSE_SQRT_2 = tl.constexpr(0.7071067811865476)
_INVERSE_SQRT_2PI = tl.constexpr(0.3989422804014327)
_LOG2_E = tl.constexpr(1.4426950408889634)
# gelu_tanh(x) = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), as a polynomial of h = x/2: tanh(h (A + B h^2))
_TANH_A, _TANH_B = tl.constexpr(1.5957691216057308), tl.constexpr(0.2854192650904)
# gelu(x) = x/2 (1 + tanh(h (A + B y + C y^2))) with y = min(h^2, 4): minimax over x, off by at most 2.6e-5
_ERF_A, _ERF_B, _ERF_C = tl.constexpr(1.5950157514584), tl.constexpr(0.29604522227), tl.constexpr(-0.01124856392)
_ERF_LIMIT = tl.constexpr(4.0)


@triton.jit
def activated(scores, scale, NAME: tl.constexpr, FAST: tl.constexpr):
    """act(scale * scores)."""
    if NAME == "gelu_tanh" or NAME == "silu" or (NAME == "gelu" and FAST):
        half = scores * (0.5 * scale)
        return half + half * _tanh(_inside_tanh(half, NAME), FAST)
    else:
        return _value(scores * scale, NAME)


@triton.jit
def activated_with_slope(scores, scale, NAME: tl.constexpr, FAST: tl.constexpr):
    """act(x) and act'(x) at x = scale * scores, from shared parts; kinks have the slopes that torch gives them."""
    if NAME == "gelu_tanh" or NAME == "silu" or (NAME == "gelu" and FAST):
        half = scores * (0.5 * scale)
        tanh = _tanh(_inside_tanh(half, NAME), FAST)
        return half + half * tanh, 0.5 + 0.5 * tanh + half * _slope_of_tanh(half, tanh, NAME)
    else:
        x = scores * scale
        return _value(x, NAME), _slope(x, NAME)


@triton.jit
def _value(x, NAME: tl.constexpr):
    if NAME == "identity":
        return x
    elif NAME == "relu":
        return tl.where(x < 0.0, 0.0, x)  # NaN stays NaN
    elif NAME == "relu2":
        positive = tl.where(x < 0.0, 0.0, x)
        return positive * positive
    elif NAME == "leaky_relu":
        return tl.where(x < 0.0, x * _LEAKY_SLOPE, x)
    elif NAME == "hardswish":
        return x * (tl.minimum(tl.maximum(x + 3.0, 0.0), 6.0) * (1.0 / 6.0))
    else:
        tl.static_assert(NAME == "gelu", "an activation without a form on the device")
        return x * _normal_cdf(x)


@triton.jit
def _slope(x, NAME: tl.constexpr):
    if NAME == "identity":
        return tl.full(x.shape, 1.0, tl.float32)
    elif NAME == "relu":
        return tl.where(x > 0.0, 1.0, 0.0)
    elif NAME == "relu2":
        return tl.where(x < 0.0, 0.0, 2.0 * x)
    elif NAME == "leaky_relu":
        return tl.where(x > 0.0, 1.0, _LEAKY_SLOPE)
    elif NAME == "hardswish":
        return tl.where(x < -3.0, 0.0, tl.where(x <= 3.0, x * (1.0 / 3.0) + 0.5, 1.0))
    else:
        return _normal_cdf(x) + x * (tl.exp(x * x * -0.5) * _INVERSE_SQRT_2PI)


@triton.jit
def _inside_tanh(half, NAME: tl.constexpr):
    """What act(2 half) = half + half tanh(.) takes the tanh of."""
    if NAME == "silu":
        return half
    elif NAME == "gelu_tanh":
        return half * (half * half * _TANH_B + _TANH_A)
    else:
        square = tl.minimum(half * half, _ERF_LIMIT)
        return half * (square * (square * _ERF_C + _ERF_B) + _ERF_A)


@triton.jit
def _slope_of_tanh(half, tanh, NAME: tl.constexpr):
    """d tanh(.) / dx at x = 2 half; for gelu, so that the slope is exact, from the density of the normal distribution."""
    if NAME == "silu":
        return 0.5 - 0.5 * tanh * tanh
    elif NAME == "gelu_tanh":
        return (1.0 - tanh * tanh) * (half * half * (_TANH_B * 1.5) + _TANH_A * 0.5)
    else:
        return tl.exp2(half * half * (_LOG2_E * -2.0)) * (_INVERSE_SQRT_2PI * 2.0)


@triton.jit
def _tanh(x, FAST: tl.constexpr):
    if FAST and not _INTERPRETED:
        return tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )  # fmt: skip
    decay = tl.exp(-2.0 * tl.abs(x))  # never overflows
    magnitude = (1.0 - decay) / (1.0 + decay)
    return tl.where(x < 0.0, -magnitude, magnitude)


@triton.jit
def _normal_cdf(x):
    return 0.5 + 0.5 * tl.erf(x * _INVERSE_SQRT_2)

