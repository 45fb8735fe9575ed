"""Means with confidence intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

_RESAMPLES = 10_000
_CROSSED_RESAMPLES = 2000
_Z = float(stats.norm.ppf(0.975))


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


def paired_difference(after: Sequence[float], before: Sequence[float], seed: int = 0) -> Estimate:
    """Mean of `after - before` on the same questions, with its 95 % interval.

    Scores that are all 0 or 1 get the adjusted Wald interval (half a pair added to each of the four outcomes; Agresti
    and Min 2005), since a bootstrap of few changed answers is far too narrow, and has no width at all when every
    answer changed alike. Others get a percentile bootstrap of 10,000 resamples of the differences.

    Args:
        after: at least one finite number.
        before: as many, of the same questions in the same order.
        seed: of the bootstrap.

    Raises:
        ValueError: no scores, one that is not finite, or two lists of different lengths.
    """
    late, early = np.asarray(after, dtype=np.float64), np.asarray(before, dtype=np.float64)
    if late.shape != early.shape or late.size == 0 or not np.isfinite([late, early]).all():
        raise ValueError(
            f"paired_difference needs finite scores of the same questions, at least one; got {late.size} after and "
            f"{early.size} before"
        )
    value = float((late - early).mean())
    if np.isin([late, early], (0.0, 1.0)).all():
        gained, lost = float(((late - early) > 0).sum()) + 0.5, float(((late - early) < 0).sum()) + 0.5
        pairs = late.size + 2
        centre = (gained - lost) / pairs
        half = _Z * float(np.sqrt(gained + lost - (gained - lost) ** 2 / pairs)) / pairs
        return Estimate(value, max(-1.0, centre - half), min(1.0, centre + half), late.size)
    if np.ptp(late - early) == 0:
        return Estimate(value, value, value, late.size)
    bounds = stats.bootstrap(
        (late - early,), np.mean, n_resamples=_RESAMPLES, method="percentile", rng=seed
    ).confidence_interval
    return Estimate(value, float(bounds.low), float(bounds.high), late.size)


def seeds_and_questions(
    right: Sequence[Mapping[str, str]], against: Sequence[Mapping[str, str]] | None = None, seed: int = 0
) -> Estimate:
    """Mean over seeds of the share of right answers, with a 95 % bootstrap over both the seeds and the questions.

    A question that is put to several seeds is drawn for all of them alike, so that asking it again does not pass for
    another question. Few seeds make for too narrow an interval: three of them are drawn from three.

    Args:
        right: of every seed, the answers by group of questions (a class), a 1 or 0 a question, in one order for all.
        against: another method's of the same seeds, in the same order: the mean is that of the difference, paired by
            seed and question.
        seed: of the bootstrap.

    Raises:
        ValueError: there is no answer, seeds disagree about how many questions a group has, or the other method has
            not answered the same ones.
    """
    if against is not None and [answers.keys() for answers in against] != [answers.keys() for answers in right]:
        raise ValueError("two methods are compared by the seeds and the groups of questions that both have answered")
    sizes: dict[str, int] = {}
    for answers in (*right, *(against or ())):
        for group, marks in answers.items():
            if sizes.setdefault(group, len(marks)) != len(marks):
                raise ValueError(f"{group!r} has {sizes[group]} questions with one seed and {len(marks)} with another")
    if not right or not all(any(answers.values()) for answers in right):
        raise ValueError("there is no answer to take a mean of: give those of one seed at least")
    rng = np.random.default_rng(seed)
    counted = np.zeros((_CROSSED_RESAMPLES, len(right)))
    correct = np.zeros(len(right))
    totals = np.array([sum(map(len, answers.values())) for answers in right], dtype=np.float64)
    for group, size in sizes.items():
        weights = rng.multinomial(size, np.full(size, 1 / size), size=_CROSSED_RESAMPLES) if size else None
        for number, answers in enumerate(right):
            if weights is not None and group in answers:
                scores = np.array([int(mark) for mark in answers[group]], dtype=np.float64)
                if against is not None:
                    scores -= np.array([int(mark) for mark in against[number][group]], dtype=np.float64)
                counted[:, number] += weights @ scores
                correct[number] += scores.sum()
    drawn = rng.integers(len(right), size=counted.shape)
    means = np.take_along_axis(counted / totals, drawn, axis=1).mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(float((correct / totals).mean()), float(low), float(high), int(totals.sum()))


def auroc(above: Sequence[float], below: Sequence[float]) -> float:
    """Probability that a score of the first list is greater than one of the second; ties count half.

    Raises:
        ValueError: a list is empty, or a score is not finite.
    """
    high, low = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    if not high.size or not low.size or not (np.isfinite(high).all() and np.isfinite(low).all()):
        raise ValueError(f"auroc needs finite scores on both sides; got {high.size} above and {low.size} below")
    return float(stats.mannwhitneyu(high, low).statistic / (high.size * low.size))
