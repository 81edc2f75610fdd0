"""Record the noise of timing a step against itself, for the replays in test_gain.py.

    OMP_NUM_THREADS=1 python tests/mfubench/optimize/record_noise.py

Two copies of one workload are timed in blocks ABBA, in several processes one after the other. What it writes,
recorded_noise.json, holds each step in microseconds, [process][arm][block][2], and on what it was recorded. One thread:
on a busy machine several wait for each other, and a step varies fourfold, which hides most gains.
"""

import json
from pathlib import Path
from typing import Any

from mfubench.isolated import run_isolated
from mfubench.measure.environment import environment
from mfubench.optimize.trial import arms_of
from mfubench.workload.spec import WorkloadSpec

FILE = Path(__file__).with_name("recorded_noise.json")
SPEC = WorkloadSpec("dlrm", size="tiny", device="cpu", batch_size=16)
PROCESSES, BLOCKS = 6, 160


def record(spec: WorkloadSpec, tell: Any) -> tuple[dict[str, Any], list[list[tuple[int, int]]]]:
    """One process's blocks."""
    arms = arms_of(spec, [(), ()], tell)
    blocks = arms.blocks(0, BLOCKS)
    microseconds = [[(round(1e3 * a), round(1e3 * b)) for a, b in arm] for arm in blocks]
    return environment(arms.workloads[0].device), microseconds


def main() -> None:
    """Record and write."""
    recorded = [run_isolated(record, SPEC, limit_s=600) for _ in range(PROCESSES)]
    known = {key: recorded[0][0][key] for key in ("date", "cpu", "cpu_cores", "torch", "torch_threads", "os")}
    document = {"workload": "dlrm tiny, 16 requests, train, fp32", "environment": known}
    rows = ",\n".join(json.dumps(blocks, separators=(",", ":")) for _, blocks in recorded)
    FILE.write_text(json.dumps(document)[:-1] + ', "microseconds": [\n' + rows + "\n]}\n")


if __name__ == "__main__":
    main()
