"""Do two profiles of the same workload tell the same of its modules? Their shares agree within 3 points.

    python tests/benchmarks/shares.py [MODEL] [--size base] [--mode train] [--pairs 5] [--steps 20]

Profiles the same workload in pairs, A then B and then B and A, and compares each module's median share of the step
between the two sides. Prints the modules that disagree most, and PASS or FAIL; ends with 1 if it failed.
"""

import argparse
import sys
from collections.abc import Mapping
from statistics import median

from mfubench.profiling import profile_workload
from mfubench.workload.prepare import prepare
from mfubench.workload.spec import Workload, WorkloadSpec

LIMIT, SHOWN = 0.03, 5
Shares = Mapping[str, float]


def shares(workload: Workload) -> Shares:
    """Each module's share of the step, from one profile."""
    return {row.name: row.share for row in profile_workload(workload).modules}


def medians(runs: list[Shares]) -> Shares:
    """Each module's median share; in a run that has no row for it, it took no time."""
    return {name: median(run.get(name, 0.0) for run in runs) for name in set().union(*runs)}


def main() -> None:
    """Profile in pairs and leave with 1 if any module's two medians disagree by more than the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="kunlun")
    parser.add_argument("--size", default="base")
    parser.add_argument("--mode", default="train")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    asked = parser.parse_args()
    workload = prepare(WorkloadSpec(asked.model, size=asked.size, mode=asked.mode, device="cpu", steps=asked.steps))
    sides: tuple[list[Shares], list[Shares]] = ([], [])
    for pair in range(asked.pairs):
        for side in (0, 1) if pair % 2 == 0 else (1, 0):
            sides[side].append(shares(workload))
        print(f"pair {pair + 1} of {asked.pairs}", file=sys.stderr, flush=True)
    one, other = (medians(side) for side in sides)
    gaps = sorted(((abs(one.get(name, 0) - other.get(name, 0)), name) for name in {*one, *other}), reverse=True)
    for gap, name in gaps[:SHOWN]:
        print(f"{name}: {one.get(name, 0):.2%} and {other.get(name, 0):.2%}, {100 * gap:.2f} points apart")
    passed = gaps[0][0] <= LIMIT
    print(
        f"{asked.model} {asked.size} {asked.mode}: largest disagreement {100 * gaps[0][0]:.2f} points, "
        f"limit {100 * LIMIT:g}: {'PASS' if passed else 'FAIL'}"
    )
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
