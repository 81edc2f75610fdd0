"""What "auto" means: the kernel where it is proved and made for the arguments, else the reference."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mfu_kernels import OPS, UnsupportedImpl
from mfu_kernels.limits import MAX_ROW_WIDTH

CUDA = torch.device("cuda")


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


def attention(d: int, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, ...]:
    q, offsets = torch.empty(5, 2, d, dtype=dtype), torch.tensor([0, 5])
    return q, q, q, offsets, torch.empty(5, d // 2)


@pytest.mark.usefixtures("hopper")
def test_auto_is_the_kernel_where_it_is_proved_and_made_for_the_arguments() -> None:
    window, norm = OPS["window_attention"], OPS["rms_norm"]
    assert window.choose("auto", CUDA, *attention(64)) == "triton"
    assert window.choose("auto", CUDA, *attention(64, torch.float64)) == "reference"
    assert [window.choose("auto", CUDA, *attention(d)) for d in (6, 258)] == ["reference"] * 2
    assert norm.choose("auto", CUDA, torch.empty(3, MAX_ROW_WIDTH), None) == "triton"
    assert norm.choose("auto", CUDA, torch.empty(3, MAX_ROW_WIDTH + 1), None) == "reference"
    assert replace(norm, proved_natively=False).choose("auto", CUDA, torch.empty(3, 8)) == "reference"


def test_auto_is_the_reference_on_a_cpu_and_on_old_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert OPS["rms_norm"].choose("auto", torch.device("cpu"), torch.empty(3, 8)) == "reference"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert OPS["rms_norm"].choose("auto", CUDA, torch.empty(3, 8)) == "reference"


def test_what_is_no_name_is_no_implementation() -> None:
    with pytest.raises(UnsupportedImpl, match="impl is of type NoneType; allowed: a string"):
        OPS["rms_norm"].choose(None, torch.device("cpu"), torch.empty(3, 8))  # type: ignore[arg-type]


@pytest.mark.parametrize("op", [name for name, op in OPS.items() if "triton" in op.implementations])
def test_kernels_that_are_asked_for_on_old_gpus_are_refused(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(UnsupportedImpl, match=f"^{op}: impl='triton' needs sm_80 or later; cuda is sm_75; use impl="):
        OPS[op].choose("triton", CUDA, torch.empty(3, 8))


def test_whatever_has_a_kernel_is_proved() -> None:
    assert not [op.name for op in OPS.values() if op.proved_natively != ("triton" in op.implementations)]
