"""Dense datasheet peaks per GPU: the denominators of MFU and HFU.

Vendors print tensor-core rates with 2:4 sparsity since Hopper and Ada; every figure here is the dense one, at the boost
clock, accumulating in fp32 (GeForce halves that rate against fp16 accumulation). A device is found by the whole name
that its driver reports, never by a part of it: "H100" stands in three products with three peaks, "L40" begins "L40S",
and one compute capability covers parts that differ by two. Nothing is assumed for a name that is not here.

Where published figures differ, the largest is taken: a share of peak is then never flattered, and a clean run never
exceeds 100 % because of the table. Such a row says so in its source.
"""

import re
from dataclasses import dataclass

from mfubench.errors import BadInput, UnknownAccelerator

DTYPES = ("fp32", "tf32", "bf16", "fp16", "fp8")


@dataclass(frozen=True, slots=True)
class Datasheet:
    """One product's dense peaks, TFLOP/s per dtype (None: the hardware has no such rate), and bandwidth, GB/s.

    ``capability`` is its CUDA generation, 0 where it is no CUDA device. ``memory_mib`` is what its driver says that it
    has, None where no source was found.
    """

    product: str
    device_names: tuple[str, ...]
    fp32: float
    tf32: float | None
    bf16: float | None
    fp16: float
    fp8: float | None
    bandwidth_gb_s: float
    capability: int
    memory_mib: int | None
    source: str

    def tflops(self, dtype: str) -> float | None:
        """Dense TFLOP/s of ``dtype``, one of ``DTYPES``; None where the hardware has none.

        Raises:
            BadInput: any other name.
        """
        if dtype not in DTYPES:
            raise BadInput(f"dtype {dtype!r} has no datasheet column; known: {', '.join(DTYPES)}")
        value: float | None = getattr(self, dtype)
        return value


_A100 = (
    "NVIDIA A100 datasheet r4 (nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf), as PyTorch device_info.py cites it"
)
_H100_SXM = (
    "NVIDIA H100 SXM at 700 W; sources differ (datasheet, sparse figures halved, as archive-lib.hpctech.co.jp quotes "
    "it: fp32 67, tf32 494.5, bf16 989.5, fp8 1979; glennklockwood.com/garden/processors/h100: 66.9, 494.7, 989.4, "
    "1978.9): the largest of each"
)
_H100_PCIE = "NVIDIA H100 PCIe datasheet, sparse figures halved, as PyTorch Lightning's throughput.py quotes them"
_H100_NVL = "NVIDIA H100 NVL datasheet, sparse figures halved, as Lightning pull request 21743 quotes them"
_H200 = "NVIDIA H200 SXM datasheet, sparse figures halved, as Lightning pull request 21743 quotes them"
_B200 = (
    "NVIDIA HGX B200 at 1000 W; sources differ (PyTorch 2.15 device_info.py: fp32 75, tf32 1125, 7700 GB/s; "
    "glennklockwood.com/garden/processors/B200: 80, 1100, 8000): the largest of each"
)
_GB200 = (
    "NVIDIA GB200, one GPU at 1200 W (torchtitan; glennklockwood.com/garden/processors/B200); "
    "sources differ for fp32 (80 to 90): the largest"
)
_RTX_4090 = "waredb and hmc-tech.com listings, fp32 accumulate; 128 SMs x 512 FLOP x 2.520 GHz agrees"
_RTX_5090 = "derived from NVIDIA's 3352 sparse FP4 AI TOPS and 170 SMs x 512 FLOP x 2.407 GHz, fp32 accumulate"
_L4 = "NVIDIA L4 datasheet, sparse figures halved"
_L40S = "NVIDIA L40S datasheet, as torchtitan and NeMo AutoModel quote it"
_L40 = "NVIDIA L40 datasheet, as NeMo AutoModel and mullet.se quote it"
_A10 = "NVIDIA A10 datasheet, as PyTorch Lightning's throughput.py quotes it"
_T4 = "NVIDIA T4 datasheet, as PyTorch Lightning's throughput.py quotes it; Turing has no bf16 and no tf32"
_MI300X = "AMD Instinct MI300X data sheet (amd-instinct-mi300x-data-sheet.pdf), as PyTorch device_info.py cites it"

# Product, names as the driver reports them (normalised), fp32, tf32, bf16, fp16, fp8 in TFLOP/s, GB/s, capability, MiB,
# source of the peaks. MiB are from pull request 2797 of modal-labs/modal-client; the H200's are what torch told us, the
# B200's from issue 10278 of NVIDIA/TensorRT-LLM, the RTX 5090's from issue 1261 of noonghunna/club-3090.
DATASHEETS = (
    Datasheet("A100 SXM 40 GB", ("a100-sxm4-40gb",), 19.5, 156, 312, 312, None, 1555, 80, 40_960, _A100),
    Datasheet("A100 PCIe 40 GB", ("a100-pcie-40gb",), 19.5, 156, 312, 312, None, 1555, 80, 40_960, _A100),
    Datasheet(
        "A100 SXM 80 GB", ("a100-sxm4-80gb", "a100-sxm-80gb"), 19.5, 156, 312, 312, None, 2039, 80, 81_920, _A100
    ),
    Datasheet("A100 PCIe 80 GB", ("a100 80gb pcie",), 19.5, 156, 312, 312, None, 1935, 80, 81_920, _A100),
    Datasheet("H100 SXM", ("h100 80gb hbm3",), 67, 494.7, 989.5, 989.5, 1979, 3350, 90, 81_559, _H100_SXM),
    Datasheet("H100 PCIe", ("h100 pcie",), 51, 378, 756.5, 756.5, 1513, 2000, 90, 81_559, _H100_PCIE),
    Datasheet("H100 NVL", ("h100 nvl",), 60, 417.5, 835.5, 835.5, 1670.5, 3900, 90, None, _H100_NVL),
    Datasheet("H200 SXM", ("h200",), 67, 494.5, 989.5, 989.5, 1979, 4800, 90, 143_156, _H200),
    Datasheet("B200", ("b200",), 80, 1125, 2250, 2250, 4500, 8000, 100, 183_359, _B200),
    Datasheet("GB200", ("gb200",), 90, 1250, 2500, 2500, 5000, 8000, 100, None, _GB200),
    Datasheet("GeForce RTX 4090", ("geforce rtx 4090",), 82.6, 82.6, 165.2, 165.2, 330.3, 1008, 89, None, _RTX_4090),
    Datasheet("GeForce RTX 5090", ("geforce rtx 5090",), 104.8, 104.8, 209.5, 209.5, 419, 1792, 120, 32_607, _RTX_5090),
    Datasheet("L4", ("l4",), 30.3, 60, 121, 121, 242.5, 300, 89, 23_034, _L4),
    Datasheet("L40S", ("l40s",), 91.6, 183, 362, 362, 733, 864, 89, 46_068, _L40S),
    Datasheet("L40", ("l40",), 90.5, 90.5, 181, 181, 362, 864, 89, None, _L40),
    Datasheet("A10", ("a10",), 31.2, 62.5, 125, 125, None, 600, 86, 23_028, _A10),
    Datasheet("T4", ("t4",), 8.1, None, None, 65, None, 320, 75, 15_360, _T4),
    Datasheet("Instinct MI300X", ("instinct mi300x",), 163.4, 653.7, 1307.4, 1307.4, 2614.9, 5300, 0, None, _MI300X),
)

_BY_NAME = {name: row for row in DATASHEETS for name in row.device_names}
_VENDORS = {"nvidia", "amd", "tesla"}
# MIG: "... MIG 1g.5gb"; vGPU: "GRID T4-16Q", "NVIDIA A100-40C", "GRID A100-1-5CME"; SR-IOV: "... VF".
_SLICE = re.compile(r"\bmig\b|^grid\b|-\d+[abcq](me)?$|\bvf$")


def datasheet(device_name: str) -> Datasheet:
    """The row of the GPU whose driver calls it ``device_name``, as in ``torch.cuda.get_device_name()``.

    Raises:
        UnknownAccelerator: no row, or a slice of a GPU (MIG, vGPU, virtual function), for which the whole chip's peak
            would be wrong.
    """
    words = device_name.casefold().split()
    while words and words[0] in _VENDORS:
        words = words[1:]
    name = " ".join(words)
    if _SLICE.search(name):
        raise UnknownAccelerator(
            f"{device_name!r} is a slice of a GPU, for which the whole chip's peak is wrong; use --peak measured"
        )
    if name not in _BY_NAME:
        raise UnknownAccelerator(
            f"no datasheet peak is recorded for {device_name!r}; add a row with its source to "
            f"mfubench/measure/peaks.py, or use --peak measured (known: {', '.join(row.product for row in DATASHEETS)})"
        )
    return _BY_NAME[name]
