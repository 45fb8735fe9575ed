"""When which level hands its knowledge on: the due pairs sender -> receiver at a position of the stream.

A sleep for the pair `(l*-1 -> l*)` happens when level `l*-1` is about to change, that is at every multiple of
its chunk size (paper.md section 3, "When", and eq. 2). Level 0 is the context; a position counts nights, or
tokens of a stream, in the unit of the periods.

When several pairs are due at once the fastest goes first: with chunk sizes 1k and 10k the slower level
receives *ten* consolidations before it changes itself, so the tenth, due at 10k like the change, must precede
it.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple


class Pair(NamedTuple):
    """One sleep that is due: `sender` hands its knowledge to `receiver`, the next slower level."""

    sender: int
    receiver: int


def check_periods(periods: Sequence[int]) -> None:
    """Refuse periods for which eq. 2 is not defined.

    Args:
        periods: chunk sizes of the levels that change, fastest first, all in one unit.

    Raises:
        ValueError: a period is not a positive whole number, does not exceed the one before it, or is not a
            multiple of it.
    """
    for level, period in enumerate(periods):
        if isinstance(period, bool) or not isinstance(period, int) or period < 1:
            raise ValueError(f"the period of level {level} is {period!r}; give a whole number of at least 1")
    for level, (faster, slower) in enumerate(pairwise(periods), start=1):
        if slower <= faster:
            raise ValueError(
                f"periods must increase from fast to slow, but level {level} has {slower} after {faster}: give level "
                f"{level} a multiple of {faster} above it, or leave the level out"
            )
        if slower % faster:
            raise ValueError(
                f"the period of level {level} is {slower}, which is not a multiple of {faster}, the period of the "
                f"level before it: take {slower // faster * faster} or {(slower // faster + 1) * faster}"
            )


class Schedule:
    """The due pairs for given periods.

    Args:
        periods: chunk sizes `C(0), C(1), ...` of every level that changes (the context first, the slowest,
            frozen level left out), in nights or tokens.
    """

    def __init__(self, periods: Sequence[int]):
        if not periods:
            raise ValueError("a schedule needs at least the period of the context; none was given")
        check_periods(periods)
        self.periods = tuple(periods)

    def due(self, position: int) -> list[Pair]:
        """Return the pairs that sleep at `position`, in the order in which they must sleep.

        Raises:
            ValueError: the position is negative.
        """
        if position < 0:
            raise ValueError(f"position {position} is negative; positions count from 0, the untouched model")
        if position == 0:
            return []
        return [Pair(level, level + 1) for level, period in enumerate(self.periods) if position % period == 0]

    def overdue(self, position: int, last: Callable[[int], int]) -> list[Pair]:
        """Return the pairs of levels that are due at `position` or have missed their turn, in the order of `due`.

        Args:
            position: now.
            last: the position at which a level last handed its knowledge on, 0 for never.
        """
        return [
            Pair(level, level + 1)
            for level, period in enumerate(self.periods)
            if level and position // period > last(level) // period
        ]

    def between(self, start: int, stop: int) -> Iterator[tuple[int, list[Pair]]]:
        """Yield `(position, pairs)` for every position in `(start, stop]` at which something is due.

        Steps from one multiple of the fastest period to the next, so a stream of many tokens costs no more
        than its sleeps.
        """
        fastest = self.periods[0]
        first = (start // fastest + 1) * fastest
        for position in range(first, stop + 1, fastest):
            yield position, self.due(position)

    def next_due(self, position: int) -> int:
        """Return the first position after `position` at which a sleep is due."""
        fastest = self.periods[0]
        return (position // fastest + 1) * fastest
