"""A workload with changes: built anew from its spec, changed, and ready to be run."""

from collections.abc import Sequence

from mfubench.workload.prepare import prepare
from mfubench.workload.spec import Workload, WorkloadSpec

from .changes import Change, Compile


def build(spec: WorkloadSpec, changes: Sequence[Change]) -> Workload:
    """``spec``'s workload with ``changes``, in their order.

    Raises:
        BadInput, mfu_kernels.errors.InvalidArgument: it cannot be built.
    """
    for change in changes:
        spec = change.respec(spec)
    workload = prepare(spec)
    change_module(workload, changes)
    return workload


def change_module(workload: Workload, changes: Sequence[Change]) -> None:
    """Change input sets, module and optimizers of a workload whose spec has the rest."""
    for change in changes:
        change.rebatch(workload)
        change.swap(workload.module, workload.optimizers)
        change.describe(workload.description)
        workload.may_be_compiled |= isinstance(change, Compile)
    if changes:
        workload.description["changes"] = [change.title for change in changes]
