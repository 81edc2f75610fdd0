"""The contract at a call's own shapes: what is right passes, what is wrong with one config is found and named."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from mfu_kernels import layer_norm, window_attention_qkvpacked
from mfu_kernels.layer_norm import kernel as norm_kernel
from mfubench.kernels.check import CONFIGS
from mfubench.tuning import check
from mfubench.tuning.calls import Call, distinct, recording
from mfubench.tuning.check import check_call, failures

CPU = torch.device("cpu")


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(256))

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight, impl="triton")


class Askew(nn.Module):
    """Attention of one packed tensor that is a slice of a wider one."""

    def forward(self, x: Tensor) -> Tensor:
        return window_attention_qkvpacked(
            x[..., 2:18], torch.tensor([0, 2, 9]), window=2, angles=torch.randn(9, 8), max_length=7, impl="triton"
        )


def call_of(model: nn.Module, x: Tensor, *, grad: bool = True) -> Call:
    with torch.set_grad_enabled(grad), recording(model) as calls:
        model(x)
    (call,) = distinct(calls)
    return call


@pytest.mark.parametrize("grad", [True, False])
def test_kernels_that_are_right_pass_with_every_config(grad: bool) -> None:
    found = check_call(call_of(Norm(), torch.randn(6, 256).requires_grad_(), grad=grad), CPU)
    assert [case.case["config"] for case in found.cases] == list(CONFIGS) and not found.failed
    judged = {verdict.name for case in found.cases for verdict in case.verdicts}
    assert judged == ({"out", "arg0", "arg1"} if grad else {"out"})


def test_views_of_a_packed_tensor_keep_their_places_in_any_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "configs_of", lambda op: (None,))
    x = torch.randn(9, 3, 2, 20).requires_grad_()
    found = check_call(call_of(Askew(), x), CPU)
    assert found.cases and not found.failed and {v.name for v in found.cases[0].verdicts} == {"out", "packed"}


@pytest.fixture
def wrong_with_the_second_config(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    launch = norm_kernel.FORWARD.launch

    def wrong(grid: object, device: torch.device, *args: Tensor, key: object, **constants: object) -> None:
        launch(grid, device, *args, key=key, **constants)  # type: ignore[arg-type]
        if norm_kernel.FORWARD.choose(key, device) == norm_kernel.FORWARD.space(key)[1]:  # type: ignore[arg-type]
            next(arg for arg in args[1:] if isinstance(arg, Tensor) and arg.shape == args[0].shape).mul_(1.5)

    monkeypatch.setattr(norm_kernel.FORWARD, "launch", wrong)
    yield


def test_a_config_that_is_wrong_there_is_found_and_named(wrong_with_the_second_config: None) -> None:
    found = check_call(call_of(Norm(), torch.randn(6, 256).requires_grad_()), CPU)
    assert found.failed and len(found.failed) < len(found.cases)
    (why,) = failures([found]).values()
    assert (
        why.startswith("its numbers fail the contract at (model) (layer_norm), config ") and "times its budget" in why
    )
