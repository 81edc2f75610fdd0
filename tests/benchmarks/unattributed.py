"""How much of each model's step belongs to no module: at most 2 %, for every model of the zoo in both modes.

    python tests/benchmarks/unattributed.py [--models a,b,..] [--size base] [--steps 5] [--profiles 3]

Prints the median over a few profiles for each model and mode, beside what the ledger's lines sum to, and PASS or FAIL;
ends with 1 if any failed.
"""

import argparse
import sys
from statistics import median

from mfu_models import MODELS
from mfubench.profiling import profile_workload
from mfubench.run import Run
from mfubench.workload.prepare import prepare
from mfubench.workload.spec import WorkloadSpec

LIMIT, SUM_LIMIT = 0.02, 1e-3


def unattributed(run: Run) -> float:
    """The share of the step that has no owner."""
    return sum(line.share for line in run.ledger if line.cause == "not_attributed")


def holds(model: str, mode: str, size: str, steps: int, profiles: int) -> bool:
    """Profile one model in one mode a few times, print, and hold the median against the limit."""
    workload = prepare(WorkloadSpec(model, size=size, mode=mode, device="cpu", steps=steps))
    runs = [profile_workload(workload) for _ in range(profiles)]
    share = median(unattributed(run) for run in runs)
    off = max(abs(sum(line.ms for line in run.ledger) / run.step["time_ms"]["median"] - 1) for run in runs)
    passed = share <= LIMIT and off <= SUM_LIMIT
    step_ms = median(run.step["time_ms"]["median"] for run in runs)
    print(
        f"{model} {size} {mode}: {share:.2%} of {step_ms:.1f} ms not attributed, the lines' sum off by {off:.1e}: "
        f"{'PASS' if passed else 'FAIL'}",
        flush=True,
    )
    return passed


def main() -> None:
    """Go through the models and leave with 1 if too much of any step has no owner."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--size", default="base")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--profiles", type=int, default=3)
    asked = parser.parse_args()
    cases = [(model, mode) for model in asked.models.split(",") for mode in ("train", "infer")]
    results = [holds(model, mode, asked.size, asked.steps, asked.profiles) for model, mode in cases]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
