"""What `mfubench scale` found as a page: how much each model gains from compute, held against one of them.

``told`` is its document as JSON. NE is normalised entropy; a model's law is NE(C) = a - eta ln(C / c0).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mfubench.figures import Curve, Curves, Law, Level, Size, curves
from mfubench.scaling.names import DEVICE_TIME, FILE, FLOPS, LEAST_POINTS

from . import format as fmt
from .blocks import Block, Chart, Column, Facts, Items, Page, Section, Table, known

Document = Mapping[str, Any]
Estimate = Sequence[Any] | None  # a value and the ends of its interval, each None where it is not known
DONE = "done"
AXES = {FLOPS: "model FLOPs", DEVICE_TIME: "device time x peak"}
# axis -> what of a point lies on it, and what the chart's axis and the chart are called
DRAWN = {
    FLOPS: ("flops_per_sample", "model FLOPs a sample", "NE by model FLOPs"),
    DEVICE_TIME: (
        "peak_seconds_per_sample",
        "device time a sample x measured peak, FLOPs",
        "NE by device time x peak",
    ),
}
PREDICTORS = {
    "item_mean": ("item mean", "each item's rate in the training window"),
    "running_user_mean": ("running user mean", "each user's rate before the impression"),
}
ONLY_IN_FULL = {"dense_params", "samples", "flops"}  # of a point
NOBODY = (None, None)  # how many users a log that does not tell has
NUM_NAMED = 3  # of the models, in the headline
NOT_ENOUGH = "no slope was fitted"
SECOND_HAND = "second-hand, the paper itself was not read"
# What, as published, of which data and scale, and where it is written.
PUBLISHED = [
    (
        "Kunlun, scaling efficiency",
        "2 times InterFormer's, the ratio of eta in NE(C) = NE0 - eta log(C / C0)",
        "Meta Ads, 70 B samples and more, one pass, B200; 10 to 200 GFLOPs and more, convention not stated",
        f"arXiv 2602.10016; {SECOND_HAND}",
    ),
    (
        "Kunlun, NE at 180 GFLOPs",
        "0.79 % lower for Kunlun, 0.50 % lower for InterFormer: a ratio of 1.58, which is not 2, so both numbers "
        "cannot be of one baseline and one axis",
        "the same",
        f"arXiv 2602.10016; {SECOND_HAND}",
    ),
    (
        "Kunlun, the baseline of that efficiency",
        "InterFormer in the headline, Wukong in the formula",
        "the same",
        "a third party's re-implementation: github.com/doogkong/ad_ranking, kunlun/README.md, commit 5a4c502",
    ),
    (
        "Wukong, log loss",
        "about 0.1 % lower for each four times the compute",
        "internal, 146 B samples, 720 features, one pass; 0.53 to 108 GFLOP an example, of training by our arithmetic",
        "arXiv 2403.02545",
    ),
    (
        "Wukong, log loss below a small DLRM's",
        "0.35 % at 0.53 GFLOP, 0.76 % at 108 (task 1)",
        "the same",
        "arXiv 2403.02545, table 5",
    ),
]


def scaling_page(told: Document) -> Page:
    """Everything that a report says about a ladder of sizes, also where nothing of it was trained."""
    told = fmt.cleaned(told)
    done, fits = _done(told), _by_axis(told)
    absent = _not_done(told)
    given: list[Block] = [_data(told["data"]), Facts.of(told["settings"]), Facts.of(told["environment"])]
    return Page(
        title=" ".join(f"Scaling on {_log(told)}, held against {told['baseline']}".split()),
        headline=_headline(told, done),
        warnings=list(told["warnings"]),
        sections=[
            Section("Scaling", _scaling(told, done, fits), brief=True),
            Section("Points", [*_predictors(told, done), *_points(told["points"], len(done))], brief=True),
            *([Section("The laws that were fitted", [_laws(fits)])] if fits else []),
            *([Section("Every seed", [_seeds(done)])] if done else []),
            Section("Published", [_published()]),
            Section("Not done", [Facts(absent) if absent else Items(["Nothing was left out."])]),
            Section("What it ran on", given),
            Section("Method", [Items(_method(told))]),
        ],
    )


def scaling_section(told: Document) -> Section:
    """The ladder in a page of more than it: what it says, charts, slopes and points."""
    told = fmt.cleaned(told)
    done = _done(told)
    points = _points(told["points"], len(done))
    blocks = [Items([_headline(told, done)]), *_scaling(told, done, _by_axis(told)), *points]
    return Section(f"What compute buys, on {_log(told)}", blocks, brief=True)


def slopes_table(told: Document) -> Table:
    """What each model gains from compute, beside the baseline, of a ladder with fits."""
    told = fmt.cleaned(told)
    return _slopes(_by_axis(told), told["baseline"])


def _done(told: Document) -> list[Document]:
    return [point for point in told["points"] if point["status"] == DONE]


def _by_axis(told: Document) -> list[Document]:
    return sorted(told["fits"], key=lambda fit: list(AXES).index(fit["axis"]))


def _scaling(told: Document, done: Sequence[Document], fits: Sequence[Document]) -> list[Block]:
    return [*_charts(told, done), _fits(fits, told["baseline"])]


def _log(told: Document) -> str:
    """What kind of log it is; its path is among the facts."""
    return " ".join(str(told["data"]["source"]).partition(":")[0].split()) or "a log"


def _headline(told: Document, done: Sequence[Document]) -> str:
    """How many times the baseline's gain each model's is; where that is not known, what is."""
    points, baseline, log = told["points"], told["baseline"], _log(told)
    fits = [fit for fit in told["fits"] if fit["axis"] == FLOPS]
    others = [fit for fit in fits if fit["model"] != baseline]
    held = [fit for fit in others if _is_known(fit["efficiency"])]
    if not done:
        said = [f"No size of any model was trained on {log}"]
    elif held:
        gains = [_gain(fit, "" if at else baseline) for at, fit in enumerate(held[:NUM_NAMED])]
        sizes = _sizes([fit for fit in fits if fit in held or fit["model"] == baseline])
        said = [f"{', '.join(_short(gains, len(held)))} ({log}, {sizes}, by model FLOPs)"]
        said += [f"{len(others) - len(held)} cannot be held against it"] if held != others else []
    elif others:
        said = [f"On {log} no gain from compute can be held against {baseline}'s", *_reasons(others)]
    else:
        said = [_slope(fit, told) for fit in fits] or [f"No model has a slope on {log}: {NOT_ENOUGH}"]
    said += [f"{len(done)} of {len(points)} sizes trained"] if 0 < len(done) < len(points) else []
    return " ".join("; ".join(said if told["complete"] else [*said, "not complete"]).split())


def _short(named: list[str], number: int) -> list[str]:
    return [*named, f"and {number - NUM_NAMED} more"] if number > NUM_NAMED else named


def _reasons(fits: Sequence[Document]) -> list[str]:
    """Why models are not held against the baseline, each reason once."""
    models: dict[str, list[str]] = {}
    for fit in fits:
        models.setdefault(fit["why_not"] or NOT_ENOUGH, []).append(fit["model"])
    return [f"{', '.join(_short(names[:NUM_NAMED], len(names)))}: {why}" for why, names in models.items()]


def _gain(fit: Document, baseline: str) -> str:
    times, ends = _estimate(fit["efficiency"], 2), _ends(fit["efficiency"])
    undecided = " (undecided, 1 is inside)" if ends and ends[0] <= 1 <= ends[1] else ""
    if not baseline:
        return f"{fit['model']} {times}{undecided}"
    return f"{fit['model']} gains {times} times as much NE from compute as {baseline}{undecided}"


def _slope(fit: Document, told: Document) -> str:
    if not _is_known(fit["per_decade"]):
        return f"{fit['model']} {fmt.not_known(fit['why_not'] or NOT_ENOUGH)}"
    return f"{fit['model']}'s {_change(fit)} with ten times the model FLOPs{_doubt(fit) or _unchecked(fit, told)}"


def _change(fit: Document) -> str:
    """Which way ten times the compute moves the NE, and by how much."""
    ends = _ends(fit["per_decade"])
    if ends is None or ends[1] >= 0:
        return f"NE falls by {_estimate(fit['per_decade'], 2)}"
    return f"NE rises by {_estimate([-fit['per_decade'][0], -ends[1], -ends[0]], 2)}"


def _unchecked(fit: Document, told: Document) -> str:
    """What nothing checked of a gain that an interval knows no doubt of."""
    few = [f"{fit['points']} sizes"] if fit["points"] < LEAST_POINTS else []
    few += ["one seed"] if told["settings"].get("seeds") == 1 else []
    return f" (by {' and '.join(few)}, which nothing checks)" if few else ""


def _doubt(fit: Document) -> str:
    """What an interval says against a gain."""
    ends = _ends(fit["per_decade"])
    return " (undecided, 0 is inside)" if ends and ends[0] <= 0 <= ends[1] else ""


def _sizes(fits: Sequence[Document]) -> str:
    counts = list(dict.fromkeys(fit["points"] for fit in fits))
    return f"{counts[0]} sizes each" if len(counts) == 1 else f"{min(counts)} to {max(counts)} sizes each"


def _charts(told: Document, done: Sequence[Document]) -> list[Chart]:
    """One chart for each axis that a point lies on."""
    levels = [Level(_predictor(name)[0], ne) for name, ne in told["predictors"].items() if _numbers(ne)]
    found = []
    for axis, (key, of_compute, title) in DRAWN.items():
        figure = curves("NE, lower is better", of_compute, _curves(told, done, axis, key), levels)
        if figure is not None:
            found.append(Chart(title, _summary(figure, of_compute), figure))
    return found


def _curves(told: Document, done: Sequence[Document], axis: str, key: str) -> list[Curve]:
    fits = {fit["model"]: fit for fit in told["fits"] if fit["axis"] == axis}
    drawn: dict[str, list[Size]] = {}
    for point in done:
        if _numbers(point[key]) and point[key] > 0 and _is_known(point["ne"]):
            drawn.setdefault(point["model"], []).append(_size(point, key))
    return [Curve(model, sizes, _law(fits.get(model)), _about(fits.get(model))) for model, sizes in drawn.items()]


def _size(point: Document, key: str) -> Size:
    value = point["ne"][0]
    low, high = _ends(point["ne"]) or (value, value)
    about = f"{point['model']} {point['size']}: NE {_estimate(point['ne'])} at {fmt.flops(point[key])} a sample"
    return Size(point["size"], point[key], value, low, high, about)


def _law(fit: Document | None) -> Law | None:
    if fit is None or not (_is_known(fit["a"]) and _is_known(fit["eta"]) and _numbers(fit["c0"])):
        return None
    return Law(fit["a"][0], fit["eta"][0], fit["c0"])


def _about(fit: Document | None) -> str:
    if fit is None or not _is_known(fit["per_decade"]):
        return NOT_ENOUGH
    return f"{fit['model']}: {_change(fit)} with ten times the compute{_doubt(fit)}"


def _summary(figure: Curves, of_compute: str) -> str:
    laws = [curve.about for curve in figure.curves if curve.law]
    said = [f"NE of each size with its 95 % interval against {of_compute}, on a log axis."]
    said += (
        [f"Lines are fits, each over its own sizes. {'; '.join(_short(laws[:NUM_NAMED], len(laws)))}."] if laws else []
    )
    said += ["Dashed: predictors that know one rate."] if figure.levels else []
    return " ".join(said)


def _fits(fits: Sequence[Document], baseline: str) -> Block:
    return _slopes(fits, baseline) if fits else Items([f"{NOT_ENOUGH.capitalize()}."])


def _slopes(fits: Sequence[Document], baseline: str) -> Table:
    """Slopes and their ratios, which is what a ladder is for."""
    slopes = [_estimate(fit["per_decade"], 3) for fit in fits]
    ratios = ["baseline" if fit["model"] == baseline else _estimate(fit["efficiency"], 3) for fit in fits]
    columns = [
        *_which(fits),
        (Column("sizes", numeric=True), [fmt.value("", fit["points"]) for fit in fits]),
        (Column("NE gained by ten times the compute", numeric=True), slopes),
        (Column(f"efficiency, times {baseline}'s", numeric=True), ratios),
        (Column("at equal compute", numeric=True), [fmt.flops(fit["equal_compute"]) for fit in fits]),
        (Column(f"NE lower than {baseline}'s there", numeric=True), [_estimate(fit["lead"], 3) for fit in fits]),
        (Column("r2", numeric=True), fmt.column([fit["r2"] for fit in fits])),
        (Column("why not"), [fit["why_not"] or "" for fit in fits]),
    ]
    filled = [(column, cells) for column, cells in known(columns) if any(cells)]
    return Table.of(
        "What each model gains from compute, how many times the baseline's gain that is, and how far ahead it is where "
        "both have had as much. In brackets 95 % intervals.",
        filled,
    )


def _laws(fits: Sequence[Document]) -> Table:
    def estimates(header: str, key: str, digits: int) -> tuple[Column, list[str]]:
        return Column(header, numeric=True), [_estimate(fit[key], digits) for fit in fits]

    columns = [
        *_which(fits),
        estimates("a", "a", 4),
        estimates("eta", "eta", 3),
        (Column("c0, a sample", numeric=True), [fmt.flops(fit["c0"]) for fit in fits]),
        (Column("residual NE", numeric=True), fmt.column([fit["residual"] for fit in fits], digits=2)),
    ]
    return Table.of("NE(C) = a - eta ln(C / c0), for a sample's C; in brackets 95 % intervals.", known(columns))


def _which(fits: Sequence[Document]) -> list[tuple[Column, list[str]]]:
    return [
        (Column("model"), [fit["model"] for fit in fits]),
        (Column("compute"), [AXES[fit["axis"]] for fit in fits]),
    ]


def _points(points: Sequence[Document], num_done: int) -> list[Block]:
    if not points:
        return [Items(["No size was asked for."])]

    def numbers(header: str, key: str, unit: float = 1, digits: int = 3) -> tuple[Column, list[str]]:
        cells = fmt.column([point[key] for point in points], digits=digits, unit=unit)
        return Column(header, numeric=True, brief=key not in ONLY_IN_FULL), cells

    shares = fmt.percents([point["mfu_of_measured_peak"] for point in points])
    status = (Column("status"), [fmt.words(point["status"]) for point in points])
    columns = [
        (Column("model"), [point["model"] for point in points]),
        (Column("size"), [point["size"] for point in points]),
        *([status] if num_done < len(points) else []),
        numbers("model MFLOP a sample", "flops_per_sample", fmt.MEGA, digits=4),
        numbers("parameters M", "params", fmt.MEGA),
        numbers("of these dense M", "dense_params", fmt.MEGA),
        (Column("NE [95 % CI]", numeric=True), [_estimate(point["ne"]) for point in points]),
        numbers("samples/s", "samples_per_s"),
        (Column("MFU of measured peak %", numeric=True), shares),
        numbers("training seconds", "seconds"),
        numbers("samples", "samples"),
        (Column("seeds", numeric=True, brief=False), [fmt.count(len(point["seeds"])) for point in points]),
        numbers("model TFLOP in all", "flops", fmt.TERA, digits=4),
    ]
    caption = "Each size, trained once with each seed on the same samples; NE of what came after them, lower is better."
    return [replace(Table.of(caption, known(columns), rest="sizes"), listed_in=FILE)]


def _predictors(told: Document, done: Sequence[Document]) -> list[Block]:
    """What a model must beat, and how many sizes do."""
    if not told["predictors"]:
        return []
    pairs = [
        (f"NE of the {name}", f"{fmt.number(ne, 4)}{meaning and f': {meaning}'}")
        for name, meaning, ne in ((*_predictor(key), ne) for key, ne in told["predictors"].items())
    ]
    reached = [ne for ne in told["predictors"].values() if _numbers(ne)]
    if reached and done:
        ends = [_ends(point["ne"]) for point in done]
        better = sum(each is not None and each[1] < min(reached) for each in ends)
        pairs.append(("Sizes below all of these", f"{better} of {len(done)}, with the whole of their interval"))
    return [Facts(pairs)]


def _predictor(key: str) -> tuple[str, str]:
    """A simple predictor's name, and what it knows."""
    return PREDICTORS.get(key, (fmt.label(key), ""))


def _seeds(done: Sequence[Document]) -> Table:
    rows = [(point, seed) for point in done for seed in point["seeds"]]

    def numbers(header: str, key: str, digits: int = 4) -> tuple[Column, list[str]]:
        return Column(header, numeric=True), fmt.column([seed[key] for _, seed in rows], digits=digits)

    table = Table.of(
        "NE divides by the entropy of the evaluation window's own rate, the other by that of the training window's.",
        [
            (Column("model"), [point["model"] for point, _ in rows]),
            (Column("size"), [point["size"] for point, _ in rows]),
            (Column("seed", numeric=True), [fmt.count(seed["seed"]) for _, seed in rows]),
            numbers("NE", "ne"),
            numbers("NE by the training rate", "ne_by_training_rate"),
            numbers("last training loss", "last_training_loss"),
            numbers("training seconds", "seconds", digits=3),
        ],
        rest="trainings",
    )
    return replace(table, listed_in=FILE)


def _published() -> Table:
    what, said, of, where = (list(column) for column in zip(*PUBLISHED, strict=True))
    return Table.of(
        "Published by others, of other data and another scale; nothing here was measured by this command, and none of "
        "it is a number to reach.",
        [
            (Column("what"), what),
            (Column("as published"), said),
            (Column("data and scale", brief=False), of),
            (Column("source", brief=False), where),
        ],
    )


def _not_done(told: Document) -> list[tuple[str, str]]:
    """What was left out, and why; a size's own reason where nothing else names it."""
    listed = told["not_done"]
    absent = [(f"{point['model']} {point['size']}", point) for point in told["points"] if point["status"] != DONE]
    own = {
        name: point["reason"] or fmt.words(point["status"])
        for name, point in absent
        if not any(f"{key} ".startswith(f"{name} ") for key in listed)
    }
    return [*listed.items(), *own.items()]


def _data(data: Document) -> Facts:
    def window(at: int) -> str:
        impressions, users = (fmt.number(data.get(key, NOBODY)[at]) for key in ("impressions", "users"))
        rate, fingerprint = fmt.percent(data["rates"][at]), fmt.value("", data["fingerprints"][at])
        return f"{impressions} impressions of {users} users, a rate of {rate}, fingerprint {fingerprint}"

    return Facts(
        [
            ("Log", str(data["source"])),
            ("What it is", str(data["description"])),
            ("Target", str(data["target"])),
            ("Training window", window(0)),
            ("Evaluation window", window(1)),
        ]
    )


def _method(told: Document) -> list[str]:
    made = [f"Made by: {told['command_line']}"] if told.get("command_line") else []
    return [told["method"], *made]


def _numbers(*values: float | None) -> bool:
    """Whether all are known, and finite."""
    return all(value is not None and math.isfinite(value) for value in values)


def _is_known(estimate: Estimate) -> bool:
    return estimate is not None and _numbers(estimate[0])


def _ends(estimate: Estimate) -> tuple[float, float] | None:
    """An interval's ends; None where nothing tells how far the value may be off."""
    if estimate is None or not _numbers(*estimate) or estimate[1] == estimate[2]:
        return None
    return estimate[1], estimate[2]


def _estimate(estimate: Estimate, digits: int = 4) -> str:
    """A value with its interval, alone where it has none."""
    if estimate is None or _ends(estimate) is None:
        return fmt.number(estimate[0] if estimate else None, digits)
    value, low, high = estimate
    return fmt.interval(value, low, high, digits=digits)
