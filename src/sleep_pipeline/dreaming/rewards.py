"""The reward of a dream (paper.md eq. 6): 1 if the copies that learned it are better than the baseline, else 0.

Deviation: the paper rewards any improvement of one copy. That is mostly luck: whatever a copy learns moves its answers
about everything, and two dreams that know nothing of a memory differ on its questions by far more than two copies of
one dream do. So by default (`judge_among`) a dream must help with its own memory beyond what the dreams of other
memories, which know nothing of it, do to it. `judge` compares with the noise of seeds and probes alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sleep_pipeline.dreaming.settings import RewardSettings

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Verdict:
    """What became of a dream.

    Attributes:
        reward: 1 or 0.
        before: mean score of the baseline.
        after: mean score of the copies.
        noise: standard error of the gain over what `settings.noise` says, of `dreams` the standard deviation of such
            gains; not a number where it cannot be told.
        chance: probability of such a gain, or a larger one, without any effect; not a number for the test `margin`,
            and where it cannot be told, which earns nothing.
    """

    reward: int
    before: float
    after: float
    noise: float
    chance: float

    @property
    def gain(self) -> float:
        """By how much the copies are better."""
        return self.after - self.before


def judge(after: Sequence[Sequence[float]], before: Sequence[float], settings: RewardSettings) -> Verdict:
    """Reward a dream, or not.

    Args:
        after: a row a seed, a score a probe.
        before: the baseline's score at each probe.
        settings: see `RewardSettings`.

    Raises:
        ValueError: there is no score, or rows are of different lengths.
    """
    late, early = np.asarray(after, dtype=np.float64), np.asarray(before, dtype=np.float64)
    if late.ndim != 2 or not late.size or late.shape[1:] != early.shape:
        raise ValueError(
            f"a dream needs at least one seed and one probe, and a baseline for each probe; got scores of shape "
            f"{late.shape} and a baseline of shape {early.shape}"
        )
    gains = late - early
    if not np.isfinite(gains).all():
        # A copy that diverged cannot be better.
        return Verdict(0, float(early.mean()), float(late.mean()), math.nan, math.nan)
    noise, freedom = standard_error(gains.mean(1, keepdims=True) if settings.noise == "seeds" else gains)
    chance = _chance(gains, noise, freedom, settings)
    gain = float(gains.mean())
    better = gain > settings.margin and (settings.test == "margin" or chance < settings.level)
    return Verdict(int(better), float(early.mean()), float(late.mean()), noise, chance)


def judge_among(scores_DC: Floats, contexts: Sequence[int], settings: RewardSettings) -> list[Verdict]:
    """Reward dreams by how much more they help with their own context than dreams of other contexts do.

    What is to be expected of a dream that knows nothing of a context is what dreams do to that context in general and,
    with three contexts or more, what this dream does to others in general (least squares over all dreams and the
    contexts that they are not about). So neither the form of a dream nor what any fine-tuning brings is a merit. The
    noise is how far off this expectation is for the dreams of other contexts, each foretold without its own score.

    Args:
        scores_DC: mean score of each dream's copies on the probes of each context, `[dreams, contexts]`; a dream whose
            copies diverged has scores that are not finite, and earns nothing.
        contexts: the column of each dream's own context.
        settings: `margin` and `level`; see `RewardSettings`.

    Returns:
        A verdict a dream. Where fewer than two dreams are of other contexts nothing can be told, and nothing is earned.
    """
    columns = scores_DC.shape[1]
    own_DC = np.eye(columns, dtype=bool)[list(contexts)]
    whole_D: NDArray[np.bool_] = np.asarray(np.isfinite(scores_DC).all(axis=1))
    seen_DC = whole_D[:, None] & ~own_DC
    # With two contexts every dream has one score in the fit, which its own general effect would explain away.
    expected_DC, off_DC = _two_way(scores_DC, seen_DC, by_dream=columns > 2)
    verdicts = []
    for dream, context in enumerate(contexts):
        after = float(scores_DC[dream, context])
        nulls = off_DC[:, context][np.isfinite(off_DC[:, context])]
        if not whole_D[dream] or len(nulls) < 2:
            verdicts.append(Verdict(0, math.nan, after, math.nan, math.nan))
            continue
        gain = after - float(expected_DC[dream, context])
        noise, over = float(nulls.std(ddof=1)), gain - settings.margin
        # What rounding leaves of equal scores is neither spread nor gain.
        least = 1e-9 * max(1.0, float(np.abs(scores_DC[whole_D, context]).max()))
        noise, over = (number if abs(number) > least else 0.0 for number in (noise, over))
        chance = math.nan
        if settings.test == "t" and noise:
            chance = float(stats.t.sf(over / noise, len(nulls) - 1))
        elif settings.test == "t":
            # Scores of few right answers are often all alike: their spread is not zero, only unknown.
            chance = 1 / (len(nulls) + 1) if over > 0 else 1.0
        better = over > 0 and (settings.test == "margin" or chance < settings.level)
        verdicts.append(Verdict(int(better), after - gain, after, noise, chance))
    return verdicts


def _two_way(scores_DC: Floats, seen_DC: NDArray[np.bool_], by_dream: bool) -> tuple[Floats, Floats]:
    """Least squares of an effect a context and, if so wanted, one a dream on the scores that are seen.

    By its normal equations, whose side is the number of dreams and contexts: the design itself has a row a score.

    Returns:
        Expected scores `[dreams, contexts]`, and how far each score seen is off what the others foretell for it; not
        a number where it is not seen or nothing else tells of it.
    """
    scores_DC = np.where(seen_DC, scores_DC, 0.0)
    per_context, per_dream = seen_DC.sum(0).astype(np.float64), seen_DC.sum(1).astype(np.float64)
    columns = len(per_context)
    normal, sums = np.diag(per_context), scores_DC.sum(0)
    if by_dream:
        seen = seen_DC.astype(np.float64)
        normal = np.block([[normal, seen.T], [seen, np.diag(per_dream)]])
        sums = np.concatenate([sums, scores_DC.sum(1)])
    # Effects of contexts and of dreams are known but for a constant between them: one direction has no eigenvalue, and
    # rounding must not give it one.
    solver = np.linalg.pinv(normal, rcond=1e-10, hermitian=True)
    found = solver @ sums
    expected_DC = np.broadcast_to(found[:columns], scores_DC.shape)
    leverage_DC = np.broadcast_to(np.diag(solver)[:columns], scores_DC.shape)
    if by_dream:
        expected_DC = expected_DC + found[columns:, None]
        leverage_DC = leverage_DC + np.diag(solver)[columns:, None] + 2 * solver[columns:, :columns]
    told = seen_DC & (leverage_DC < 1 - 1e-9)
    off_DC = np.full(scores_DC.shape, math.nan)
    off_DC[told] = (scores_DC - expected_DC)[told] / (1 - leverage_DC[told])
    return expected_DC, off_DC


def rewarded_by(gains_NS: Floats, settings: RewardSettings) -> NDArray[np.bool_]:
    """Which of N dreams `judge` rewards, by the mean gains of their copies `[N, seeds]`.

    Where these do not tell, with single probes counting too, those whose mean gain exceeds the margin.
    """
    over_N = gains_NS.mean(1) - settings.margin
    seeds = gains_NS.shape[1]
    if settings.test != "t" or settings.noise != "seeds" or seeds < 2:
        return over_N > 0
    least = stats.t.isf(settings.level, seeds - 1) * gains_NS.std(1, ddof=1) / math.sqrt(seeds)
    return (over_N > 0) & (over_N > least)


def early_level(settings: RewardSettings) -> float:
    """Chance that a dream that does nothing may be rewarded before all its copies are there (`racing.race`).

    0, so never, where the copies' mean gains alone do not tell the reward; a half where it is not tested for noise.
    """
    if settings.test == "margin":
        return 0.5
    return settings.level if settings.test == "t" and settings.noise == "seeds" else 0.0


def foretold(
    after: Sequence[Sequence[float]],
    before: Sequence[float],
    settings: RewardSettings,
    chance: float,
    noise: float,
    freedom: float,
) -> Verdict:
    """The verdict on a dream with fewer copies than it may have, since its reward was as good as decided.

    Args:
        after: as for `judge`.
        before: as for `judge`.
        settings: see `RewardSettings`.
        chance: that all copies would be rewarded.
        noise: standard deviation of one copy's mean gain, pooled over all dreams.
        freedom: degrees of freedom behind it.
    """
    late, early = np.asarray(after, dtype=np.float64), np.asarray(before, dtype=np.float64)
    gain = float((late - early).mean())
    # A copy that diverged says nothing of the noise, as in `judge`.
    error = noise / math.sqrt(len(late)) if math.isfinite(gain) else math.nan
    luck = math.nan
    if settings.test != "margin" and error > 0:
        luck = float(stats.t.sf((gain - settings.margin) / error, freedom))
    return Verdict(int(chance > 0.5), float(early.mean()), float(late.mean()), error, luck)


def standard_error(gains_SP: Floats) -> tuple[float, float]:
    """Noise of the mean gain if seeds and probes are both drawn from many, and its degrees of freedom.

    Scores of one seed rise and fall together, and so do those of one probe, so a cell is no independent sample: the
    variance of the mean is that of a two-way table with both factors random, its freedom Satterthwaite's. With one seed
    the probes alone are counted, with one probe the seeds alone, and with one of each nothing can be told.
    """
    seeds, probes = gains_SP.shape
    if seeds == 1 or probes == 1:
        count = max(seeds, probes)
        return (float(gains_SP.std(ddof=1)) / math.sqrt(count), count - 1.0) if count > 1 else (math.nan, math.nan)
    mean = gains_SP.mean()
    by_seed, by_probe = gains_SP.mean(1, keepdims=True), gains_SP.mean(0, keepdims=True)
    rest = float(((gains_SP - by_seed - by_probe + mean) ** 2).sum() / ((seeds - 1) * (probes - 1)))
    of_seeds = probes * float(((by_seed - mean) ** 2).sum()) / (seeds - 1)
    of_probes = seeds * float(((by_probe - mean) ** 2).sum()) / (probes - 1)
    # An estimated component below zero counts as none, or the noise of one factor would hide that of the other.
    total = max(of_seeds + of_probes - rest, of_seeds, of_probes, rest)
    if not total:
        return 0.0, 1.0
    parts = of_seeds**2 / (seeds - 1) + of_probes**2 / (probes - 1) + rest**2 / ((seeds - 1) * (probes - 1))
    return math.sqrt(total / (seeds * probes)), max(1.0, total**2 / parts)


def _chance(gains_SP: Floats, noise: float, freedom: float, settings: RewardSettings) -> float:
    if settings.test == "margin":
        return math.nan
    over = gains_SP.mean(0) - settings.margin
    if settings.test == "sign":
        up, down = int((over > 0).sum()), int((over < 0).sum())
        return float(stats.binomtest(up, up + down, alternative="greater").pvalue) if up + down else 1.0
    if math.isnan(noise):
        # One seed and one probe say nothing of it.
        return math.nan
    if noise == 0:
        return 0.0 if over.mean() > 0 else 1.0
    return float(stats.t.sf(over.mean() / noise, freedom))


def baseline_of_others(after: Sequence[Sequence[float]], own: Sequence[bool], before: Sequence[float]) -> list[float]:
    """Baseline at each probe: the mean of the dreams of another context.

    Args:
        after: a row a dream, the mean score of its copies at each probe; rows that are not finite are left out.
        own: of each dream, whether it is of the context in question.
        before: of the model as it is, for when there is no other dream.
    """
    others = [row for row, mine in zip(after, own, strict=True) if not mine and all(map(math.isfinite, row))]
    return [float(mean) for mean in np.mean(others, axis=0)] if others else list(before)
