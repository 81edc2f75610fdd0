"""A whole profile: every key that others rely on, and the sums that must hold."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from mfu_models.common.flops import FlopCount
from mfubench.attribute.attribution import NOBODYS
from mfubench.caveats import _off_its_fused_path, broken_graphs, warnings
from mfubench.errors import BadInput, ToolBroke
from mfubench.figures import waterfall
from mfubench.measure.calibrate import Calibration
from mfubench.measure.compiled import Compilation
from mfubench.measure.scopes import DATA, OPTIMIZER
from mfubench.profiling import profile, profile_workload
from mfubench.report import markdown
from mfubench.report.comparison import page as page_of
from mfubench.run import KernelConfig, LedgerLine, Run
from mfubench.workload.prepare import prepare
from mfubench.workload.spec import Workload, WorkloadSpec
from tests.mfubench.measure.stand_in_driver import Driver
from tests.mfubench.report.factory import a_gpu_run, a_run

pytestmark = pytest.mark.usefixtures("fixed_calibration")
ZooWorkload = Callable[..., Workload]

KEYS = {
    "": {
        "schema_version",
        "workload",
        "environment",
        "peak",
        "step",
        "flop_convention",
        "flops",
        "mfu",
        "hfu",
        "modules",
    }
    | {
        "mfu_of_measured_peak",
        "hfu_of_measured_peak",
        "kernels",
        "ledger",
        "hotspots",
        "memory",
        "nvml",
        "parallel",
        "ranks",
    }
    | {"not_measured", "warnings"},
    "workload": {"model", "size", "impl", "compile", "mode", "dtype", "batch_size", "data", "seed", "model_hash"}
    | {"data_hash"},
    "peak": {"dtype", "datasheet_tflops", "source", "measured_tflops", "bandwidth_gb_s"},
    "step": {"time_ms", "samples_per_s", "timings_ms"},
    "flops": {"model", "padded", "hardware", "coverage"},
}
MODULE_KEYS = {"name", "type", "fwd_model_flops", "bwd_model_flops", "bytes", "time_ms", "share", "verdict", "mfu"}


@pytest.fixture(scope="module", params=[(m, mode) for m in ("transformer", "kunlun") for mode in ("train", "infer")])
def run(request: pytest.FixtureRequest) -> Run:
    """A profile of each model in each mode, run once."""
    model, mode = request.param
    with pytest.MonkeyPatch.context() as patch:
        fixed = Calibration("a CPU", {"fp32": 1.0}, 100.0, {}, "2026-01-01T00:00:00+00:00", "", 1, "by hand")
        patch.setattr("mfubench.profiling.load_or_calibrate", lambda *args, **options: fixed)
        return profile(WorkloadSpec(model, size="tiny", mode=mode, device="cpu", steps=6, batch_size=8))


def test_document_has_every_key(run: Run) -> None:
    document = json.loads(run.to_json())
    for part, keys in KEYS.items():
        assert keys <= (document[part] if part else document).keys()
    assert {"median", "ci95_low", "ci95_high"} == document["step"]["time_ms"].keys()
    assert MODULE_KEYS | {"memory_bytes"} <= document["modules"][0].keys()
    assert {"cause", "ms", "share", "modules"} == document["ledger"][0].keys()


def test_peaks_of_a_busy_machine_are_among_the_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = Calibration("a CPU", {"fp32": 1.0}, 100.0, {}, "2026-01-01T00:00:00+00:00", "", 1, "by hand", cpu_share=0.3)
    monkeypatch.setattr("mfubench.measure.calibrate.BUSY", 0.8)
    monkeypatch.setattr("mfubench.profiling.load_or_calibrate", lambda *args, **options: busy)
    found = profile(WorkloadSpec("transformer", size="tiny", mode="infer", device="cpu", steps=2, batch_size=2))
    assert found.peak["measured_cpu_share"] == 0.3
    assert any("busy machine (30% of its threads' time" in warning for warning in found.warnings)


def test_ledger_adds_up_to_the_step(run: Run) -> None:
    step_ms = run.step["time_ms"]["median"]
    assert sum(line.ms for line in run.ledger) == pytest.approx(step_ms, rel=1e-3)
    assert sum(line.share for line in run.ledger) == pytest.approx(1.0, rel=1e-3)


def test_modules_add_up_to_the_totals(run: Run) -> None:
    assert sum(row.fwd_model_flops for row in run.modules) == run.flops["fwd_model"]
    assert sum(row.bwd_model_flops for row in run.modules) == run.flops["bwd_model"]
    assert run.flops["fwd_model"] + run.flops["bwd_model"] == run.flops["model"]
    assert sum(row.time_ms for row in run.modules) == pytest.approx(run.step["time_ms"]["median"], rel=0.02)
    assert sum(row.memory_bytes for row in run.modules) == run.memory["peak_bytes"]


def test_kernels_add_up_to_the_busy_time(run: Run) -> None:
    """What their modules' time has beyond what the host took, but for what stands in the tail's row."""
    apart = {OPTIMIZER, DATA, *NOBODYS}  # whose busy and host time is one cause
    busy = sum(row.time_ms - row.causes.get("launch", 0.0) for row in run.modules if row.name not in apart)
    tail = sum(row.time_ms for row in run.kernels if row.module == "(others)")
    listed = sum(row.time_ms for row in run.kernels if row.module not in {*apart, "(others)"})
    assert listed - 1e-9 <= busy <= listed + tail + 1e-9 and listed > 0.5 * busy
    assert {row.module for row in run.kernels} <= {*(row.name for row in run.modules), *NOBODYS, "(others)"}
    assert all(row.time_ms >= 0 and row.calls > 0 for row in run.kernels)


def test_a_module_never_needs_less_than_its_roofline_says(run: Run) -> None:
    for row in run.modules:
        assert sum(row.causes.values()) == pytest.approx(row.time_ms, abs=1e-6) or row.name in NOBODYS
        bytes_ms = row.bytes / (100.0 * 1e6)  # at the fixed calibration's GB/s
        if row.name == OPTIMIZER:  # some of whose operators move what one kernel would not
            assert 0 < row.attainable_ms <= bytes_ms + 1e-12
        else:
            assert row.attainable_ms >= bytes_ms - 1e-12
    kept = sum(row.activation_bytes for row in run.modules)
    assert (kept > 0) == (run.workload["mode"] == "train")


def test_a_cpu_has_no_datasheet(run: Run) -> None:
    assert run.mfu is None and run.hfu is None
    assert run.mfu_of_measured_peak > 0 and run.hfu_of_measured_peak > 0
    flops_per_s = run.flops["model"] * len(run.step["timings_ms"]) / (sum(run.step["timings_ms"]) / 1e3)
    assert run.mfu_of_measured_peak == pytest.approx(flops_per_s / 1e12)
    assert any("datasheet" in line for line in run.not_measured)
    assert not run.nvml["available"] and run.nvml["reason"]


def test_no_hotspot_promises_more_than_its_modules_took(run: Run) -> None:
    times = {row.name: row.time_ms for row in run.modules}
    for spot in run.hotspots:
        assert 0 < spot["won_ms"] <= spot["time_ms"] == pytest.approx(sum(times[name] for name in spot["modules"]))


def test_every_operator_is_known(run: Run) -> None:
    assert run.flops["coverage"] == 1.0
    assert run.flops["unknown_ops"] == []
    assert run.flops["counts_agree"]
    assert set(run.impls.values()) == {"reference"}


def test_a_step_of_which_nothing_is_known_is_warned_of(zoo: ZooWorkload, fixed_calibration: Calibration) -> None:
    """No coverage at all is the worst there can be; a count that was left out is none.

    A product that is missing is told however little time it takes, and so is all that is missing.
    """
    workload, run = zoo(), a_run()
    mine = "mylib::product"
    for coverage, name, model, told in (
        (0.0, mine, 9, True),
        (0.94, mine, 9, True),
        (0.96, mine, 9, False),
        (None, mine, 9, False),
        (0.99, mine, 0, True),
        (0.99, "aten::mkldnn_rnn_attention", 9, True),
    ):
        run.flops |= {"coverage": coverage, "unknown_ops": [name], "model": model}
        lines = [line for line in warnings(run, workload, fixed_calibration, {}) if "FLOP coverage" in line]
        assert len(lines) == told
        assert all(
            f"FLOP coverage {coverage:.0%}: nothing is known of the FLOPs of {name}, and" in one for one in lines
        )


def test_a_model_that_was_to_be_one_graph_and_is_not() -> None:
    breaks = Counter({"Tensor.item() call\n  Explanation: none": 3, "b": 2, "c": 2, "d": 1})
    (told,) = broken_graphs("model", Compilation(breaks=breaks))
    assert told.endswith("the compiler broke it 8 times: Tensor.item() call; b; c; and 1 more")
    assert broken_graphs("regions", Compilation(breaks=breaks)) == broken_graphs("model", Compilation()) == []
    assert broken_graphs("none", None) == []


def test_kernels_that_were_never_tuned_are_named_on_a_gpu(zoo: ZooWorkload, fixed_calibration: Calibration) -> None:
    workload, rows = zoo(), [("b_kernel", "default"), ("a_kernel", "default"), ("c_kernel", "locked on NVIDIA H200")]
    configs = [KernelConfig(kernel, "width=8", "ROWS=4", origin) for kernel, origin in rows]
    for run, told in ((a_gpu_run(kernel_configs=configs), 1), (a_run(kernel_configs=configs), 0)):
        lines = [line for line in warnings(run, workload, fixed_calibration, {}) if "default configs" in line]
        assert len(lines) == told and all(
            "taken for a_kernel, b_kernel: `mfubench kernels tune`" in line for line in lines
        )


def test_two_counts_that_disagree_are_no_result(zoo: ZooWorkload) -> None:
    workload = zoo()
    workload.needed = lambda batch: (FlopCount(1, 2), FlopCount(1, 2))
    with pytest.raises(ToolBroke, match="disagree"):
        profile_workload(workload)


def test_more_than_the_datasheet_is_no_result(zoo: ZooWorkload, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peak that a run exceeds is wrong, or the FLOPs are; neither is reported."""
    monkeypatch.setattr("mfubench.profiling._datasheet", lambda workload: (None, 1e-9))
    with pytest.raises(ToolBroke, match="datasheet peak"):
        profile_workload(zoo())


class Branches(nn.Module):
    """Routes rows by their data, and returns a dict of a list."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.twin = self.a

    def forward(self, x: torch.Tensor) -> dict[str, list[torch.Tensor]]:
        left = x[:, 0] > 0
        return {"parts": [self.a(x[left]), self.twin(self.b(x[~left]))]}


def test_a_users_batch_is_in_the_peak_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is on the device before the step; a plan that left it out would promise more requests than fit."""
    built = "torch.nn.Linear(1000, 1), lambda b, d: {'input': torch.ones(b, 1000)}"
    (tmp_path / "wide.py").write_text(f"import torch\ndef build():\n    return {built}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    memory = profile(WorkloadSpec("wide:build", batch_size=50, steps=2, mode="infer", device="cpu")).memory
    assert memory["by_kind"]["other"] == 4 * 50 * 1000 and memory["by_kind"]["parameters"] == 4 * 1001


def test_what_is_faster_than_its_floor_may_be_in_a_cache(zoo: ZooWorkload, fixed_calibration: Calibration) -> None:
    """A floor is a copy's from memory to memory, which small tensors never see: that is no fault of a formula."""
    fast = a_run(ledger=[LedgerLine("useful", 13.0, 1.05, []), LedgerLine("inefficiency.elementwise", -0.6, -0.05, [])])
    (told,) = (text for text in warnings(fast, zoo(), fixed_calibration, {}) if "faster than its floor" in text)
    assert told.startswith("inefficiency.elementwise is -5.0%") and "stays in a cache" in told


def test_lines_that_are_more_than_the_step_are_told(zoo: ZooWorkload, fixed_calibration: Calibration) -> None:
    twice = a_run(ledger=[LedgerLine("useful", 13.0, 1.13, []), LedgerLine("not_attributed", -1.5, -0.13, [])])
    (told,) = (text for text in warnings(twice, zoo(), fixed_calibration, {}) if text.startswith("not_attributed"))
    assert "is -13.0% of the step" in told


@pytest.mark.parametrize(("operators", "told"), [([100, 400], True), ([100, 105], False), ([], False)])
def test_traced_steps_of_unlike_work_are_told(
    operators: list[int], told: bool, zoo: ZooWorkload, fixed_calibration: Calibration
) -> None:
    run = a_run()
    run.trace["operators"] = operators
    found = [text for text in warnings(run, zoo(), fixed_calibration, {}) if text.startswith("the traced steps ran")]
    assert bool(found) == told and (not told or "ran 100 and 400 operators" in found[0])


def test_a_phase_that_beats_the_roofline_is_told(zoo: ZooWorkload, fixed_calibration: Calibration) -> None:
    """Also where others of its cause lose more: half the time that its bytes take is no update that was seen."""
    rows = a_run().modules
    fast = replace(rows[0], name="(optimizer)", time_ms=5.0, share=0.4, attainable_ms=10.0, causes={"optimizer": 5.0})
    shared = replace(fast, name="once", causes={"useful": 10.0, "amortized": -5.0})
    lines = warnings(a_run(modules=[*rows, fast, shared]), zoo(), fixed_calibration, {})
    (told,) = (text for text in lines if "faster than the roofline allows" in text)
    assert "(optimizer) (5 ms for at least 10)" in told and "once" not in told
    small = replace(fast, share=0.01)
    assert not any("roofline allows" in text for text in warnings(a_run(modules=[small]), zoo(), fixed_calibration, {}))


def test_products_in_another_dtype_than_the_run_s_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zoo: ZooWorkload, fixed_calibration: Calibration
) -> None:
    """Their MFU is against a peak that is not theirs; above 100 % of it, the model is at fault and not the count."""
    built = "torch.nn.Linear(9, 9).double(), lambda b, d: (torch.ones(b, 9).double(),)"
    (tmp_path / "in_double.py").write_text(f"import torch\ndef build():\n    return {built}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = profile(WorkloadSpec("in_double:build", batch_size=4, steps=2, device="cpu"))
    told = "products are in float64, and the peak is that of fp32: no --dtype has the peak of float64"
    assert any(told in warning for warning in found.warnings)
    offered = warnings(found, zoo(), fixed_calibration, {"float64": 1, "bfloat16": 2})
    assert any("products are in bfloat16, and the peak is that of fp32: give --dtype bf16" in text for text in offered)
    calibrated_anew = "above 100 % of the measured peak: calibrate again"
    found.mfu_of_measured_peak = 1.5
    assert not any(calibrated_anew in text for text in warnings(found, zoo(), fixed_calibration, {"float64": 9}))
    assert any(calibrated_anew in text for text in warnings(found, zoo(), fixed_calibration, {"float32": 9}))
    found.mfu, found.hfu = 1.5, 1.5
    with pytest.raises(BadInput, match="float64"):
        warnings(found, zoo(), fixed_calibration, {"float64": 9})
    assert not any("products are in" in text for text in warnings(a_run(), zoo(), fixed_calibration, {"float32": 9}))


def test_a_model_that_nobody_here_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = "nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 1)"
    build = f"def build():\n    return {encoder}, lambda b, d: (torch.randn(b, 5, 16),)\n"
    (tmp_path / "foreign.py").write_text(f"import torch\nfrom torch import nn\n{build}")
    monkeypatch.chdir(tmp_path)
    for mode in ("train", "infer"):
        run = profile(WorkloadSpec("foreign:build", mode=mode, device="cpu", steps=2, batch_size=3))
        assert run.flops["coverage"] == 1.0
        products = 3 * 5 * 2 * (16 * 48 + 16 * 16 + 2 * 16 * 32) + 3 * 4 * 5 * 5 * 16
        assert run.flops["fwd_model"] == products
        assert "layers.0.linear1" in {row.name for row in run.modules}
    assert [text for text in run.warnings if "take nn.TransformerEncoderLayer off its fused path" in text]
    workload = prepare(WorkloadSpec("foreign:build", mode="infer", device="cpu", steps=1, batch_size=3))
    assert _off_its_fused_path(run, workload.module)
    run.kernels.append(replace(run.kernels[0], operator="aten::_transformer_encoder_layer_fwd"))
    assert not _off_its_fused_path(run, workload.module), "a compiled one stays on it"


def test_modules_under_two_names_are_counted_once_and_told(zoo: ZooWorkload) -> None:
    workload = zoo()
    workload.module = Branches()
    workload.inputs = [torch.tensor([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]])]
    workload.forward = lambda model, x: model(x)
    workload.loss = lambda output, x: sum(part.sum() for part in output["parts"])  # type: ignore[return-value]
    workload.optimizers, workload.needed, workload.num_samples = [], None, [2]
    run = profile_workload(workload)
    assert any("two names" in warning and "a = twin" in warning for warning in run.warnings)
    assert run.flops["fwd_model"] == 3 * 2 * 16


def test_a_step_that_fails_is_bad_input(zoo: ZooWorkload) -> None:
    workload = zoo()
    workload.module = nn.Linear(3, 1)
    workload.needed = None
    with pytest.raises(BadInput, match="step failed"):
        profile_workload(workload)


class Mixed(nn.Linear):
    """Adds what autocast made bf16 to fp32, in a way that autocast does not know."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros(3, 3).index_add_(0, torch.arange(3), super().forward(x))


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_a_type_that_autocast_alone_brings_in_is_hinted_at(zoo: ZooWorkload, dtype: str) -> None:
    """Torch names two types and no operator; the model has neither of its own."""
    workload = zoo()
    workload.module, workload.dtype, workload.needed = Mixed(3, 3), dtype, None
    workload.inputs = [torch.eye(3) if dtype == "bf16" else torch.eye(3).bfloat16()]
    workload.forward = lambda model, x: model(x)
    with pytest.raises(BadInput, match="BFloat16") as error:
        profile_workload(workload)
    assert ("use --dtype fp32, or cast what they are given" in str(error.value)) == (dtype == "bf16")


def test_it_is_among_the_warnings_of_the_run(zoo: ZooWorkload, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mfubench.profiling.time_steps", lambda *args, **options: [5.0, 5.0, 50.0])
    run = profile_workload(zoo(steps=3))
    assert any("some steps were much slower" in warning for warning in run.warnings)


def test_a_gpu_s_counters_stand_beside_the_timing_pass(zoo: ZooWorkload, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in driver: the window goes on, untimed, until its energy means something, and every step in it
    counts for the energy of one; what the driver lacks is named among what was not measured.
    """
    driver = Driver({"nvmlDeviceGetClockInfo"}, masks=(0x4,), gpm={5: 50.0, 12: 50.0})
    monkeypatch.setattr("mfubench.profiling.device_uuid", lambda device: "GPU-aaaa")
    monkeypatch.setattr("mfubench.measure.nvml._import_library", lambda: driver)
    monkeypatch.setattr("mfubench.measure.nvml.MIN_ENERGY_WINDOW_S", 0.0)
    monkeypatch.setattr("mfubench.measure.nvml.NvmlSampler.missing_s", lambda sampler: 0.02)
    run = profile_workload(zoo(steps=3))
    steps, energy = run.nvml["window_steps"], run.nvml["energy"]
    assert run.nvml["window_s"] > 0.02 and steps > 3 and len(run.step["timings_ms"]) == 3
    assert energy["joules_per_step"] == pytest.approx(2.5 / steps)
    assert energy["joules_per_sample"] == pytest.approx(2.5 / steps / 4)
    assert run.nvml["cross_check"] is None  # against a datasheet alone
    assert any("sm_clock_mhz, memory_clock_mhz (NVML)" in line for line in run.not_measured)
    assert any("the clock was held down: sw_power_cap 100% of the time" in line for line in run.warnings)
    assert json.loads(run.to_json())["nvml"] == run.nvml
    assert "Energy a sample" in markdown.render_page(page_of([run]))


def test_the_peaks_of_a_run_are_told_by_dtype(run: Run) -> None:
    rows = {row["dtype"]: row for row in run.peaks}
    assert rows.keys() == {"fp32", "bf16"}
    assert rows["fp32"] == {
        "dtype": "fp32",
        "measured_tflops": 1.0,
        "measured_date": "2026-01-01T00:00:00+00:00",
        "datasheet_tflops": None,
        "used": True,
    }
    assert not rows["bf16"]["used"]


def test_a_module_s_row_holds_what_its_verdict_rests_on(run: Run) -> None:
    for row in run.modules:
        assert row.fwd_time_ms + row.bwd_time_ms == pytest.approx(row.time_ms, abs=1e-9)
        if row.model_flops and row.bytes:
            assert row.intensity == pytest.approx(row.model_flops / row.bytes)
            needed_ms = max(row.model_flops / 1e9, row.bytes / 100e6)  # of the fixed calibration
            assert row.attainable_ms == pytest.approx(needed_ms)
    shares = sum(line.share for line in run.ledger)
    assert waterfall(run).useful == pytest.approx(1.0 - (shares - useful_share(run)), abs=1e-9)


def useful_share(run: Run) -> float:
    return next(line.share for line in run.ledger if line.cause == "useful")


@pytest.mark.gpu
def test_on_a_gpu_the_peak_of_memory_is_the_steps_own(
    fixed_calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a calibration takes before it, gigabytes, is no part of the step."""

    def greedy(*_args: object, **_options: object) -> Calibration:
        torch.empty(4 << 30, dtype=torch.uint8, device="cuda")
        return fixed_calibration

    monkeypatch.setattr("mfubench.profiling.load_or_calibrate", greedy)
    spec = WorkloadSpec("transformer", size="tiny", steps=2, batch_size=8, device="cuda", dtype="fp32", peak="measured")
    run = profile(spec)
    assert 0 < run.memory["device_peak_bytes"] < 4 << 30
    assert run.trace["attributed_share"] > 0.9


def test_a_loss_that_is_no_number_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And there is no closed form of a model that is not the zoo's, for its count to agree with."""
    text = "import torch\ndef build():\n    loss = lambda output, batch: output.mean() * float('nan')\n"
    (tmp_path / "of_nan.py").write_text(
        f"{text}    return torch.nn.Linear(2, 1), lambda b, d: (torch.ones(b, 2),), loss\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    run = profile(WorkloadSpec("of_nan:build", batch_size=4, steps=2, device="cpu"))
    assert any("the first step's loss is nan" in warning for warning in run.warnings)
    assert run.flops["counts_agree"] is None and run.flops["model"]


def test_a_batch_that_the_model_changes_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "import torch\nclass M(torch.nn.Linear): forward = lambda self, x: super(M, self).forward(x.mul_(2))\n"
    (tmp_path / "changing.py").write_text(f"{text}def build():\n    return M(2, 1), lambda b, d: (torch.ones(b, 2),)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    run = profile(WorkloadSpec("changing:build", batch_size=4, steps=2, device="cpu"))
    assert any("changes its batch's tensors in place" in warning for warning in run.warnings)
