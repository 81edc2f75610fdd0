"""Runs that look like real ones, on a CPU and on a GPU, for the tests of what reads them."""

from typing import Any

from mfubench.run import KernelConfig, KernelRow, LedgerLine, ModuleRow, Run

LEDGER = [
    ("padding", 0.40, ["blocks.0.gdpa", "blocks.1.gdpa"]),
    ("recompute", 0.0, []),
    ("useful", 4.10, ["blocks.0.gdpa", "dense.mlp.0"]),
    ("peak_gap", 1.25, ["blocks.0.gdpa"]),
    ("dtype", 0.0, []),
    ("memory_bound.gemm", 0.31, ["head.task_0"]),
    ("memory_bound.attention", 0.62, ["blocks.1.window"]),
    ("memory_bound.norm", 0.55, ["blocks.0.norm", "blocks.1.norm"]),
    ("memory_bound.elementwise", 0.48, ["blocks.0.gate"]),
    ("memory_bound.embedding", 0.92, ["embeddings"]),
    ("inefficiency.gemm", 0.73, ["dense.mlp.0"]),
    ("inefficiency.attention", 1.04, ["blocks.0.gdpa", "blocks.1.gdpa"]),
    ("inefficiency.reduction", -0.0042, ["head.task_0"]),
    ("optimizer", 0.87, ["(optimizer)"]),
    ("data", 0.11, []),
    ("launch", 0.82, []),
    ("not_attributed", 0.1442, []),
]
STEP_MS = 12.34


def a_run(**changes: Any) -> Run:
    """A training run on a CPU; ``changes`` replace fields, a dict is merged into the field's own."""
    run = Run(
        workload=_workload(),
        environment=_environment(),
        peak={
            "dtype": "fp32",
            "in_use": "measured",
            "datasheet_tflops": None,
            "source": None,
            "measured_tflops": 0.412,
            "measured_date": "2026-02-03",
            "bandwidth_gb_s": 21.7,
        },
        step={
            "time_ms": {"median": STEP_MS, "ci95_low": 12.11, "ci95_high": 12.61},
            "samples_per_s": 2604.2,
            "timings_ms": [12.1, 12.2, 12.3, 12.38, 12.5, 12.6],
        },
        flops={
            "model": 2_084_000_000,
            "padded": 2_265_000_000,
            "hardware": 2_510_000_000,
            "coverage": 0.991,
            "fwd_model": 694_000_000,
            "bwd_model": 1_390_000_000,
            "unknown_ops": ["aten::_cdist_forward"],
        },
        mfu=None,
        hfu=None,
        mfu_of_measured_peak=0.41,
        hfu_of_measured_peak=0.494,
        modules=_modules(),
        kernels=_kernels(),
        ledger=[LedgerLine(cause, ms, ms / STEP_MS, modules) for cause, ms, modules in LEDGER],
        hotspots=[
            {
                "module": "blocks.0.gdpa",
                "cause": "inefficiency.attention",
                "time_ms": 2.31,
                "won_ms": 0.66,
                "advice": "run gdpa with impl=triton: one kernel instead of 9, no score matrix in memory",
            }
        ],
        memory={
            "peak_bytes": 734_003_200,
            "by_kind": {
                "parameters": 201_326_592,
                "gradients": 201_326_592,
                "optimizer_state": 0,
                "activations": 320_864_256,
                "other": 10_485_760,
            },
            "phase": "backward",
            "device_peak_bytes": None,
        },
        nvml={"available": False, "reason": "no NVIDIA driver on this machine"},
        trace={"steps": 5, "distortion": 1.37, "attributed_share": 0.988, "path": None},
        impls={"gdpa": "reference", "rms_norm": "reference"},
        kernel_configs=[KernelConfig("rms_norm_fwd_kernel", "bytes=2 width=512", "ROWS=4 num_warps=4", "default")],
        not_measured=["Kernel efficiency: there is no GPU on this machine."],
        warnings=["The inefficiency of reduction is below zero: a formula or the calibration is wrong."],
    )
    for key, given in changes.items():
        setattr(run, key, {**getattr(run, key), **given} if isinstance(given, dict) else given)
    return run


def a_gpu_run(**changes: Any) -> Run:
    """The same workload on a GPU: a datasheet peak, counters, bf16."""
    defaults = {
        "workload": {"dtype": "bf16", "device": "cuda", "impl": "triton"},
        "environment": {"device_name": "NVIDIA H100 80GB HBM3", "cuda": "12.8", "driver": "570.86"},
        "peak": {
            "dtype": "bf16",
            "in_use": "datasheet",
            "datasheet_tflops": 989.4,
            "source": "NVIDIA H100 datasheet, SXM",
            "measured_tflops": 712.0,
            "bandwidth_gb_s": 2911.0,
            "datasheet_bandwidth_gb_s": 3350.0,
            "by_dtype": [
                a_peak("fp32", 51.4, 66.9, used=True),
                a_peak("tf32", None, 494.7),
                a_peak("bf16", 712.0, 989.4, used=True),
                a_peak("fp16", 698.0, 989.4),
            ],
        },
        "mfu": 0.332,
        "hfu": 0.4,
        "mfu_of_measured_peak": 0.461,
        "nvml": some_counters(),
        "memory": {"device_peak_bytes": 812_646_400},
        "warnings": [],
    }
    return a_run(**{**defaults, **changes})


def a_peak(dtype: str, measured: float | None, sheet: float | None, used: bool = False) -> dict[str, Any]:
    """One dtype's row of the peaks."""
    date = "2026-02-03" if measured else None
    return {
        "dtype": dtype,
        "measured_tflops": measured,
        "measured_date": date,
        "datasheet_tflops": sheet,
        "used": used,
    }


def some_counters(**changes: Any) -> dict[str, Any]:
    """What NVML saw beside a run that had a steady device to itself."""
    counters = {
        "sm_clock_mhz": {"min": 1740.0, "mean": 1748.3, "max": 1755.0, "unit": "MHz", "samples": 61, "source": "clock"},
        "power_w": {"min": 412.0, "mean": 655.2, "max": 701.8, "unit": "W", "samples": 61, "source": "power"},
        "temperature_c": {"unavailable": "not available: Not Supported"},
        "other_processes": {"min": 0.0, "mean": 0.0, "max": 0.0, "unit": "processes", "samples": 61, "source": "pids"},
    }
    return {
        "available": True,
        "window_s": 6.1,
        "window_steps": 494,
        "interval_s": 0.1,
        "counters": counters,
        "energy": {
            "value": 3996.7,
            "unit": "J",
            "window_s": 6.1,
            "source": "nvmlDeviceGetTotalEnergyConsumption",
            "uncertain_percent": 3.3,
            "joules_per_step": 8.09,
            "joules_per_sample": 0.2528,
        },
        "clock_events": {"seen": {"gpu_idle": {"ms": 100.0, "share": 0.016}}, "samples": 61, "source": "events"},
        "limits": {
            "power": {"ms": 0.0, "share": 0.0, "source": "field 74"},
            "thermal": {"unavailable": "Not Supported"},
        },
        "gpm": {"tensor_active_percent": 44.2, "dram_active_percent": 31.5, "fp32_active_percent": 6.1},
        "cross_check": {
            "pipe": "tensor",
            "pipe_active": 0.442,
            "hfu": 0.4,
            "contradiction": None,
            "dram_active": 0.315,
            "least_traffic": 0.21,
        },
    } | changes


def a_module(name: str, **changes: Any) -> ModuleRow:
    """One module's row."""
    row = ModuleRow(
        name=name,
        type="GDPA",
        fwd_model_flops=120_000_000,
        bwd_model_flops=240_000_000,
        bytes=8_000_000,
        time_ms=1.5,
        share=0.1216,
        verdict="compute-bound",
        mfu=None,
        memory_bytes=20_971_520,
        fwd_time_ms=0.5,
        bwd_time_ms=1.0,
        attainable_ms=0.87,
        intensity=45.0,
        activation_bytes=10_485_760,
        causes={"useful": 0.9, "inefficiency.gemm": 0.6},
    )
    for key, given in changes.items():
        setattr(row, key, given)
    return row


def _modules() -> list[ModuleRow]:
    verdicts = ("compute-bound", "memory-bound", "launch-bound", "padding-bound", "inefficient")
    rows = [
        a_module(
            f"interaction.experts.{at}.blocks.{at % 3}.cross_attention.query_projection",
            type="torch.nn.modules.linear.Linear",
            time_ms=1.4 / (at + 1),
            share=0.114 / (at + 1),
            verdict=verdicts[at % 5],
        )
        for at in range(30)
    ]
    return [*rows, a_module("blocks.0.gdpa", time_ms=2.31, share=0.187), a_module("(optimizer)", type="", time_ms=0.87)]


def _kernels() -> list[KernelRow]:
    return [
        KernelRow("blocks.0.gdpa", "fwd", "aten::bmm", "attention", 1.21, 4.0),
        KernelRow("blocks.0.gdpa", "bwd", "aten::bmm", "attention", 1.1, 8.0),
        KernelRow("(others)", "", "", "other", 0.4, 812.5),
    ]


def _workload() -> dict[str, Any]:
    return {
        "model": "kunlun",
        "size": "small",
        "impl": "reference",
        "compile": "none",
        "mode": "train",
        "dtype": "fp32",
        "device": "cpu",
        "batch_size": 32,
        "data": "synthetic",
        "lock": None,
        "seed": 20260203,
        "overrides": {},
        "model_hash": "5d41402abc4b",
        "data_hash": "7d793037a076",
        "num_params": 50_331_648,
        "dense_params": 1_204_224,
        "warmup_steps": 3,
        "steps": 20,
    }


def _environment() -> dict[str, Any]:
    return {
        "mfubench_version": "0.1.0",
        "git_sha": None,
        "python": "3.11.9",
        "torch": "2.13.0+cpu",
        "triton": "3.9.0",
        "cuda": None,
        "driver": None,
        "os": "Linux 6.8",
        "cpu": "AMD EPYC 9654 96-Core Processor",
        "cores": 2,
        "threads": 2,
        "memory_bytes": 8_589_934_592,
        "device_name": "AMD EPYC 9654 96-Core Processor",
        "date": "2026-02-03T10:11:12Z",
    }
