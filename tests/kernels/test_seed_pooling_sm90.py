"""Seed pooling for Hopper: its numbers, emulated; which inputs it takes; that its code does not spill."""

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from mfu_kernels.examples import Draw, Inputs
from mfu_kernels.rotary_time.reference import rotary_time_reference
from mfu_kernels.seed_pooling.examples import EXAMPLES
from mfu_kernels.seed_pooling.kernel import FORWARD, forward
from mfu_kernels.seed_pooling.kernel_bwd import BACKWARD, DIVIDE, backward
from mfu_kernels.seed_pooling.kernel_bwd_sm90 import fits as fits_backward
from mfu_kernels.seed_pooling.kernel_bwd_wide_sm90 import configs as of_makers
from mfu_kernels.seed_pooling.kernel_sm90 import fits
from tests.kernels.gluon import contract
from tests.kernels.gluon.compiled import GOOD, compiled
from tests.kernels.gluon.running import emulated

LAUNCH = """
def launch(offsets, d, num_seeds, rotated):
    from mfu_kernels import seed_pooling_kvpacked
    kv = torch.empty(300_000, 2, 400, d, dtype=torch.bfloat16, device="meta", requires_grad=True)
    seeds = torch.empty(num_seeds, 400, d, dtype=torch.bfloat16, device="meta", requires_grad=True)
    angles = torch.empty(300_000, d // 2, device="meta") if rotated else None
    out = seed_pooling_kvpacked(seeds, kv, offsets, angles=angles, max_length=700, impl="triton")
    out.backward(torch.empty_like(out))
"""
LENGTHS = ((5, 0, 130, 1), (0, 64, 0, 63, 65, 0), (0, 200, 1, 129))
FACTORS: dict[str, Any] = {
    "lengths": LENGTHS,
    "seeds": (64, 128, 33, 100),
    "d": (64,),
    "angles": (False, True),
    "scale": (None, 0.3),
    "slack": (0, 30),
    "heads": (1, 2, 3),
}


def pool(inputs: Inputs, saves: bool) -> tuple[Tensor, Tensor, Tensor]:
    others = inputs.others
    scale = others["scale"] or inputs.tensors["seeds"].shape[2] ** -0.5
    return forward(
        *inputs.tensors.values(), others.get("angles"), others["offsets"], scale, others["max_length"], saves
    )


def cases() -> list[dict[str, Any]]:
    """All pairs of factors; wide heads are not rotated inside."""
    wide = {**FACTORS, "d": (128,), "angles": (False,)}
    return contract.cases(EXAMPLES, 2, **FACTORS) + contract.cases(EXAMPLES, 2, **wide)


@pytest.mark.parametrize("case", cases(), ids=str)
def test_its_numbers(case: Mapping[str, Any]) -> None:
    contract.check(EXAMPLES, case, FORWARD, "PROGRAMS", lambda inputs, _: {"out": pool(inputs, saves=True)[0]})


def softmax_of(inputs: Inputs, scale: float, turned: Tensor) -> tuple[Tensor, Tensor]:
    """What a forward gives backward: pooled rows [B, S, H, d], and [2, B, H, S] the highest scores and denominators."""
    seeds, _, v = (x.float() for x in list(inputs.tensors.values())[:3])
    offsets = inputs.others["offsets"].tolist()
    out, softmax = [], []
    for begin, end in itertools.pairwise(offsets):
        scores = torch.einsum("shd,nhd->hsn", seeds, turned[begin:end].float())
        high = scores.amax(-1) if end > begin else torch.full(scores.shape[:2], float("-inf"))
        weights = ((scores - high[..., None]) * scale).exp()
        total = weights.sum(-1)
        pooled = torch.einsum("hsn,nhd->shd", weights, v[begin:end]) / total.T[..., None].clamp_min(1e-30)
        out.append(pooled.to(inputs.tensors["v"].dtype))
        softmax.append(torch.stack([high, total]))
    return torch.stack(out), torch.stack(softmax, 1)


def divide(_grid: Any, _device: Any, *arguments: Any, **_constants: Any) -> None:
    """In place of a kernel that is no form: gradients over denominators, levels and deltas."""
    grad, out, highest, total, divided, levels, deltas, num_seeds, _, scale_log2 = arguments
    share = (grad.float().transpose(1, 2) / torch.where(total > 0, total, 1.0)[..., None]).to(divided.dtype)
    divided.zero_()[:, :, :num_seeds] = share
    levels.fill_(float("inf"))[..., :num_seeds] = highest * scale_log2
    deltas.zero_()[..., :num_seeds] = (share.float() * out.float().transpose(1, 2)).sum(-1)


def gradients(inputs: Inputs, weights: Tensor) -> dict[str, Tensor]:
    """By the form, of what forward would have saved."""
    (seeds, k, v), others = list(inputs.tensors.values())[:3], inputs.others
    scale, angles = others["scale"] or v.shape[2] ** -0.5, others.get("angles")
    turned = k if angles is None else rotary_time_reference(k.float(), angles).to(k.dtype)
    out, softmax = softmax_of(inputs, scale, turned)
    dseeds, dkv = backward(
        weights, seeds, turned, v, angles, others["offsets"], out, softmax, scale, [True, True, True]
    )
    return dict(zip(("seeds", "k", "v"), (dseeds, *dkv.unbind(1)), strict=True))


def backward_cases() -> list[tuple[str, dict[str, Any]]]:
    """Each with its form; that of makers has a config for more than 64 seeds."""
    more = {**FACTORS, "seeds": (128, 65, 100)}
    cases = {"PROGRAMS": contract.cases(EXAMPLES, 2, **FACTORS), "MAKERS": contract.cases(EXAMPLES, 1, **more)}
    return [(form, case) for form in cases for case in cases[form]]


@pytest.mark.parametrize(("form", "case"), backward_cases(), ids=str)
def test_the_numbers_of_its_backward(form: str, case: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DIVIDE, "launch", divide)
    contract.check(EXAMPLES, case, BACKWARD, form, gradients)


def rows(angles: bool, lengths: tuple[int, ...], num_seeds: int) -> Inputs:
    case = {"lengths": lengths, "seeds": num_seeds, "d": 64, "heads": 2, "angles": angles}
    return EXAMPLES.make(case, Draw(torch.bfloat16, torch.device("cpu"), seed=3))


@pytest.mark.parametrize("angles", [False, True])
@pytest.mark.parametrize("num_seeds", [64, 100])
def test_forward_leaves_what_backward_needs(angles: bool, num_seeds: int) -> None:
    inputs = rows(angles, (70, 0, 129, 64), num_seeds)
    with emulated(FORWARD, "PROGRAMS"):
        out, softmax, turned = pool(inputs, saves=True)
    k = inputs.tensors["k"]
    if angles:
        rotated = rotary_time_reference(k.float(), inputs.others["angles"]).to(k.dtype)
        torch.testing.assert_close(turned, rotated, atol=2e-2, rtol=2e-2)
        k = turned
    expected, expected_softmax = softmax_of(inputs, 64**-0.5, k)
    torch.testing.assert_close(out, expected, atol=1e-2, rtol=2e-2)
    torch.testing.assert_close(softmax, expected_softmax, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("form", BACKWARD.forms)
def test_a_row_that_is_no_number_is_nothing_to_others(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DIVIDE, "launch", divide)
    found = {}
    for value in (0.0, float("nan")):
        inputs = rows(True, (70, 60, 64, 3), 100)
        for name in ("k", "v"):
            inputs.tensors[name][70:130] = value
        inputs.others["angles"][70:130] = value
        with emulated(FORWARD, "PROGRAMS"), emulated(BACKWARD, form):
            out = pool(inputs, saves=True)[0]
            weights = torch.ones_like(out)
            weights[1] = 0
            grads = gradients(inputs, weights)
        found[value] = out[[0, 2, 3]], *(grads[name][[*range(70), *range(130, 197)]] for name in ("k", "v"))
    clean, other = found.values()
    assert all(torch.equal(x, y) for x, y in zip(clean, other, strict=True))
    assert all(x.isfinite().all() for x in other)


def tensors(num_seeds: int = 128, d: int = 64, dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    k, v = torch.empty(5, 2, 3, d, dtype=dtype).unbind(1)
    return {"seeds": torch.empty(num_seeds, 3, d, dtype=dtype), "k": k, "v": v, "angles": None}


@pytest.mark.parametrize(("num_seeds", "d"), [(128, 64), (33, 64), (64, 128)])
def test_it_takes_many_seeds_and_parts_of_a_projection(num_seeds: int, d: int) -> None:
    taken = tensors(num_seeds, d)
    assert fits(**taken, num_chunks=1)
    assert fits_backward(**taken, dkv=torch.empty(5, 2, 3, d, dtype=torch.bfloat16), needs=[True] * 3) == (d == 64)


@pytest.mark.parametrize(
    "changed",
    [
        tensors(dtype=torch.float32),
        tensors(d=96),
        tensors(num_seeds=32),
        tensors(num_seeds=130),
        {"seeds": torch.empty(128, 3, 128, dtype=torch.bfloat16)},
        {"k": torch.empty(0, 3, 64, dtype=torch.bfloat16)},
        {"k": torch.empty(5 * 192 + 1, dtype=torch.bfloat16)[1:].view(5, 3, 64)},
        {"v": torch.empty(5, 196, dtype=torch.bfloat16)[:, :192].unflatten(1, (3, 64))},
        {"angles": torch.empty(5, 32, dtype=torch.bfloat16)},
        {**tensors(d=128), "angles": torch.empty(5, 64)},
    ],
    ids=[
        "fp32",
        "d",
        "few seeds",
        "more seeds",
        "wider keys",
        "nothing",
        "unaligned",
        "odd stride",
        "angles",
        "d rotated",
    ],
)
def test_what_does_not_fit_is_not_for_it(changed: dict[str, Any]) -> None:
    assert not fits(**{**tensors(), **changed}, num_chunks=1)


def test_what_else_the_plain_kernels_do() -> None:
    assert not fits(**tensors(), num_chunks=2)
    dkv = torch.empty(5, 2, 3, 64, dtype=torch.bfloat16)
    assert not fits_backward(**tensors(), dkv=dkv, needs=[True, True, False])


def test_makers_are_for_more_than_64_seeds_and_behind_the_default() -> None:
    key = {"seeds": 128, "d": 64, "bytes": 2, "rotated": True}
    space = BACKWARD.space({**key, "warpgroups": True})
    assert BACKWARD.form_of(space[0]) == "" and space[-1:] == of_makers(key)
    assert not of_makers({**key, "seeds": 64})
    assert not any(BACKWARD.form_of(one) for one in BACKWARD.space(key))


def test_the_code_of_makers() -> None:
    found = compiled("sm_90", LAUNCH, [(64, 128, True), (64, 128, False)], form="MAKERS")
    codes = [launch["code"] for launch in found if "MAKERS" in launch["config"]]
    assert all(code["spills"] < 100 for code in codes)  # some versions spill addresses that are read once a row
    assert [{**code, "spills": 0} for code in codes] == [GOOD] * 2


def test_its_code() -> None:
    cases = [(64, 128, True), (64, 64, True), (64, 64, False), (128, 128, False), (128, 64, False)]
    found = [launch for launch in compiled("sm_90", LAUNCH, cases, form="PROGRAMS") if "PROGRAMS" in launch["config"]]
    assert [launch["kernel"] for launch in found] == [
        *("seed_pooling_fwd_kernel", "seed_pooling_bwd_kernel") * 3, *("seed_pooling_fwd_kernel",) * 2,
    ]  # fmt: skip
    # Addresses are all that the backward with 128 seeds spills, of two workers: sums would be many times that.
    assert found[1]["code"]["spills"] < 1200
    assert [{**launch["code"], "spills": 0} for launch in found[1:2]] == [GOOD]
    assert [launch["code"] for launch in found[:1] + found[2:]] == [GOOD] * 7


def test_other_targets_take_the_plain_kernels() -> None:
    found = compiled("sm_80", LAUNCH, [(64, 128, True)], form="PROGRAMS")
    assert found and not any("PROGRAMS" in launch["config"] for launch in found)
