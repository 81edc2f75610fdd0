"""What a GPU's units do inside our kernels, and what their warps wait for: Nsight Compute's counters.

    python tests/benchmarks/counters.py FOLDER OP:SHAPE [OP:SHAPE ...]

Each op runs forward and backward once on the named shape of `mfubench kernels bench`, after a first run that compiles,
under `ncu`, which must be on the PATH and may repeat a kernel to read every counter; so its times are not those of a
bench. FOLDER gets Nsight Compute's own table of every kernel, counters.csv, and the essence of it, counters.md.
"""

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd

SECTIONS = ("SpeedOfLight", "ComputeWorkloadAnalysis", "WarpStateStats", "LaunchStats", "Occupancy")
STALL = re.compile(r"smsp__average_warps_issue_stalled_(?!.*not_issued)(\w+)_per_issue_active\.ratio")
SHOWN = {
    "ms": r"gpu__time_duration\.sum",
    "tensor pipe %": r"sm__inst_executed_pipe_tensor.*pct_of_peak_sustained_active",
    "FP32 pipe %": r"sm__inst_executed_pipe_fma(?:heavy|lite)?\.avg\.pct_of_peak_sustained_active",
    "MUFU pipe %": r"sm__inst_executed_pipe_xu\.avg\.pct_of_peak_sustained_active",
    "issue slots %": r"sm__inst_issued\.avg\.pct_of_peak_sustained_active|sm__instruction_throughput.*active",
    "DRAM %": r"(?:gpu__)?dram__throughput.*pct_of_peak_sustained_elapsed|gpu__dram_throughput.*elapsed",
    "L2 %": r"lts__throughput.*pct_of_peak_sustained_elapsed",
    "warps %": r"sm__warps_active.*pct_of_peak_sustained_active",
    "registers": r"launch__registers_per_thread",
}


def run(op: str, shape: str) -> None:
    """One forward and backward between the profiler's marks."""
    import torch

    from mfu_kernels.examples import Draw
    from mfubench.kernels.catalog import examples_of

    examples = examples_of(op)
    given = examples.make(examples.shapes[shape], Draw(torch.bfloat16, torch.device("cuda"), on_device=True))
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in given.tensors.items()}
    for counted in (False, True):
        if counted:
            torch.cuda.profiler.start()
        out = examples.function(**leaves, **given.others, impl="triton")
        out.backward(torch.randn_like(out))
        torch.cuda.synchronize()
    torch.cuda.profiler.stop()


def collect(folder: Path, places: list[str]) -> pd.DataFrame:
    """Every counter of every kernel, a row each, with the op and shape that launched it."""
    found = []
    for place in places:
        sections = [word for section in SECTIONS for word in ("--section", section)]
        command = ["ncu", "--clock-control", "none", "--profile-from-start", "off", *sections, "--csv", "--page", "raw"]
        done = subprocess.run([*command, sys.executable, __file__, "--run", place], capture_output=True, text=True)
        lines = done.stdout.splitlines()
        first = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
        if first is None:
            print(f"{place}: no counters: {(done.stdout + done.stderr)[-600:]}", file=sys.stderr)
            continue
        (folder / "part.csv").write_text("\n".join(lines[first:]))
        table = pd.read_csv(folder / "part.csv", thousands=",")
        table.insert(0, "place", place)
        found.append(table)
        pd.concat(found).to_csv(folder / "counters.csv", index=False)  # a kill leaves what is done
    (folder / "part.csv").unlink(missing_ok=True)
    return pd.concat(found)


def essence(counters: pd.DataFrame) -> pd.DataFrame:
    """The busiest of the counters that each of SHOWN means, and the three longest waits, a kernel a row."""
    units, rows = counters.iloc[0], counters[counters["ID"].notna()]
    shown = rows[["place", "Kernel Name"]].copy()
    for name, pattern in SHOWN.items():
        columns = [column for column in rows if re.fullmatch(pattern, column)]
        values = rows[columns].apply(pd.to_numeric, errors="coerce").max(axis=1)
        if name == "ms" and columns:
            values *= {"ns": 1e-6, "nsecond": 1e-6, "us": 1e-3, "usecond": 1e-3}.get(units[columns[0]], 1.0)
        shown[name] = values.round(3)
    stalls = {match[1]: column for column in rows if (match := STALL.fullmatch(column))}
    shown["waits for"] = [
        longest({name: float(row[column]) for name, column in stalls.items()}) for _, row in rows.iterrows()
    ]
    return shown


def longest(stalls: dict[str, float]) -> str:
    """The three longest waits, as shares of the time between two instructions of a warp."""
    total = sum(stalls.values())
    most = sorted(stalls.items(), key=lambda item: -item[1])[:3]
    return ", ".join(f"{name} {100 * value / total:.0f} %" for name, value in most) if total else ""


def main() -> None:
    """Collect and write both files."""
    if sys.argv[1:2] == ["--run"]:
        run(*sys.argv[2].split(":", 1))
        return
    folder, places = Path(sys.argv[1]), sys.argv[2:]
    folder.mkdir(parents=True, exist_ok=True)
    table = essence(collect(folder, places))
    lines = [
        "| " + " | ".join(map(str, row)) + " |" for row in (table.columns, ["---"] * len(table.columns), *table.values)
    ]
    (folder / "counters.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
