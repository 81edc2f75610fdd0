"""Documents of a ladder of sizes, for the tests of what renders them."""

from math import log
from typing import Any

from tests.mfubench.report.gate_factory import HOSTILE

SIZES = {"tiny": 1.2e6, "small": 5.1e6, "base": 21.4e6, "large": 88e6, "large_plus": 350e6}
LAWS = {
    "interformer": (0.952, 0.0031),
    "kunlun": (0.948, 0.0064),
    "wukong": (0.953, 0.0042),
    "hstu": (0.945, 0.0021),
    "transformer": (0.951, 0.0005),
    "ligr": (0.956, 0.0054),
}
FOUR = ("tiny", "small", "base", "large")
MODELS = ("interformer", "kunlun")
BASE = 1e6  # of compute, where a law gives its first number


def an_estimate(value: float, by: float = 0.004) -> list[float]:
    return [value, value - by, value + by]


def a_point(model: str = "kunlun", size: str = "tiny", **changes: Any) -> dict[str, Any]:
    """A size that was trained; its NE is its model's law."""
    flops = SIZES.get(size, 1.2e6)
    a, eta = LAWS.get(model, LAWS["kunlun"])
    ne = a - eta * log(flops / BASE)
    times = {"seconds": 12.3, "samples_per_s": 1600.0, "mfu_of_measured_peak": 0.12}
    work = {"params": 4_100_000, "dense_params": 120_000, "samples": 20_000, "flops": flops * 20_000}
    loss = {"ne_by_training_rate": ne + 0.001, "last_training_loss": 0.6, "seconds": 6.1}
    seeds = [{"seed": seed, "ne": ne + 0.0005 * (2 * seed - 1), **loss} for seed in range(2)]
    known = {"flops_per_sample": flops, "peak_seconds_per_sample": flops / 0.12, **work, **times}
    done = {"model": model, "size": size, "status": "done", "reason": None}
    return {**done, **known, "seeds": seeds, "ne": an_estimate(ne), **changes}


def an_absent_point(
    model: str = "kunlun", size: str = "large", status: str = "not_reached", reason: str | None = "the budget ended"
) -> dict[str, Any]:
    nothing = dict.fromkeys(a_point())
    return {**nothing, "model": model, "size": size, "status": status, "reason": reason, "seeds": []}


def a_fit(model: str = "kunlun", axis: str = "flops", **changes: Any) -> dict[str, Any]:
    a, eta = LAWS.get(model, LAWS["kunlun"])
    c0 = BASE if axis == "flops" else BASE / 0.12
    law = {"a": an_estimate(a), "eta": an_estimate(eta, 0.001), "c0": c0, "r2": 0.98, "residual": 0.001}
    slope = {"per_decade": an_estimate(eta * log(10), 0.002), "efficiency": [2.13, 1.42, 3.04], "why_not": ""}
    ahead = {"equal_compute": 1.4 * c0, "lead": [0.021, 0.012, 0.03]}
    return {"model": model, "axis": axis, "points": 4, **law, **slope, **ahead, **changes}


def no_fit(model: str = "kunlun", axis: str = "flops", why_not: str = "2 sizes, 3 are needed") -> dict[str, Any]:
    return {**dict.fromkeys(a_fit()), "model": model, "axis": axis, "points": 2, "why_not": why_not}


def some_fits(*models: str) -> list[dict[str, Any]]:
    """Of both axes, the baseline first."""
    itself = dict.fromkeys(("efficiency", "equal_compute", "lead"))
    return [
        a_fit(model, axis, **(itself if model == "interformer" else {}))
        for axis in ("flops", "device_time")
        for model in models or MODELS
    ]


def a_ladder(*points: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The document of a ladder with ``points``; ``changes`` replace parts of it."""
    window = {
        "fingerprints": ["8f3a", "19cc"],
        "impressions": [20_000, 5_000],
        "rates": [0.372, 0.361],
        "users": [950, 410],
    }
    log_of = {
        "source": "kuairand:/data/KuaiRand-1K",
        "description": "KuaiRand-1K, standard policy",
        "target": "is_click",
    }
    given = {
        "schema_version": 1,
        "complete": True,
        "command_line": "mfubench scale --models interformer,kunlun --sizes tiny,small --data kuairand:/data",
        "data": {**log_of, **window},
        "settings": {"samples": 20_000, "evaluated": 5_000, "seeds": 2, "batch_size": 512, "learning_rate": 0.001},
        "environment": {"torch": "2.11.0", "device_name": "NVIDIA H100", "memory_bytes": 2**34, "driver": None},
        "baseline": "interformer",
        "predictors": {"item_mean": 0.962, "running_user_mean": 0.955},
        "points": list(points) or [a_point(model, size) for model in MODELS for size in FOUR],
        "fits": some_fits(),
        "not_done": {},
        "warnings": ["the sizes span 1.9 decades"],
        "method": "Each size was trained once a seed, in one pass.",
    }
    return {**given, **changes}


def nothing_done() -> dict[str, Any]:
    """A ladder of which no size was trained."""
    points = [an_absent_point(model, size) for model in MODELS for size in FOUR]
    nowhere = {"fingerprints": [None, None], "impressions": [None, None], "rates": [None, None], "users": [None, None]}
    data = {**a_ladder()["data"], **nowhere}
    return a_ladder(*points, complete=False, data=data, fits=[], predictors={}, warnings=[])


def a_long_ladder() -> dict[str, Any]:
    """Six models with five sizes each."""
    points = [a_point(model, size, peak_seconds_per_sample=None) for model in LAWS for size in SIZES]
    return a_ladder(*points, fits=some_fits(*LAWS)[: len(LAWS)])


def a_hostile_ladder() -> dict[str, Any]:
    """A ladder whose every text tries to be more than text."""
    names = {"model": HOSTILE, "size": HOSTILE}
    points = [a_point(**names), {**an_absent_point(**names), "status": HOSTILE, "reason": HOSTILE}]
    texts = {"warnings": [HOSTILE], "method": HOSTILE, "command_line": HOSTILE, "baseline": HOSTILE}
    data = dict.fromkeys(("source", "description", "target"), HOSTILE) | {"fingerprints": [HOSTILE, HOSTILE]}
    return a_ladder(
        *points,
        **texts,
        data={**a_ladder()["data"], **data},
        environment={HOSTILE: HOSTILE},
        settings={HOSTILE: HOSTILE},
        predictors={HOSTILE: 0.95},
        fits=[a_fit(HOSTILE), no_fit(HOSTILE, why_not=HOSTILE)],
        not_done={HOSTILE: HOSTILE},
    )
