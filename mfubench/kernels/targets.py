"""The GPU generations that kernels are compiled for ahead of time, and what one multiprocessor of each holds.

Source: CUDA C++ Programming Guide, technical specifications per compute capability; how registers and shared memory are
handed out is that of the toolkit's occupancy header.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mfubench.errors import BadInput

REGISTER_UNIT, SHARED_UNIT, SHARED_RESERVED = 256, 128, 1024  # handed out a warp; a block; kept by the system a block
PARTITIONS = 4  # of a multiprocessor; each holds a quarter of the registers


@dataclass(frozen=True, slots=True)
class Target:
    """One generation. Shared memory in bytes, registers of 32 bits; limits of a multiprocessor but ``block_shared``."""

    name: str
    capability: int
    product: str
    processors: int
    shared: int
    block_shared: int
    registers: int = 65_536
    warps: int = 64
    blocks: int = 32

    def blocks_that_fit(self, registers: int, shared: int, warps: int) -> int:
        """Blocks of ``warps`` warps, each thread with ``registers``, each block with ``shared`` bytes; 0 if none."""
        if shared > self.block_shared:
            return 0
        warp_registers = _up(max(registers, 1) * 32, REGISTER_UNIT)
        by_registers = (self.registers // PARTITIONS // warp_registers) * PARTITIONS // warps
        by_shared = self.shared // _up(shared + SHARED_RESERVED, SHARED_UNIT)
        return min(by_registers, by_shared, self.warps // warps, self.blocks)

    def occupancy(self, registers: int, shared: int, warps: int) -> float:
        """Warps that run at once, as a share of those that a multiprocessor can hold."""
        return self.blocks_that_fit(registers, shared, warps) * warps / self.warps


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


TARGETS = {
    target.name: target
    for target in (
        Target("sm_80", 80, "A100", 108, 167_936, 166_912),
        Target("sm_90", 90, "H100, H200", 132, 233_472, 232_448),
        Target("sm_100", 100, "B200", 148, 233_472, 232_448),
    )
}


def require_targets(names: Sequence[str], option: str = "--target") -> None:
    """See to it that these are targets, of the ``option`` that gave them.

    Raises:
        BadInput: one is not.
    """
    for name in names:
        if name not in TARGETS:
            raise BadInput(f"{option} {name} is unknown; allowed: {', '.join(TARGETS)}")
