"""Taking compiled kernels apart: where the code lies in a file, and whose each instruction of a listing is."""

import hashlib
import struct
from types import SimpleNamespace
from typing import Any

import pytest

from mfubench.kernels import machine_code
from mfubench.kernels.machine_code import SECTION, read_machine_code
from mfubench.kernels.targets import TARGETS

HEADER, STEP = 0x40, 16  # bytes of an ELF file's header, and of an instruction
NAMES = b"\0.shstrtab\0.nv.info\0.text.kernel\0"


def cubin(code: bytes) -> bytes:
    """An ELF file with the sections that matter: names, another, the code."""
    table = HEADER + len(NAMES) + len(code)

    def section(name: bytes, begin: int, length: int) -> bytes:
        return SECTION.pack(NAMES.index(name), 1, 0, 0, begin, length, 0, 0, 1, 0)

    sections = [
        section(b".shstrtab", HEADER, len(NAMES)),
        section(b".nv.info", HEADER, 4),
        section(b".text.kernel", HEADER + len(NAMES), len(code)),
    ]
    header = bytearray(HEADER)
    struct.pack_into("<Q", header, 0x28, table)
    struct.pack_into("<HHH", header, 0x3A, SECTION.size, len(sections), 0)
    return bytes(header) + NAMES + code + b"".join(sections)


def kernel(code: bytes, ptx: str = ".target sm_90a\n.reqntid 128", ttgir: str = "") -> Any:
    asm = {"cubin": cubin(code), "ptx": ptx, "ttgir": ttgir}
    return SimpleNamespace(asm=asm, metadata=SimpleNamespace(shared=1024))


PRODUCTS = """
%1 = ttng.warp_group_dot %a, %b : !ttg.memdesc<128x16xbf16, #shared> * !ttg.memdesc<16x32xbf16> -> tensor<128x32xf32>
%2 = tt.dot %a, %b : tensor<64x16xbf16, #ttg.dot_op<{}>> * tensor<16x128xbf16, #ttg.dot_op<{}>> -> tensor<64x128xf32>
%3 = tt.dot %d, %e, %f : tensor<16x64xbf16, #ttg.dot_op<{}>> * tensor<64x8xbf16, #ttg.dot_op<{}>> -> tensor<16x8xf32>
"""


def test_each_instruction_is_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """One listing has the code of all kernels, one behind the other."""
    given = {}

    def tool(name: str, *arguments: str) -> str:
        if name == "cuobjdump":
            return "Function kernel: REG:40 STACK:0"
        with open(arguments[-1], "rb") as file:
            given["code"], given["architecture"] = file.read(), arguments[1]
        lines = ["LDG.E.128 R4, [R2]", "@!P0 HGMMA.64x64x16 R8", "NOP", "LDGSTS.E.64 [R1]", "@P1 STG.E.U16 [R2], R3"]
        return "\n".join(f"        /*{at * STEP:04x}*/    {line} ;" for at, line in enumerate(lines))

    monkeypatch.setattr(machine_code, "_tool", tool)
    first, second = read_machine_code(
        [kernel(b"a" * 3 * STEP), kernel(b"b" * 2 * STEP, ttgir=PRODUCTS)], TARGETS["sm_90"]
    )
    assert given == {"code": b"a" * 3 * STEP + b"b" * 2 * STEP, "architecture": "SM90a"}
    assert (first.instructions, first.tensor_core, first.async_copy, first.access_bytes) == (2, "wgmma", None, 16)
    assert (second.instructions, second.tensor_core, second.async_copy, second.access_bytes) == (2, None, "cp.async", 8)
    assert (first.mma_rows, second.mma_rows) == (0, 64), "the tallest product that no warpgroup multiplies"
    assert first.registers == second.registers == 40 and first.warps == 4 and first.spill_bytes == 0
    assert first.digest == hashlib.sha256(b"a" * 3 * STEP).hexdigest()[:16] != second.digest, "of instructions alone"


def test_no_kernels_no_code() -> None:
    assert read_machine_code([], TARGETS["sm_90"]) == []


def test_kernels_of_two_architectures_are_not_mixed() -> None:
    with pytest.raises(ValueError, match="too many values"):
        read_machine_code([kernel(b"a"), kernel(b"b", ".target sm_80\n")], TARGETS["sm_90"])
