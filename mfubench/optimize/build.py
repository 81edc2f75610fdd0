"""A workload with changes: built anew from its spec, changed, and ready to be run, or taken back to what it was."""

from collections.abc import Sequence
from dataclasses import dataclass

from mfubench.workload.patching import together
from mfubench.workload.prepare import prepare
from mfubench.workload.spec import Workload, WorkloadSpec

from .changes import Change, Compile, Undo


@dataclass(frozen=True, slots=True)
class Built:
    """A workload whose module and optimizers hold the changes; ``undo`` takes these swaps back."""

    workload: Workload
    undo: Undo


def build(spec: WorkloadSpec, changes: Sequence[Change] = ()) -> Built:
    """``spec``'s workload with ``changes``, in their order.

    Raises:
        BadInput, mfu_kernels.errors.InvalidArgument: it cannot be built.
    """
    for change in changes:
        spec = change.respec(spec)
    workload = prepare(spec)
    return Built(workload, change_module(workload, changes))


def change_module(workload: Workload, changes: Sequence[Change]) -> Undo:
    """Change input sets, module and optimizers of a workload whose spec has the rest, and hand out what undoes it.

    Undone, module and optimizers compute what they did; the input sets stay as they are.
    """
    undos = []
    for change in changes:
        change.rebatch(workload)
        undos.append(change.swap(workload.module, workload.optimizers))
        change.describe(workload.description)
        workload.may_be_compiled |= isinstance(change, Compile)
    if changes:
        workload.description["changes"] = [change.title for change in changes]
    return together(undos)
