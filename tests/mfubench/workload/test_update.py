"""The least bytes of an update, by hand: dense parameters, rows of tables, parameters that a batch leaves alone."""

from collections.abc import Callable, Iterable
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mfubench.workload.step import make_optimizers, unmarked
from mfubench.workload.update import Update
from tests.mfubench.steps import training_step

FLOAT, INDEX = 4, 8
WIDTH, ROWS, OUT = 6, 50, 3
Optimizers = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class Scores(nn.Module):
    """A table, what reads it, and a parameter that nothing does."""

    def __init__(self, *, sparse: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS, WIDTH, sparse=sparse)
        self.head = nn.Linear(WIDTH, OUT)
        self.unused = nn.Parameter(torch.zeros(1000))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(ids))  # type: ignore[no-any-return]


def least(model: Scores, *optimizers: torch.optim.Optimizer) -> int:
    """Of a second step, which finds the state that the first made; four lookups of three rows."""
    update = Update(optimizers)
    step = training_step(model, torch.tensor([7, 3, 7, 40]), optimizers=optimizers)
    for phase in (unmarked, update.seen_in(unmarked)):
        step(SimpleNamespace(phase=phase))  # type: ignore[arg-type]
    return update.least_bytes()


DENSE = OUT * WIDTH + OUT
CASES: dict[str, tuple[Optimizers, int, int]] = {  # numbers of state for a parameter's one, and for a parameter
    "sgd": (lambda of: torch.optim.SGD(of, lr=0.1), 0, 0),
    "momentum": (lambda of: torch.optim.SGD(of, lr=0.1, momentum=0.9), 1, 0),
    "adagrad": (lambda of: torch.optim.Adagrad(of, lr=0.1), 1, 1),
    "adam": (lambda of: torch.optim.Adam(of, lr=0.1), 2, 1),
}


@pytest.mark.parametrize("name", CASES)
def test_dense_gradients(name: str) -> None:
    make, each, whole = CASES[name]
    model = Scores(sparse=False)
    numbers, parameters = DENSE + ROWS * WIDTH, 3
    expected = FLOAT * ((3 + 2 * each) * numbers + 2 * whole * parameters)
    assert least(model, make(model.parameters())) == expected


def test_all_groups_of_an_optimizer_are_updated() -> None:
    """The head's, at a rate of its own, beside the table's."""
    model = Scores(sparse=False)
    groups = [{"params": model.table.parameters()}, {"params": model.head.parameters(), "lr": 0.01}]
    assert least(model, torch.optim.SGD(groups, lr=0.1, momentum=0.9)) == FLOAT * 5 * (DENSE + ROWS * WIDTH)


def test_of_a_table_with_row_sparse_gradients_the_rows_of_the_batch_move() -> None:
    """By the optimizers that are a model's where it has none of its own: Adagrad for the table, AdamW for the rest."""
    model = Scores(sparse=True)
    of_gradient = 4 * (INDEX + FLOAT * WIDTH)  # of each lookup, as they were not added up
    of_rows = 2 * FLOAT * 3 * (WIDTH + WIDTH) + 2 * FLOAT  # weight and sum of squares, and a count of steps
    of_dense = FLOAT * ((3 + 2 * 2) * DENSE + 2 * 2)  # two parameters, with two moments and a count of steps each
    assert least(model, *make_optimizers(model)) == of_gradient + of_rows + of_dense


def test_what_no_optimizer_has_is_not_updated() -> None:
    model = Scores(sparse=False)
    assert least(model) == 0
    model.head.requires_grad_(False)
    assert least(model, torch.optim.SGD(model.parameters(), lr=0.1)) == FLOAT * 3 * ROWS * WIDTH
