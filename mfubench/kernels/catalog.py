"""Which ops have kernels, and what there is of each."""

from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

from mfu_kernels import OPS
from mfu_kernels.examples import Examples
from mfu_kernels.limits import DTYPES
from mfu_kernels.lock import committed
from mfubench.errors import BadInput

from .targets import TARGETS

if TYPE_CHECKING:
    from mfu_kernels.launching import Kernel


def ops_with_kernels(wanted: Sequence[str] = ()) -> list[str]:
    """Names of the ops that have a triton implementation: all, or the wanted ones.

    Raises:
        BadInput: a wanted one is unknown or has none.
    """
    have = [name for name, op in OPS.items() if "triton" in op.implementations]
    for name in wanted:
        if name not in have:
            why = "has no triton implementation" if name in OPS else "is no op"
            raise BadInput(f"{name} {why}; ops with kernels: {', '.join(have)}")
    return [name for name in have if not wanted or name in wanted]


def examples_of(op: str) -> Examples:
    """The examples of an op that has kernels."""
    examples: Examples = import_module(f"mfu_kernels.{op}.examples").EXAMPLES
    return examples


def kernels_of(op: str) -> "list[Kernel]":
    """The kernels of an op; importing them imports triton."""
    from mfu_kernels.launching import KERNELS

    package = import_module(f"mfu_kernels.{op}")
    for module in iter_modules(package.__path__):
        if module.name.startswith("kernel"):
            import_module(f"{package.__name__}.{module.name}")
    return [kernel for kernel in KERNELS.values() if kernel.module.startswith(f"{package.__name__}.")]


def list_kernels() -> list[dict[str, Any]]:
    """What there is of each op: its kernels, where it is checked and timed, and how many configs are locked by GPU."""
    listed = []
    for name in ops_with_kernels():
        kernels, examples = [kernel.name for kernel in kernels_of(name)], examples_of(name)
        locked = Counter(entry["device"] for entry in committed() if entry["kernel"] in kernels)
        listed.append(
            {
                "op": name,
                "kind": OPS[name].kind,
                "kernels": kernels,
                "dtypes": [str(dtype).removeprefix("torch.") for dtype in DTYPES],
                "targets": list(TARGETS),
                "check_factors": {factor: len(values) for factor, values in examples.factors.items()},
                "shapes": list(examples.shapes),
                "locked_configs": dict(locked),
            }
        )
    return listed
