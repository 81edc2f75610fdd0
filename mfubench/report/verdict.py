"""One run in a sentence, and the words in it that other parts of a report use too."""

from mfubench.run import Run

from . import format as fmt
from .ranks import together


def headline(run: Run) -> str:
    """The verdict: what ran where, how fast, how much of the device that uses, how much of the work was useful."""
    work = " ".join(str(run.workload[key]) for key in ("model", "size") if run.workload.get(key))
    where = run.device if run.parallel is None else f"{run.device}, rank {run.parallel['rank']} of {run.world_size}"
    rate = _fed(run)
    at_hand = f"on average with batches at hand, {rate} fed by its loader" if rate else "on average"
    return (
        f"{work}, {run.workload['mode']}, {run.workload['dtype']} on {where}: {step_time(run, 'ms a step')} "
        f"(median), {throughput(run)} {at_hand}, {_slowest(run)}MFU {_at_least(run, run.mfu, why_no_mfu(run))}, "
        f"{_at_least(run, run.mfu_of_measured_peak)} of the measured GEMM peak{together(run)}; {_useful(run)}"
    )


def _at_least(run: Run, share: float | None, why_not: str = "") -> str:
    """A utilisation, which is higher where FLOPs of some operators are not known."""
    bound = "at least " if share is not None and run.flops["unknown_ops"] else ""
    return bound + fmt.percent(share, why_not)


def _useful(run: Run) -> str:
    """What padding would cost, as far as it is known: a dense batch of a user's does not tell its padding."""
    model, padded = run.flops["model"], run.flops["padded"]
    if model is None or padded is None:
        return "its FLOPs are not known"
    own = run.flops.get("counts_agree", True) is None
    if model == padded:
        unknown = "padding is unknown, as no padding mask or offsets tell it"
        return unknown if own else "no row is shorter than its batch's longest"
    if not own:
        return f"with every row as long as its batch's longest it would need {padded / model:.3g} times its model FLOPs"
    return f"masks drop {fmt.percent(1 - model / padded)} of its FLOPs; other padding is unknown"


def name(run: Run) -> str:
    """What tells a run from its neighbours: the title and the axes that may differ."""
    w = run.workload
    overrides = f", {fmt.value('overrides', w['overrides'])}" if w["overrides"] else ""
    return f"{run.title}, impl {w['impl']}, compile {w['compile']}{overrides}"


def step_time(run: Run, unit: str = "") -> str:
    """The median step time with its interval."""
    time = run.step["time_ms"]
    return fmt.interval(time["median"], time["ci95_low"], time["ci95_high"], unit)


def of_requests(run: Run) -> bool:
    """Whether requests and candidates are two things in this run, so that both must be told."""
    return bool(run.workload.get("request_level")) or run.workload.get("num_candidates", 1) > 1


def _percentiles(run: Run) -> list[tuple[str, float]]:
    """Those of an inference's latency that its steps tell."""
    return [(share, ms) for share, ms in (run.step.get("latency_ms") or {}).items() if ms is not None]


def latency(run: Run) -> str:
    """Within what time an inference answers, as far as its steps tell; nothing of a training."""
    known = ", ".join(f"{share} % within {fmt.number(ms, 4)}" for share, ms in _percentiles(run))
    return f"{known} ms" if known else ""


def _slowest(run: Run) -> str:
    """The last percentile of an inference that its steps tell."""
    told = _percentiles(run)
    return f"{told[-1][0]} % of steps done within {fmt.number(told[-1][1], 4)} ms, " if told[1:] else ""


def throughput(run: Run) -> str:
    """Samples a second; requests and candidates where those differ."""
    if not of_requests(run):
        return f"{fmt.number(run.step['samples_per_s'])} samples/s"
    each = fmt.count(run.workload["num_candidates"])
    requests, candidates = (fmt.number(run.step[f"{what}_per_s"]) for what in ("requests", "candidates"))
    return f"{requests} requests/s of {each} candidates, {candidates} candidates/s"


def _fed(run: Run) -> str:
    """Samples a second of steps that a loader feeds; nothing where there is none."""
    loader = run.step.get("loader")
    return f"{fmt.number(loader['samples_per_s'])} samples/s" if loader else ""


def fed(run: Run) -> str:
    """What steps that a loader feeds reach; nothing where there is none."""
    if not (rate := _fed(run)):
        return ""
    loader, mfu = run.step["loader"], run.mfu_of_measured_peak if run.mfu is None else run.mfu
    of = "MFU of the measured GEMM peak" if run.mfu is None else "MFU"
    slower = loader["samples_per_s"] / run.step["samples_per_s"]
    reached = "" if mfu is None else f", {of} {fmt.percent(mfu * slower)}"
    return f"{rate}{reached}; {fmt.percent(loader['waited_share'])} of the time is waiting for batches"


def why_no_mfu(run: Run) -> str:
    """Why a run has no MFU against a datasheet; nothing where it has one."""
    if run.mfu is not None:
        return ""
    return "no datasheet peak for a CPU" if run.workload["device"] == "cpu" else "no datasheet peak in use"
