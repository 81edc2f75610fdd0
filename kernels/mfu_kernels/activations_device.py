"""The activations of `activations.py` inside a Triton kernel, on fp32 scores, with slopes for a backward.

A kernel calls `weights_of` or `weights_and_changes`, which return what its next product takes: numbers of its dtype.

At d = 64, the tensor cores of an sm_90 need 1/16 clock for a score's two products, as does one tanh; an instruction in
fp32 is 1/128. So tanh-gelu's weights in bf16 are made two an instruction, from scores rounded to bf16 beforehand: 4.5
instructions a score in place of 6.5. Against a rounding of exact weights, their rms error is 1.7 times as large at
scores of standard deviation 1, and 1.1 times at 4; on an H200, outputs stayed within half of what they may err. Slopes
are not made so: a large x multiplies what tanh.approx.bf16x2 lacks to 1, and gradients erred twice what they may.

``FAST`` is for results that are rounded to 16 bits, and made of few instructions: gelu is written as gelu_tanh is, with
a fitted polynomial, and exponentials, quotients and tanh are the approximate ones of the hardware. tanh.approx, of
relative error 2^-11, is one instruction and good enough for values. For slopes it is not as it stands, where a large x
multiplies 1 - tanh²: they take exponential and reciprocal, good to 2^-22. In bf16, tanh-gelu's take it moved away from
zero by as much as it may err, and cut off at one: what a large x multiplies is zero where it is not known to be
otherwise. With errors drawn up to that bound, gradients came to 0.30 of what they may err, after 0.20 with exact slopes
(scores of standard deviation 1, 4 and 11), and on an H200 GDPA's backward, whose time these instructions are part of,
took 2.43 ms in place of 2.73 (256 keys, six heads of 64; tanh.approx as it stands, in another order of products). The
contract of who uses them passes there.
Without ``FAST``, everything is good to a few units of fp32.

Every activation maps 0 to 0. Kernels rely on it: queries and keys that are padded with zeros weigh nothing.
"""

import struct

import triton
import triton.language as tl
from triton.language.target_info import cuda_capability_geq

from .registry import interpreting

_INTERPRETED = tl.constexpr(interpreting())  # the interpreter has no inline assembly

_LEAKY_SLOPE = tl.constexpr(0.01)
_INVERSE_SQRT_2 = tl.constexpr(0.7071067811865476)
_INVERSE_SQRT_2PI = tl.constexpr(0.3989422804014327)
_LOG2_E = tl.constexpr(1.4426950408889634)
# gelu_tanh(x) = h (1 + tanh(sqrt(2/pi) (x + 0.044715 x³))) with h = x/2, as a polynomial of h: tanh(h (A + B h²))
A, B = 1.5957691216057308, 0.2854192650904
_TANH_A, _TANH_B = tl.constexpr(A), tl.constexpr(B)
# gelu(x) = h (1 + tanh(h (A + B y + C y²))) with y = min(h², LIMIT); A, B, C minimise the largest error: 2.6e-5
_ERF_A, _ERF_B, _ERF_C = tl.constexpr(1.5950157514584), tl.constexpr(0.29604522227), tl.constexpr(-0.01124856392)
_ERF_LIMIT = tl.constexpr(4.0)


def _pair(x: float) -> str:
    """``x`` as two bf16 numbers in one register."""
    bits = struct.unpack("<I", struct.pack("<f", x))[0]
    return "0x" + f"{(bits + 0x7FFF + (bits >> 16 & 1)) >> 16:04X}" * 2


_PAIR_OF_WEIGHTS = tl.constexpr(f"""{{
    .reg .b32 x, t, a, b;
    cvt.rn.bf16x2.f32 x, $2, $1;
    mul.rn.bf16x2 t, x, x;
    mov.b32 a, {_pair(A / 2)};
    mov.b32 b, {_pair(B / 8)};
    fma.rn.bf16x2 t, t, b, a;
    mul.rn.bf16x2 t, t, x;
    tanh.approx.bf16x2 t, t;
    mov.b32 a, {_pair(0.5)};
    fma.rn.bf16x2 t, t, a, a;
    mul.rn.bf16x2 $0, x, t;
}}""")
"""Two weights x (1 + tanh(.)) / 2 of tanh-gelu, from two scores."""


def _bits(x: float) -> str:
    """``x`` as a constant of fp32."""
    return f"0f{struct.unpack('<I', struct.pack('<f', x))[0]:08X}"


def _one_of_a_pair(score: str, change: str, n: int) -> str:
    """x s into w``n`` and ``change`` (s + x s (1 - s) z') into c``n``, with s cut off at 0 and 1."""
    return f"""
    mul.f32 q, {score}, {score};
    fma.rn.f32 t, q, {_bits(B / 8)}, {_bits(A / 2)};
    mul.f32 t, t, {score};
    tanh.approx.f32 t, t;
    fma.rn.sat.f32 t, t, {_bits(0.50025)}, {_bits(0.5)};
    mul.f32 w{n}, {score}, t;
    fma.rn.f32 q, q, {_bits(B * 0.75)}, {_bits(A)};
    neg.f32 c{n}, w{n};
    fma.rn.f32 c{n}, c{n}, t, w{n};
    fma.rn.f32 c{n}, c{n}, q, t;
    mul.f32 c{n}, c{n}, {change};"""


_PAIR_OF_WEIGHTS_AND_CHANGES = tl.constexpr(f"""{{
    .reg .f32 q, t, w0, w1, c0, c1;{_one_of_a_pair("$2", "$4", 0)}{_one_of_a_pair("$3", "$5", 1)}
    cvt.rn.bf16x2.f32 $0, w1, w0;
    cvt.rn.bf16x2.f32 $1, c1, c0;
}}""")
"""Two weights of tanh-gelu and two changes, of two scores and the gradients of their weights; 0.00025 is half of what
tanh.approx.f32 may err. As one piece of assembly, as other orders of the same instructions spill."""


@triton.jit
def weights_of(x, NAME: tl.constexpr, dtype: tl.constexpr):
    """act(x), rounded to dtype."""
    if NAME == "gelu_tanh" and dtype == tl.bfloat16 and not _INTERPRETED and cuda_capability_geq(9):
        return tl.inline_asm_elementwise(_PAIR_OF_WEIGHTS, "=r,f,f", [x], dtype=tl.bfloat16, is_pure=True, pack=2)
    else:
        return activated(x, NAME, dtype != tl.float32).to(dtype)


@triton.jit
def weights_and_changes(x, change, NAME: tl.constexpr, dtype: tl.constexpr):
    """act(x) and ``change`` act'(x), rounded to dtype."""
    if NAME == "gelu_tanh" and dtype == tl.bfloat16 and not _INTERPRETED:
        return tl.inline_asm_elementwise(
            _PAIR_OF_WEIGHTS_AND_CHANGES, "=r,=r,f,f,f,f", [x, change], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True,
            pack=2,
        )  # fmt: skip
    else:
        weights, slope = activated_with_slope(x, NAME, dtype != tl.float32)
        return weights.to(dtype), (change * slope).to(dtype)


@triton.jit
def activated(x, NAME: tl.constexpr, FAST: tl.constexpr):
    """act(x)."""
    if NAME == "gelu_tanh" or NAME == "silu" or (NAME == "gelu" and FAST):
        half = x * 0.5
        inside = _inside_tanh(half, NAME)
        if FAST and not _INTERPRETED:
            return half + half * _one_instruction("tanh.approx.f32", inside)
        else:
            return half * _one_plus_minus_tanh(inside)[0]
    else:
        return _value(x, NAME)


@triton.jit
def activated_with_slope(x, NAME: tl.constexpr, FAST: tl.constexpr):
    """act(x) and act'(x), from shared parts; kinks have the slopes that torch gives them."""
    if FAST and (NAME == "gelu_tanh" or NAME == "silu" or NAME == "gelu"):
        return _by_sigmoid(x, NAME)
    elif NAME == "gelu_tanh" or NAME == "silu":
        half = x * 0.5
        plus, minus = _one_plus_minus_tanh(_inside_tanh(half, NAME))
        return half * plus, _slope_by_tanh(half, plus, minus, NAME)
    else:
        return _value(x, NAME), _slope(x, NAME)


@triton.jit
def _inside_tanh(half, NAME: tl.constexpr):
    """What act(x) = half (1 + tanh(.)) takes the tanh of; half is x/2."""
    if NAME == "silu":
        return half
    elif NAME == "gelu_tanh":
        return half * (half * half * _TANH_B + _TANH_A)
    else:
        square = tl.minimum(half * half, _ERF_LIMIT)
        return half * (square * (square * _ERF_C + _ERF_B) + _ERF_A)


@triton.jit
def _by_sigmoid(x, NAME: tl.constexpr):
    """act(x) = x s and act'(x) = s + x s (1 - s) z'(x) with s = sigmoid(z(x)): tanh's forms in fewer instructions."""
    square = x * x
    if NAME == "silu":
        s = _sigmoid(x * -_LOG2_E)
        value = x * s
        return value, s + (value - value * s)
    elif NAME == "gelu_tanh":
        s = _sigmoid(x * (square * (_TANH_B * -0.25 * _LOG2_E) + _TANH_A * -_LOG2_E))
        value = x * s
        return value, s + (value - value * s) * (square * (_TANH_B * 0.75) + _TANH_A)
    else:  # the slope from the normal density in place of the fit
        half = x * 0.5
        s = _sigmoid(_inside_tanh(half, NAME) * (-2.0 * _LOG2_E))
        return x * s, s + x * (_exp2(square * (-0.5 * _LOG2_E)) * _INVERSE_SQRT_2PI)


@triton.jit
def _slope_by_tanh(half, plus, minus, NAME: tl.constexpr):
    """act'(x) where act(x) = half * plus, plus and minus are 1 ± tanh(.), and 1 - tanh² = plus * minus."""
    if NAME == "silu":
        return plus * (half * minus * 0.5 + 0.5)
    else:
        return plus * (half * minus * (half * half * (_TANH_B * 1.5) + _TANH_A * 0.5) + 0.5)


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
        return tl.where(x > 0.0, 1.0, 1.0)  # in Gluon `full` would want a layout
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
def _normal_cdf(x):
    return 0.5 + 0.5 * tl.erf(x * _INVERSE_SQRT_2)


@triton.jit
def _one_plus_minus_tanh(x):
    """1 + tanh(x) = 2 / (1 + exp(-2x)) and 1 - tanh(x), without an overflow on the way."""
    decay = tl.exp(tl.abs(x) * -2.0)
    less, more = 2.0 * decay / (1.0 + decay), 2.0 / (1.0 + decay)  # each good to its own last bits
    return tl.where(x < 0.0, less, more), tl.where(x < 0.0, more, less)


@triton.jit
def _sigmoid(x):
    """1 / (1 + 2^x), fast."""
    if _INTERPRETED:
        decay = tl.exp2(-tl.abs(x))
        return tl.where(x < 0.0, 1.0, decay) / (1.0 + decay)
    else:
        return _one_instruction("rcp.approx.ftz.f32", 1.0 + _exp2(x))


@triton.jit
def _exp2(x):
    """2^x, fast."""
    if _INTERPRETED:
        return tl.exp2(x)
    else:
        return _one_instruction("ex2.approx.ftz.f32", x)


@triton.jit
def _one_instruction(NAME: tl.constexpr, x):
    return tl.inline_asm_elementwise(NAME + " $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
