"""Racing: no more copies for a dream that can hardly be rewarded any more.

Seeds are run one after another over all dreams. After every seed from the second on, how much a dream's mean gain still
moves is foretold from the noise between seeds, which is pooled over all dreams and therefore known well after few
seeds (compare Hoeffding races, Maron and Moore 1994, and their successors with estimated variances, F-Race). Dreams are
only ever given up, never rewarded early: a test that is read again and again finds something sooner or later.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

T = TypeVar("T")


@dataclass(frozen=True)
class Race(Generic[T]):
    """What came of a race.

    Attributes:
        outcomes: of each candidate, one a seed that was run.
        given_up: candidate -> after how many seeds.
    """

    outcomes: dict[int, list[T]]
    given_up: dict[int, int] = field(default_factory=dict)

    @property
    def runs(self) -> int:
        """How many copies were trained."""
        return sum(map(len, self.outcomes.values()))


def race(
    candidates: Sequence[int],
    seeds: int,
    run: Callable[[Sequence[int], int], Sequence[T]],
    gains: Callable[[Mapping[int, Sequence[T]]], Mapping[int, Sequence[float]]],
    margin: float,
    sigmas: float,
) -> Race[T]:
    """Run every candidate with one seed after another until all are done or given up.

    Args:
        candidates: dreams.
        seeds: how many copies each may have.
        run: candidates and the number of a seed -> what became of each.
        gains: outcomes so far -> each candidate's mean gain, one a seed.
        margin: what the mean gain over all seeds must exceed.
        sigmas: a candidate is given up if it would have to do so many standard errors better than so far.
    """
    outcomes: dict[int, list[T]] = {candidate: [] for candidate in candidates}
    given_up: dict[int, int] = {}
    for number in range(seeds):
        live = [candidate for candidate in candidates if candidate not in given_up]
        if not live:
            break
        for candidate, outcome in zip(live, run(live, number), strict=True):
            outcomes[candidate].append(outcome)
        if 1 <= number < seeds - 1:
            for candidate in hopeless(gains(outcomes), seeds, margin, sigmas):
                given_up.setdefault(candidate, len(outcomes[candidate]))
    return Race(outcomes, given_up)


def hopeless(gains: Mapping[int, Sequence[float]], seeds: int, margin: float, sigmas: float) -> list[int]:
    """Candidates whose mean gain over all seeds will hardly exceed the margin.

    Args:
        gains: of each candidate, one a seed run so far. A gain that is not finite is hopeless.
        seeds: how many there will be.
        margin: to be exceeded.
        sigmas: see `race`.
    """
    finite = {key: values for key, values in gains.items() if np.isfinite(values).all()}
    squares = sum(float(np.var(values)) * len(values) for values in finite.values())
    freedom = sum(len(values) - 1 for values in finite.values())
    noise = math.sqrt(squares / freedom) if freedom else math.inf
    found = []
    for candidate, values in gains.items():
        if candidate not in finite:
            found.append(candidate)
            continue
        run = len(values)
        to_come = noise * math.sqrt(1 / run - 1 / seeds) if run < seeds else 0.0
        if float(np.mean(values)) + sigmas * to_come <= margin:
            found.append(candidate)
    return found
