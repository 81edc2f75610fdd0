"""What this machine can measure, as ``mfubench doctor`` tells it."""

from typing import Any

import torch

from .errors import BadInput
from .measure.calibrate import DTYPES, load_or_calibrate
from .measure.environment import device_uuid, environment
from .measure.nvml import NvmlSampler, missing_counters
from .measure.peaks import datasheet
from .progress import Progress

NVML_WINDOW_S = 0.3


def examine(*, refresh: bool, progress: Progress) -> dict[str, dict[str, Any]]:
    """Environment, peaks and counters of the device that ``--device auto`` means; ``refresh`` measures peaks anew."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peaks: dict[str, Any] = {"datasheet": _datasheet(device)}
    dtypes = DTYPES[device.type]
    for place, dtype in enumerate(dtypes):
        progress(f"calibrating {dtype}", place / len(dtypes))
        calibration = load_or_calibrate(device, dtype, refresh=refresh)
        peaks[f"measured_{dtype}_tflops"] = calibration.gemm_tflops[dtype]
        if calibration.busy:
            peaks[f"{dtype} not kept"] = f"the machine is busy: {calibration.busy}"
        if place == 0:
            peaks |= {"copy_gb_s": calibration.copy_gb_s, "measured_date": calibration.date, "how": calibration.how}
    return {"environment": environment(device), "peaks": peaks, "counters": _counters(device)}


def _datasheet(device: torch.device) -> str:
    if device.type == "cpu":
        return "none is kept for a CPU: MFU is against the measured peak only"
    try:
        sheet = datasheet(torch.cuda.get_device_name(device))
    except BadInput as error:
        return str(error)
    return f"{sheet.product}: {sheet.bf16} bf16 TFLOP/s, {sheet.bandwidth_gb_s} GB/s ({sheet.source})"


def _counters(device: torch.device) -> dict[str, Any]:
    import time

    with NvmlSampler(device_uuid(device)) as sampler:
        if device.type == "cuda":
            time.sleep(NVML_WINDOW_S)
    summary = sampler.summary()
    if not summary["available"]:
        return {"NVML": f"not available: {summary['reason']}"}
    found = {name: f"{seen['mean']:.4g} {seen['unit']}" for name, seen in summary["counters"].items() if "mean" in seen}
    found |= {name: seen for name, seen in summary["gpm"].items() if isinstance(seen, float)}
    return found | {"not available": missing_counters(summary)}
