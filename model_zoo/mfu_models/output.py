"""What a model gives that has a loss of its own to add in training."""

from typing import NamedTuple

from torch import Tensor


class TrainingOutput(NamedTuple):
    """Logits, and a scalar that the loss on them is increased by.

    A model without such a loss gives its logits alone, and so does every model outside training.
    """

    logits: Tensor
    auxiliary_loss: Tensor
