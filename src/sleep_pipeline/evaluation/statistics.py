"""Means with confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

_RESAMPLES = 10_000


@dataclass(frozen=True)
class Estimate:
    """A mean, the bounds of its 95 % confidence interval, and the number of samples behind it."""

    value: float
    low: float
    high: float
    samples: int


def mean_interval(scores: Sequence[float], seed: int = 0) -> Estimate:
    """Mean of independent scores with its 95 % interval.

    Scores that are all 0 or 1 get Wilson's interval, which holds near 0 and 1 too; others a percentile bootstrap of
    10,000 resamples.

    Args:
        scores: at least one finite number.
        seed: of the bootstrap.

    Raises:
        ValueError: no scores, or one that is not finite.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"mean_interval needs finite scores, at least one; got {list(scores)[:5]} ...")
    mean = float(values.mean())
    if np.isin(values, (0.0, 1.0)).all():
        interval = stats.binomtest(int(values.sum()), values.size).proportion_ci(method="wilson")
        return Estimate(mean, float(interval.low), float(interval.high), values.size)
    if np.ptp(values) == 0:
        return Estimate(mean, mean, mean, values.size)
    result = stats.bootstrap((values,), np.mean, n_resamples=_RESAMPLES, method="percentile", rng=seed)
    return Estimate(mean, float(result.confidence_interval.low), float(result.confidence_interval.high), values.size)
