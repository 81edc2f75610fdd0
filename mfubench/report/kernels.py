"""What is known of the kernels, as pages: the list, the numeric contract, the compiled code, the benchmark."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mfubench.files import write_json, write_text

from . import format as fmt
from .blocks import Block, Column, Facts, Items, Page, Section, Table

Document = Mapping[str, Any]


def list_page(listed: Sequence[Document]) -> Page:
    """What ``mfubench kernels list`` says."""
    columns = [
        (Column("op"), [row["op"] for row in listed]),
        (Column("kind"), [row["kind"] for row in listed]),
        (Column("kernels"), [", ".join(row["kernels"]) for row in listed]),
        (Column("named shapes"), [", ".join(row["shapes"]) for row in listed]),
        (Column("locked configs"), [_locked(row["locked_configs"]) for row in listed]),
    ]
    facts = Facts(
        [("dtypes", ", ".join(listed[0]["dtypes"])), ("compiled for", ", ".join(listed[0]["targets"]))]
        if listed
        else []
    )
    table = Table.of("A config is locked for a GPU that it was measured on; elsewhere a default holds.", columns)
    return Page("Kernels", f"{len(listed)} ops have Triton kernels", [], [Section("Ops", [facts, table], brief=True)])


def _locked(by_device: Mapping[str, int]) -> str:
    return ", ".join(f"{device}: {count}" for device, count in by_device.items()) or "none: not measured yet"


def check_page(told: Document) -> Page:
    """What ``mfubench kernels check`` found."""
    ops = told["ops"]
    failed = sum(op["failed"] for op in ops)
    cases = sum(op["cases"] for op in ops)
    columns = [
        (Column("op"), [op["op"] for op in ops]),
        (Column("verdict"), ["FAIL" if op["failed"] else "pass" for op in ops]),
        (Column("cases", numeric=True), [fmt.count(op["cases"]) for op in ops]),
        (Column("failed", numeric=True), [fmt.count(op["failed"]) for op in ops]),
        (Column("worst error, % of budget", numeric=True), fmt.percents([op["worst_error_of_budget"] for op in ops])),
        (Column("dtypes"), [", ".join(op["dtypes"]) for op in ops]),
    ]
    budget = told["budget"]
    caption = (
        f"Run by {told['run_by']} over {told['cover']} of inputs and configs. Budget: {budget['forward']:g} times "
        f"(forward) and {budget['backward']:g} times (backward) the error of an honest implementation against fp64."
    )
    blocks: list[Block] = [Table.of(caption, columns)]
    failures = [f"{op['op']}: {_case(failure['case'])}: {_why(failure)}" for op in ops for failure in op["failures"]]
    sections = [Section("Numeric contract", blocks, brief=True)]
    if failures:
        sections.append(Section("Failed cases", [Items(failures)], brief=True))
    not_proved = sorted({reason for op in ops for reason in op["not_proved"]})
    if not_proved:
        sections.append(Section("Not proved on this machine", [Items(not_proved)], brief=True))
    sections.append(Section("Toolchain", [Facts(list(told["toolchain"].items()))]))
    headline = f"{failed} of {cases} cases fail" if failed else f"all {cases} cases pass"
    return Page("Kernels: numeric contract", headline, [], sections)


def _case(case: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in case.items())


def _why(failure: Document) -> str:
    over = [
        f"{name} is not finite" if ratio is None else f"{name} errs {ratio:.2f} times its budget"
        for name, ratio in failure["over_budget"].items()
    ]
    return "; ".join([*over, *failure["faults"]])


def static_page(told: Document) -> Page:
    """What ``mfubench kernels static`` found."""
    rows = told["rows"]

    def texts(header: str, key: str) -> tuple[Column, list[str]]:
        return Column(header), [str(row[key]) if row[key] is not None else "none" for row in rows]

    def numbers(header: str, key: str) -> tuple[Column, list[str]]:
        return Column(header, numeric=True), [
            fmt.NOT_KNOWN if row[key] is None else fmt.count(row[key]) for row in rows
        ]

    columns = [
        texts("kernel", "kernel"),
        texts("target", "target"),
        texts("key", "key"),
        (Column("config"), [f"{row['config']}{' (taken)' if row['default'] else ''}" for row in rows]),
        numbers("registers", "registers"),
        numbers("spill B", "spill_bytes"),
        numbers("shared B", "shared_bytes"),
        texts("tensor core", "tensor_core"),
        texts("async copy", "async_copy"),
        numbers("access B", "access_bytes"),
        (Column("occupancy %", numeric=True), fmt.percents([row["occupancy"] for row in rows])),
    ]
    toolchain = ", ".join(f"{name} {version}" for name, version in told["toolchain"].items())
    errors = [f"{row['kernel']} on {row['target']}, {row['config']}: {row['error']}" for row in rows if row["error"]]
    sections = [Section("Compiled code", [Table.of(f"Compiled with {toolchain}.", columns)], brief=True)]
    if told["faults"]:
        sections.append(Section("Faults", [Items(list(told["faults"]))], brief=True))
    if errors:
        sections.append(Section("Configs that do not compile", [Items(errors)]))
    targets = len({row["target"] for row in rows})
    headline = (
        f"{fmt.counted(len(told['faults']), 'faults')} in what launches take"
        if told["faults"]
        else "every config that a launch takes compiles, fits and does not spill, or was the fastest with its spills"
    )
    return Page(f"Kernels: code for {fmt.counted(targets, 'targets')}", headline, [], sections)


def bench_page(told: Document) -> Page:
    """What ``mfubench kernels bench`` measured: one table an op and shape."""
    groups: dict[tuple[str, str], list[Document]] = {}
    for row in told["rows"]:
        groups.setdefault((row["op"], row["shape"]), []).append(row)
    sections = [Section(f"{op}, {shape}", [bench_table(rows)], brief=True) for (op, shape), rows in groups.items()]
    peak = told["peak"]
    facts = Facts(
        [
            ("device", str(told["environment"]["device_name"])),
            ("toolchain", ", ".join(f"{name} {version}" for name, version in told["toolchain"].items())),
            ("measured GEMM peak", f"{fmt.number(peak['measured_tflops'])} TFLOP/s {told['dtype']}"),
            ("measured copy bandwidth", f"{fmt.number(peak['bandwidth_gb_s'])} GB/s"),
            ("FLOPs", told["flop_convention"]),
        ]
    )
    headline = f"{len(groups)} shapes, every implementation in turns in one run"
    return Page("Kernels beside their peers", headline, [], [*sections, Section("Pedigree", [facts], brief=True)])


def about_roofline(rows: Sequence[Document]) -> str:
    """What a share of the roofline is of, and why some of ``rows`` have more than all of it."""
    beyond = any((row["share_of_floor"] or 0.0) > 1.0 for row in rows)
    more = "; what reads more than it writes can be faster than a copy, and beyond 100 %" if beyond else ""
    return f"The roofline is the longer of bytes at copy bandwidth and FLOPs at the GEMM peak, both measured{more}."


def bench_table(rows: Sequence[Document]) -> Table:
    """Every implementation at one shape, forward and backward, and why some were not timed."""

    def three(key: str) -> list[str]:
        return [fmt.NOT_KNOWN if row[key] is None else fmt.interval(*row[key]) for row in rows]

    columns = [
        (Column("direction"), [row["direction"] for row in rows]),
        (Column("implementation"), [_implementation(row) for row in rows]),
        (Column("ms [95 % CI]", numeric=True), three("ms")),
        (Column("TFLOP/s", numeric=True), fmt.column([row["tflops"] for row in rows])),
        (Column("GB/s", numeric=True), fmt.column([row["gb_s"] for row in rows])),
        (Column("% of roofline", numeric=True), fmt.percents([row["share_of_floor"] for row in rows])),
        (Column("time / ours [95 % CI]", numeric=True), three("times_ours")),
        (Column("why not timed"), [row["reason"] or "" for row in rows]),
    ]
    return Table.of(about_roofline(rows), columns)


def _implementation(row: Document) -> str:
    return row["implementation"] if row["same_math"] else f"{row['implementation']}, other mathematics"


def ahead_page(told: Document) -> Page:
    """What ``mfubench campaign --ahead`` compiled."""
    stages = told["stages"]
    columns = [
        (Column("stage"), [stage["stage"] for stage in stages]),
        (Column("tasks", numeric=True), [fmt.count(stage["tasks"]) for stage in stages]),
        (Column("done", numeric=True), [fmt.count(stage["done"]) for stage in stages]),
        (Column("kernels", numeric=True), [fmt.count(stage["kernels"]) for stage in stages]),
    ]
    where = Facts(
        [
            ("compiled for", told["target"]),
            ("with", ", ".join(f"{name} {version}" for name, version in told["toolchain"].items())),
            ("kept in", f"{told['cache']} ({fmt.size(told['cache_bytes'])})"),
            (
                "on the GPU",
                "the same command without --ahead, with the same Triton and Python, finds them in this folder",
            ),
        ]
    )
    caption = "Kernels with their keys and configs; stages share some."
    sections = [Section("Compiled ahead", [Table.of(caption, columns), where], brief=True)]
    if told["not_done"]:
        why = [f"{task}: {reason}" for task, reason in told["not_done"].items()]
        sections.append(Section("Not compiled", [Items(why)], brief=True))
    if told["failed"]:
        why = [f"{kernel}: {reason}" for kernel, reason in told["failed"].items()]
        sections.append(Section("Configs that do not compile, which tuning leaves out", [Items(why)]))
    return Page(
        "Kernels compiled ahead", f"{fmt.count(len(told['kernels']))} kernels for {told['target']}", [], sections
    )


def write_bench(told: Document, folder: Path) -> None:
    """Write bench.json and report.md."""
    from .markdown import render_page

    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "bench.json", told)
    write_text(folder / "report.md", render_page(bench_page(told)))
