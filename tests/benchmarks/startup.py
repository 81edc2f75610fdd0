"""What starting mfubench costs, beside what it cannot be cheaper than: both sides in alternation, in one run.

    python tests/benchmarks/startup.py [PAIRS]

Prints the median ratio of wall times with its bootstrap interval, for `mfubench --help` against an empty Typer app
with as many commands, and for `mfubench profile transformer --size tiny` against `python -c "import torch"`. The first
profile on a machine also calibrates its peaks, which later ones find in the cache; one run before the pairs does that.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np

from mfubench.measure.stats import median_ci

NUM_COMMANDS = 4
EMPTY_APP = """
import typer
app = typer.Typer()
{commands}
app(["--help"])
"""
COMMAND = """
@app.command()
def command_{number}(name: str, size: int = 1, quiet: bool = False) -> None:
    "Do nothing."
"""


def main(pairs: int) -> None:
    """Time both comparisons and print them."""
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder) / "empty.py"
        empty.write_text(EMPTY_APP.format(commands="".join(COMMAND.format(number=n) for n in range(NUM_COMMANDS))))
        python, tool = sys.executable, str(Path(sys.executable).parent / "mfubench")
        tiny = [tool, "profile", "transformer", "--size", "tiny", "--quiet"]
        compare("--help / empty Typer app", [tool, "--help"], [python, str(empty)], pairs)
        compare("profile transformer tiny / import torch", tiny, [python, "-c", "import torch"], pairs)


def compare(title: str, ours: list[str], floor: list[str], pairs: int) -> None:
    """Run both in alternation and print the ratio of their wall times."""
    for command in (ours, floor):
        seconds(command)
    timed = np.array([(seconds(ours), seconds(floor)) for _ in range(pairs)])
    ratio, low, high = median_ci((timed[:, 0] / timed[:, 1]).tolist())
    mine, other = np.median(timed, axis=0)
    print(f"{title}: {ratio:.2f} [{low:.2f}, {high:.2f}] ({mine:.2f} s / {other:.2f} s, {pairs} pairs)", flush=True)


def seconds(command: list[str]) -> float:
    """Wall time of one run of ``command``."""
    start = perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"COLUMNS": "100"})
    return perf_counter() - start


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 9)
