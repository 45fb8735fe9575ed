"""Racing: no more copies for a dream whose reward is as good as decided.

Every dream gets a copy of one seed, and those nearest the margin one of a second: how much a gain moves from seed to
seed is pooled over all dreams, and therefore known well after few copies. From then on it is foretold how likely the
copies of all seeds would earn the reward, given those that there are, and only what is neither almost sure nor almost
hopeless is run on (stochastic curtailment, Lan, Simon and Halperin 1982, by the predictive probability of
Spiegelhalter, Freedman and Blackburn 1986, with a flat prior for each dream's gain).

A test that is read again and again finds something sooner or later, and a flat prior takes the first lucky copy at its
word. A reward is therefore foretold only if the gain so far also crosses the boundary of O'Brien and Fleming (1979),
which is strict as long as few of the seeds were run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import stats

T = TypeVar("T")
Floats = NDArray[np.float64]
Gains = Mapping[int, Sequence[float]]
"""Of each candidate, the mean gain of its copies, one a seed run so far."""

_DRAWS = 4000
_SECOND = 8  # One in so many gets a second copy before the noise is known: the fewer, the more those tell of the rest.


@dataclass(frozen=True)
class Noise:
    """How much gains move from seed to seed, pooled over all candidates.

    Attributes:
        deviation: standard deviation of one copy's gain; infinite while no candidate has two copies.
        freedom: degrees of freedom behind it.
    """

    deviation: float
    freedom: int

    @classmethod
    def of(cls, gains: Gains) -> Noise:
        """Pooled over the candidates whose gains are finite."""
        finite = [values for values in gains.values() if np.isfinite(values).all()]
        freedom = sum(len(values) - 1 for values in finite if values)
        squares = sum(float(np.var(values)) * len(values) for values in finite if values)
        return cls(math.sqrt(squares / freedom) if freedom else math.inf, freedom)


@dataclass(frozen=True)
class Race(Generic[T]):
    """What came of a race.

    Attributes:
        outcomes: of each candidate, one a seed that was run.
        chances: of each candidate, how likely all seeds together would earn the reward; 0 or 1 where all were run.
        noise: of seeds, by all copies.
    """

    outcomes: dict[int, list[T]]
    chances: dict[int, float]
    noise: Noise

    @property
    def runs(self) -> int:
        """How many copies were trained."""
        return sum(map(len, self.outcomes.values()))


def race(
    candidates: Sequence[int],
    seeds: int,
    run: Callable[[Sequence[tuple[int, int]]], Sequence[T]],
    gains: Callable[[Mapping[int, Sequence[T]]], Gains],
    rewarded: Callable[[Floats], NDArray[np.bool_]],
    margin: float,
    sigmas: float,
    level: float,
) -> Race[T]:
    """Run each candidate until all its seeds are done or its reward is as good as decided.

    Args:
        candidates: dreams.
        seeds: how many copies each may have.
        run: pairs of a candidate and the number of a seed -> what became of each.
        gains: outcomes so far -> each candidate's gains.
        rewarded: gains of all seeds `[N, seeds]` -> which of N candidates they reward.
        margin: what the mean gain must exceed.
        sigmas: a candidate is decided if the seeds to come would have to surprise by so many standard deviations.
        level: of the boundary, the chance that a dream that does nothing crosses it at the end; 0: no reward is
            foretold, and `rewarded` need only tell what is not rewarded for sure; 0.5: chances alone decide.
    """
    outcomes: dict[int, list[T]] = {candidate: [] for candidate in candidates}
    chances: dict[int, float] = {}
    noise = Noise(math.inf, 0)
    doubt = float(stats.norm.sf(sigmas))
    live = list(candidates)
    while live:
        pairs = [(candidate, len(outcomes[candidate])) for candidate in live]
        for (candidate, _), outcome in zip(pairs, run(pairs), strict=True):
            outcomes[candidate].append(outcome)
        found = gains(outcomes)
        noise = Noise.of(found)
        chances = foretell(found, seeds, noise, rewarded)
        open_ones = [candidate for candidate in candidates if len(outcomes[candidate]) < seeds]
        if noise.freedom:
            # All are asked again, as each copy tells more of the noise and of the baseline.
            least = _boundary(noise, seeds, level)
            live = [
                candidate
                for candidate in open_ones
                if chances[candidate] > doubt
                and (chances[candidate] < 1 - doubt or sum(gain - margin for gain in found[candidate]) < least)
            ]
        else:
            finite = [candidate for candidate in open_ones if np.isfinite(found[candidate]).all()]
            nearest = sorted(finite, key=lambda candidate: abs(found[candidate][0] - margin))
            live = nearest[: math.ceil(len(candidates) / _SECOND)]
    return Race(outcomes, chances, noise)


def foretell(
    gains: Gains, seeds: int, noise: Noise, rewarded: Callable[[Floats], NDArray[np.bool_]]
) -> dict[int, float]:
    """How likely each candidate would be rewarded by all seeds.

    Args:
        gains: at least one of each candidate. One that is not finite will not be rewarded.
        seeds: how many there will be.
        noise: of seeds. While it is unknown, all is open.
        rewarded: see `race`.
    """
    # The same draws for all, so that of two candidates with as many copies the better one has the better chance.
    rng = np.random.default_rng(0)
    scale_D = np.full(_DRAWS, noise.deviation)
    if noise.freedom:
        scale_D *= np.sqrt(noise.freedom / rng.chisquare(noise.freedom, _DRAWS))
    luck_DS = rng.standard_normal((_DRAWS, seeds))
    found = {}
    for candidate, values in gains.items():
        run = len(values)
        if not np.isfinite(values).all():
            found[candidate] = 0.0
        elif run == seeds:
            found[candidate] = float(rewarded(np.array([values]))[0])
        elif not noise.freedom:
            found[candidate] = 0.5
        else:
            mean_D = np.mean(values) + scale_D * luck_DS[:, 0] / math.sqrt(run)
            to_come = mean_D[:, None] + scale_D[:, None] * luck_DS[:, 1 : seeds - run + 1]
            table = np.concatenate([np.broadcast_to(values, (_DRAWS, run)), to_come], axis=1)
            found[candidate] = float(rewarded(table).mean())
    return found


def _boundary(noise: Noise, seeds: int, level: float) -> float:
    """What the sum of a candidate's gains over the margin must reach, the same after every seed."""
    return float(stats.t.isf(level, noise.freedom)) * noise.deviation * math.sqrt(seeds) if level else math.inf
