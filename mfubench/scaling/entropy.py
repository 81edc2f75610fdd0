"""Normalised entropy: how far predictions beat knowing nothing but the rate (He et al. 2014; arXiv 2411.09852)."""

import numpy as np
import numpy.typing as npt

from mfubench.errors import BadInput

Floats = npt.NDArray[np.float64]
CLAMP = 1e-12  # as TorchRec's metric has it: a probability of 0 or 1 costs much, not without bound


def normalised_entropy(probabilities: npt.ArrayLike, labels: npt.ArrayLike, base_rate: float | None = None) -> float:
    """Log loss over the entropy of ``base_rate``: 1 is what the rate alone gives, lower is better.

    ``probabilities`` [N] and ``labels`` [N], each 0 or 1. ``base_rate`` is the label mean of these N themselves, as
    TorchRec's metric has it; He et al. and InterFormer take the training set's, and may be followed by giving it.

    Raises:
        BadInput: nothing to compare, arrays that do not match, what is no probability or label, or a rate of 0 or 1.
    """
    p, y = (np.asarray(values, dtype=np.float64).ravel() for values in (probabilities, labels))
    if len(p) != len(y) or not len(y):
        raise BadInput(f"{len(p)} probabilities for {len(y)} labels; as many are needed, and at least one")
    if not ((p >= 0) & (p <= 1)).all():
        raise BadInput("a prediction is not a number from 0 to 1; give probabilities, not logits")
    if not np.isin(y, (0, 1)).all():
        raise BadInput("a label is neither 0 nor 1")
    rate = float(y.mean()) if base_rate is None else base_rate
    if not 0 < rate < 1:
        raise BadInput(f"the base rate is {rate:g}; its entropy divides, so it must lie between 0 and 1")
    return float(log_losses(p, y).mean() / entropy(rate))


def entropy(rate: npt.ArrayLike) -> Floats:
    """The log loss of predicting ``rate`` where it is the rate: what an NE divides by, in nats."""
    rates = np.asarray(rate, dtype=np.float64)
    return log_losses(rates, rates)


def log_losses(probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> Floats:
    """The log loss of each prediction, in nats: float64 of the arguments' shape; a label may be a share."""
    p, y = (np.asarray(values, dtype=np.float64) for values in (probabilities, labels))
    p = np.clip(p, CLAMP, 1 - CLAMP)
    losses: Floats = -(y * np.log(p) + (1 - y) * np.log1p(-p))
    return losses
