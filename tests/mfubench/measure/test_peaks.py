"""Every datasheet value is pinned here, and checked against the arithmetic of its chip."""

import re

import pytest

from mfubench.errors import BadInput, UnknownAccelerator
from mfubench.measure.peaks import DATASHEETS, DTYPES, datasheet

# As the driver names it: fp32, tf32, bf16, fp16, fp8 in dense TFLOP/s, GB/s, compute capability, MiB.
PINNED = {
    "NVIDIA A100-SXM4-40GB": (19.5, 156, 312, 312, None, 1555, 80, 40960),
    "NVIDIA A100-PCIE-40GB": (19.5, 156, 312, 312, None, 1555, 80, 40960),
    "NVIDIA A100-SXM4-80GB": (19.5, 156, 312, 312, None, 2039, 80, 81920),
    "NVIDIA A100 80GB PCIe": (19.5, 156, 312, 312, None, 1935, 80, 81920),
    "NVIDIA H100 80GB HBM3": (67, 494.7, 989.5, 989.5, 1979, 3350, 90, 81559),
    "NVIDIA H100 PCIe": (51, 378, 756.5, 756.5, 1513, 2000, 90, 81559),
    "NVIDIA H100 NVL": (60, 417.5, 835.5, 835.5, 1670.5, 3900, 90, None),
    "NVIDIA H200": (67, 494.5, 989.5, 989.5, 1979, 4800, 90, 143156),
    "NVIDIA B200": (80, 1125, 2250, 2250, 4500, 8000, 100, 183359),
    "NVIDIA GB200": (90, 1250, 2500, 2500, 5000, 8000, 100, None),
    "NVIDIA GeForce RTX 4090": (82.6, 82.6, 165.2, 165.2, 330.3, 1008, 89, None),
    "NVIDIA GeForce RTX 5090": (104.8, 104.8, 209.5, 209.5, 419, 1792, 120, 32607),
    "NVIDIA L4": (30.3, 60, 121, 121, 242.5, 300, 89, 23034),
    "NVIDIA L40S": (91.6, 183, 362, 362, 733, 864, 89, 46068),
    "NVIDIA L40": (90.5, 90.5, 181, 181, 362, 864, 89, None),
    "NVIDIA A10": (31.2, 62.5, 125, 125, None, 600, 86, 23028),
    "Tesla T4": (8.1, None, None, 65, None, 320, 75, 15360),
    "AMD Instinct MI300X": (163.4, 653.7, 1307.4, 1307.4, 2614.9, 5300, 0, None),
}

# fp16 with fp32 accumulation, dense: multiprocessors, FLOP per multiprocessor and clock, GHz.
CHIPS = {
    "NVIDIA A100-SXM4-80GB": (108, 2048, 1.410),
    "NVIDIA H100 80GB HBM3": (132, 4096, 1.830),
    "NVIDIA H200": (132, 4096, 1.830),
    "NVIDIA B200": (148, 8192, 1.860),
    "NVIDIA GeForce RTX 4090": (128, 512, 2.520),
    "NVIDIA GeForce RTX 5090": (170, 512, 2.407),
    "NVIDIA L4": (58, 1024, 2.040),
    "NVIDIA L40S": (142, 1024, 2.520),
    "NVIDIA L40": (142, 512, 2.490),
    "NVIDIA A10": (72, 1024, 1.695),
    "Tesla T4": (40, 1024, 1.590),
    "AMD Instinct MI300X": (304, 2048, 2.100),
}


@pytest.mark.parametrize("name", PINNED)
def test_a_row_has_its_published_values(name):
    row = datasheet(name)
    rates = *(row.tflops(dtype) for dtype in DTYPES), row.bandwidth_gb_s
    assert (*rates, row.capability, row.memory_mib) == PINNED[name]
    assert row.source


def test_every_row_is_pinned():
    assert {datasheet(name).product for name in PINNED} == {row.product for row in DATASHEETS}


@pytest.mark.parametrize("name", CHIPS)
def test_a_row_agrees_with_its_chip(name):
    units, flop_per_clock, ghz = CHIPS[name]
    assert datasheet(name).fp16 == pytest.approx(units * flop_per_clock * ghz / 1e3, rel=0.02)


@pytest.mark.parametrize("row", DATASHEETS, ids=lambda row: row.product)
def test_the_dtypes_of_a_row_are_dense_and_agree(row):
    # A sparse figure in one column and a dense one in the next would break one of these factors of two.
    assert row.bf16 in (None, row.fp16)
    if row.tf32 is not None:
        assert row.tf32 == pytest.approx(row.fp16 / 2, rel=0.02)
    if row.fp8 is not None:
        assert row.fp8 == pytest.approx(row.fp16 * 2, rel=0.02)
    assert row.fp32 <= (row.tf32 or row.fp16)


@pytest.mark.parametrize("name", ["nvidia h200", "NVIDIA  H200 ", "H200"])
def test_case_spaces_and_the_vendor_do_not_matter(name):
    assert datasheet(name).product == "H200 SXM"


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA H200 NVL",
        "NVIDIA H100",
        "NVIDIA H100 80GB HBM2e",
        "NVIDIA H800",
        "NVIDIA GH200 480GB",
        "NVIDIA A10G",
        "NVIDIA A100",
        "NVIDIA A100X",
        "NVIDIA GB300",
        "NVIDIA L40G",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "AMD Instinct MI300A",
        "AMD EPYC",
        "NVIDIA",
        "",
    ],
)
def test_a_name_that_only_resembles_a_row_is_refused(name):
    with pytest.raises(UnknownAccelerator, match=re.escape(repr(name))) as caught:
        datasheet(name)
    assert "peaks.py" in str(caught.value) and "--peak measured" in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA H100 80GB HBM3 MIG 7g.80gb",
        "GRID T4-16Q",
        "GRID A100-1-5CME",
        "NVIDIA A100-40C",
        "NVIDIA L40S-48Q",
        "AMD Instinct MI300X VF",
    ],
)
def test_a_slice_of_a_gpu_is_refused(name):
    with pytest.raises(UnknownAccelerator, match="slice"):
        datasheet(name)


def test_a_dtype_without_a_column_is_refused():
    with pytest.raises(BadInput, match="fp64"):
        datasheet("NVIDIA H200").tflops("fp64")
