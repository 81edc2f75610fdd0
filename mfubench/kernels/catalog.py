"""Which ops have kernels, and where their examples are."""

from collections.abc import Sequence
from importlib import import_module

from mfu_kernels import OPS
from mfu_kernels.examples import Examples
from mfubench.errors import BadInput


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
