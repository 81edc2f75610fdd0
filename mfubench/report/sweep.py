"""A sweep of batch sizes as a page: what each reaches, where its steps go, and which to take."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mfubench.figures import Curve, Size, curves
from mfubench.run import CAUSE_FAMILIES, title_of

from . import format as fmt
from .blocks import Block, Chart, Column, Facts, Items, Page, Section, Table, known

SERIES = "batch sizes"
NUMBER = re.compile(r"\d[\d,.]*")
LEAST_SHOWN = 0.0005  # of a step: less is 0.0 %
Point = Mapping[str, Any]


def sweep_page(told: Mapping[str, Any]) -> Page:
    """Everything that a report says about a sweep, also where it is not complete."""
    points = [point for point in told["points"] if point["status"] == "done"]
    without = [f"{point['batch_size']} requests: {point['reason']}" for point in told["points"] if point["reason"]]
    return Page(
        title=f"Batch sizes of {title_of(told['workload'])}",
        headline=_headline(told, points),
        warnings=_warnings(points),
        sections=[
            Section("What each batch size reaches", [_table(told, points), *_charts(points)], brief=True),
            Section("Where the steps go", [_shares(points)], brief=True),
            Section("Why it ended there", [Items([*without, told["stopped"]])], brief=True),
            Section("Method", [Items([told["method"]])]),
            Section("Workload", [Facts.of(told["workload"])]),
            Section("Peak", [Facts.of(told["peak"])]),
            Section("Environment", [Facts.of(told["environment"])]),
        ],
    )


def _headline(told: Mapping[str, Any], points: Sequence[Point]) -> str:
    by_size = {point["batch_size"]: point for point in points}
    best = told["best"]
    most, knee = best["most_samples_per_s"], best["knee"]
    parts = [f"Most throughput: {_reached(by_size[most])}"]
    if knee != most:
        share = _rate(by_size[knee]) / _rate(by_size[most])
        parts.append(f"{fmt.counted(knee, 'requests')} reach {fmt.percent(share)} of it")
    if told["p99_ms"] is not None:
        wanted, within = f"99 % of the steps within {told['p99_ms']:g} ms", best["within_p99"]
        if within is None:
            parts.append(f"no batch size has {wanted}")
        else:
            parts.append(f"with {wanted}: {'the same' if within == most else _reached(by_size[within])}")
    where = told["environment"].get("device_name") or told["workload"]["device"]
    return f"{where}. {'; '.join(parts)}"


def _reached(point: Point) -> str:
    mfu = point["mfu"] or point["mfu_of_measured_peak"]
    of = "MFU" if point["mfu"] else "of the measured GEMM peak"
    share = f", {fmt.percent(mfu['value'])} {of}" if mfu else ""
    last = _within(point, "99")
    latency = f", 99 % of the steps within {fmt.number(last, 4)} ms" if last is not None else ""
    requests = fmt.counted(point["batch_size"], "requests")
    return f"{requests} a step, {fmt.number(_rate(point))} samples/s{share}{latency}"


def _rate(point: Point) -> float:
    return float(point["samples_per_s"]["value"])


def _warnings(points: Sequence[Point]) -> list[str]:
    """Each once, with the batch sizes that it is of; of those that differ in their numbers alone, the last."""
    alike: dict[str, dict[int, str]] = {}
    for point in points:
        for warning in point["warnings"]:
            alike.setdefault(NUMBER.sub("#", warning), {})[point["batch_size"]] = warning
    told = []
    for given in alike.values():
        *_, last = given.values()
        differ = " (the last's numbers)" if len(set(given.values())) > 1 else ""
        everywhere = len(given) == len(points) and not differ
        told.append(last if everywhere else f"with {_listed(list(given))}{differ}: {last}")
    return told


def _listed(sizes: Sequence[int]) -> str:
    *others, last = sizes
    return ", ".join([*map(fmt.count, others), fmt.counted(last, "requests")])


def _table(told: Mapping[str, Any], points: Sequence[Point]) -> Table:
    most = max(map(_rate, points))

    def intervals(header: str, key: str) -> tuple[Column, list[str]]:
        return Column(header, numeric=True), [_interval(point[key]) for point in points]

    def numbers(header: str, values: Sequence[float | None], unit: float = 1, brief: bool = True) -> Any:
        return Column(header, numeric=True, brief=brief), fmt.column(values, unit=unit)

    def shares(header: str, key: str, brief: bool = True) -> tuple[Column, list[str]]:
        return Column(header, numeric=True, brief=brief), fmt.percents([_value(point[key]) for point in points])

    def latencies(share: str) -> list[str]:
        """Each with its own digits: from the first batch size to the last they may grow a thousandfold."""
        return [fmt.number(_within(point, share), 4) for point in points]

    candidates = told["workload"].get("num_candidates", 1)
    columns = [
        (Column("requests", numeric=True), [fmt.count(point["batch_size"]) for point in points]),
        intervals("step ms, 95 % interval", "time_ms"),
        *(
            (Column(f"{share} % within ms", numeric=True, brief=brief), latencies(share))
            for share, brief in (("50", True), ("90", False), ("99", True), ("99.9", False))
        ),
        intervals("samples/s, 95 % interval", "samples_per_s"),
        numbers("samples/s fed by its loader", [point["fed_samples_per_s"] for point in points]),
        (Column("of the most %", numeric=True, bar=True), fmt.percents([_rate(point) / most for point in points])),
        numbers("candidates/s", [candidates * _rate(p) if candidates > 1 else None for p in points], brief=False),
        shares("MFU %", "mfu"),
        shares("MFU of measured peak %", "mfu_of_measured_peak"),
        shares("HFU %", "hfu", brief=False),
        numbers("model MFLOP a sample", [point["model_flops_per_sample"] for point in points], fmt.MEGA, brief=False),
        numbers("peak MiB", [point["peak_bytes"] for point in points], fmt.MEBI),
        numbers("J a sample", [point["energy_j_per_sample"] for point in points]),
    ]
    return Table.of(
        "One row a batch size. A sample is a request. Latency: within what time so many of the steps are done, each of "
        "which was waited for. The whole report of one: `mfubench report DIR/batch-N`.",
        known(columns),
    )


def _within(point: Point, share: str) -> float | None:
    """Within how many ms so many % of an inference's steps are done."""
    found: float | None = (point["latency_ms"] or {}).get(share)
    return found


def _interval(given: Mapping[str, float]) -> str:
    return fmt.interval(given["value"], given["ci95_low"], given["ci95_high"])


def _value(given: Mapping[str, float] | None) -> float | None:
    return None if given is None else given["value"]


def _shares(points: Sequence[Point]) -> Block:
    """What the step waits for, by batch size: a column for each family of causes that any of them has."""
    families = [
        family for family in CAUSE_FAMILIES if any(abs(point["shares"][family]) >= LEAST_SHOWN for point in points)
    ]
    if not families:
        return Items(["No ledger: no trace was taken."])
    return Table.of(
        "The share of each batch size's step by family of causes, in %. They add up to 100.",
        [
            (Column("requests", numeric=True), [fmt.count(point["batch_size"]) for point in points]),
            *(
                (
                    Column(f"{fmt.words(family)} %", numeric=True),
                    fmt.percents([point["shares"][family] for point in points]),
                )
                for family in families
            ),
        ],
    )


def _charts(points: Sequence[Point]) -> list[Chart]:
    of_sizes = [(float(point["batch_size"]), point) for point in points]
    of_latencies = [(_within(point, "99"), point) for point in points]
    told = ", ".join(f"{point['batch_size']}: {fmt.number(_rate(point))}" for point in points)
    return [
        *_chart("Throughput by batch size", f"Samples/s by requests a step. {told}.", "requests a step", of_sizes),
        *_chart(
            "Throughput by latency",
            "Samples/s of each batch size by the time within which 99 % of its steps are done.",
            "ms within which 99 % of the steps are done",
            of_latencies,
        ),
    ]


def _chart(title: str, summary: str, across: str, given: Sequence[tuple[float | None, Point]]) -> list[Chart]:
    """Throughput against what is given of each batch size; none where that is not known of two."""
    sizes = [
        Size(
            name=fmt.count(point["batch_size"]),
            compute=at,
            value=_rate(point),
            low=point["samples_per_s"]["ci95_low"],
            high=point["samples_per_s"]["ci95_high"],
            about=_reached(point),
        )
        for at, point in given
        if at is not None
    ]
    figure = curves("samples/s", across, [Curve(SERIES, sizes, None, summary, joined=True)], [])
    return [Chart(title, summary, figure)] if figure is not None and len(sizes) > 1 else []
