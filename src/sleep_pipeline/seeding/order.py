"""Which lessons a step reads, the same whenever the step is run."""

from __future__ import annotations

import random
from functools import lru_cache

_LEAST_TONIGHT = 0.1
"""Share of the rows of a settled step, however many nights there were."""


def shuffled(size: int, salt: str, place: int) -> int:
    """The `place`-th index of an endless sequence of shuffles of `range(size)`, without state."""
    return _permutation(size, f"{salt}/{place // size}")[place % size]


@lru_cache(maxsize=8)
def _permutation(size: int, salt: str) -> list[int]:
    return random.Random(salt).sample(range(size), size)


def evenly(rows: int, earlier: int) -> tuple[int, int]:
    """Rows of tonight and of all earlier nights together, as many a night; at least a tenth of tonight, and one."""
    tonight = max(1, round(rows / (earlier + 1)), round(_LEAST_TONIGHT * rows))
    return tonight, rows - tonight
