"""What `mfubench plan` found as a page: each workload on each GPU, whether it fits, its least step, its most MFU.

``told`` is its document as JSON.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mfubench.figures import least_waterfall
from mfubench.run import LedgerLine, title_of

from . import format as fmt
from .blocks import Block, Column, Facts, Items, Page, Section, Table, known
from .causes import meanings
from .sections import ledger_table, memory_facts, waterfall_chart

Document = Mapping[str, Any]
FITS = {True: "yes", False: "no", None: "n/a"}
GIBI = 1 << 30


def plan_page(told: Document) -> Page:
    """Everything that a report says about plans."""
    told = fmt.cleaned(told)
    gpus = {gpu["name"]: gpu for gpu in told["gpus"]}
    rates: list[Section] = [] if told["like"] is None else [Section("Rates", _rates(told["like"]))]
    return Page(
        title="What a GPU can give",
        headline=_headline(told, gpus),
        warnings=_warnings(told["plans"]),
        sections=[
            Section("Plans", [_plans(told, gpus)], brief=True),
            *rates,
            Section("GPUs", [_gpus(told["gpus"])]),
            Section("Method", [Items(_method(told))]),
            Section("Environment", [Facts.of(told["environment"])]),
        ],
        parts=[_part(plan, gpus[plan["gpu"]]) for plan in told["plans"]],
    )


def _headline(told: Document, gpus: Mapping[str, Document]) -> str:
    """The first plan in a sentence, and how many of all fit."""
    plans = told["plans"]
    first = plans[0]
    gpu, least = gpus[first["gpu"]], first["least"]
    said = [
        f"{title_of(first['workload'])}, {fmt.count(first['requests'])} requests a step, on {first['gpu']}: "
        f"{_room(first, gpu)}, "
        f"no eager step below {fmt.number(least['step_ms'])} ms, so an MFU of at most {fmt.percent(least['mfu'])}"
    ]
    if first["at_rates"]:
        found = first["at_rates"]
        said.append(
            f"at the rates of {told['like']['title']} its kernels take {fmt.number(found['step_ms'])} ms, an MFU of "
            f"{fmt.percent(found['mfu'])}"
        )
    if len(plans) > 1:
        said.append(f"{sum(plan['fits'] is True for plan in plans)} of {len(plans)} plans fit")
    return "; ".join(said)


def _room(plan: Document, gpu: Document) -> str:
    peak = fmt.size(plan["memory"]["peak_bytes"])
    if plan["fits"] is None:
        return f"{peak} at its peak, of a memory that is not known"
    verdict = "fits" if plan["fits"] else "does not fit"
    return f"{verdict}, {peak} of {fmt.size(gpu['memory_bytes'])}"


def _warnings(plans: Sequence[Document]) -> list[str]:
    notes: dict[str, list[str]] = {}
    for plan in plans:
        for note in plan["notes"]:
            notes.setdefault(note, []).append(title_of(plan["workload"]))
        if plan["unknown_ops"]:
            unknown = f"FLOPs of {', '.join(plan['unknown_ops'])} are not known, and missing here"
            notes.setdefault(unknown, []).append(title_of(plan["workload"]))
    return [f"{', '.join(dict.fromkeys(names))}: {note}" for note, names in notes.items()]


def _plans(told: Document, gpus: Mapping[str, Document]) -> Table:
    plans = told["plans"]
    least, found = [plan["least"] for plan in plans], [plan["at_rates"] or {} for plan in plans]
    memory = [plan["memory"]["peak_bytes"] for plan in plans]
    a_day = told["samples_per_day"]
    columns = [
        (Column("workload"), [title_of(plan["workload"]) for plan in plans]),
        (Column("GPU"), [plan["gpu"] for plan in plans]),
        (Column("requests", numeric=True), [fmt.count(plan["requests"]) for plan in plans]),
        (Column("peak memory GiB", numeric=True), fmt.column(memory, unit=GIBI)),
        (Column("fits"), [FITS[plan["fits"]] for plan in plans]),
        (Column("most requests", numeric=True), [_most(plan) for plan in plans]),
        (Column("least step ms", numeric=True), fmt.column([each["step_ms"] for each in least])),
        (Column("most MFU %", numeric=True), fmt.percents([each["mfu"] for each in least])),
        (Column("most samples/s", numeric=True), [_counted(each["samples_per_s"]) for each in least]),
        (Column("ms at the rates", numeric=True), fmt.column([each.get("step_ms") for each in found])),
        (Column("MFU % at the rates", numeric=True), fmt.percents([each.get("mfu") for each in found])),
    ]
    caption = "A workload on a GPU: what it needs there, and the most that it can give."
    if a_day:
        bases = "at least" if told["like"] is None else "at least and at the rates"
        caption += f" GPUs are as many as keep up with {fmt.count(a_day)} samples a day, {bases}."
        columns += [
            (Column("least GPUs", numeric=True), [_counted(each["gpus"]) for each in least]),
            (Column("GPUs at the rates", numeric=True), [_counted(each.get("gpus")) for each in found]),
        ]
    return Table.of(caption, known(columns))


def _most(plan: Document) -> str:
    return _counted(plan["most_requests"]) + (" or more" if plan["more_may_fit"] else "")


def _counted(number: float | None) -> str:
    return fmt.NOT_KNOWN if number is None else fmt.count(round(number))


def _rates(like: Document) -> list[Block]:
    rates = sorted(like["rates"].items(), key=lambda item: item[1])
    run = f"{like['title']} on {like['device']}, {fmt.number(like['step_ms'], 4)} ms a step"
    return [
        Table.of(
            f"Of {run}: which part of the time of each kind of operator the roofline would have taken.",
            [
                (Column("kind"), [kind for kind, _ in rates]),
                (Column("of its time %", numeric=True, bar=True), fmt.percents([rate for _, rate in rates])),
            ],
        )
    ]


def _gpus(gpus: Sequence[Document]) -> Table:
    return Table.of(
        "What bounds a step.",
        [
            (Column("GPU"), [gpu["name"] for gpu in gpus]),
            (Column("dtype"), [gpu["dtype"] for gpu in gpus]),
            (Column("datasheet TFLOP/s", numeric=True), fmt.column([gpu["datasheet_tflops"] for gpu in gpus], 4)),
            (Column("TFLOP/s in use", numeric=True), fmt.column([gpu["tflops"][gpu["dtype"]] for gpu in gpus], 4)),
            (Column("GB/s in use", numeric=True), fmt.column([gpu["bandwidth_gb_s"] for gpu in gpus], 4)),
            (Column("memory"), [fmt.size(gpu["memory_bytes"]) for gpu in gpus]),
            (Column("basis"), [gpu["basis"] for gpu in gpus]),
            (Column("source"), [gpu["source"] for gpu in gpus]),
        ],
    )


def _method(told: Document) -> list[str]:
    return [
        "A step is counted as the GPU would run it, its kernels included, without computing a number; a user's own "
        "model runs on the CPU for it. Memory is what tensors ask for at the step's peak.",
        f"It fits where that is at most {fmt.percent(told['room'])} of the GPU's memory: the rest is what an allocator "
        "and the driver take. The most requests are counted to 1 %, up to 4 times as many as were asked for; not for a "
        "user's own model.",
        "The least step has each operator at the longer of its FLOPs at the peak and its bytes at the bandwidth, one "
        "after the other, as they run eagerly: what is fused moves less. What the host or the network adds is not in "
        "it.",
        "At the rates of a run each kind of operator takes as much longer as it did there. That is a prediction, of "
        "kernels alone, and the better the more alike the two are.",
        f"FLOPs: {told['flop_convention']}.",
    ]


def _part(plan: Document, gpu: Document) -> Page:
    lines = [LedgerLine(**line) for line in plan["least"]["ledger"]]
    fall = least_waterfall(lines, plan["least"]["step_ms"])
    needs = [
        ("Model FLOPs a step", fmt.flops(plan["flops"]["model"])),
        ("Hardware FLOPs a step", fmt.flops(plan["flops"]["hardware"])),
        ("Bytes a step", fmt.size(plan["bytes"])),
        *memory_facts(plan["memory"]),
    ]
    title = f"{title_of(plan['workload'])} on {plan['gpu']}"
    chart = waterfall_chart(f"The most MFU of {title}", fall)
    return Page(
        title=title,
        headline=f"{_room(plan, gpu)}; an MFU of at most {fmt.percent(plan['least']['mfu'])}",
        warnings=[],
        sections=[
            Section("The least step", [*chart, ledger_table(lines, fall)]),
            Section("What it needs", [Facts(needs)]),
            Section("Workload", [Facts.of(plan["workload"])]),
            Section("Implementations", [Facts.of(plan["impls"]) if plan["impls"] else Items(["No op of ours."])]),
            Section("What the causes mean", [Facts(meanings(lines))]),
        ],
    )
