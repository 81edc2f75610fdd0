"""What a scaling ladder found, as one document, from which every report of it is made."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import log10
from statistics import fmean
from typing import Any

import numpy as np

from mfubench.measure.environment import command_line
from mfubench.measure.stats import RESAMPLES

from .fit import Interval, Law, Points, document_of, efficiency, fit_law, lead, resample
from .ladder import NOT_REACHED, Ladder
from .names import DEVICE_TIME, FLOPS, LEAST_POINTS
from .plan import LEAST_SIZES, Plan, Training
from .train import Trained
from .windows import EVALUATED_SEED, TRAIN_SHARE

SCHEMA_VERSION = 1
LEAST_DECADES = 1.5  # of compute that a law should span, research's advice for such fits
LEAST_USERS = 100
MOST_APART = 1.5  # of the seconds that seeds take
LEAST_STEPS = 50  # the settings were chosen where a training has 59
METHOD = (
    f"Each model learns once, in random order, from the first {TRAIN_SHARE:.0%} of the log's impressions in time (or "
    "from as many of them as were asked for) and predicts later ones, the same for all. NE is their log loss over the "
    "entropy of their own rate; 1 is what that rate gives, lower is better. The law NE(C) = a - eta ln(C / C0) is "
    "fitted by ordinary least squares to each size's mean over seeds, C0 being the geometric mean of the model's "
    "points. C is the training of one sample: in model FLOPs at true lengths, or in device seconds times the measured "
    "GEMM peak, which also counts what the device wastes. Seconds are those of the steps alone, data made before. "
    "Scaling efficiency is a model's eta over the baseline's. At equal compute, in the middle of what the sizes of "
    "both cover, the lead is how much lower its NE is than the baseline's. Intervals are the middle 95 % of "
    f"{RESAMPLES} resamples of users, shared by all points, and of seeds, whose spread is taken from all points "
    "together. No interval knows the noise of the seconds, the choice of the log, or whether the law holds: the "
    "residual and r2 speak of that. The predictors know what seed 0 of the models learnt from."
)


@dataclass(frozen=True, slots=True)
class _Point:
    """A size of a model, and what its seeds gave: in the order of the seeds, those that are done."""

    model: str
    size: str
    done: dict[Training, Trained]
    lacking: dict[Training, tuple[str, str]]

    def mean(self, name: str) -> float:
        """Of a number that every training has."""
        return fmean(getattr(found, name) for found in self.done.values())

    def per_sample(self, name: str) -> float:
        """Of FLOPs or seconds."""
        return self.mean(name) / self.mean("samples")


def scaling_document(ladder: Ladder) -> dict[str, Any]:
    """Everything that is known so far, ready for JSON."""
    plan, found = ladder.plan, ladder.found
    points = _points(ladder)
    done = [point for point in points if point.done]
    drawn = _resampled(ladder, done)
    peak = found.peak["tflops"] * 1e12 if found.peak else None
    laws = _laws(plan, done, drawn, peak)
    intervals = dict(zip([(each.model, each.size) for each in done], drawn.intervals() if drawn else [], strict=True))
    lacking = {training.name: reason for point in points for training, (_, reason) in point.lacking.items()}
    rows = [_row(point, peak, intervals.get((point.model, point.size))) for point in points]
    fits = [
        {
            **{"model": model, "axis": axis, "points": sum(point.model == model for point in done)},
            **_fit(law, laws[plan.baseline, axis]),
        }
        for (model, axis), law in laws.items()
    ]
    spec = plan.spec
    return {
        "schema_version": SCHEMA_VERSION,
        "complete": not any(status == NOT_REACHED for point in points for status, _ in point.lacking.values()),
        "command_line": command_line(),
        "data": dict(found.data),
        "settings": {
            "samples": plan.settings.samples or found.data["impressions"][0],
            "evaluated": found.data["impressions"][1],
            "evaluated_seed": EVALUATED_SEED,
            "seeds": plan.seeds,
            **{name: value for name, value in asdict(plan.settings).items() if name != "samples"},
            **{"impl": spec.impl, "dtype": spec.dtype, "device": spec.device},
            "resamples": RESAMPLES,
        },
        "environment": {**found.environment, **_peak_facts(ladder)},
        "baseline": plan.baseline,
        "predictors": dict(found.predictors),
        "points": rows,
        "fits": fits,
        "not_done": lacking,
        "warnings": [*found.warnings, *_warnings(ladder, rows, fits)],
        "method": METHOD,
    }


def _points(ladder: Ladder) -> list[_Point]:
    """Every size of every model, by model and from the cheapest on; what was not reached says so."""
    found = ladder.found
    places = dict.fromkeys((each.model, each.size) for each in ladder.trainings)
    points = []
    for model in ladder.plan.models:
        for size in (size for name, size in places if name == model):
            own = [each for each in ladder.trainings if (each.model, each.size) == (model, size)]
            done = {each: found.trained[each] for each in own if each in found.trained}
            reasons = {each: found.lacking.get(each, (NOT_REACHED, "not reached yet")) for each in own}
            points.append(_Point(model, size, done, {each: reasons[each] for each in own if each not in done}))
    return points


def _resampled(ladder: Ladder, done: Sequence[_Point]) -> Points | None:
    if not done:
        return None
    _, second = ladder.windows
    losses = [[found.losses for found in point.done.values()] for point in done]
    return resample(losses, second.labels(second.targets), second.log.users(second.targets))


def _laws(
    plan: Plan, done: Sequence[_Point], drawn: Points | None, peak: float | None
) -> dict[tuple[str, str], Law | None]:
    """By model and axis; without a peak there is no axis of device time."""
    laws: dict[tuple[str, str], Law | None] = {}
    for axis in (FLOPS, DEVICE_TIME) if peak else (FLOPS,):
        for model in plan.models:
            places = [at for at, point in enumerate(done) if point.model == model]
            compute = [_compute(done[at], axis, peak) for at in places]
            laws[model, axis] = fit_law(compute, drawn.of(places)) if drawn else None
    return laws


def _compute(point: _Point, axis: str, peak: float | None) -> float:
    return point.per_sample("flops") if axis == FLOPS else point.per_sample("seconds") * (peak or 0.0)


def _row(point: _Point, peak: float | None, ne: Any) -> dict[str, Any]:
    reasons = list(dict.fromkeys(reason for _, reason in point.lacking.values()))
    row: dict[str, Any] = {"model": point.model, "size": point.size}
    names = ("params", "dense_params", "samples", "flops", "seconds")
    if not point.done:
        status = next(iter(point.lacking.values()))[0]
        numbers = (*names, "flops_per_sample", "samples_per_s", "mfu_of_measured_peak", "peak_seconds_per_sample", "ne")
        return row | {"status": status, "reason": "; ".join(reasons), **dict.fromkeys(numbers), "seeds": []}
    means = {name: point.mean(name) for name in names}
    counts = {name: round(means[name]) for name in ("params", "dense_params", "samples")}
    several = len(point.done) + len(point.lacking)
    reason = f"{len(point.done)} of {several} seeds: {'; '.join(reasons)}" if point.lacking else None
    told = ("ne", "ne_by_training_rate", "last_training_loss", "seconds", "loading_seconds", "evaluation_seconds")
    return row | {
        **{"status": "done", "reason": reason},
        **means,
        **counts,
        "flops_per_sample": point.per_sample("flops"),
        "samples_per_s": means["samples"] / means["seconds"],
        "mfu_of_measured_peak": means["flops"] / means["seconds"] / peak if peak else None,
        "peak_seconds_per_sample": _compute(point, DEVICE_TIME, peak) if peak else None,
        "seeds": [
            {"seed": training.seed, **{name: getattr(found, name) for name in told}}
            for training, found in point.done.items()
        ],
        "ne": ne,
    }


def _fit(law: Law | None, baseline: Law | None) -> dict[str, Any]:
    ratio: Interval | None = None
    equal: tuple[float | None, Interval | None] = (None, None)
    why_not = ""
    if law is None:
        why_not = f"a slope needs {LEAST_SIZES} sizes that are trained"
    elif baseline is None:
        why_not = "the baseline has no slope"
    else:
        ratio, why_not = efficiency(law, baseline)
        if law is not baseline:
            equal = lead(law, baseline)
    told = {"efficiency": ratio, "why_not": why_not, "equal_compute": equal[0], "lead": equal[1]}
    return {**document_of(law), **told}


def _peak_facts(ladder: Ladder) -> dict[str, Any]:
    peak = ladder.found.peak
    return {} if peak is None else {f"measured_peak_{name}": peak[name] for name in ("tflops", "dtype", "date", "how")}


def _unsteady(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Whose seeds took so different times that something else must have run."""
    took = [(row, [seed["seconds"] for seed in row["seeds"]]) for row in rows if row["seeds"]]
    return [
        f"{row['model']} {row['size']}: one seed took {max(times) / min(times):.1f} times as long as another; device "
        "time is not to be trusted"
        for row, times in took
        if max(times) > MOST_APART * min(times)
    ]


def _warnings(ladder: Ladder, rows: Sequence[dict[str, Any]], fits: Sequence[dict[str, Any]]) -> list[str]:
    """What a reader must know before believing a number."""
    found, said = ladder.found, []
    if found.peak and found.peak["busy"]:
        said.append(f"the peak was measured on a busy machine ({found.peak['busy']}): device time is not to be trusted")
    if ladder.plan.seeds == 1:
        said.append("one seed: no interval knows what another seed would give")
    said += _unsteady(rows)
    steps = min((each.steps for each in found.trained.values()), default=LEAST_STEPS)
    if steps < LEAST_STEPS:
        said.append(f"{steps} steps a training are few: give more --samples, or a smaller --batch-size")
    _, second = ladder.windows
    users = len(np.unique(second.log.users(second.targets)))
    if users < LEAST_USERS:
        said.append(f"{users} users are evaluated: their resamples tell little below {LEAST_USERS}")
    best = min(found.predictors, key=lambda name: found.predictors[name])
    for model in ladder.plan.models:
        own = [row for row in rows if row["model"] == model and row["ne"] is not None]
        if not own:
            continue
        span = log10(max(row["flops_per_sample"] for row in own) / min(row["flops_per_sample"] for row in own))
        if len(own) > 1 and span < LEAST_DECADES:
            said.append(f"{model} spans {span:.2f} decades of model FLOPs; a law wants {LEAST_DECADES} or more")
        lowest = min(own, key=lambda row: row["ne"][0])
        if lowest["ne"][0] >= found.predictors[best]:
            said.append(
                f"{model}'s best NE, {lowest['ne'][0]:.4f} at {lowest['size']}, is not below the "
                f"{best.replace('_', ' ')}'s, {found.predictors[best]:.4f}: it learnt nothing that one number does not "
                "tell; give more --samples"
            )
        said += [
            f"{model} {row['size']} runs above the measured peak; calibrate anew with `mfubench doctor --calibrate`"
            for row in own
            if (row["mfu_of_measured_peak"] or 0) > 1
        ]
    for fit in fits:
        by = "model FLOPs" if fit["axis"] == FLOPS else "device time"
        _, low, high = fit["eta"] or (None, 1, 1)
        if low <= 0 <= high:
            said.append(f"{fit['model']}: the interval of eta by {by} holds 0: nothing says that compute lowers its NE")
        elif high < 0:
            said.append(f"{fit['model']}: its NE rises with {by}: its larger sizes learn less from so few samples")
        if fit["axis"] == FLOPS and 0 < fit["points"] < LEAST_POINTS:
            said.append(f"{fit['model']}: a line through {fit['points']} points; nothing checks the law")
    return said
