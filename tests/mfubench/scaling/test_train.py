"""Training: the numbers of the report, the order of its losses, what it counts, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mfu_models import model_spec
from mfubench.errors import BadInput
from mfubench.scaling.entropy import entropy
from mfubench.scaling.train import Settings, train
from mfubench.scaling.windows import open_windows, sampled
from mfubench.workload.spec import Workload, WorkloadSpec
from mfubench.workload.step import update

SPEC = WorkloadSpec("dlrm", size="tiny", device="cpu", dtype="fp32", impl="reference")
REPORTED = Path(__file__).parents[3] / "reports" / "cpu" / "quality"


@pytest.mark.parametrize(
    ("model", "data", "samples", "steps", "predicted"),
    [
        ("dlrm", "kuairand:kuairand-slice", 33_462, 66, 8_366),
        ("amortized_history", "movielens:ml-latest-small", 80_669, 158, 20_168),
    ],
)
def test_it_gives_what_the_report_has(
    model: str, data: str, samples: int, steps: int, predicted: int, test_data: Path
) -> None:
    """At size tiny, seed 0, all of a log: where a model or its data change, so must the report.

    The one pools all histories of the KuaiRand slice, the other reads only what users of MovieLens were shown.
    """
    kind, _, folder = data.partition(":")
    wanted = {"data": folder, "model": model, "twin": False, "seed": 0}
    (reported,) = (row for row in _reported() if wanted.items() <= row.items())
    found = train(replace(SPEC, model=model), open_windows(f"{kind}:{test_data / folder}"))
    assert found.ne == pytest.approx(reported["ne"], abs=1e-3)
    assert found.samples == samples and found.steps == steps and found.losses.shape == (predicted,)


def test_the_reports_tables_are_its_numbers() -> None:
    """A table would be left as it was when its numbers are measured anew."""
    named = {"## KuaiRand": "kuairand-slice", "## MovieLens": "ml-latest-small"}
    shown: dict[str, list[tuple[str, ...]]] = {}
    for line in (REPORTED / "report.md").read_text().splitlines():
        if line.startswith("## "):
            (rows,) = (shown.setdefault(data, []) for head, data in named.items() if line.startswith(head))
        elif line.startswith("| ") and not line.startswith("| model"):
            rows.append(tuple(cell.strip() for cell in line.strip("|").split("|")))
    for data, rows in shown.items():
        ne = {(row["model"], row["twin"]): row["ne"] for row in _reported() if row["data"] == data}
        order = sorted((model for model, twin in ne if not twin), key=lambda model: ne[model, False])
        pairs = [(model, ne[model, False], ne[model, True]) for model in order]
        assert rows == [(model, f"{own:.4f}", f"{twin:.4f}", f"{twin - own:+.4f}") for model, own, twin in pairs]
    assert set(shown) == set(named.values())


def _reported() -> list[dict[str, Any]]:
    """Both parts of the report, a row for each training run."""
    parts = [json.loads((REPORTED / f"{part}.json").read_text()) for part in ("first", "second")]
    return [row for part in parts for row in part["trained"]]


def test_dense_rates_grow_with_the_root_of_the_batch(log: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[int, list[float]] = {32: [], 128: []}
    for batch_size, rates in seen.items():

        def noted(workload: Workload, rates: list[float] = rates) -> None:
            rates.append(workload.optimizers[0].param_groups[0]["lr"])
            update(workload)

        monkeypatch.setattr("mfubench.scaling.train.update", noted)
        train(SPEC, open_windows(log), Settings(batch_size=batch_size, samples=1024))
    assert max(seen[32]) == pytest.approx(4e-3 / 4) and max(seen[128]) == pytest.approx(4e-3 / 2)


def test_losses_are_in_the_windows_order_and_make_the_ne(log: str) -> None:
    first, second = open_windows(log)
    found = train(SPEC, (first, second), Settings(batch_size=32))
    labels = second.labels(second.targets)
    assert found.losses.dtype == np.float32
    assert found.losses.mean(dtype=np.float64) / entropy(labels.mean()) == pytest.approx(found.ne, rel=1e-6)
    every_other = replace(second, targets=second.targets[::2])  # in other batches
    other = train(SPEC, (first, every_other), Settings(batch_size=32))
    assert other.losses == pytest.approx(found.losses[::2], rel=1e-4)


def test_flops_are_the_closed_form_of_what_it_saw(log: str) -> None:
    first, second = open_windows(log)
    found = train(SPEC, (first, second), Settings(batch_size=64, samples=150))
    assert (found.samples, found.steps) == (150, 3)
    seen = sampled(first, SPEC.seed, 150)
    spec = model_spec("dlrm")
    config = spec.config("tiny", first.schema)
    lengths = {sequence.name: 1 for sequence in first.schema.sequences} | spec.max_lengths(config)
    assert found.flops == spec.model_flops(config, seen.batch(seen.targets, lengths).lengths()).total
    assert found.seconds > 0 and found.loading_seconds > 0


def test_the_same_seed_gives_the_same_and_another_one_does_not(log: str) -> None:
    windows = open_windows(log)
    first, again, other = (train(replace(SPEC, seed=seed), windows, Settings(batch_size=64)) for seed in (0, 0, 1))
    assert first.facts()["ne"] == again.facts()["ne"] != other.facts()["ne"]
    assert "losses" not in first.facts()


@pytest.mark.parametrize("model", ["ligr", "kunlun"])
def test_models_of_requests_and_with_histories_train_too(model: str, log: str) -> None:
    found = train(replace(SPEC, model=model), open_windows(log, 64), Settings(batch_size=32, samples=64))
    assert found.losses.shape == (64,) and np.isfinite(found.ne)


def test_a_loss_that_is_no_number_ends_it(log: str) -> None:
    with pytest.raises(BadInput, match="the training loss is no number after"):
        train(SPEC, open_windows(log), Settings(batch_size=64, dense_rate=1e30))


def test_impressions_to_predict_are_the_same_for_all_and_drawn_once(log: str) -> None:
    _, whole = open_windows(log)
    _, part = open_windows(log, 50)
    assert len(part.targets) == 50 and np.isin(part.targets, whole.targets).all()
    assert (part.targets == open_windows(log, 50)[1].targets).all() and (np.diff(part.targets) > 0).all()
    assert part.fingerprint != whole.fingerprint
    assert len(open_windows(log, 10**6)[1].targets) == len(whole.targets)
