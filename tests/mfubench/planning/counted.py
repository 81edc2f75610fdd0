"""What is counted without numbers, beside what is counted with them: run in a process where Triton compiles.

Prints JSON: by model of the zoo, the step without numbers and the same on this CPU; and plans of a run's own workload,
on its GPU at its rates, and by the datasheet; and the memory of InterFormer large on the references.
"""

import json
import sys
from pathlib import Path
from typing import Any

from mfu_models import MODELS
from mfubench.measure.count import Count
from mfubench.measure.memory import MemoryPeak
from mfubench.planning.gpu import known_gpu
from mfubench.planning.needs import peak_on, step_on
from mfubench.planning.plan import chosen_gpus, like, make_plans
from mfubench.profiling import count_of, first_step, memory_of
from mfubench.run import run_of
from mfubench.workload.prepare import prepare
from mfubench.workload.spec import WorkloadSpec


def told(count: Count, memory: MemoryPeak) -> dict[str, Any]:
    total = {name: getattr(count.total(), name) for name in ("model", "padded", "hardware", "recomputed", "bytes")}
    return {**total, "impls": count.impls, "peak": memory.peak_bytes, "by_kind": memory.by_kind, "phase": memory.phase}


def of_model(name: str, mode: str) -> list[dict[str, Any]]:
    """On a GPU that runs no kernels of ours, and here."""
    spec = WorkloadSpec(name, size="tiny", mode=mode, dtype="fp32", batch_size=3, steps=1, device="cpu")
    without = step_on(known_gpu("T4", "fp32"), spec)
    workload = prepare(spec)
    first_step(workload)
    return [told(without.count, without.memory), told(count_of(workload, 0), memory_of(workload))]


def of_run(file: Path) -> dict[str, Any]:
    run = run_of(json.loads(file.read_text())["document"], str(file))
    rates = like(run)
    w = run.workload
    spec = WorkloadSpec(w["model"], size=w["size"], batch_size=w["batch_size"], impl=w["impl"])
    document = make_plans([spec], chosen_gpus(["H200"], run, "bf16", None), rates=rates, samples_per_day=1e9)
    kernels_ms = sum(row.time_ms for row in run.kernels)
    return {"document": document, "run": {"memory": run.memory, "flops": run.flops, "kernels_ms": kernels_ms}}


if __name__ == "__main__":
    models = {name: of_model(name, "train") for name in MODELS}
    models["kunlun, inference"] = of_model("kunlun", "infer")
    reference = WorkloadSpec("interformer", size="large", batch_size=1024, impl="reference")
    peak = peak_on(known_gpu("H200", "bf16"), reference)
    print(json.dumps({"models": models, "run": of_run(Path(sys.argv[1])), "reference": peak}))
