"""What launches take by default on a GPU that is not here, and its code: compiled in another process."""

import json
from collections.abc import Sequence
from typing import Any

from tests.compiling import process

CODE = """
import json, sys, torch
from mfu_kernels.modes import compile_ahead, forced_config, nth_config
from mfubench.kernels.ahead import activate
from mfubench.kernels.machine_code import read_machine_code
from mfubench.kernels.targets import TARGETS

{launch}
target, form, cases = TARGETS[sys.argv[1]], *json.loads(sys.argv[2])
activate(target)
found = []
with forced_config(nth_config(form)), compile_ahead(lambda x: x.default and found.append(x), lambda *_: "launched"):
    for case in cases:
        launch(torch.empty(4, dtype=torch.int64, device="meta"), *case)
codes = read_machine_code([compiled.result for compiled in found], target)
print(json.dumps([
    {{"kernel": compiled.kernel, "config": compiled.config.kwargs,
      "code": {{"tensor_core": code.tensor_core, "async_copy": code.async_copy, "spills": code.spill_bytes,
                "fits": code.shared_bytes <= target.block_shared}}}}
    for compiled, code in zip(found, codes, strict=True)
]))
"""
GOOD = {"tensor_core": "wgmma", "async_copy": "tma", "spills": 0, "fits": True}


def compiled(target: str, launch: str, cases: Sequence[Any], form: str | None = None) -> list[dict[str, Any]]:
    """Each launch's kernel, config and code where ``launch``, a function's source, is called with each of ``cases``.

    It gets offsets of three rows before a case. ``form``: whose config launches take where they can.
    """
    found: list[dict[str, Any]] = json.loads(
        output_of("-c", CODE.format(launch=launch), target, json.dumps([form, cases]))
    )
    return found


def output_of(*arguments: str) -> str:
    """What Python prints with these arguments, in a process where nothing is interpreted."""
    done = process(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout
