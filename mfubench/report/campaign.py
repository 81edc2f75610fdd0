"""A campaign's folder as a page, and its results as the table that the README shows."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mfubench.campaign.contracts import contracts
from mfubench.errors import BadInput
from mfubench.files import write_text

from . import format as fmt
from .blocks import Column, Facts, Items, Page, Section, Table
from .campaign_charts import Pair, beside_peers, best_step
from .kernels import about_roofline, bench_table
from .markdown import render_chart, render_table
from .scaling import scaling_section, slopes_table
from .tuning import tuned_table

Result = Mapping[str, Any]
Results = Mapping[str, Sequence[Result]]
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
NUMBER = re.compile(r"\d+(?:\.\d+)?")
HEADING = "### "  # and the device, whose table follows
DONE = "done"
STANDS = (DONE, "in part")  # statuses of results with a document


def campaign_page(index: Mapping[str, Any], results: Results) -> Page:
    """The page of ``results`` by stage, as `mfubench.campaign.store.Store.results` gives them.

    Raises:
        BadInput: they are not all of one device.
    """
    _check_device(index, results)
    profiles, contracts = _of(results, "profile"), _standing(results, "contract")
    tuned = [entry for document in _of(results, "tune") for entry in document["entries"]]
    sections = [
        Section("Device", [_device(index, results)], brief=True),
        *([Section("Models", [*best_step(profiles), _models(profiles)], brief=True)] if profiles else []),
        *([Section("Numeric contract", [_contract(contracts)], brief=True)] if contracts else []),
        *([Section("Tuned configs", [tuned_table(tuned)])] if tuned else []),
        *_kernels(_of(results, "bench")),
        *_roads(_of(results, "road")),
        *map(scaling_section, _of(results, "scale")),
    ]
    missing: dict[str, list[str]] = {}  # tasks by reason
    for item in (item for items in results.values() for item in items if item["reason"]):
        missing.setdefault(item["reason"], []).append(item["task"])
    if missing:
        why = [f"{reason}: {', '.join(tasks)}" for reason, tasks in missing.items()]
        sections.append(Section("Not measured, and why", [Items(why)], brief=True))
    done = sum(item["status"] == DONE for items in results.values() for item in items)
    begun = [item["task"] for items in results.values() for item in items]
    not_begun = [task for task in index.get("planned", ()) if task not in begun]
    if not_begun:
        counted = Counter(task.partition("/")[0] for task in not_begun)
        told = [f"{count} of {stage}" for stage, count in counted.items()]
        sections.append(Section("Not begun yet", [Items([f"{', '.join(told)}; the same command goes on"])], brief=True))
    headline = f"{done} of {len(begun) + len(not_begun)} tasks have results"
    return Page(f"Campaign on {index['identity']['device']}", headline, _warnings(results), sections)


def _of(results: Results, stage: str) -> list[Any]:
    """The documents of a stage's tasks that are done, in part, too."""
    return [item["document"] for item in _standing(results, stage)]


def _standing(results: Results, stage: str) -> list[Any]:
    return [item for item in results.get(stage, ()) if item["status"] in STANDS]


def _check_device(index: Mapping[str, Any], results: Results) -> None:
    own = index["identity"]["device"]
    for item in (item for items in results.values() for item in items if item["status"] in STANDS):
        document = item["document"]
        devices = {entry["device"] for entry in document.get("entries", ())}
        devices |= {document["environment"]["device_name"]} if "environment" in document else set()
        if devices - {own}:
            raise BadInput(
                f"{item['task']} is of {', '.join(sorted(devices))}, the campaign of {own}: results of two devices do "
                "not belong into one table; keep a folder for each"
            )


def _warnings(results: Results) -> list[str]:
    """Each different warning of the profiles once, with how many of them it concerns, and numbers as a range."""
    alike: dict[str, list[str]] = {}
    for item in results.get("profile", ()):
        for warning in item["document"]["warnings"] if item["status"] == DONE else ():
            alike.setdefault(NUMBER.sub("#", warning), []).append(warning)
    busy = [
        item["task"]
        for item in results.get("bench", ())
        if item["status"] in STANDS
        and item["document"]["nvml"].get("counters", {}).get("other_processes", {}).get("max")
    ]
    found = [f"{_ranged(warnings)} ({len(warnings)} of the profiles)" for warnings in alike.values()]
    found += [f"another process was on the GPU during {task}" for task in busy]
    for calibration in _of(results, "calibration"):
        found += [f"the peaks were measured on a busy machine ({why}): too low" for why in calibration.get("busy", ())]
    return found + [warning for ladder in _of(results, "scale") for warning in ladder["warnings"]]


def _ranged(warnings: Sequence[str]) -> str:
    """Warnings that differ in their numbers alone, as one: the least and the greatest of each."""
    numbers = [sorted(set(column), key=float) for column in zip(*map(NUMBER.findall, warnings), strict=True)]
    ranges = iter(found[0] if len(found) == 1 else f"{found[0]} to {found[-1]}" for found in numbers)
    return NUMBER.sub(lambda _: next(ranges), warnings[0])


def _device(index: Mapping[str, Any], results: Results) -> Facts:
    environment = index["environment"]
    pairs = [
        ("device", str(index["identity"]["device"])),
        ("code", f"{index['identity']['code']} (hash of the sources)"),
        *((name, str(environment[name])) for name in ("torch", "triton", "driver", "python") if environment.get(name)),
    ]
    pairs += [("taken over", told) for told in _taken_over(results)]
    for found in _of(results, "calibration"):
        for dtype, peak in found["by_dtype"].items():
            pairs.append((f"measured GEMM peak, {dtype}", f"{fmt.number(peak['gemm_tflops'][dtype])} TFLOP/s"))
            pairs.append((f"measured copy bandwidth, beside {dtype}", f"{fmt.number(peak['copy_gb_s'])} GB/s"))
    return Facts(pairs)


def _taken_over(results: Results) -> list[str]:
    """What is of other campaigns, a sentence for each of them."""
    found: dict[tuple[str, str], Counter[str]] = {}
    for stage, items in results.items():
        for of in (item["of"] for item in items if "of" in item):
            found.setdefault((of["code"], of["date"]), Counter())[stage] += 1
    named = {"contract": "the numeric contract of {} tasks", "tune": "{} tuned shapes"}
    return [
        f"{' and '.join(text.format(taken[stage]) for stage, text in named.items() if taken[stage])}, "
        f"from a campaign of code {code} ({date}), whose kernels' sources are the same"
        for (code, date), taken in found.items()
    ]


def _models(runs: Sequence[Any]) -> Table:
    ordered = sorted(runs, key=lambda run: (run["workload"]["mode"], run["workload"]["model"], run["workload"]["size"]))

    def of(header: str, key: str) -> tuple[Column, list[str]]:
        return Column(header), [str(run["workload"][key]) for run in ordered]

    columns = [
        of("model", "model"),
        of("size", "size"),
        of("mode", "mode"),
        of("dtype", "dtype"),
        (Column("ops"), [_ops(run["workload"]["impl"]) for run in ordered]),
        of("compile", "compile"),
        (Column("requests", numeric=True), [fmt.count(run["workload"]["batch_size"]) for run in ordered]),
        (Column("step, ms [95 % CI]", numeric=True), [_step(run) for run in ordered]),
        (Column("samples/s", numeric=True), [fmt.number(run["step"]["samples_per_s"], 4) for run in ordered]),
        (Column("MFU %", numeric=True), fmt.percents([run["mfu"] for run in ordered])),
        (Column("HFU %", numeric=True), fmt.percents([run["hfu"] for run in ordered])),
        (
            Column("MFU of measured peak %", numeric=True),
            fmt.percents([run["mfu_of_measured_peak"] for run in ordered]),
        ),
    ]
    return Table.of("MFU counts useful FLOPs against the dense datasheet peak, where there is one.", columns)


def _ops(impl: str) -> str:
    """What computed the ops: a campaign names those with kernels one by one."""
    head, *named = impl.split(",")
    if head != "reference":
        return head
    return f"our kernels ({len(named)} ops)" if named else "PyTorch (references)"


def _step(run: Any) -> str:
    time = run["step"]["time_ms"]
    return fmt.interval(time["median"], time["ci95_low"], time["ci95_high"])


def _contract(items: Sequence[Any]) -> Table:
    """The parts of each op's contract as one row; a pass is one of all its parts."""
    ops: dict[str, list[Any]] = {}
    for item in items:
        for part in item["document"]["ops"]:
            ops.setdefault(part["op"], []).append(part)
    held = contracts(items)  # an op's own, and those of steps

    def verdict(op: str) -> str:
        if any(part["failed"] for part in ops[op]):
            return "FAIL"
        own = [contract for contract in held if contract.op == op]
        done = sum(item["status"] == DONE for contract in own for item in contract.results)
        wanted = sum(contract.parts for contract in own)
        return "pass" if done == wanted else f"{done} of {wanted} parts, none fails"

    parts = list(ops.values())
    columns = [
        (Column("op"), list(ops)),
        (Column("verdict"), [verdict(op) for op in ops]),
        (Column("cases", numeric=True), [fmt.count(sum(part["cases"] for part in op)) for op in parts]),
        (Column("failed", numeric=True), [fmt.count(sum(part["failed"] for part in op)) for op in parts]),
        (
            Column("worst error, % of budget", numeric=True),
            fmt.percents([_worst([part["worst_error_of_budget"] for part in op]) for op in parts]),
        ),
        (Column("dtypes"), [", ".join(sorted({name for part in op for name in part["dtypes"]})) for op in parts]),
    ]
    caption = f"Each kernel against its reference in fp64, run by {items[0]['document']['run_by']}."
    return Table.of(caption, columns)


def _worst(errors: Sequence[float | None]) -> float | None:
    """None where one is beyond all numbers."""
    known = [error for error in errors if error is not None]
    return max(known) if known == list(errors) else None


def _kernels(documents: Sequence[Any]) -> list[Section]:
    """All in one chart, and a section for each op and shape."""
    drawn = beside_peers(_pairs(documents))
    together = [Section("Kernels beside their peers", [*drawn], brief=True)] if drawn else []
    return together + [
        Section(f"{op}, {shape}", [bench_table([row for run in runs for row in run])], brief=True)
        for (op, shape), runs in _runs(documents).items()
    ]


def _runs(documents: Sequence[Any]) -> dict[tuple[str, str], list[list[Any]]]:
    """The rows of each run by op and shape; ours alone only where there is no run beside peers."""
    found: dict[tuple[str, str], list[list[Any]]] = {}
    for document in documents:
        rows: dict[tuple[str, str], list[Any]] = {}
        for row in document["rows"]:
            rows.setdefault((row["op"], row["shape"]), []).append(row)
        for place, run in rows.items():
            found.setdefault(place, []).append(run)
    for place, runs in found.items():
        beside = [run for run in runs if len({row["implementation"] for row in run}) > 1]
        found[place] = beside or runs
    return found


def _roads(documents: Sequence[Any]) -> list[Section]:
    """The road to Kunlun of each size; each has a report of its own in its folder."""
    return [
        Section(f"The road to Kunlun, {found['workload']['size']}", [_road(found)], brief=True) for found in documents
    ]


def _road(found: Any) -> Table:
    steps = [step for step in found["steps"] if step["kind"] == "road"]
    changes = {change["name"]: change for change in found["changes"] if change["kind"] == "road"}
    rates = [None if step["row"] is None else step["row"]["samples_per_s"]["value"] for step in steps]
    gains = [changes.get(step["name"], {}).get("relative", {}).get("samples_per_s", {}).get("value") for step in steps]
    columns = [
        (Column("step"), [step["name"] for step in steps]),
        (Column("samples/s", numeric=True), fmt.column(rates)),
        (Column("change of samples/s, %", numeric=True), fmt.percents(gains)),
        (Column("why there is no number"), [step["reason"] for step in steps]),
    ]
    return Table.of("Each step turns on one switch more. Its folder has a report with intervals.", columns)


def results_table(
    index: Mapping[str, Any],
    results: Results,
    pictures: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """The models' table, the kernels' and what compute buys in Markdown, with the device and the command.

    ``pictures`` are files of the report's charts by their titles, which then stand above the tables.

    Raises:
        BadInput: there is nothing for a table yet, or the results are not all of one device.
    """
    _check_device(index, results)
    runs, benches = _of(results, "profile"), _of(results, "bench")
    ladders = [told for told in _of(results, "scale") if told["fits"]]
    if not (runs or benches or ladders):
        raise BadInput(
            "this campaign has no profile, bench or ladder of sizes yet: there is no table of results to make"
        )
    environment = index["environment"]
    device = index["identity"]["device"]
    texts = [
        f"{HEADING}{device}",
        f"Measured with torch {environment.get('torch')}; written by `mfubench campaign --table`, never by hand.",
    ]
    pairs = _pairs(benches)
    charts = [chart for chart in (*best_step(runs), *beside_peers(pairs)) if chart.title in pictures]
    texts += [render_chart(chart, lambda chart: pictures[chart.title]) for chart in charts]
    texts += [render_table(_models(runs))] if runs else []
    texts += [_folded(f"Kernels beside their peers, {len(pairs)} rows", _beside_peers(pairs))] if benches else []
    texts += [render_table(slopes_table(told)) for told in ladders]
    return "\n\n".join(texts)


def _folded(title: str, table: Table) -> str:
    """A table that a reader opens by its title."""
    return f"<details><summary>{title}</summary>\n\n{render_table(table)}\n\n</details>"


def _pairs(documents: Sequence[Any]) -> list[Pair]:
    """Ours at each shape and direction, beside the fastest peer that computes the same."""
    pairs = [
        _beside_the_fastest([[row for row in run if row["direction"] == direction and row["ms"]] for run in runs])
        for runs in _runs(documents).values()
        for direction in dict.fromkeys(row["direction"] for run in runs for row in run)
    ]
    return [pair for pair in pairs if pair]


def _beside_peers(pairs: Sequence[Pair]) -> Table:
    rows, best = [ours for ours, _ in pairs], [peer for _, peer in pairs]
    columns = [
        (Column("op"), [row["op"] for row in rows]),
        (Column("shape"), [row["shape"] for row in rows]),
        (Column("direction"), [row["direction"] for row in rows]),
        (Column("ms [95 % CI]", numeric=True), [fmt.interval(*row["ms"]) for row in rows]),
        (Column("TFLOP/s", numeric=True), fmt.column([row["tflops"] for row in rows])),
        (Column("% of roofline", numeric=True), fmt.percents([row["share_of_floor"] for row in rows])),
        (Column("fastest peer"), [fmt.NOT_KNOWN if row is None else row["implementation"] for row in best]),
        (
            Column("peer's time / ours [95 % CI]", numeric=True),
            [fmt.NOT_KNOWN if row is None else fmt.interval(*row["times_ours"]) for row in best],
        ),
    ]
    caption = (
        "Kernels in bf16 beside the fastest peer that computes the same; an attention's backward is 2.5 forwards. "
        f"{about_roofline(rows)}"
    )
    return Table.of(caption, columns)


def _beside_the_fastest(runs: Sequence[Sequence[Any]]) -> Pair | None:
    """Our row and that of the peer that took the least of our time in the same run; None where there is none."""
    timed = [(own, row) for run in runs for own in run if own["times_ours"] is None for row in run]
    peers = [(own, row) for own, row in timed if row["times_ours"] is not None and row["same_math"]]
    if peers:
        return min(peers, key=lambda pair: pair[1]["times_ours"][0])
    return (timed[0][0], None) if timed else None


def put_table(text: str, file: Path) -> None:
    """Put a device's table between the markers in ``file``, in the place of its last one; other devices' stay.

    Raises:
        BadInput: the file cannot be read, or has not both markers, once and in order.
    """
    head, old, tail = between_markers(file)
    _, *kept = f"\n{old}".split(f"\n{HEADING}")
    tables = {table.partition("\n")[0].strip(): f"{HEADING}{table.strip()}" for table in kept}
    tables[text.removeprefix(HEADING).partition("\n")[0].strip()] = text.strip()
    shown = "\n\n".join(tables.values())
    write_text(file, f"{head}{BEGIN}\n{shown}\n{END}{tail}")


def between_markers(file: Path) -> tuple[str, str, str]:
    """What stands before the markers in ``file``, between them and after.

    Raises:
        BadInput: as `put_table`.
    """
    try:
        before = file.read_text(encoding="utf-8")
    except OSError as error:
        raise BadInput(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadInput(f"{file} is not UTF-8; give the text file that the table is to stand in") from None
    head, begin, rest = before.partition(BEGIN)
    old, end, tail = rest.partition(END)
    if not begin or not end:
        raise BadInput(f"{file} has no lines {BEGIN} and {END} for the table to stand between")
    return head, old, tail
