"""The numeric contract of every kernel, as `mfubench kernels check` runs it: interpreted here, natively on a GPU."""

import pytest
import torch

from mfubench.kernels.catalog import examples_of, ops_with_kernels
from mfubench.kernels.check import check_op

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("op", ops_with_kernels())
def test_contract(op: str) -> None:
    found = check_op(examples_of(op), DEVICE)
    assert found.cases
    told = [(dict(case.case), [v for v in case.verdicts if v.ratio > 1], case.faults) for case in found.failed]
    assert not told
