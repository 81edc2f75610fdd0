"""Occupancy as NVIDIA's calculator gives it."""

import pytest

from mfubench.kernels.targets import TARGETS


@pytest.mark.parametrize(
    ("target", "registers", "shared", "warps", "blocks"),
    [
        ("sm_80", 32, 0, 4, 16),  # 64 warps: all there are
        ("sm_80", 255, 0, 8, 1),
        ("sm_80", 128, 0, 4, 4),
        ("sm_90", 168, 229_792, 12, 1),
        ("sm_90", 64, 49_152, 4, 4),  # 50176 bytes a block with the system's share, of 233472
        ("sm_90", 65, 0, 8, 3),  # registers are handed out by 256 a warp: 65 counts as 72
        ("sm_100", 32, 0, 1, 32),  # blocks run out before warps do
        ("sm_90", 32, 232_449, 4, 0),  # one byte more than a block may have
    ],
)
def test_blocks_that_fit(target: str, registers: int, shared: int, warps: int, blocks: int) -> None:
    limits = TARGETS[target]
    assert limits.blocks_that_fit(registers, shared, warps) == blocks
    assert limits.occupancy(registers, shared, warps) == blocks * warps / 64
