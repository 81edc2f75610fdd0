"""GPUs by the names of their products and drivers, or of a run; what is not known is refused."""

from dataclasses import replace

import pytest

from mfubench.errors import BadInput, UnknownAccelerator
from mfubench.measure.peaks import DATASHEETS
from mfubench.planning.gpu import gpu_of, known_gpu
from mfubench.planning.plan import chosen_gpus, like
from mfubench.run import Run
from tests.mfubench.report.factory import a_run

GB = 10**9


def on_an_h200(**workload: object) -> Run:
    run = a_run()
    peak = {**run.peak, "dtype": "bf16", "measured_tflops": 800.0, "bandwidth_gb_s": 4200.0, "by_dtype": []}
    environment = {**run.environment, "device_name": "NVIDIA H200", "device_memory_bytes": 150 * GB}
    given = {**run.workload, "device": "cuda", "dtype": "bf16", **workload}
    return replace(run, workload=given, peak=peak, environment=environment)


@pytest.mark.parametrize("name", ["H200 SXM", "h200  sxm", "NVIDIA H200", "h200"])
def test_a_gpu_goes_by_the_name_of_its_product_and_its_drivers(name: str) -> None:
    gpu = known_gpu(name, "bf16")
    assert (gpu.name, gpu.target, gpu.basis) == ("H200 SXM", "sm_90", "datasheet")
    assert gpu.memory_bytes is not None and 149 * GB < gpu.memory_bytes < 151 * GB
    assert gpu.ceilings().in_use_tflops == gpu.ceilings().measured_tflops == 989.5


OF_ITS_OWN = {  # generation; the others take the forms of sm_80, GeForce's Blackwell too
    **dict.fromkeys(("H100 SXM", "H100 PCIe", "H100 NVL", "H200 SXM"), "sm_90"),
    **dict.fromkeys(("B200", "GB200"), "sm_100"),
}


@pytest.mark.parametrize("product", [sheet.product for sheet in DATASHEETS])
def test_every_product_can_be_planned_for_by_its_name(product: str) -> None:
    gpu = known_gpu(product, "fp16")
    assert gpu.name == product and gpu.target == OF_ITS_OWN.get(product, "sm_80")
    assert gpu.runs_kernels == (product not in ("T4", "Instinct MI300X"))


def test_memory_may_be_given() -> None:
    assert known_gpu("GB200", "bf16").memory_bytes is None
    assert known_gpu("GB200", "bf16", 186).memory_bytes == 186 << 30


def test_fp32_products_run_at_the_rate_of_tf32_where_that_is_asked_for() -> None:
    assert known_gpu("H200", "tf32").ceilings().by_dtype.get("fp32") is None
    assert known_gpu("H200", "bf16").ceilings().by_dtype["fp32"] == 67


def test_a_runs_gpu_has_what_was_measured() -> None:
    gpu = gpu_of(on_an_h200(), "bf16")
    assert (gpu.name, gpu.basis, gpu.memory_bytes, gpu.datasheet_tflops) == ("NVIDIA H200", "measured", 150 * GB, 989.5)
    assert (gpu.ceilings().measured_tflops, gpu.ceilings().bandwidth_gb_s) == (800.0, 4200.0)


@pytest.mark.parametrize(
    ("name", "dtype", "words"),
    [
        ("H300", "bf16", "--gpu 'H300' is unknown; .*allowed: A100"),
        ("A100", "bf16", "did you mean A100 SXM 40 GB or A100 PCIe 40 GB"),
        ("T4", "bf16", "T4 has no bf16 peak; use --dtype fp32$"),
    ],
)
def test_what_is_not_known_is_refused(name: str, dtype: str, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        known_gpu(name, dtype)


def test_a_run_that_says_nothing_of_a_gpus_rates_is_refused() -> None:
    with pytest.raises(BadInput, match="--like takes a run on a GPU"):
        gpu_of(on_an_h200(device="cpu"), "bf16")
    with pytest.raises(BadInput, match="knows no measured fp32 peak, only bf16"):
        gpu_of(on_an_h200(), "fp32")
    with pytest.raises(BadInput, match="was compiled"):
        like(on_an_h200(compile="model"))
    with pytest.raises(BadInput, match="has no kernels"):
        like(replace(on_an_h200(), kernels=[]))
    unknown = on_an_h200()
    unknown.environment["device_name"] = "NVIDIA H300"
    with pytest.raises(UnknownAccelerator):
        gpu_of(unknown, "bf16")


def test_the_runs_gpu_comes_first_and_each_once() -> None:
    names = ["B200", "L4", "B200"]
    assert [gpu.name for gpu in chosen_gpus(names, on_an_h200(), "bf16", None)] == ["NVIDIA H200", "B200", "L4"]


def test_without_a_name_the_gpu_that_is_here_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(BadInput, match="no GPU is here; name one"):
        chosen_gpus([], None, "bf16", None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA L4")
    assert [gpu.name for gpu in chosen_gpus([], None, "bf16", None)] == ["L4"]
