"""Window attention's forward for Hopper: its numbers, emulated; which inputs it takes; code that does not spill."""

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from mfu_kernels.examples import Inputs
from mfu_kernels.rotary_time.reference import rotary_time_reference
from mfu_kernels.window_attention import kernel
from mfu_kernels.window_attention.examples import EXAMPLES
from mfu_kernels.window_attention.kernel import FORWARD, forward
from mfu_kernels.window_attention.kernel_fwd_sm90 import fits
from mfu_kernels.window_attention.reference import window_attention_reference
from tests.kernels.gluon import contract
from tests.kernels.gluon.compiled import GOOD, compiled
from tests.kernels.gluon.running import emulated

LAUNCH = """
def launch(offsets, d, window, causal, turned):
    from mfu_kernels import window_attention_qkvpacked
    qkv = torch.empty(1000, 3, 2, d, dtype=torch.bfloat16, device="meta")
    angles = torch.empty(1000, d // 2, device="meta") if turned else None
    others = {"window": window, "causal": causal, "angles": angles, "max_length": 700, "impl": "triton"}
    window_attention_qkvpacked(qkv, offsets, **others)
"""
LENGTHS = ((5, 0, 70, 1), (63, 65, 0, 64), (0, 330), (0, 0), (129, 0, 7, 128, 1))
WINDOWS = {(64, False): (0, 3, 50, 100), (64, True): (0, 64, 200), (128, False): (0, 50), (128, True): (1, 100, 128)}
"""By head dimension, and whether causal."""


def turn(out: Tensor, x: Tensor, angles: Tensor, back: bool) -> None:
    """What a kernel of another op does."""
    out.copy_(rotary_time_reference(x.float(), -angles if back else angles))


def run(inputs: Inputs, weights: Tensor) -> dict[str, Tensor]:
    (q, k, v), others = inputs.tensors.values(), inputs.others
    mask = (others["window"], others["causal"], q.shape[2] ** -0.5, others["max_length"])
    out, levels, turned, _ = forward(q, k, v, others["offsets"], others.get("angles"), *mask)
    assert levels.isfinite().all() and turned.isfinite().all()
    return {"out": out}


def cases() -> list[dict[str, Any]]:
    """All pairs of factors for each head dimension, causal or not."""
    found = []
    for (d, causal), windows in WINDOWS.items():
        own = {"d": (d,), "causal": (causal,), "window": windows, "lengths": LENGTHS}
        # Slack, so that a window is not cut to the longest row, and then another one.
        found += contract.cases(EXAMPLES, 2, **own, angles=(False, True), std=(1.0, 11.0), slack=(200,), heads=(1, 2))
    return found


@pytest.mark.parametrize("case", cases(), ids=str)
def test_its_numbers(case: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "rotate_into", turn)
    contract.check(EXAMPLES, case, FORWARD, "READERS", run)


@pytest.mark.parametrize("seed", range(4))
def test_rows_of_few_tiles(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where queries see little, a reader may be far ahead of the others."""
    monkeypatch.setattr(kernel, "rotate_into", turn)
    lengths = ((1,) * 20, (0, 64, 1, 1, 65, 1, 0, 1, 130, 1), (64,) * 9 + (65,), (1, 300, 1, 1, 200))[seed]
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    q, k, v = torch.randn(sum(lengths), 3, 2, 64, generator=torch.Generator().manual_seed(seed)).bfloat16().unbind(1)
    with emulated(FORWARD, "READERS", seed, choice=1) as taken:
        out, *_ = forward(q, k, v, offsets, None, 64 * (seed % 2), False, 0.125, 300)
    assert taken[0].kwargs["READERS"] == 3
    mask = {"window": 64 * (seed % 2), "causal": False, "scale": 0.125, "max_length": 300}
    exact = window_attention_reference(q.float(), k.float(), v.float(), offsets, None, **mask)
    torch.testing.assert_close(out.float(), exact, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("heads", [1, 2])
def test_what_backward_needs_is_what_it_used(heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Levels and the output follow from the q and k that it wrote; those are the given ones, turned."""
    monkeypatch.setattr(kernel, "rotate_into", turn)
    generator = torch.Generator().manual_seed(3)
    q, k, v = torch.randn(200, 3, heads, 64, generator=generator).bfloat16().unbind(1)
    angles, offsets = 30 * torch.randn(200, 32, generator=generator), torch.tensor([0, 129, 129, 200])
    mask = (50, False, 0.125, 200)
    with emulated(FORWARD, "READERS"):
        out, levels, turned, turns = forward(q, k, v, offsets, angles, *mask)
        own_q, own_k = turned.unbind(1)
        again, same_levels, *_ = forward(own_q, own_k, v, offsets, None, *mask)
    assert torch.equal(out, again) and torch.equal(levels, same_levels)
    for x, own in ((q, own_q), (k, own_k)):
        torch.testing.assert_close(own, rotary_time_reference(x, angles), rtol=2**-7, atol=2**-7)
    torch.testing.assert_close(turns[:, 0], torch.cat((angles.cos(), -angles.sin()), 1).half())


@pytest.mark.parametrize("turned", [False, True])
def test_a_row_after_one_may_hold_nan(turned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "rotate_into", turn)
    q, k, v = torch.randn(150, 3, 2, 64).bfloat16().unbind(1)
    for x in (q, k, v):
        x[70:] = float("nan")
    angles = torch.randn(150, 32) if turned else None
    with emulated(FORWARD, "READERS"):
        out, levels, *_ = forward(q, k, v, torch.tensor([0, 70, 150]), angles, 100, False, 0.125, 150)
    assert out[:70].isfinite().all() and levels[:, :, :70].isfinite().all()
    assert out[70:].isnan().all()


def tensors(d: int = 64, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    return dict(zip("qkv", torch.empty(5, 3, 4, d, dtype=dtype).unbind(1), strict=True))


def test_it_takes_windows_whose_tiles_shared_memory_holds() -> None:
    ways = list(itertools.product((0, 64, 128, 192, 512, 513), (False, True)))
    taken = {
        d: {(w, causal) for w, causal in ways if fits(**tensors(d), behind=w, ahead=0 if causal else w)}
        for d in (64, 128)
    }
    assert taken[128] == {(0, False), (0, True), (64, False), (64, True), (128, True)}
    assert taken[64] == set(ways) - {(512, False), (513, False), (513, True)}


@pytest.mark.parametrize(
    "changed",
    [
        tensors(dtype=torch.float32),
        tensors(d=96),
        {"q": torch.empty(5 * 256 + 1, dtype=torch.bfloat16)[1:].view(5, 4, 64)},
        {"k": torch.empty(4, 5, 64, dtype=torch.bfloat16).transpose(0, 1)},
        {"v": torch.empty(1, 4, 64, dtype=torch.bfloat16).expand(5, -1, -1)},
    ],
    ids=["fp32", "d", "unaligned", "heads outside", "shared by tokens"],
)
def test_what_tma_or_registers_cannot_hold_is_not_for_it(changed: dict[str, Tensor]) -> None:
    assert not fits(**{**tensors(), **changed}, behind=100, ahead=100)


def forward_on(target: str, *cases: tuple[int, int, bool, bool]) -> list[dict[str, Any]]:
    """What forward would launch on ``target``, walking where it can."""
    return compiled(target, LAUNCH, cases, form="READERS")


def test_its_code_where_it_takes_the_window() -> None:
    *rotated, plain = forward_on("sm_90", (64, 50, False, True), (128, 128, True, False))
    assert [launch["kernel"] for launch in rotated] == ["rotary_time_kernel", "window_attention_fwd_kernel"]
    assert "READERS" in rotated[-1]["config"] and rotated[-1]["code"] == GOOD == plain["code"]


def test_other_targets_rotate_before() -> None:
    *_, rotation, attention = forward_on("sm_80", (64, 50, False, True))
    assert rotation["kernel"] == "rotary_time_kernel" and "READERS" not in attention["config"]
