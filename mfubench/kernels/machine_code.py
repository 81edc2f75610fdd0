"""What a compiled kernel's machine code says: registers, spills, tensor-core class, asynchronous copies, access width.

Read with the tools that Triton brings along: `cuobjdump` for resources, `nvdisasm` for the instructions, and `ptxas`
once more, only where a stack shows, for the bytes that it spills. `nvdisasm` takes longer to start than to read a
kernel, so it is given the instructions of many at once. Toolchains differ, so numbers of two of them do not compare.
"""

import hashlib
import re
import struct
import subprocess
import tempfile
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from mfubench.user_code import short

from .targets import Target

INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)((?:\.\w+)*)", re.MULTILINE)
TENSOR_CORES = {  # strongest first
    "tcgen05": re.compile(r"UT\w*MMA"),
    "wgmma": re.compile(r"[HIQB]GMMA"),
    "mma": re.compile(r"[HIQDO]MMA"),
}
PRODUCT_OF_WARPS = re.compile(r"= tt\.dot .*-> tensor<(\d+)x")  # in Triton's own language
ASYNC_COPIES = {"tma": re.compile(r"UTMALDG|UTMASTG|UTMAREDG|UBLKCP"), "cp.async": re.compile(r"LDGSTS")}
GLOBAL_ACCESS = re.compile(r"LDG|STG|LDGSTS|LD|ST")
WIDTHS = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
TMA_BYTES = 16
THREADS = re.compile(r"\.(?:reqntid|maxntid)\s+(\d+)")
SECTION = struct.Struct("<IIQQQQIIQQ")  # of a 64-bit ELF file
Operation = tuple[str, list[str]]  # an instruction's name and modifiers
SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")


@dataclass(frozen=True, slots=True)
class MachineCode:
    """One kernel's code. Bytes of spill are stored and loaded ones together; ``access_bytes`` is the widest access.

    ``mma_rows``: of the tallest product that warps multiply each by itself, not a warpgroup or its like; 0 if none.
    ``digest``: of the instructions alone; equal ones are the same code, from whatever lines of whatever file it came.
    """

    registers: int
    spill_bytes: int
    shared_bytes: int
    tensor_core: str | None
    mma_rows: int
    async_copy: str | None
    access_bytes: int
    instructions: int
    warps: int
    occupancy: float
    digest: str


def codes_or_errors(results: Sequence[Any], target: Target) -> list[MachineCode | str]:
    """Of each CompiledKernel its code; of each exception that was raised in place of one, what it says in short."""
    codes = iter(read_machine_code([result for result in results if not isinstance(result, Exception)], target))
    return [short(result) if isinstance(result, Exception) else next(codes) for result in results]


def read_machine_code(kernels: Sequence[Any], target: Target) -> list[MachineCode]:
    """Take apart CompiledKernels of Triton's that were all compiled for ``target``."""
    codes = [_instructions(kernel.asm["cubin"]) for kernel in kernels]
    return [_read(*one, target) for one in zip(kernels, codes, _disassembled(kernels, codes), strict=True)]


def _read(kernel: Any, code: bytes, operations: list[Operation], target: Target) -> MachineCode:
    registers, stack = usage(kernel.asm["cubin"])
    spills = _spills(kernel.asm["ptx"], target) if stack else 0
    names = {name for name, _ in operations}
    warps = int(_first(THREADS.pattern, kernel.asm["ptx"])) // 32
    shared = int(kernel.metadata.shared)
    return MachineCode(
        registers=registers,
        spill_bytes=spills,
        shared_bytes=shared,
        tensor_core=_class_of(names, TENSOR_CORES),
        mma_rows=max(map(int, PRODUCT_OF_WARPS.findall(kernel.asm["ttgir"])), default=0),
        async_copy=_class_of(names, ASYNC_COPIES),
        access_bytes=_widest(operations),
        instructions=sum(name != "NOP" for name, _ in operations),
        warps=warps,
        occupancy=target.occupancy(registers, shared, warps),
        digest=hashlib.sha256(code).hexdigest()[:16],
    )


def usage(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack of a thread."""
    with tempfile.TemporaryDirectory(prefix="mfubench-") as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        told = _tool("cuobjdump", "-res-usage", str(file))
    registers, stack = (int(_first(rf"{name}:(\d+)", told)) for name in ("REG", "STACK"))
    return registers, stack


def _disassembled(kernels: Sequence[Any], codes: Sequence[bytes]) -> list[list[Operation]]:
    """The operations of each kernel; all are for one architecture."""
    if not kernels:
        return []
    (architecture,) = {_first(r"\.target\s+sm_(\w+)", kernel.asm["ptx"]) for kernel in kernels}
    with tempfile.TemporaryDirectory(prefix="mfubench-") as folder:
        raw = Path(folder) / "instructions"
        raw.write_bytes(b"".join(codes))
        listing = _tool("nvdisasm", "--binary", f"SM{architecture}", "-ndf", str(raw))
    ends = list(accumulate(map(len, codes)))
    found: list[list[Operation]] = [[] for _ in kernels]
    for address, name, modifiers in INSTRUCTION.findall(listing):
        found[bisect(ends, int(address, 16))].append((name, modifiers.split(".")))
    return found


def _instructions(cubin: bytes) -> bytes:
    """The machine code in an ELF file with one kernel."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names_at = struct.unpack_from("<HHH", cubin, 0x3A)
    sections = [SECTION.unpack_from(cubin, table + size * index) for index in range(count)]
    names = sections[names_at][4]
    (code,) = (section for section in sections if cubin.startswith(b".text.", names + section[0]))
    begin, length = code[4:6]
    return cubin[begin : begin + length]


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"the toolchain's output holds no {pattern}")
    return found.group(1)


def _class_of(names: set[str], classes: dict[str, re.Pattern[str]]) -> str | None:
    return next((label for label, pattern in classes.items() if any(pattern.match(name) for name in names)), None)


def _widest(operations: list[Operation]) -> int:
    """Bytes of the widest access of one thread to global memory; the copy engine's counts as the widest there is."""
    widths = [0]
    for name, modifiers in operations:
        if ASYNC_COPIES["tma"].match(name):
            widths.append(TMA_BYTES)
        elif GLOBAL_ACCESS.fullmatch(name):
            widths.append(next((WIDTHS[part] for part in modifiers if part in WIDTHS), 4))
    return max(widths)


def _spills(ptx: str, target: Target) -> int:
    arch = _first(r"\.target\s+(\w+)", ptx)
    with tempfile.TemporaryDirectory(prefix="mfubench-") as folder:
        source, made = Path(folder) / "kernel.ptx", Path(folder) / "again.cubin"
        source.write_text(ptx, encoding="utf-8")
        command = [_ptxas(target.capability), "-v", f"--gpu-name={arch}", str(source), "-o", str(made)]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return sum(sum(map(int, pair)) for pair in SPILLS.findall(told))


def _tool(name: str, *arguments: str) -> str:
    return subprocess.run([str(_folder() / name), *arguments], check=True, capture_output=True, text=True).stdout


@cache
def _folder() -> Path:
    import triton

    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def _ptxas(capability: int) -> str:
    from triton.backends.nvidia.compiler import get_ptxas

    return str(get_ptxas(capability).path)


def toolchain() -> dict[str, str]:
    """Versions that the numbers depend on: triton, and its assembler for each kind of target."""
    import triton

    versions = {"triton": triton.__version__}
    for name in ("ptxas", "ptxas-blackwell"):
        if (_folder() / name).exists():
            versions[name] = _first(r"V([\d.]+)", _tool(name, "--version"))
    return versions
