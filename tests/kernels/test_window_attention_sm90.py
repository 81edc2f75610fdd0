"""Window attention's backward for Hopper: its numbers, emulated; which inputs it takes; code that does not spill."""

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from mfu_kernels.examples import Inputs
from mfu_kernels.jagged import from_padded, to_padded
from mfu_kernels.rotary_time.reference import rotary_time_reference
from mfu_kernels.window_attention import kernel_bwd
from mfu_kernels.window_attention.cost import window_attention_cost
from mfu_kernels.window_attention.examples import EXAMPLES
from mfu_kernels.window_attention.kernel_bwd import DKV, backward
from mfu_kernels.window_attention.kernel_sm90 import fits
from mfu_kernels.window_attention.reference import kept, window_attention_reference
from tests.kernels.gluon import contract
from tests.kernels.gluon.compiled import GOOD, compiled

LAUNCH = """
def launch(offsets, d, window, causal, turned):
    from mfu_kernels import window_attention_qkvpacked
    qkv = torch.empty(1000, 3, 2, d, dtype=torch.bfloat16, device="meta", requires_grad=True)
    angles = torch.empty(1000, d // 2, device="meta") if turned else None
    others = {"window": window, "causal": causal, "angles": angles, "max_length": 700, "impl": "triton"}
    out = window_attention_qkvpacked(qkv, offsets, **others)
    out.backward(torch.empty_like(out))
"""
LOG2E = 1.4426950408889634
LENGTHS = ((5, 0, 70, 1), (63, 65, 0), (0, 330), (0, 0))
WINDOWS = {  # by head dimension, and whether causal: what reaches as many blocks as the form takes
    (64, False): (50, 100, 128),
    (64, True): (65, 192, 256),
    (128, False): (3, 64),
    (128, True): (64, 128),
}


def levels_of(q: Tensor, k: Tensor, offsets: Tensor, window: int, causal: bool, max_length: int) -> Tensor:
    """[1, H, T] what forward saves: log2 of each query's sum of weights."""
    queries, keys = (to_padded(x.float(), offsets, max_length).transpose(1, 2) for x in (q, k))
    lengths = offsets.diff()
    inside = torch.arange(max_length) < lengths[:, None]
    seen = kept(max_length, window, causal, q.device) & inside[:, None, None, :]
    scores = (queries @ keys.mT * q.shape[2] ** -0.5).masked_fill(~seen, torch.finfo(torch.float32).min)
    levels = LOG2E * torch.logsumexp(scores, -1, keepdim=True).transpose(1, 2)
    return from_padded(levels, offsets, q.shape[0]).permute(2, 1, 0).contiguous()


def run(inputs: Inputs, weights: Tensor) -> dict[str, Tensor]:
    """Gradients by the form, of what forward would have saved."""
    (q, k, v), others = inputs.tensors.values(), inputs.others
    mask = {name: others[name] for name in ("window", "causal", "max_length")}
    angles, offsets, turns = others.get("angles"), others["offsets"], None
    if angles is not None:
        q, k = (rotary_time_reference(x.float(), angles).to(x.dtype) for x in (q, k))
        turns = torch.cat((angles.cos(), -angles.sin()), 1).half()[:, None]
    scale = q.shape[2] ** -0.5
    out = window_attention_reference(q.float(), k.float(), v.float(), offsets, None, scale=scale, **mask)
    levels = levels_of(q, k, offsets, **mask)
    grads = backward(
        weights, q, k, v, offsets, out.to(q.dtype), levels, turns, mask["window"], mask["causal"], scale,
        mask["max_length"], True, True, True,
    )  # fmt: skip
    return dict(zip("qkv", grads.unbind(1), strict=True))


def cases() -> list[dict[str, Any]]:
    """All pairs of factors for each head dimension, causal or not."""
    found = []
    for (d, causal), windows in WINDOWS.items():
        own = {"d": (d,), "causal": (causal,), "window": windows, "lengths": LENGTHS}
        # Slack, so that a window is not cut to the longest row, and then another kernel's.
        found += contract.cases(EXAMPLES, 4, **own, angles=(False, True), std=(1.0, 11.0), slack=(130,), heads=(1, 2))
    return found


@pytest.mark.parametrize("case", cases(), ids=str)
def test_its_numbers(case: Mapping[str, Any]) -> None:
    contract.check(EXAMPLES, case, DKV, "WALKERS", run)


def tensors(d: int = 64, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    q, k, v = torch.empty(5, 3, 4, d, dtype=dtype).unbind(1)
    return {"grad": torch.empty(5, 4, d, dtype=dtype), "q": q, "k": k, "v": v}


def test_it_takes_windows_whose_blocks_it_can_hold() -> None:
    ways = itertools.product((1, 64, 65, 100, 128, 129, 192, 256, 257), (False, True))
    taken = {
        d: {
            (window, causal)
            for window, causal in ways
            if fits(**tensors(d), behind=window, ahead=0 if causal else window)
        }
        for d, ways in {64: list(ways), 128: [(1, True), (64, False), (65, False), (128, True), (129, True)]}.items()
    }
    assert taken[128] == {(1, True), (64, False), (128, True)}
    both_ways, one_way = {(w, False) for w in (1, 64, 65, 100, 128)}, {(w, True) for w in (65, 100, 128, 129, 192, 256)}
    assert taken[64] == both_ways | one_way


@pytest.mark.parametrize(
    "changed",
    [
        tensors(dtype=torch.float32),
        tensors(d=96),
        {"grad": torch.empty(5 * 256 + 1, dtype=torch.bfloat16)[1:].view(5, 4, 64)},
        {"q": torch.empty(5, 260, dtype=torch.bfloat16)[:, :256].unflatten(1, (4, 64))},
        {"k": torch.empty(4, 5, 64, dtype=torch.bfloat16).transpose(0, 1)},
        {"v": torch.empty(1, 4, 64, dtype=torch.bfloat16).expand(5, -1, -1)},
    ],
    ids=["fp32", "d", "unaligned", "odd stride", "heads outside", "shared by tokens"],
)
def test_what_tma_or_registers_cannot_hold_is_not_for_it(changed: dict[str, Tensor]) -> None:
    assert not fits(**{**tensors(), **changed}, behind=100, ahead=100)


def backward_on(target: str, *cases: tuple[int, int, bool, bool]) -> list[dict[str, Any]]:
    """What backward would launch on ``target``, walking where it can."""
    found = compiled(target, LAUNCH, cases, form="WALKERS")
    return [launch for launch in found if launch["kernel"].startswith("window_attention_d")]


def test_it_does_alone_what_two_kernels_do_where_it_takes_the_window() -> None:
    *alone, dq, dkv = backward_on("sm_90", (64, 50, False, True), (128, 128, True, False), (64, 700, True, False))
    told = [(launch["kernel"], launch["config"]["WALKERS"], {**launch["code"], "spills": 0}) for launch in alone]
    assert told == [("window_attention_dkv_kernel", walkers, GOOD) for walkers in (2, 1)]
    assert all(launch["code"]["spills"] < 100 for launch in alone)  # some versions spill an address or two
    assert "WALKERS" not in dq["config"] | dkv["config"]


def test_other_targets_take_the_plain_kernels() -> None:
    dq, dkv = backward_on("sm_80", (64, 50, False, False))
    assert "WALKERS" not in dq["config"] | dkv["config"]


@pytest.mark.parametrize(("walks", "repeated"), [(True, 1), (False, 3)])
def test_cost_counts_what_the_form_makes_again(monkeypatch: pytest.MonkeyPatch, walks: bool, repeated: int) -> None:
    monkeypatch.setattr(kernel_bwd, "_walks", lambda key, device: walks)
    q = torch.empty(9, 2, 64, dtype=torch.bfloat16, requires_grad=True)
    options: dict[str, Any] = {"window": 3, "causal": False, "scale": 1.0, "max_length": 5}
    cost = window_attention_cost(q, q, q, torch.tensor([0, 4, 9]), None, impl="triton", **options)
    assert cost.bwd.recomputed * 4 == cost.bwd.model * repeated
    assert cost.bwd.hardware == cost.bwd.model + cost.bwd.recomputed
