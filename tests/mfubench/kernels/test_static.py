"""Compiling for absent GPUs: what the machine code says, what counts as a fault, and that numbers repeat."""

import json
from dataclasses import replace
from typing import Any

import pytest

from mfu_kernels.lock import committed, key_text
from mfubench.errors import BadInput
from mfubench.kernels.static import StaticRow, compile_statically, faults
from mfubench.kernels.targets import TARGETS
from tests.compiling import mfubench, python


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    done = mfubench("kernels", "static", "rms_norm", "--target", "sm_90", "--json")
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_rows_have_what_the_contract_names(told: dict[str, Any]) -> None:
    names = {"op", "kernel", "target", "config", "default", "registers", "spill_bytes", "shared_bytes", "tensor_core"}
    for row in told["rows"]:
        assert names | {"async_copy", "access_bytes", "occupancy", "digest"} <= row.keys()
        assert row["default"] and row["spill_bytes"] == 0 and 16 <= row["registers"] <= 255
        assert row["access_bytes"] == 16 and row["tensor_core"] is None and 0 < row["occupancy"] <= 1
    assert {row["kernel"] for row in told["rows"]} == {"rms_norm_fwd_kernel", "rms_norm_bwd_kernel"}
    assert told["toolchain"]["triton"] and told["toolchain"]["ptxas"] and told["faults"] == []


def test_numbers_repeat(told: dict[str, Any]) -> None:
    assert json.loads(mfubench("kernels", "static", "rms_norm", "--target", "sm_90", "--json").stdout) == told


def test_a_process_that_compiled_gluon_ends_without_a_word() -> None:
    """Its caches hold the compiled kernels to the end; the form for Hopper is the default there."""
    code = """
from mfubench.kernels.ahead import activate, compile_op
from mfubench.kernels.catalog import examples_of
from mfubench.kernels.targets import TARGETS
activate(TARGETS["sm_90"])
found, examples = [], examples_of("gdpa")
wanted = lambda kernel, key: "launched" if kernel == "gdpa_fwd_kernel" else "none"
compile_op(examples, examples.shapes["X1024"], found.append, wanted)
print(type(found[0].result).__name__, "GROUPS" in found[0].config.kwargs)
"""
    done = python(code, TRITON_ALWAYS_COMPILE="1")
    assert (done.returncode, done.stdout) == (0, "CompiledKernel True\n") and "leaked" not in done.stderr, done.stderr


WIDEST = {
    "gdpa": {"keys": 256},
    "gdpa_block": {"keys": 64},
    "window_attention": {"window": 64, "causal": False},
    "hstu_attention": {"bias": 64},
    "seed_pooling": {"seeds": 32, "angles": True},
}


@pytest.fixture(scope="module")
def widest() -> dict[str, Any]:
    """The machine code of each op's kernels, or the error, all from one process."""
    code = f"""
import json
from mfu_kernels.limits import MAX_HEAD_DIM
from mfubench.kernels.ahead import activate, compile_op
from mfubench.kernels.catalog import examples_of
from mfubench.kernels.machine_code import read_machine_code
from mfubench.kernels.targets import TARGETS
target, told = TARGETS["sm_90"], {{}}
activate(target)
for op, others in {WIDEST!r}.items():
    try:
        found, case = [], {{"lengths": (64, 128), "heads": 2, "d": MAX_HEAD_DIM, **others}}
        compile_op(examples_of(op), case, found.append, lambda kernel, key: "launched")
        codes = read_machine_code([compiled.result for compiled in found], target)
        told[op] = [
            (str(compiled), code.spill_bytes, code.shared_bytes) for compiled, code in zip(found, codes, strict=True)
        ]
    except Exception as error:
        told[op] = repr(error)
print(json.dumps(told))
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("op", WIDEST)
def test_the_widest_heads_fit_and_spill_next_to_nothing_on_hopper(op: str, widest: dict[str, Any]) -> None:
    """No named shape has them; what does not fit would fail at its launch, on a GPU. Triton 3.7 spills 16 bytes."""
    kernels = widest[op]
    assert isinstance(kernels, list) and kernels, kernels
    for compiled, spill_bytes, shared_bytes in kernels:
        assert spill_bytes < 64 and shared_bytes <= TARGETS["sm_90"].block_shared, compiled


def row(**changes: Any) -> StaticRow:
    facts: dict[str, Any] = {"registers": 64, "spill_bytes": 0, "shared_bytes": 1024} | changes
    return StaticRow("gdpa", "X1024", "gdpa_fwd_kernel", "sm_90", "d=128", "M=128", facts.pop("default", True), **facts)


def test_faults_of_what_a_launch_takes() -> None:
    wrong = [
        row(spill_bytes=8),
        row(shared_bytes=232_449),
        row(error="RuntimeError: no"),
        row(mma_rows=64),
        row(spill_bytes=8, default=False),
        row(spill_bytes=8, locked=True),
    ]
    spills, large, fails, slow = faults([row(mma_rows=32), *wrong, replace(row(mma_rows=128), target="sm_80")])
    assert "spills 8 bytes" in spills and "232449 bytes of shared memory" in large and "does not compile" in fails
    assert "multiplies 64 rows by mma, where wgmma takes 64" in slow


@pytest.mark.parametrize("command", [["--all-configs"], []])
def test_what_is_locked_for_a_gpu_of_the_target_is_compiled_too(command: list[str], told: dict[str, Any]) -> None:
    """RMSNorm's kernels have winners on an H200 which are not their defaults."""
    if command:
        told = json.loads(mfubench("kernels", "static", "rms_norm", "--target", "sm_90", "--json", *command).stdout)
    entries = [entry for entry in committed() if entry["kernel"].startswith("rms_norm")]
    assert entries and {entry["target"] for entry in entries} == {"sm_90"}
    for entry in entries:
        place = (entry["kernel"], entry["key"], key_text(entry["config"]))
        (found,) = [row for row in told["rows"] if (row["kernel"], row["key"], row["config"]) == place]
        assert found["default"]
    assert len({row["config"] for row in told["rows"] if row["kernel"] == entries[0]["kernel"]}) > 1


def test_an_unknown_target_and_an_interpreter_are_bad_input() -> None:
    with pytest.raises(BadInput, match="--target sm_70 is unknown; allowed: sm_80, sm_90, sm_100"):
        compile_statically(["rms_norm"], ["sm_70"])
    with pytest.raises(BadInput, match="unset TRITON_INTERPRET"):
        compile_statically(["rms_norm"], ["sm_90"])
