import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from sleep_pipeline.dreaming.racing import Noise, Race, foretell, race
from sleep_pipeline.dreaming.rewards import judge, rewarded_by
from sleep_pipeline.dreaming.settings import RewardSettings

SEEDS, DREAMS = 6, 40
SETTINGS = RewardSettings(seeds=SEEDS, noise="seeds")


def problem(rng: np.random.Generator, effects: Sequence[float] = (0.8, 0.0, -0.4, -1.0)) -> np.ndarray:
    """Gains of 40 dreams with 6 seeds."""
    return rng.choice(effects, size=(DREAMS, 1)) + 0.25 * rng.standard_normal((DREAMS, SEEDS))


def raced(gains: np.ndarray, sigmas: float, level: float = SETTINGS.level) -> Race[float]:
    def run(pairs: Sequence[tuple[int, int]]) -> list[float]:
        return [float(gains[pair]) for pair in pairs]

    return race(
        range(len(gains)),
        gains.shape[1],
        run,
        lambda outcomes: outcomes,
        lambda table: rewarded_by(table, SETTINGS),
        0.0,
        sigmas,
        level,
    )


def decisions(result: Race[float]) -> list[int]:
    return [int(chance > 0.5) for _, chance in sorted(result.chances.items())]


def rewards(gains: np.ndarray) -> list[int]:
    return [judge([[gain] for gain in row], [0.0], SETTINGS).reward for row in gains]


@pytest.mark.slow
def test_a_race_decides_as_all_copies_would_and_trains_half_of_them() -> None:
    rng = np.random.default_rng(0)
    same, share = [], []
    for _ in range(20):
        gains = problem(rng)
        result = raced(gains, sigmas=2.0)
        same += [mine == truth for mine, truth in zip(decisions(result), rewards(gains), strict=True)]
        share.append(result.runs / gains.size)
    assert np.mean(same) > 0.98
    assert np.mean(share) < 0.5


@pytest.mark.slow
def test_what_is_foretold_comes_true_as_often_as_foretold() -> None:
    rng = np.random.default_rng(1)
    chances, truth = [], []
    for _ in range(20):
        gains = rng.uniform(-2, 2, (DREAMS, 1)) + 0.5 * rng.standard_normal((DREAMS, SEEDS))
        known = {dream: row[:2].tolist() for dream, row in enumerate(gains)}
        found = foretell(known, SEEDS, Noise.of(known), lambda table: rewarded_by(table, SETTINGS))
        chances += [found[dream] for dream in range(DREAMS)]
        truth += rewards(gains)
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        within = [(chance, came) for chance, came in zip(chances, truth, strict=True) if low <= chance < low + 0.2]
        foretold, came = np.mean(within, axis=0)
        assert came == pytest.approx(foretold, abs=3 * math.sqrt(0.25 / len(within)))


@pytest.mark.slow
def test_looking_often_does_not_reward_dreams_that_do_nothing() -> None:
    rng = np.random.default_rng(2)
    problems = [problem(rng, effects=(0.0,)) for _ in range(20)]
    share = np.mean([decisions(raced(gains, sigmas=1.0)) for gains in problems])
    assert share < SETTINGS.level + 3 * math.sqrt(0.05 * 0.95 / (20 * DREAMS))


def test_boldness_saves_more() -> None:
    gains = problem(np.random.default_rng(3))
    assert raced(gains, sigmas=0.5).runs < raced(gains, sigmas=3.0).runs < gains.size


def test_what_is_neither_sure_nor_hopeless_runs_on() -> None:
    result = raced(problem(np.random.default_rng(4)), sigmas=2.0)
    doubt = 0.02275
    for dream, row in result.outcomes.items():
        assert len(row) == SEEDS or not doubt < result.chances[dream] < 1 - doubt


def test_the_first_to_get_a_second_copy_are_those_nearest_the_margin() -> None:
    asked: list[list[tuple[int, int]]] = []
    gains = [5.0, 0.9, -4.0, 2.0, 1.4, -3.0, 3.0, 4.0, -2.0]

    def run(pairs: Sequence[tuple[int, int]]) -> list[float]:
        asked.append(list(pairs))
        return [gains[dream] + 0.01 * number for dream, number in pairs]

    race(range(9), 3, run, lambda outcomes: outcomes, lambda table: rewarded_by(table, SETTINGS), 1.0, 2.0, 0.05)
    assert asked[0] == [(dream, 0) for dream in range(9)]
    assert asked[1] == [(1, 1), (4, 1)]


def test_the_noise_is_pooled_over_all_dreams_that_did_not_diverge() -> None:
    # Alone, the first would seem to know its gain exactly.
    assert Noise.of({0: [-0.1, -0.1], 1: [1.0, 2.0], 2: [3.0], 3: [math.nan, 1.0]}) == Noise(0.5, 2)
    assert Noise.of({0: [1.0], 1: [2.0]}) == Noise(math.inf, 0)


def test_without_leave_to_accept_dreams_are_only_ever_given_up() -> None:
    result = raced(problem(np.random.default_rng(5)), sigmas=1.0, level=0.0)
    early = {dream: result.chances[dream] for dream, row in result.outcomes.items() if len(row) < SEEDS}
    assert early and max(early.values()) < 0.16


def test_a_dream_that_diverged_is_hopeless_and_runs_no_further() -> None:
    gains = problem(np.random.default_rng(6))
    gains[3, 0] = math.nan
    result = raced(gains, sigmas=3.0)
    assert result.chances[3] == 0 and len(result.outcomes[3]) == 1


@pytest.mark.parametrize("dreams", [0, 1, 2])
def test_few_dreams_can_race(dreams: int) -> None:
    gains = problem(np.random.default_rng(7))[:dreams]
    result = raced(gains, sigmas=3.0)
    assert sorted(result.chances) == list(range(dreams))
    assert all(1 <= len(row) <= SEEDS for row in result.outcomes.values())


def test_all_diverged_ends_the_race() -> None:
    outcomes: Mapping[int, Sequence[float]] = raced(np.full((4, 3), math.nan), sigmas=3.0).outcomes
    assert [len(row) for row in outcomes.values()] == [1] * 4
