"""From runs and timings to the ablation's document: changes with intervals, held against what is published."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mfubench.comparison import Estimate, Row, ratio_apart, ratio_in_turn
from mfubench.run import Run

from .document import Ablation, Change, Status, Step
from .judge import RULE, Judgement, judge
from .plan import REPEATED, Contrast, Plan, Setting

Pair = tuple[str, str]
Timings = Mapping[str, list[float]]  # "before" and "after", ms, round by round
SHARED = ("model", "size", "impl", "compile", "mode", "dtype", "device", "batch_size", "num_candidates", "data")
SHARED_TOO = ("data_description", "seed", "steps", "warmup_steps")
COUNTED: Mapping[str, Callable[[Run], float | None]] = {
    "model_flops_per_sample": lambda run: run.flops.get("per_request"),
    "num_params": lambda run: run.workload.get("num_params"),
    "peak_bytes": lambda run: run.memory["peak_bytes"],
}


@dataclass(slots=True)
class Found:
    """What there is so far: runs by setting, timings by pair of settings, and why a setting or a pair has none.

    ``written`` are the settings whose run.json is in the folder; ``stopped`` why the rest was not begun.
    """

    environment: Mapping[str, Any]
    runs: dict[str, Run] = field(default_factory=dict)
    timings: dict[Pair, Timings] = field(default_factory=dict)
    failed: dict[str | Pair, str] = field(default_factory=dict)
    written: set[str] = field(default_factory=set)
    warnings: list[str] = field(default_factory=list)
    stopped: str = "not reached before it was interrupted"


def assemble(plan: Plan, identity: Mapping[str, Any], found: Found) -> Ablation:
    """The document of what is in ``found``."""
    first = next(iter(found.runs.values()), None)
    steps = [_step(setting, found) for setting in plan.settings]
    changes = [_change(contrast, found) for contrast in plan.contrasts]
    return Ablation(
        identity=identity,
        environment=found.environment,
        workload={key: first.workload.get(key) for key in (*SHARED, *SHARED_TOO)} if first else {},
        peak=first.peak if first else {},
        steps=steps,
        changes=changes,
        published=_judgements(plan, changes),
        sources=dict(plan.road.sources),
        contradictions=list(plan.road.contradictions),
        rule=RULE,
        not_measured=_not_measured(found, steps, changes),
        warnings=[*found.warnings, *_warnings(changes), *_drift(found, changes)],
    )


def _step(setting: Setting, found: Found) -> Step:
    run = found.runs.get(setting.name)
    status, reason = _status(setting.name, found, run is not None)
    return Step(
        name=setting.name,
        kind=setting.kind,
        switches=dict(setting.switches),
        status=status,
        reason=reason,
        run=f"runs/{setting.name}/run.json" if run else None,
        row=Row.of(run) if run else None,
    )


def _change(contrast: Contrast, found: Found) -> Change:
    pair = (contrast.before, contrast.after)
    timings = found.timings.get(pair)
    runs = [found.runs[name] for name in pair if name in found.runs]
    lost = next((name for name in pair if name in found.failed), None)
    status, reason = _status(lost or pair, found, timings is not None)
    if lost:
        reason = f"{lost} ran out of memory"
    ratio = None
    if timings is not None and len(runs) == 2:
        ratio = ratio_in_turn(timings["before"], timings["after"])
    elif pair in found.failed and len(runs) == 2 and contrast.kind != "noise_floor":
        status, reason = "done", f"measured apart, as both at once ran out of memory: {found.failed[pair]}"
        ratio = ratio_apart(*(run.step["timings_ms"] for run in runs))
    return Change(
        name=contrast.name,
        kind=contrast.kind,
        before=contrast.before,
        after=contrast.after,
        status=status,
        reason=reason,
        in_turn=timings is not None,
        same_data=len({run.workload["data_hash"] for run in runs}) <= 1,
        time_ratio=ratio,
        relative=_relative(ratio, runs) if ratio else {},
        timings_ms=dict(timings or {}),
    )


def _status(key: str | Pair, found: Found, done: bool) -> tuple[Status, str]:
    if done:
        return "done", ""
    if key in found.failed:
        return "out_of_memory", found.failed[key]
    return "not_reached", found.stopped


def _relative(ratio: Estimate, runs: list[Run]) -> dict[str, Estimate]:
    """Relative changes: throughput from the time ratio, MFU from it and the counted FLOPs, the rest counted."""
    before, after = runs
    faster = Estimate(1 / ratio.value, 1 / ratio.ci95_high, 1 / ratio.ci95_low)
    counted = {}
    for metric, read in COUNTED.items():
        old, new = read(before), read(after)
        if old and new is not None:
            counted[metric] = _minus_one(Estimate(new / old, new / old, new / old))
    found = {"samples_per_s": _minus_one(faster), **counted}
    flops = [run.flops["model"] for run in runs]
    if None not in flops:  # a count that ran out of memory
        found["mfu"] = _minus_one(faster.scaled(flops[1] / flops[0]))
    return found


def _minus_one(ratio: Estimate) -> Estimate:
    return Estimate(ratio.value - 1, ratio.ci95_low - 1, ratio.ci95_high - 1)


def _judgements(plan: Plan, changes: list[Change]) -> list[Judgement]:
    """Each published change beside the step of the road, and beside the switch taken out of the full model."""
    judged = []
    for published in plan.road.published:
        for change in changes:
            if change.name == published.step and change.kind != "noise_floor":
                measured = change.relative.get(published.metric)
                why_not = "" if measured else _why_not(change)
                if not change.same_data:
                    why_not = "the two settings keep histories of other lengths, so it is not the switch alone"
                judged.append(judge(published, change.kind, measured, why_not))
    return judged


def _why_not(change: Change) -> str:
    """Why ``change`` lacks a number."""
    words = {"done": "these runs do not have it", "not_reached": "not reached", "out_of_memory": "out of memory"}
    return words[change.status]


def _not_measured(found: Found, steps: list[Step], changes: list[Change]) -> list[str]:
    missing = list(dict.fromkeys(sentence for run in found.runs.values() for sentence in run.not_measured))
    energy = dict.fromkeys(step.row.energy_not_measured for step in steps if step.row and step.row.energy_not_measured)
    missing += [f"energy a sample: {reason}" for reason in energy]
    missing += [f"{each.name}: out of memory, {each.reason}" for each in steps if each.status == "out_of_memory"]
    left = [each.name for each in steps if each.status == "not_reached"]
    pairs = [f"{each.before} against {each.after}" for each in changes if each.status == "not_reached"]
    if left or pairs:
        missing.append(f"not reached, as {found.stopped}: {', '.join([*left, *dict.fromkeys(pairs)])}")
    return missing


def _warnings(changes: list[Change]) -> list[str]:
    found = []
    for change in changes:
        if change.kind == "noise_floor" and change.time_ratio is not None:
            low, high = change.time_ratio.ci95_low, change.time_ratio.ci95_high
            if not low <= 1 <= high:
                found.append(
                    f"the {REPEATED} took {change.time_ratio.value:.3f} times [{low:.3f}, {high:.3f}] as long as "
                    "itself: changes of that size mean nothing here"
                )
        if not change.same_data:
            found.append(
                f"{change.before} and {change.after} keep histories of other lengths: their change is not the "
                "switch's alone"
            )
        if change.time_ratio is not None and not change.in_turn:
            found.append(f"{change.before} and {change.after} were {change.reason}")
    return list(dict.fromkeys(found))


def _drift(found: Found, changes: list[Change]) -> list[str]:
    """Whether the settings' own runs contradict the same settings timed in turn: then the machine changed its pace."""
    pairs = {(change.before, change.after): change for change in changes if change.in_turn}
    held = {
        pair: (change.time_ratio, ratio_apart(*(found.runs[name].step["timings_ms"] for name in pair)))
        for pair, change in pairs.items()
        if change.time_ratio is not None and change.before != change.after
    }
    off = [
        apart.value / in_turn.value
        for in_turn, apart in held.values()
        if apart.ci95_low > in_turn.ci95_high or apart.ci95_high < in_turn.ci95_low
    ]
    if not off:
        return []
    worst = max(max(ratio, 1 / ratio) for ratio in off)
    have = "has" if len(off) == 1 else "have"
    return [
        f"the machine changed its pace: {len(off)} of {len(held)} pairs {have} another ratio profiled apart than timed "
        f"in turn, by up to {worst:.2f} times. Rows' own samples/s, MFU and HFU do not compare; the changes do"
    ]
