"""A model that a script holds: it is profiled where it stands, and the script goes on as if nothing had been."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

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


class Odd(nn.Module):
    """Holds what is hard to put back: buffers that come, grow, cannot be written, and a count in its state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen = nn.Linear(4, 4), 0
        for name, value in {"made": None, "grows": torch.zeros(1), "wide": torch.ones(1).expand(4)}.items():
            self.register_buffer(name, value)
        with torch.inference_mode():
            self.register_buffer("fixed", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        self.made = torch.ones(4)
        self.grows.resize_(self.grows.numel() + 1)  # type: ignore[operator, union-attr]
        self.register_buffer("more", torch.ones(1))
        out: Tensor = self.layer(x) * self.wide
        return out

    def get_extra_state(self) -> int:
        return self.seen

    def set_extra_state(self, state: int) -> None:
        self.seen = state


@pytest.mark.parametrize("mode", ["train", "infer"])
def test_what_is_hard_to_put_back_is_put_back(mode: str) -> None:
    model = Odd()
    rate = torch.tensor(0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    optimizer.param_groups[0]["steps"] = torch.tensor(0)
    optimizer.register_step_post_hook(lambda held, *_: held.param_groups[0]["steps"].add_(1))
    before = {name: value.clone() if isinstance(value, Tensor) else value for name, value in model.state_dict().items()}
    mfubench.profile(model, [(torch.ones(8, 4),)], optimizers=optimizer, steps=4, mode=mode)
    after = model.state_dict()
    assert after.keys() == before.keys() and after["_extra_state"] == 0 and model.made is None
    assert all(torch.equal(after[name], value) for name, value in before.items() if isinstance(value, Tensor))
    assert optimizer.param_groups[0]["lr"] is rate and optimizer.param_groups[0]["steps"] == 0


class Merges(nn.Module):
    """As adapters are: in evaluation its weight has another merged in."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.more, self.merged = nn.Parameter(torch.ones(4)), torch.ones(4), False

    def train(self, mode: bool = True) -> "Merges":
        super().train(mode)
        if self.merged == mode:
            self.weight.data.add_(self.more, alpha=-1.0 if mode else 1.0)
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.weight if self.merged else self.weight + self.more)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mode", ["train", "infer"])
def test_a_model_that_works_where_its_mode_changes_is_in_its_mode_again(mode: str, training: bool) -> None:
    model, x = Merges().train(training), torch.ones(2, 4)
    expected = model(x).tolist(), model.merged, model.weight.tolist()
    mfubench.profile(model, [(x,)], steps=2, mode=mode)
    assert (model(x).tolist(), model.merged, model.weight.tolist()) == expected and model.training == training


def test_an_optimizer_with_a_scheduler_is_taken() -> None:
    script = Script()
    scheduler = torch.optim.lr_scheduler.StepLR(script.optimizer, 1)
    assert script.profile().workload["mode"] == "train" and scheduler.get_last_lr() == [0.1]


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")  # as a DataLoader starts workers
def test_a_loop_over_the_loader_goes_on_within_which_it_was_profiled() -> None:
    """Also where its workers persist, whose one iterator another loop would begin anew; and in its own order."""

    def seen(at: int | None) -> list[float]:
        order = torch.Generator().manual_seed(1)
        rows = TensorDataset(torch.arange(40.0).unsqueeze(1))
        loader = DataLoader(
            rows, batch_size=8, num_workers=1, persistent_workers=True, sampler=RandomSampler(rows, generator=order)
        )
        found: list[float] = []
        for epoch in range(2):
            for index, (x,) in enumerate(loader):
                found += x[:, 0].tolist()
                if epoch == 0 and index == at:
                    mfubench.profile(nn.Linear(1, 1), loader, steps=2)
        return found

    assert seen(at=2) == seen(at=None)


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
