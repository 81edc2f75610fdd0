"""What tuning found, as pages: a step's own kernels, and the table that a campaign shows, too."""

from collections.abc import Mapping, Sequence
from typing import Any

from mfubench.figures import Dot, Dots
from mfubench.kernels.locks import took_over
from mfubench.run import title_of

from . import format as fmt
from .blocks import Block, Chart, Column, Facts, Items, Page, Section, Table, known

Document = Mapping[str, Any]
VERDICTS = {
    "faster": "faster by more than 1 %",
    "not faster": "not faster by 1 %",
    "open": "not told from 1 %",
}


def tuning_page(told: Document) -> Page:
    """What ``mfubench kernels tune`` found."""
    entries, step = told["entries"], told["step"]
    sections = [
        Section("The step itself", [_step(step), *_chart(entries, step)], brief=True),
        Section("Kernels", [tuned_table(entries) if entries else Items(["None was tuned."])], brief=True),
    ]
    if told["not_tuned"]:
        sections.append(Section("Not tuned", [Facts(list(told["not_tuned"].items()))], brief=True))
    if told["not_held"]:
        sections.append(Section("Not proved", [Items(told["not_held"])]))
    calls: list[Block] = [Items([f"{call['module']}: {call['op']}" for call in told["calls"]])]
    sections += [
        Section("Calls of ops whose kernels were tuned for", calls),
        Section("Workload", [Facts.of(told["workload"])]),
        Section("Environment", [Facts.of({**told["environment"], **told["toolchain"]})]),
    ]
    return Page(f"Kernels tuned for {title_of(told['workload'])}", _headline(told), [], sections)


def _headline(told: Document) -> str:
    step, changed = told["step"], [entry for entry in told["entries"] if took_over(entry)]
    kernels = f"{len(changed)} of {len(told['entries'])} kernels have a faster config"
    if "speedup" not in step:
        return f"{kernels}; {step['reason']}"
    gain = fmt.interval(*_speedup(step))
    return f"{kernels}; the step is {gain} times as fast, {VERDICTS[step['verdict']]}"


def _step(step: Document) -> Block:
    if "speedup" not in step:
        return Items([step["reason"]])
    gain = fmt.interval(*_speedup(step))
    return Facts(
        [
            ("Step before", _ms(step["ms_before"])),
            ("Step with these configs", _ms(step["ms"])),
            ("Times as fast", f"{gain}: {VERDICTS[step['verdict']]}"),
            ("Samples", f"{step['blocks']} blocks of four steps, in turns, in a fresh process"),
        ]
    )


def _speedup(step: Document) -> tuple[float, float, float]:
    found = step["speedup"]
    return found["median"], found["ci95_low"], found["ci95_high"]


def _ms(given: Sequence[float]) -> str:
    middle, low, high = given
    return fmt.interval(middle, low, high, "ms")


def _chart(entries: Sequence[Document], step: Document) -> list[Chart]:
    """How many times as fast each kernel's op is that has a new config, and the step."""
    new = [
        entry for entry in entries if took_over(entry) and entry["ratio_of_fastest"]
    ]  # none where the old one failed
    dots = [_dot(f"{entry['kernel']}, {entry['key']}", "kernel", *_times(entry)) for entry in new]
    dots.sort(key=lambda dot: -dot.value)
    if "speedup" in step:
        dots.insert(0, _dot("the step", "step", *_speedup(step)))
    if not dots:
        return []
    summary = (
        "How many times as fast as before the op's forward or backward is with a kernel's new config, and the whole "
        "step with all of them, with 95 % intervals: right of 1 is faster."
    )
    return [Chart("Times as fast with the new configs", summary, Dots("times as fast", dots, ratios=True))]


def _times(entry: Document) -> tuple[float, float, float]:
    middle, low, high = entry["ratio_of_fastest"]
    return 1 / middle, 1 / high, 1 / low


def _dot(row: str, of: str, value: float, low: float, high: float) -> Dot:
    return Dot(row, of, value, low, high, f"{row}: {fmt.interval(value, low, high)} times as fast")


def tuned_table(entries: Sequence[Document]) -> Table:
    """Each kernel's config that won."""

    def config(entry: Document, which: str) -> str:
        given = entry.get(which)
        return " ".join(f"{name}={value}" for name, value in given.items()) if given else fmt.NOT_KNOWN

    columns = [
        (Column("kernel"), [entry["kernel"] for entry in entries]),
        (Column("shape"), [entry["shape"] for entry in entries]),
        (Column("key"), [entry["key"] for entry in entries]),
        (Column("config"), [config(entry, "config") for entry in entries]),
        (Column("ms", numeric=True), [fmt.number(entry["ms"]) for entry in entries]),
        (Column("ms before", numeric=True), [fmt.number(entry.get("ms_before")) for entry in entries]),
        (Column("ms of the default", numeric=True), [fmt.number(entry["ms_of_default"]) for entry in entries]),
        (Column("configs timed", numeric=True), [fmt.count(entry["configs_timed"]) for entry in entries]),
    ]
    caption = (
        "Each kernel's config that won. The time is that of the op's whole forward or whole backward, in which the "
        "kernel is launched, with this kernel's config alone varied."
    )
    return Table.of(caption, known(columns))
