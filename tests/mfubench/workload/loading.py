"""Models of a user's own whose batches come from a loader."""

import time
from collections import UserDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

WAIT_S = 0.05  # longer than a step by far


class Net(nn.Module):
    """Takes labels, too, as a loader gives them beside the features."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        out: Tensor = self.layer(x).squeeze(1)
        return out


class Rows(Dataset[dict[str, Tensor]]):
    """Rows as dicts, each of which takes ``wait_s``."""

    def __init__(self, number: int, wait_s: float = 0.0) -> None:
        self.number, self.wait_s = number, wait_s

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        time.sleep(self.wait_s)
        return {"x": torch.full((3,), float(index)), "labels": torch.tensor(1.0)}


class BeginsAgain:
    """Iterates over itself, from its first batch on whenever it is asked to; its batches are of a kind of their own."""

    batch_size = 2

    def __iter__(self) -> "BeginsAgain":
        self.at = 0
        return self

    def __next__(self) -> Any:
        self.at += 1
        if self.at > 5:
            raise StopIteration
        return UserDict(x=torch.full((2, 3), float(self.at)), labels=torch.ones(2))


class Unseeded:
    """Batches that are others each time, in one size."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        drawn = np.random.default_rng()
        while True:
            yield torch.from_numpy(drawn.normal(size=(4, 3)).astype("float32")), torch.ones(4) * drawn.integers(2)


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """Ten rows, one after the other."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((torch.full((3,), float(row)), torch.tensor(1.0)) for row in range(10))


class Nothing(Rows):
    """Has no rows after all."""

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        raise ValueError(f"no row {index}")


def loss(output: Tensor, batch: Any) -> Tensor:
    """Finds the labels by name or by place."""
    labels = batch["labels"] if isinstance(batch, dict) else batch[1]
    return nn.functional.binary_cross_entropy_with_logits(output.float(), labels)


def uneven() -> Any:
    """Batches of 4, 4 and 2 rows, in a worker's process."""
    return Net(), DataLoader(Rows(10), batch_size=4, num_workers=1), loss


def unequal() -> Any:
    """The same in this process."""
    return Net(), DataLoader(Rows(10), batch_size=4), loss


def slow() -> Any:
    return Net(), DataLoader(Rows(100, WAIT_S), batch_size=1), loss


def listed() -> Any:
    """Each batch a list, as a DataLoader joins tuples of tensors."""
    return Net(), DataLoader(TensorDataset(torch.ones(64, 3), torch.ones(64)), batch_size=4), loss


def begins_again() -> Any:
    return Net(), BeginsAgain(), loss


def streamed() -> Any:
    return Net(), DataLoader(Stream(), batch_size=4, drop_last=True), loss


def unseeded() -> Any:
    """Its optimizer updates one parameter after the other."""
    return Net(), Unseeded(), loss, lambda module: torch.optim.SGD(module.parameters(), lr=0.1, foreach=False)


def made() -> Any:
    """The batches of `listed` without a loader."""
    return Net(), lambda batch_size, device: (torch.ones(batch_size, 3), torch.ones(batch_size)), loss


def narrows() -> Any:
    """Its fifth batch does not fit the model."""
    shapes = [(4, 3)] * 4 + [(4, 2)]
    return Net(), [(torch.ones(shape), torch.ones(4)) for shape in shapes], loss


def once() -> Any:
    batches: Iterator[Any] = ((torch.ones(2, 3), torch.ones(2)) for _ in range(6))
    return Net(), batches, loss


def empty() -> Any:
    return Net(), [], loss


def breaks() -> Any:
    return Net(), DataLoader(Nothing(4), batch_size=2), loss


def words() -> Any:
    return Net(), ["a batch"], loss


def rowless() -> Any:
    return Net(), [(torch.ones(0, 3), torch.ones(0))], loss


def one_batch() -> Any:
    """In place of what makes batches."""
    return Net(), (torch.ones(2, 3), torch.ones(2)), loss
