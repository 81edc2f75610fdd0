"""Runs side by side: what each reached with its interval, and how the others' step times and ledgers differ.

Runs that were measured apart have an interval for the spread within each of them only: what changed on the machine in
between is in the ratio and not in its interval. Workloads that are timed in turn, as an ablation times them, have
ratios free of that.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from .errors import BadInput
from .measure.stats import median_ci, percentile_interval, resampled
from .run import Run, family_place

MEASURED_APART = (
    "The runs were measured apart: an interval covers the spread within each run, not what changed on the machine "
    "between them."
)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval; an exact one has an interval of no width."""

    value: float
    ci95_low: float
    ci95_high: float

    def scaled(self, factor: float) -> "Estimate":
        """``factor`` times this, for a factor above 0."""
        return Estimate(self.value * factor, self.ci95_low * factor, self.ci95_high * factor)


@dataclass(frozen=True, slots=True)
class Row:
    """What one Run reached, for a table of several. None is what the Run does not have.

    A sample is a request; of a model with a loader there are also the samples of steps that it ``fed``.
    """

    title: str
    time_ms: Estimate
    samples_per_s: Estimate
    fed_samples_per_s: float | None
    mfu: Estimate | None
    hfu: Estimate | None
    mfu_of_measured_peak: Estimate | None
    hfu_of_measured_peak: Estimate | None
    model_flops_per_sample: float | None
    num_params: int | None
    dense_params: int | None
    peak_bytes: int | None
    energy_j_per_sample: float | None
    energy_not_measured: str

    @classmethod
    def of(cls, run: Run) -> "Row":
        """The row of ``run``, whose throughput and utilisation have the interval of its mean step."""
        time, spread = run.step["time_ms"], mean_rate(run.step["timings_ms"])

        def scaled(value: float | None) -> Estimate | None:
            return None if value is None else spread.scaled(value)

        energy, why_not = energy_per_sample(run)
        return cls(
            title=run.title,
            time_ms=Estimate(time["median"], time["ci95_low"], time["ci95_high"]),
            samples_per_s=spread.scaled(run.step["samples_per_s"]),
            fed_samples_per_s=(run.step.get("loader") or {}).get("samples_per_s"),
            mfu=scaled(run.mfu),
            hfu=scaled(run.hfu),
            mfu_of_measured_peak=scaled(run.mfu_of_measured_peak),
            hfu_of_measured_peak=scaled(run.hfu_of_measured_peak),
            model_flops_per_sample=run.flops.get("per_request"),
            num_params=run.workload.get("num_params"),
            dense_params=run.workload.get("dense_params"),
            peak_bytes=run.memory["peak_bytes"],
            energy_j_per_sample=energy,
            energy_not_measured=why_not,
        )


@dataclass(frozen=True, slots=True)
class LedgerDifference:
    """One cause of the ledger in every Run, ms a step, and how much more each has than the baseline."""

    cause: str
    ms: list[float]
    more_ms: list[float]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs held against ``runs[baseline]``.

    ``time_ratios`` are step times over the baseline's. ``apart`` names what must agree for Runs to compare and does
    not, with each Run's value: then the numbers stand side by side and prove nothing.
    """

    baseline: int
    apart: dict[str, list[str]]
    rows: list[Row]
    time_ratios: list[Estimate]
    ledger: list[LedgerDifference]

    def to_document(self, runs: Sequence[Run]) -> dict[str, Any]:
        """Ready for JSON, with the pedigree of each of ``runs``."""
        parts = asdict(self)
        rows = [
            row
            | {"time_ratio": ratio}
            | {"workload": run.workload, "environment": run.environment, "peak": run.peak, "nvml": run.nvml}
            | {"warnings": run.warnings}
            for row, ratio, run in zip(parts.pop("rows"), parts.pop("time_ratios"), runs, strict=True)
        ]
        return {"schema_version": 1, "comparable": not self.apart, **parts, "method": MEASURED_APART, "runs": rows}


def compare(runs: Sequence[Run], *, baseline: int = 0) -> Comparison:
    """Hold ``runs`` against the one at index ``baseline``, also where ``require_comparable`` would refuse them.

    Raises:
        BadInput: a Run without usable timings.
    """
    for run in runs:
        _check_timings(run)
    before = runs[baseline].step["timings_ms"]
    return Comparison(
        baseline=baseline,
        apart=differences(runs),
        rows=[Row.of(run) for run in runs],
        time_ratios=[
            Estimate(1.0, 1.0, 1.0) if at == baseline else ratio_apart(before, run.step["timings_ms"])
            for at, run in enumerate(runs)
        ],
        ledger=_ledger(runs, baseline),
    )


def require_comparable(named: Mapping[str, Run], *, force: bool = False) -> None:
    """See to it that these Runs, by the names that the user knows, can be held against each other.

    Raises:
        BadInput: fewer than two; one Run under two names; or device, dtype, mode or data differ and ``force`` is off.
    """
    if len(named) < 2:
        raise BadInput("one run compares with nothing; give two or more different ones")
    for (first, run), (second, other) in combinations(named.items(), 2):
        if run == other:
            raise BadInput(f"{first} and {second} are the same run; give runs that were measured apart")
    apart = differences(list(named.values()))
    if apart and not force:
        listed = "; ".join(f"{key}: {', '.join(values)}" for key, values in apart.items())
        made_by = _options_apart(list(named.values())) if "data_hash" in apart else ""
        raise BadInput(
            f"the runs do not compare, as these differ: {listed}{made_by}; profile them alike, or use --force"
        )


def _options_apart(runs: Sequence[Run]) -> str:
    """Which options gave the runs other data, or what else may have."""
    options = ("data", "batch_size", "num_candidates", "seed", "size")
    values = {option: [str(run.workload.get(option)) for run in runs] for option in options}
    values["batches in turn"] = [str(run.step["num_input_sets"]) for run in runs if "num_input_sets" in run.step]
    told = [f"{option} {', '.join(found)}" for option, found in values.items() if len(set(found)) > 1]
    if not told and all(run.workload.get("size") is None for run in runs):  # models of the user's
        told = [
            "their batches have other shapes, lengths, ids or masks; --seed seeds torch, random and numpy.random alone"
        ]
    return f" ({'; '.join(told)})" if told else ""


def differences(runs: Sequence[Run]) -> dict[str, list[str]]:
    """What must agree for Runs to compare and does not, with the value of each Run."""
    values = {
        "device": [run.device for run in runs],
        "ranks": [str(run.world_size) for run in runs],
        **{key: [run.workload[key] for run in runs] for key in ("dtype", "mode", "data_hash")},
    }
    return {key: found for key, found in values.items() if len(set(found)) > 1}


def ratio_apart(before: Sequence[float], after: Sequence[float]) -> Estimate:
    """The median of ``after`` over that of ``before``, timings of two Runs; each side is resampled on its own."""
    ratio = float(np.median(after) / np.median(before))
    medians = [np.median(resampled(side, seed), axis=1) for seed, side in enumerate((before, after))]
    return Estimate(ratio, *percentile_interval(medians[1] / medians[0]))


def ratio_in_turn(before: Sequence[float], after: Sequence[float]) -> Estimate:
    """The median of the ratios ``after / before`` of rounds in which both were timed."""
    return Estimate(*median_ci(np.asarray(after, dtype=np.float64) / np.asarray(before, dtype=np.float64)))


def mean_rate(timings_ms: Sequence[float]) -> Estimate:
    """How far a rate over all of ``timings_ms`` (work over their sum) can be trusted, as a multiple of that rate."""
    means = resampled(timings_ms).mean(axis=1)
    return Estimate(1.0, *percentile_interval(float(np.mean(timings_ms)) / means))


def energy_per_sample(run: Run) -> tuple[float | None, str]:
    """Joules a sample that the driver counted beside the timed steps; or None, and why there is none."""
    if not run.nvml["available"]:
        return None, str(run.nvml.get("reason", "no reason was recorded"))
    energy = run.nvml.get("energy", {})
    joules = energy.get("joules_per_sample")
    return joules, "" if joules is not None else str(energy.get("unavailable", "the driver counts no energy"))


def _check_timings(run: Run) -> None:
    timings = run.step["timings_ms"]
    if not timings:
        raise BadInput(f"{run.title} holds no step timings; profile it again")
    wrong = [time for time in timings if type(time) not in (int, float) or not math.isfinite(time) or time <= 0]
    if wrong:
        raise BadInput(f"{run.title} holds a step time of {wrong[0]!r} ms; profile it again")


def _ledger(runs: Sequence[Run], baseline: int) -> list[LedgerDifference]:
    """Every cause that a Run has, in the ledger's order; a ledger leaves out what takes no time."""
    spent = [{line.cause: line.ms for line in run.ledger} for run in runs]
    lines = []
    for cause in sorted(dict.fromkeys(cause for own in spent for cause in own), key=family_place):
        ms = [own.get(cause, 0.0) for own in spent]
        lines.append(LedgerDifference(cause, ms, [each - ms[baseline] for each in ms]))
    return lines
