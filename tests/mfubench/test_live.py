"""A model that a script holds: it is profiled where it stands, and the script goes on as if nothing had been."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mfubench
from mfubench.errors import BadInput, OutOfMemory
from mfubench.live import _name_of
from mfubench.run import read_run

pytestmark = pytest.mark.usefixtures("fixed_calibration")


class Net(nn.Module):
    """Draws random numbers in three ways, and has a buffer that counts and one that averages."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.register_buffer("steps", torch.tensor(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.steps = self.steps + 1
        noise = random.random() + np.random.default_rng(np.random.randint(1000)).random()
        return nn.functional.dropout(self.norm(self.layer(x * noise)), training=self.training)


def loss(output: Tensor, _batch: Any) -> Tensor:
    return output.square().sum()


class Script:
    """A training that is under way: it has taken a step, and a part of the next one's gradients."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        self.model = Net()
        self.model.norm.eval()  # which somebody froze
        self.rest = nn.Parameter(torch.ones(2))  # outside of the model
        self.optimizer = torch.optim.Adam([*self.model.parameters(), self.rest], lr=0.1, weight_decay=0.1)
        self.rest.grad = torch.ones(2)
        self.step()
        self.backward()

    def backward(self) -> float:
        value = loss(self.model(torch.randn(8, 4)), None)
        value.backward()
        return float(value.detach())

    def step(self) -> float:
        value = self.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return value

    def rest_of_it(self) -> list[Any]:
        losses = [self.step() for _ in range(4)]
        drawn = random.random(), np.random.random(), torch.rand(1).item()
        buffers = [buffer.tolist() for buffer in self.model.buffers()]
        return [losses, drawn, buffers, self.rest.tolist(), [module.training for module in self.model.modules()]]

    def profile(self, **options: Any) -> mfubench.run.Run:  # type: ignore[name-defined]
        return mfubench.profile(
            self.model, [(torch.ones(8, 4),)], steps=4, **{"loss": loss, "optimizers": self.optimizer} | options
        )


@pytest.mark.parametrize("mode", ["train", "infer"])
def test_the_script_goes_on_as_if_nothing_had_been(mode: str) -> None:
    script = Script()
    before = script.optimizer.state[script.model.layer.weight]["exp_avg"]
    run = script.profile(mode=mode)
    assert run.workload["mode"] == mode and run.workload["batch_size"] == 8 and len(run.step["timings_ms"]) == 4
    assert script.optimizer.state[script.model.layer.weight]["exp_avg"] is before, "others may hold it"
    assert script.rest_of_it() == Script().rest_of_it()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in script.model.modules())


def test_it_goes_on_so_where_the_profile_fails() -> None:
    def breaks(output: Tensor, _batch: Any) -> Tensor:
        if script.model.steps > 6:
            raise ValueError("no loss")
        return output.sum()

    script = Script()
    with pytest.raises(BadInput, match="the model's step failed after others did not: ValueError: no loss"):
        script.profile(loss=breaks)
    assert script.rest_of_it() == Script().rest_of_it()


def test_the_run_and_its_reports_are_kept_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told: list[str] = []
    run = Script().profile(out=tmp_path / "new", progress=lambda stage, done: told.append(stage))
    assert read_run(tmp_path / "new") == run and (tmp_path / "new" / "report.html").exists() and "tracing" in told
    assert run.workload["model"] == "tests.mfubench.test_live:Net"
    assert str(run.environment["command"]).startswith("mfubench.profile in ")
    assert repr(run).startswith("<Run of tests.mfubench.test_live:Net train fp32: ") and repr(run).endswith(
        " ms a step>"
    )
    mfubench.show(run)
    assert "MFU loss ledger" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch")  # of its own parts
def test_a_wrapped_model_has_its_own_name() -> None:
    model = nn.parallel.DataParallel(Net())
    for wrapped in (model, torch.compile(model), torch.compile(Net())):
        assert _name_of(wrapped) == "tests.mfubench.test_live:Net"


def test_without_an_optimizer_it_trains_with_the_default_one() -> None:
    """As a build() that leaves it out; the model is left as it was all the same."""
    script = Script()
    assert "(optimizer)" in {row.name for row in script.profile(optimizers=None).modules}
    assert script.rest_of_it() == Script().rest_of_it()


def _elsewhere() -> Any:
    model = Net()
    model.norm.to("meta")
    return model, [(torch.ones(8, 4),)], {}


REFUSED: dict[str, tuple[Callable[[], tuple[Any, Any, dict[str, Any]]], str]] = {
    "no model": (lambda: ("kunlun", [], {}), "the model is a str; allowed: a torch.nn.Module"),
    "two devices": (_elsewhere, "the model is on cpu, meta; it must be on one device"),
    "a batch": (lambda: (Net(), (torch.ones(8, 4),), {}), "an iterable of batches, such as .batch."),
    "no optimizer": (lambda: (Net(), [], {"optimizers": "adam"}), "optimizers is a str; allowed: a torch optimizer"),
    "no loss": (lambda: (Net(), [], {"loss": 3}), r"loss is an int; it must be callable as loss\(output, batch\)"),
    "another's folder": (lambda: (Net(), [], {"out": "swept"}), "swept has what `mfubench sweep` left"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_profiled_is_refused(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "swept").mkdir()
    (tmp_path / "swept" / "sweep.json").touch()
    monkeypatch.chdir(tmp_path)
    made, message = REFUSED[case]
    model, batches, options = made()
    with pytest.raises(BadInput, match=message):
        mfubench.profile(model, batches, **options)


def test_a_host_without_room_for_the_copies_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """20 numbers of the layer, 8 of the norm and 2 beside them, each with Adam's two and, of its tensor, a count."""
    monkeypatch.setattr("mfubench.live.free_host_memory", lambda: 4 * (30 * 3 + 5) - 1)
    with pytest.raises(OutOfMemory, match="copies of the model and its optimizers need"):
        Script().profile()
    assert Script().profile(mode="infer").workload["mode"] == "infer", "whose parameters no step changes"


def test_what_scripts_call_is_listed_and_nothing_else() -> None:
    assert all(callable(getattr(mfubench, name)) for name in mfubench.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'profil'"):
        mfubench.profil  # noqa: B018
