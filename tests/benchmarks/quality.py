"""Does every model of the zoo learn, and do its histories help it? One pass over real logs, against simple predictors.

    python tests/benchmarks/quality.py OUT [--models transformer,kunlun] [--data FOLDER] [--seeds N] [--validate]

Trains each model at size tiny on the first 80 % of a log's impressions in time, once through and in random order, and
prints the normalised entropy (NE) of the rest; 1 is what the rest's own rate gives. Beside it: the NE of the smoothed
item mean and of the running user mean (mfubench/scaling/baselines.py), and that of the model's twin, trained and
evaluated with histories permuted between samples, so that all it lacks is whose history it sees. FOLDER holds
kuairand-slice and ml-latest-small, by default $MFUBENCH_TEST_DATA. OUT/quality.json keeps every number with how it came
about. The settings below were chosen with --validate, which holds out the last tenth of the training window and never
looks at the rest. One seed is used unless more are asked for; then the mean and the range over seeds are shown. On the
KuaiRand slice NE moves by 0.003 to 0.012 from seed to seed (four models, three seeds): a smaller gain is noise.
"""

import argparse
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mfu_models import MODELS, ModelSpec
from mfu_models.batch import Batch, EventSequence
from mfu_models.output import TrainingOutput
from mfubench.data.histories import Array
from mfubench.data.kuairand import read_kuairand
from mfubench.data.logs import LogSource
from mfubench.data.movielens import read_movielens
from mfubench.measure.environment import environment
from mfubench.run import write_text
from mfubench.scaling.baselines import item_mean, running_user_mean
from mfubench.scaling.entropy import normalised_entropy
from mfubench.workload.step import make_optimizers

READERS = {"kuairand-slice": read_kuairand, "ml-latest-small": read_movielens}
SIZE = "tiny"
TRAIN_SHARE, FIT_SHARE = 0.8, 0.9


@dataclass(frozen=True)
class Settings:
    """How every model is trained: the workload's optimizers, their rates warmed up and then brought down to 0."""

    batch_size: int = 512
    dense_rate: float = 2e-3
    table_rate: float = 2e-2
    warmup: float = 0.05
    decay_from: float = 0.5


@dataclass(frozen=True)
class Trained:
    """One training run: NE by the evaluated window's own rate and by the training window's, and what it cost."""

    data: str
    model: str
    twin: bool
    seed: int
    ne: float
    ne_by_training_rate: float
    last_training_loss: float
    steps: int
    cpu_s: float


def train(spec: ModelSpec, windows: tuple[LogSource, LogSource], data: str, seed: int, twin: bool) -> Trained:
    """Train a model on the first window and evaluate it on the second, each impression of both once."""
    start, (first, second), settings = process_time(), windows, Settings()
    config = spec.config(SIZE, first.schema, {"num_candidates": 1} if spec.request_level else {})
    lengths = {sequence.name: 1 for sequence in first.schema.sequences} | spec.max_lengths(config)
    torch.manual_seed(seed)
    module = spec.build(config, "reference")
    schedule = Schedule(module, settings, -(-len(first.targets) // settings.batch_size))
    losses = []
    for batch in impressions(first, lengths, settings.batch_size, seed, twin):
        loss, auxiliary = losses_of(module(batch), batch)
        (loss + auxiliary).backward()
        schedule.step()
        losses.append(loss.item())
    module.eval()
    logits, labels = [], []
    with torch.no_grad():
        for batch in impressions(second, lengths, 2 * settings.batch_size, seed, twin):
            logits.append(module(batch).double())
            labels.append(batch.labels.double())
    p, y = torch.sigmoid(torch.cat(logits)).numpy(), torch.cat(labels).numpy()
    rate = float(first.labels(first.targets).mean())
    ends = losses[-len(losses) // 10 :]
    return Trained(
        data, spec.name, twin, seed, normalised_entropy(p, y), normalised_entropy(p, y, rate),
        sum(ends) / len(ends), len(losses), process_time() - start,
    )  # fmt: skip


def impressions(source: LogSource, lengths: dict[str, int], size: int, seed: int, twin: bool) -> Iterator[Batch]:
    """Every impression of ``source`` once, in random order; a twin's histories are those of others in its batch."""
    rng = np.random.default_rng(seed)
    rows: Array = rng.permutation(source.targets)
    for at in range(0, len(rows), size):
        batch = source.batch(rows[at : at + size], lengths)
        order = torch.from_numpy(rng.permutation(batch.num_requests))
        yield permute_histories(batch, order) if twin else batch


def permute_histories(batch: Batch, order: Tensor) -> Batch:
    """``batch`` whose request i has the histories of request ``order[i]``, in all sequences alike."""
    return replace(batch, sequences={name: permute(sequence, order) for name, sequence in batch.sequences.items()})


def permute(sequence: EventSequence, order: Tensor) -> EventSequence:
    """The rows of ``sequence`` in another order."""
    lengths = sequence.offsets.diff()[order]
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    index = torch.arange(int(offsets[-1])) + (sequence.offsets[:-1][order] - offsets[:-1]).repeat_interleave(lengths)
    parts = (sequence.item_ids[index], sequence.side_ids[index], sequence.times_ms[index])
    return EventSequence(*parts, offsets, sequence.max_length)


def losses_of(output: Tensor | TrainingOutput, batch: Batch) -> tuple[Tensor, Tensor | float]:
    """The log loss, and what the model adds to it in training."""
    logits, auxiliary = output if isinstance(output, TrainingOutput) else (output, 0.0)
    return nn.functional.binary_cross_entropy_with_logits(logits, batch.labels), auxiliary


class Schedule:
    """The optimizers of ``module`` and their learning rates over ``steps`` steps."""

    def __init__(self, module: nn.Module, settings: Settings, steps: int) -> None:
        self.optimizers, self.settings, self.steps, self.done = make_optimizers(module), settings, steps, 0

    def step(self) -> None:
        """One step of every optimizer."""
        done, s = self.done / self.steps, self.settings
        factor = min(1.0, (self.done + 1) / (s.warmup * self.steps), (1 - done) / (1 - s.decay_from))
        for optimizer in self.optimizers:
            tables = isinstance(optimizer, torch.optim.Adagrad)
            for group in optimizer.param_groups:
                group["lr"] = factor * (s.table_rate if tables else s.dense_rate)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.done += 1


def describe(windows: tuple[LogSource, LogSource]) -> dict[str, Any]:
    """What is known of two windows without a model."""
    first, second = windows
    labels = second.labels(second.targets)
    users, items = (
        np.isin(of(second), of(first), invert=True).mean()
        for of in (lambda w: w.log.users(w.targets), lambda w: w.log.items[w.targets])
    )
    return {
        "description": second.description,
        "fingerprints": [first.fingerprint, second.fingerprint],
        "impressions": [len(first.targets), len(second.targets)],
        "rates": [float(first.labels(first.targets).mean()), float(labels.mean())],
        "of_new_users": float(users),
        "of_new_items": float(items),
        "ne_item_mean": normalised_entropy(item_mean(first, second), labels),
        "ne_running_user_mean": normalised_entropy(running_user_mean(first, second), labels),
    }


def main() -> None:
    """Train all, print as results come, and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--data", type=Path, default=os.environ.get("MFUBENCH_TEST_DATA"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--validate", action="store_true")
    given = parser.parse_args()
    specs = [MODELS[name] for name in given.models.split(",")]
    given.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    document: dict[str, Any] = {
        "what": "normalised entropy of zoo models after one pass, tests/benchmarks/quality.py",
        "environment": environment(torch.device("cpu")),
        "settings": asdict(Settings())
        | {"size": SIZE, "seeds": given.seeds, "evaluated_on": "validation" if given.validate else "evaluation"},
        "data": {},
        "trained": [],
    }
    for data, read in READERS.items():
        windows = read(given.data / data).split_by_time(TRAIN_SHARE)
        windows = windows[0].split_by_time(FIT_SHARE) if given.validate else windows
        document["data"][data] = facts = describe(windows)
        print_data(data, facts)
        for spec in specs:
            runs = [train(spec, windows, data, seed, twin) for twin in (False, True) for seed in range(given.seeds)]
            document["trained"] += map(asdict, runs)
            print_model(facts, runs)
            write_text(given.out / "quality.json", json.dumps(document, indent=1) + "\n")


def print_data(data: str, facts: dict[str, Any]) -> None:
    """The head of a log's table."""
    first, second = facts["impressions"]
    print(
        f"\n{facts['description']}\n"
        f"{first} impressions to learn from, rate {facts['rates'][0]:.3f}; {second} to predict, "
        f"rate {facts['rates'][1]:.3f}, {facts['of_new_users']:.0%} by new users, {facts['of_new_items']:.0%} new items"
    )
    print(f"{'predictor':<28}{'NE':>8}{'twin NE':>10}{'gain':>9}{'CPU s':>8}")
    for name in ("item_mean", "running_user_mean"):
        print(f"{name.replace('_', ' '):<28}{facts[f'ne_{name}']:>8.4f}")


def print_model(facts: dict[str, Any], runs: list[Trained]) -> None:
    """One model's line."""
    own, twin = ([run.ne for run in runs if run.twin is which] for which in (False, True))
    mean, other = np.mean(own), np.mean(twin)
    spread = (
        f"  NE of seeds {min(own):.4f} to {max(own):.4f}, twins {min(twin):.4f} to {max(twin):.4f}"
        if len(own) > 1
        else ""
    )
    cost = max(run.cpu_s for run in runs)
    print(f"{runs[0].model:<28}{mean:>8.4f}{other:>10.4f}{other - mean:>9.4f}{cost:>8.0f}{spread}", flush=True)


if __name__ == "__main__":
    main()
