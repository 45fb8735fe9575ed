import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from sleep_pipeline.dreaming.racing import Race, hopeless, race
from sleep_pipeline.dreaming.rewards import judge
from sleep_pipeline.dreaming.settings import RewardSettings

SEEDS, PROBES, DREAMS = 6, 5, 40


def problem(rng: np.random.Generator) -> np.ndarray:
    """Gains of 40 dreams with 6 seeds at 5 probes: a third help, the others do nothing or harm."""
    effect = rng.choice([0.8, 0.0, -0.4, -1.0], p=[0.3, 0.2, 0.3, 0.2], size=(DREAMS, 1, 1))
    seeds = 0.25 * rng.standard_normal((DREAMS, SEEDS, 1))
    return effect + seeds + 0.3 * rng.standard_normal((DREAMS, SEEDS, PROBES))


def raced(gains: np.ndarray, sigmas: float) -> Race[list[float]]:
    def run(live: Sequence[int], number: int) -> list[list[float]]:
        return [gains[dream, number].tolist() for dream in live]

    def means(outcomes: Mapping[int, Sequence[list[float]]]) -> dict[int, list[float]]:
        return {dream: [float(np.mean(row)) for row in rows] for dream, rows in outcomes.items()}

    return race(range(DREAMS), SEEDS, run, means, 0.0, sigmas)


def rewards(outcomes: Mapping[int, Sequence[Sequence[float]]]) -> list[int]:
    settings = RewardSettings(seeds=SEEDS)
    return [
        judge(rows, [0.0] * PROBES, settings).reward if len(rows) == SEEDS else 0
        for _, rows in sorted(outcomes.items())
    ]


def test_a_race_decides_as_all_copies_would_and_trains_fewer() -> None:
    rng = np.random.default_rng(0)
    saved = []
    for _ in range(100):
        gains = problem(rng)
        result = raced(gains, sigmas=3.0)
        assert rewards(result.outcomes) == rewards({dream: gains[dream].tolist() for dream in range(DREAMS)})
        saved.append(1 - result.runs / (DREAMS * SEEDS))
    assert np.mean(saved) > 0.25


def test_what_was_given_up_is_known_and_ran_no_further() -> None:
    result = raced(problem(np.random.default_rng(1)), sigmas=3.0)
    assert result.given_up
    assert all(len(result.outcomes[dream]) == after for dream, after in result.given_up.items())
    assert all(len(rows) == SEEDS for dream, rows in result.outcomes.items() if dream not in result.given_up)


def test_boldness_saves_more() -> None:
    gains = problem(np.random.default_rng(2))
    assert raced(gains, sigmas=1.0).runs < raced(gains, sigmas=4.0).runs < DREAMS * SEEDS


def test_the_noise_is_pooled_over_all_dreams() -> None:
    # Alone, the first would seem to know its gain exactly.
    assert hopeless({0: [-0.1, -0.1], 1: [1.0, 2.0]}, 4, 0.0, 3.0) == []
    assert hopeless({0: [-0.1, -0.1], 1: [1.0, 1.0]}, 4, 0.0, 3.0) == [0]


def test_after_the_last_seed_nothing_is_left_to_come() -> None:
    assert hopeless({0: [0.1, -0.3], 1: [0.5, -0.1], 2: [0.0, 0.0]}, 2, 0.0, 3.0) == [0, 2]


def test_a_dream_that_diverged_is_hopeless() -> None:
    assert hopeless({0: [math.nan, 1.0], 1: [1.0, 1.1]}, 4, 0.0, 3.0) == [0]


def test_a_race_ends_when_all_are_given_up() -> None:
    asked: list[int] = []

    def run(live: Sequence[int], number: int) -> list[float]:
        asked.append(number)
        return [-1.0 - 0.01 * number] * len(live)

    result = race([3, 5], 9, run, lambda outcomes: outcomes, 0.0, 3.0)
    assert asked == [0, 1] and result.given_up == {3: 2, 5: 2}
    assert result.runs == pytest.approx(4)
