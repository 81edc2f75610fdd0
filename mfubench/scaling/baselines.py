"""Predictors that know one number: what a model must beat to have learnt anything worth its FLOPs."""

import numpy as np

from mfubench.data.histories import Array
from mfubench.data.logs import LogSource

from .entropy import Floats

SMOOTHING = 5.0  # impressions at the training rate that each mean starts from


def item_mean(train: LogSource, evaluation: LogSource) -> Floats:
    """For each target of ``evaluation``, its item's rate in ``train``, smoothed: float64 [N]."""
    labels = train.labels(train.targets)
    seen, shown = np.unique(train.log.items[train.targets], return_inverse=True)
    totals, positives = np.bincount(shown), np.bincount(shown, weights=labels)
    items = evaluation.log.items[evaluation.targets]
    place = np.minimum(np.searchsorted(seen, items), len(seen) - 1)
    known = seen[place] == items
    return _smooth(np.where(known, positives[place], 0), np.where(known, totals[place], 0), labels.mean())


def running_user_mean(train: LogSource, evaluation: LogSource) -> Floats:
    """For each target of ``evaluation``, its user's rate strictly before it, in either window: float64 [N].

    The rate that it is smoothed with is ``train``'s.
    """
    rows = evaluation.targets.astype(np.int64)
    log, (first, end) = evaluation.log, evaluation.log.before(rows)
    shown = sum((log.count(name, first, end) for name in evaluation.shown), start=np.zeros_like(rows))
    positives = log.count(evaluation.positives, first, end)
    return _smooth(positives, shown, train.labels(train.targets).mean())


def _smooth(positives: Array, shown: Array, rate: float) -> Floats:
    smoothed: Floats = (positives + SMOOTHING * rate) / (shown + SMOOTHING)
    return smoothed
