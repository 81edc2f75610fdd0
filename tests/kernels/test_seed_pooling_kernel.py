"""The kernel of `seed_pooling` beyond its numeric contract: the library boundary, which gradients, what is refused."""

import itertools

import pytest
import torch
from torch import Tensor, library

from mfu_kernels import InvalidArgument, UnsupportedImpl, rotary_time, seed_pooling, seed_pooling_kvpacked
from tests.kernels.running import COMPILES, DEVICE, RUNS_KERNELS, draw, in_pairs, output_and_gradients

pytestmark = RUNS_KERNELS
LIBRARY = torch.ops.mfubench
LENGTHS = (3, 0, 5)
OFFSETS = torch.tensor([0, 3, 3, 8], device=DEVICE)


def arguments(num_seeds: int = 3, width: int = 12) -> dict[str, Tensor]:
    """Seeds of two heads, and the keys and values of three rows, the middle one empty."""
    return {"seeds": draw(num_seeds, 2, width), "k": draw(8, 2, width), "v": draw(8, 2, width).flip(0)}


@pytest.mark.parametrize("angles", [None, draw(8, 6)], ids=["plain", "rotated"])
def test_library_operators_are_what_they_say(angles: Tensor | None) -> None:
    seeds, k, v = arguments().values()
    for saves in (True, False):
        call = (seeds, k, v, angles, OFFSETS, 0.3, 5, saves)
        library.opcheck(LIBRARY.seed_pooling_fwd, call)
    out, softmax, _ = LIBRARY.seed_pooling_fwd(*call)
    for needs in in_pairs(*((True, False),) * 3):
        library.opcheck(
            LIBRARY.seed_pooling_bwd,
            (torch.ones_like(out), seeds, k, v, angles, OFFSETS, out, softmax, 0.3, list(needs)),
        )


def test_keys_and_values_packed_and_apart_are_the_same() -> None:
    seeds, k, v = arguments(num_seeds=40).values()
    for angles in (None, draw(8, 6)):
        others = {"offsets": OFFSETS, "angles": angles, "impl": "triton"}
        apart = output_and_gradients(seed_pooling, {"seeds": seeds, "k": k, "v": v}, **others)
        for needed in ((True, True), (True, False), (False, True)):
            packed = {"seeds": seeds, "kv": torch.stack((k, v), dim=1)}
            found = output_and_gradients(seed_pooling_kvpacked, packed, needed, **others)
            assert torch.equal(found["out"], apart["out"])
            assert (found["kv"] is None, found["seeds"] is None) == (not needed[1], not needed[0])
            if needed[1]:
                assert found["kv"].is_contiguous()
                assert torch.equal(found["kv"], torch.stack((apart["k"], apart["v"]), dim=1))


def test_rotating_inside_is_rotating_before() -> None:
    tensors, angles = arguments(num_seeds=40), draw(8, 6)
    inside = output_and_gradients(seed_pooling, tensors, offsets=OFFSETS, angles=angles, impl="triton")

    def before(seeds: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return seed_pooling(seeds, rotary_time(k, angles, impl="triton"), v, OFFSETS, impl="triton")

    torch.testing.assert_close(inside, output_and_gradients(before, tensors))


def test_values_that_are_the_keys_are_not_turned() -> None:
    seeds, events, _ = arguments().values()
    others = {"offsets": OFFSETS, "angles": draw(8, 6)}
    turned, expected = (seed_pooling(seeds, events, events, **others, impl=impl) for impl in ("triton", "reference"))
    torch.testing.assert_close(turned, expected)


def test_a_row_of_one_event_passes_no_gradient_to_scores() -> None:
    tensors = {name: tensor[:1] for name, tensor in arguments().items() if name != "seeds"} | {"seeds": draw(3, 2, 12)}
    tensors = {name: tensors[name] for name in ("seeds", "k", "v")}
    found = output_and_gradients(seed_pooling, tensors, offsets=OFFSETS.new_tensor([0, 0, 1]), impl="triton")
    for name in ("seeds", "k"):
        torch.testing.assert_close(found[name], torch.zeros_like(tensors[name]), atol=2e-6, rtol=0.0)


@COMPILES
def test_compiled_in_one_graph_equals_eager() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(seed_pooling, fullgraph=True, backend="aot_eager")
    tensors, others = arguments(), {"offsets": OFFSETS, "angles": draw(8, 6), "max_length": 5, "impl": "triton"}
    actual = output_and_gradients(compiled, tensors, **others)
    for name, expected in output_and_gradients(seed_pooling, tensors, **others).items():
        assert torch.equal(actual[name], expected), name


def test_the_gradients_that_are_needed_and_no_others() -> None:
    tensors = arguments(num_seeds=40)  # two blocks of seeds in fp32
    for needed in itertools.product((False, True), repeat=3):
        actual, expected = (
            output_and_gradients(seed_pooling, tensors, needed, offsets=OFFSETS, impl=impl)
            for impl in ("triton", "reference")
        )
        torch.testing.assert_close(actual, expected, msg=lambda m, needed=needed: f"{needed}: {m}")


def test_a_larger_max_length_changes_nothing_beyond_rounding() -> None:
    tensors = arguments()
    actual, expected = (
        output_and_gradients(seed_pooling, tensors, offsets=OFFSETS, max_length=longest, impl="triton")
        for longest in (1000, max(LENGTHS))
    )
    torch.testing.assert_close(actual, expected)


def test_heads_before_events_in_memory_give_the_same() -> None:
    tensors = arguments()
    strided = {name: tensor.transpose(0, 1).contiguous().transpose(0, 1) for name, tensor in tensors.items()}
    expected = output_and_gradients(seed_pooling, tensors, offsets=OFFSETS, impl="triton")
    for name, actual in output_and_gradients(seed_pooling, strided, offsets=OFFSETS, impl="triton").items():
        assert torch.equal(actual, expected[name]), name


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"k": torch.zeros(8, 3, 12, device=DEVICE)}, InvalidArgument),
        ({"offsets": torch.tensor([0, 3, 9], device=DEVICE)}, InvalidArgument),
        ({"max_length": 0}, InvalidArgument),
        ({"angles": torch.zeros(8, 5, device=DEVICE)}, InvalidArgument),
        ({"angles": torch.zeros(8, 6, device=DEVICE).double()}, UnsupportedImpl),
        ({name: torch.zeros(8, 2, 512, device=DEVICE) for name in ("seeds", "k", "v")}, InvalidArgument),
        ({name: torch.zeros(8, 2, 12, device=DEVICE).double() for name in ("seeds", "k", "v")}, UnsupportedImpl),
    ],
    ids=["heads", "offsets", "max_length", "pairs", "angles", "width", "dtype"],
)
def test_what_does_not_fit_is_refused_before_a_launch(
    change: dict[str, Tensor | int], error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mfu_kernels.launching.Kernel.launch", lambda *_, **__: pytest.fail("launched"))
    with pytest.raises(error):
        seed_pooling(**({**arguments(), "offsets": OFFSETS} | change), impl="triton")
