"""A search as a page: how much faster the model became, what did it, and what did not."""

from math import prod
from typing import TYPE_CHECKING, Any

from mfubench.figures import Dot, Dots
from mfubench.optimize.gain import UNCHANGED
from mfubench.run import title_of

from . import format as fmt
from .blocks import Block, Chart, Column, Facts, Items, Page, Section, Table

if TYPE_CHECKING:
    from mfubench.optimize.document import NotTried, Optimization, Step

BY_NUMBERS = "numbers"
BATCHES = "batch_size"  # the change's name
OTHERS = {"end": "The end's step", "plain": "Plain torch.compile's step"}


def optimization_page(found: "Optimization") -> Page:
    """Everything that a report says about a search."""
    warnings = [f"This alters more than speed: {altered}" for altered in found.alters]
    if found.judge == BY_NUMBERS:
        warnings.insert(0, "Judged by numbers only (--judge numbers): no time was judged, and no speed is claimed")
    return Page(
        title=f"Optimization of {title_of(found.workload)}",
        headline=_headline(found),
        warnings=warnings,
        sections=[
            Section("Start, end, and plain torch.compile", [_ends(found), *_gains(found)], brief=True),
            Section("What was tried, in order", [_steps(found.steps, found.kept)], brief=True),
            Section("What was not tried", [_not_tried(found.not_tried)], brief=True),
            Section("Numbers", [_numbers(found.steps)]),
            Section("Notes", [Items(found.notes or ["None."])]),
            Section("Method", [Items([found.method])]),
            Section("Workload", [Facts.of(found.workload)]),
            Section("Environment", [Facts.of(found.environment)]),
        ],
    )


def _headline(found: "Optimization") -> str:
    device = found.environment.get("device_name") or found.workload["device"]
    tried, kept = len(found.steps), len(found.kept)
    count = f"{kept} of {tried} changes kept" if tried else "no change was tried"
    parts = [f"{title_of(found.workload)} on {device}: {count}"]
    if not kept:
        parts.append(UNCHANGED)
    elif found.speedup is not None:
        faster = f"{_interval(found.speedup)} times as fast for each sample as the start"
        parts.append(f"{faster}{_by_larger_batches(found)}")
    if found.judge != BY_NUMBERS and (found.speedup is not None or not kept):
        plain = found.plain_compile["speedup"]
        known = f"{_interval(plain)} times" if plain else fmt.not_known(found.plain_compile["reason"])
        parts.append(f"plain torch.compile of the whole model {known}")
    if fed := _fed(found):
        parts.append(f"fed by its loader, {' and '.join(f'{reached} at the {when}' for when, reached in fed.items())}")
    return f"{'; '.join(parts)}; stopped: {found.stopped}"


def _fed(found: "Optimization") -> dict[str, str]:
    """What steps that its loader feeds reach, at the start and the end: what it does not bring, no step gains."""
    ends = {"start": found.start, "end": found.end}
    loaders = {when: known["step"].get("loader") for when, known in ends.items() if known}
    return {
        when: f"{fmt.number(loader['samples_per_s'])} samples/s ({fmt.percent(loader['waited_share'])} waiting)"
        for when, loader in loaders.items()
        if loader
    }


def _by_larger_batches(found: "Optimization") -> str:
    """How much of a speedup is that of larger batches, which change the training."""
    gains = [
        step.speedup["median"]
        for step in found.steps
        if step.kept and step.plain["change"] == BATCHES and step.speedup is not None
    ]
    return f", {fmt.number(prod(gains), 3)} times of it by larger batches alone" if gains else ""


def _interval(of: dict[str, float], unit: str = "") -> str:
    return fmt.interval(of["median"], of["ci95_low"], of["ci95_high"], unit)


def _ends(found: "Optimization") -> Block:
    why = found.plain_compile["reason"] or ""

    def times(speedup: dict[str, float] | None, why_not: str) -> str:
        return _interval(speedup) if speedup else fmt.not_known(why_not)

    not_timed = "time was not judged" if found.judge == BY_NUMBERS else "see the notes"
    not_timed = not_timed if found.kept else UNCHANGED
    pairs = [
        ("Kept, in order", "; ".join(found.kept) or "nothing"),
        ("The end, times as fast as the start", times(found.speedup, not_timed)),
        ("Plain torch.compile of the whole model", times(found.plain_compile["speedup"], why)),
        ("The end, times as fast as plain torch.compile", times(found.over_plain_compile, why or _why_not_over(found))),
        ("The start's step", _step_time(found.in_turn.get("start", found.start["step"]))),
        *((name, _step_time(found.in_turn[key])) for key, name in OTHERS.items() if key in found.in_turn),
        ("Budget", f"{found.seconds:.0f} of {found.budget_s:.0f} s"),
    ]
    return Facts(pairs)


def _gains(found: "Optimization") -> list[Chart]:
    """Each change's gain, and what start and end come to; nothing where no time was judged."""
    timed = {step.change: step.speedup for step in found.steps}
    if found.in_turn:
        timed["the end over the start"] = found.speedup if found.kept else None
        timed["plain torch.compile over the start"] = found.plain_compile["speedup"]
    dots = [
        Dot(name, "gain", of["median"], of["ci95_low"], of["ci95_high"], f"{name}: {_interval(of)} times as fast")
        for name, of in timed.items()
        if of
    ]
    summary = (
        "How many times as fast a sample is, with its 95 % interval: with each change that was timed, over what was "
        "kept before it; and at the end."
    )
    return [Chart("Gains", summary, Dots("times as fast for each sample", dots, ratios=True))] if dots else []


def _why_not_over(found: "Optimization") -> str:
    return "that is what was kept" if found.kept else "nothing was kept"


def _step_time(step: dict[str, Any]) -> str:
    return f"{_interval(step['time_ms'], 'ms')}, {fmt.number(step['samples_per_s'])} samples/s"


def _steps(steps: "list[Step]", kept: list[str]) -> Block:
    if not steps:
        return Items(["Nothing was tried."])
    faster = [_interval(step.speedup) if step.speedup else fmt.NOT_KNOWN for step in steps]
    return Table.of(
        "A step in milliseconds without a change, on top of what was kept before it, and with it, for as many samples, "
        "as its own trial timed them: another process than the one that timed start and end above. What it wins is "
        "the difference, its 95 % interval that of the ratio.",
        [
            (Column("change"), [step.change for step in steps]),
            (Column("cause"), [step.cause for step in steps]),
            (Column("predicted ms", numeric=True), fmt.column([step.predicted_ms for step in steps])),
            (Column("measured ms", numeric=True), fmt.column([step.measured_ms for step in steps])),
            (Column("step without, ms", numeric=True), fmt.column([step.old_ms for step in steps], 4)),
            (Column("step with, ms", numeric=True), fmt.column([step.new_ms for step in steps], 4)),
            (Column("times as fast [95 % CI]", numeric=True), faster),
            (Column("kept"), [_kept(step, kept) for step in steps]),
            (Column("why"), [step.reason for step in steps]),
            (Column("alters", brief=False), [step.alters for step in steps]),
            (Column("seconds", numeric=True, brief=False), fmt.column([step.seconds for step in steps])),
        ],
    )


def _kept(step: "Step", kept: list[str]) -> str:
    """A change that a later one took the place of was kept until then."""
    if not step.kept:
        return "no"
    return "yes" if step.change in kept else "replaced"


def _not_tried(listed: "list[NotTried]") -> Block:
    if not listed:
        return Items(["Nothing was left out."])
    return Table.of(
        "Remedies that were not tried, and why.",
        [
            (Column("remedy"), [each.change for each in listed]),
            (Column("cause"), [each.cause for each in listed]),
            (Column("predicted ms", numeric=True), fmt.column([each.predicted_ms for each in listed])),
            (Column("why not"), [each.reason for each in listed]),
        ],
    )


def _numbers(steps: "list[Step]") -> Block:
    return Items([f"{step.change}: {note}" for step in steps for note in step.numbers] or ["Nothing was checked."])
