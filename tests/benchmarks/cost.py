"""What a profile costs beside the plain steps that it profiles: at most 3 times as much and 10 s, on a CPU at base.

    python tests/benchmarks/cost.py [--models transformer,kunlun] [--size base] [--steps 20] [--pairs 3]

For each model and mode, in one process: the steps that a profile times, run plainly, and a whole profile of the same
workload, in alternation. Prints both medians and PASS or FAIL for each, and ends with 1 if any failed. The first
profile on a machine also calibrates its peaks, which later ones find in the cache; that is done before.
"""

import argparse
import sys
from statistics import median
from time import perf_counter

import torch

from mfubench.measure.calibrate import load_or_calibrate
from mfubench.profiling import profile_workload
from mfubench.workload.prepare import prepare
from mfubench.workload.spec import Workload, WorkloadSpec
from mfubench.workload.step import run_step

TIMES, PLUS_S = 3.0, 10.0


def plain_s(workload: Workload) -> float:
    """Seconds of the steps that a profile times, with nobody looking."""
    start = perf_counter()
    for index in range(workload.spec.steps):
        run_step(workload, index)
    return perf_counter() - start


def profiled_s(workload: Workload) -> float:
    """Seconds of a whole profile of the same workload."""
    start = perf_counter()
    profile_workload(workload)
    return perf_counter() - start


def cheap_enough(model: str, mode: str, size: str, steps: int, pairs: int) -> bool:
    """Time both sides of one model in alternation, print them, and hold them against the limit."""
    workload = prepare(WorkloadSpec(model, size=size, mode=mode, device="cpu", steps=steps))
    run_step(workload, 0)
    timed = [(plain_s(workload), profiled_s(workload)) for _ in range(pairs)]
    plain, profiled = (median(side) for side in zip(*timed, strict=True))
    limit = TIMES * plain + PLUS_S
    passed = profiled <= limit
    print(
        f"{model} {size} {mode}: {profiled:.1f} s for {steps} steps of {plain:.1f} s, limit {limit:.1f} s, "
        f"{pairs} pairs: {'PASS' if passed else 'FAIL'}",
        flush=True,
    )
    return passed


def main() -> None:
    """Compare what was asked for and leave with 1 if a profile costs too much."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="transformer,kunlun")
    parser.add_argument("--size", default="base")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=3)
    asked = parser.parse_args()
    load_or_calibrate(torch.device("cpu"), "fp32")
    cases = [(model, mode) for model in asked.models.split(",") for mode in ("train", "infer")]
    results = [cheap_enough(model, mode, asked.size, asked.steps, asked.pairs) for model, mode in cases]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
