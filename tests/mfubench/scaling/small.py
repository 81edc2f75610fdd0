"""A small log, and a worker that answers at once with a planted law."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mfubench.scaling.plan import Plan, make_plan
from mfubench.scaling.train import Settings, Trained
from mfubench.scaling.windows import open_windows
from mfubench.worker import DONE, Answer
from mfubench.workload.spec import WorkloadSpec

HEADER = "user_id,video_id,time_ms,is_click,is_follow,is_comment,is_forward,long_view,duration_ms,is_profile_enter"
T0 = 1_650_000_000_000
USERS, EVENTS = 120, 15
PEAK_TFLOPS = 2.0
FLOPS = {"tiny": 1e6, "small": 1e7, "base": 1e8}  # of training a sample, on this machine
ETAS = {"interformer": 0.010, "kunlun": 0.020}
LEVEL = 0.9  # NE in the middle


def write_log(folder: Path, users: int = USERS, clicks: Callable[[int, int], int] | None = None) -> str:
    """A log of so many users with 15 events each, as --data names it; ``clicks(user, event)`` are the labels."""
    rng = np.random.default_rng(0)
    rows = [HEADER]
    for user in range(users):
        eager = rng.beta(2, 2)
        for event in range(EVENTS):
            click = int(rng.random() < eager) if clicks is None else clicks(user, event)
            time_ms = T0 + 60_000 * (event * users + user)
            rows.append(f"{user},{rng.integers(50)},{time_ms},{click},0,0,0,{click},{rng.integers(1, 60)}000,0")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log_standard_small.csv").write_text("\n".join(rows) + "\n")
    return f"kuairand:{folder}"


def a_plan(data: str, **changes: Any) -> Plan:
    """Two models at three sizes with two seeds, unless it is changed."""
    given: dict[str, Any] = {
        "models": "interformer,kunlun",
        "sizes": "tiny,small,base",
        "settings": Settings(),
        **changes,
    }
    spec = WorkloadSpec("interformer", device="cpu", data=data)
    return make_plan(spec, given.pop("models"), given.pop("sizes"), **given)


class StandIn:
    """In a worker's place: trains in no time, so that the NE is the planted law's but for a seed's chance.

    ``befall(model, size, seed)`` may raise, or give the answer itself. ``asked`` lists what was trained.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, int]] = []
        self.befall: Callable[[str, str, int], Answer | None] = lambda model, size, seed: None
        self.peaks = 0

    def installed(self, monkeypatch: pytest.MonkeyPatch) -> "StandIn":
        """In the place of every worker of a ladder."""
        monkeypatch.setattr("mfubench.scaling.ladder.Worker", lambda device: self)
        return self

    def close(self) -> None:
        """As a worker's."""

    def run(self, work: Any, arguments: Mapping[str, Any], *, keep: Any = None, **_: Any) -> Answer:
        """As a worker's."""
        if work.__name__ == "peak_work":
            self.peaks += 1
            told = {"tflops": PEAK_TFLOPS, "dtype": "fp32", "date": "today", "how": "by hand", "busy": ""}
            return Answer(DONE, None, told)
        spec = arguments["spec"]
        place = (spec.model, spec.size, spec.seed)
        keep(("step 1 of 1", 1.0))
        if (answer := self.befall(*place)) is not None:
            return answer
        self.asked.append(place)
        return Answer(DONE, None, self._trained(spec, arguments))

    def _trained(self, spec: WorkloadSpec, arguments: Mapping[str, Any]) -> Trained:
        _, second = open_windows(spec.data, arguments["evaluated"])
        labels = second.labels(second.targets)
        rate = labels.mean()
        entropy = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
        size = str(spec.size)
        ne = LEVEL - ETAS[spec.model] * np.log(FLOPS[size] / FLOPS["small"]) + 1e-4 * (spec.seed - 0.5)
        losses = np.random.default_rng(1).gamma(4, 1, len(labels))  # the same for all: what is hard is hard for all
        losses += ne * entropy - losses.mean()
        samples = 1000
        flops = int(samples * FLOPS[size])
        return Trained(
            params=10, dense_params=5, samples=samples, steps=2, flops=flops, seconds=flops / 1e12, loading_seconds=0.1,
            evaluation_seconds=0.1, ne=float(ne), ne_by_training_rate=float(ne), last_training_loss=0.6,
            losses=losses.astype(np.float32),
        )  # fmt: skip
