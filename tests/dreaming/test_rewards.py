import math
from collections.abc import Iterator
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy import stats

from sleep_pipeline.dreaming.rewards import (
    baseline_of_others,
    early_level,
    foretold,
    judge,
    judge_among,
    rewarded_by,
    standard_error,
)
from sleep_pipeline.dreaming.settings import RewardSettings

T, SIGN, MARGIN = (RewardSettings(test=test, noise="both", seeds=4) for test in ("t", "sign", "margin"))  # type: ignore[arg-type]
SEEDS = RewardSettings(noise="seeds", seeds=4)
AMONG = RewardSettings()


def table(rng: np.random.Generator, effect: float, seeds: int = 3, probes: int = 8) -> NDArray[np.float64]:
    """Gains with noise of the seeds, of the probes and of each cell."""
    return (
        effect
        + 0.3 * rng.standard_normal((seeds, 1))
        + 0.5 * rng.standard_normal((1, probes))
        + 0.2 * rng.standard_normal((seeds, probes))
    )


def share_rewarded(effect: float, settings: RewardSettings, seeds: int = 3, probes: int = 8) -> float:
    rng = np.random.default_rng(0)
    tables = [table(rng, effect, seeds, probes) for _ in range(1500)]
    return float(np.mean([judge(gains.tolist(), [0.0] * probes, settings).reward for gains in tables]))


@pytest.mark.parametrize(("seeds", "probes"), [(3, 8), (2, 4), (1, 12), (4, 1)])
def test_a_dream_that_does_nothing_is_seldom_rewarded(seeds: int, probes: int) -> None:
    chance = share_rewarded(0.0, T, seeds, probes)
    assert chance < (0.09 if min(seeds, probes) > 1 else 0.25)  # one seed cannot tell its own noise
    assert chance < share_rewarded(0.0, MARGIN, seeds, probes)
    assert share_rewarded(0.0, MARGIN, seeds, probes) == pytest.approx(0.5, abs=0.06)


def test_a_clear_gain_is_rewarded() -> None:
    assert share_rewarded(1.0, T) > 0.7
    assert share_rewarded(2.0, T) > 0.97
    assert share_rewarded(2.0, SIGN) > 0.97


def test_the_noise_is_that_of_seeds_and_probes_together() -> None:
    rng = np.random.default_rng(1)
    tables = [table(rng, 0.0) for _ in range(2000)]
    estimated = math.sqrt(np.mean([standard_error(gains)[0] ** 2 for gains in tables]))
    assert estimated == pytest.approx(np.std([gains.mean() for gains in tables]), rel=0.1)


def test_with_one_seed_the_test_is_the_paired_t_test_over_probes() -> None:
    after, before = [0.2, 0.5, 0.9, 0.4, 0.1], [0.1, 0.5, 0.3, 0.2, 0.0]
    verdict = judge([after], before, T)
    assert verdict.chance == pytest.approx(stats.ttest_rel(after, before, alternative="greater").pvalue)
    assert (verdict.before, verdict.after) == pytest.approx((0.22, 0.42))
    assert verdict.gain == pytest.approx(0.2)


def test_where_the_probes_are_all_that_counts_one_of_them_answered_is_enough() -> None:
    after = [[3.0, 0.0, 0.1], [2.8, 0.1, 0.0], [3.1, 0.0, 0.0]]
    assert judge(after, [0.0] * 3, SEEDS).reward == 1
    assert judge(after, [0.0] * 3, T).reward == 0
    means = [sum(row) / 3 for row in after]
    assert judge(after, [0.0] * 3, SEEDS).chance == pytest.approx(
        stats.ttest_1samp(means, 0.0, alternative="greater").pvalue
    )


def test_seeds_that_differ_are_noise_however_many_probes_there_are() -> None:
    after = [[2.0] * 50, [-0.5] * 50, [0.3] * 50]
    assert judge(after, [0.0] * 50, SEEDS).reward == judge(after, [0.0] * 50, T).reward == 0


def test_one_seed_cannot_tell_the_noise_of_seeds() -> None:
    with pytest.raises(ValidationError, match="says nothing of the noise of seeds"):
        RewardSettings(seeds=1, noise="seeds")
    assert RewardSettings(seeds=1, noise="both").seeds == 1


def test_the_sign_test_counts_probes_by_their_mean_over_seeds() -> None:
    after = [[1.0, 1.0, 1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0, 1.0, 0.0]]
    assert judge(after, [0.0] * 6, SIGN).chance == pytest.approx(1 / 32)  # the sixth did not change
    assert judge(after, [0.0] * 6, SIGN).reward == 1
    assert judge([row[:4] for row in after], [0.0] * 4, SIGN).reward == 0


@pytest.mark.parametrize("test", ["t", "sign", "margin"])
def test_the_gain_must_exceed_the_margin(test: str) -> None:
    after = [[1.0, 1.1, 0.9, 1.0, 1.05, 0.95]] * 2
    settings = RewardSettings(test=test, margin=0.5, noise="seeds")  # type: ignore[arg-type]
    assert judge(after, [0.0] * 6, settings).reward == 1
    assert judge(after, [0.6] * 6, settings).reward == 0


@pytest.mark.parametrize("settings", [T, SIGN, MARGIN])
def test_no_gain_at_all_is_no_merit(settings: RewardSettings) -> None:
    assert judge([[0.5, 0.5], [0.5, 0.5]], [0.5, 0.5], settings).reward == 0
    assert judge([[0.1, 0.2], [0.1, 0.2]], [0.5, 0.5], settings).reward == 0


def test_the_same_gain_everywhere_is_no_noise() -> None:
    assert judge([[1.0, 1.0], [1.0, 1.0]], [0.0, 0.0], T).reward == 1


@pytest.mark.parametrize("settings", [T, SIGN, MARGIN])
def test_a_copy_that_diverged_earns_nothing(settings: RewardSettings) -> None:
    assert judge([[1.0, 1.0], [math.nan, 1.0]], [0.0, 0.0], settings).reward == 0


def test_one_seed_and_one_probe_can_only_be_tested_by_margin() -> None:
    assert judge([[1.0]], [0.0], MARGIN).reward == 1
    nothing_told = judge([[1.0]], [0.0], T)
    assert nothing_told.reward == 0 and math.isnan(nothing_told.chance)


def test_scores_and_baseline_must_fit() -> None:
    with pytest.raises(ValueError, match=r"shape \(1, 2\) and a baseline of shape \(1,\)"):
        judge([[1.0, 2.0]], [0.0], T)
    with pytest.raises(ValueError, match="at least one seed"):
        judge([], [0.0], T)


def test_what_copies_of_other_contexts_gain_is_no_merit() -> None:
    after = [[0.9, 0.9], [0.5, 0.7], [0.7, 0.5], [math.nan, 0.1]]
    assert baseline_of_others(after, [True, False, False, False], [0.0, 0.0]) == pytest.approx([0.6, 0.6])
    assert baseline_of_others(after[:1], [True], [0.1, 0.2]) == [0.1, 0.2]


@pytest.mark.parametrize("settings", [SEEDS, SEEDS.model_copy(update={"margin": 0.4}), MARGIN])
def test_mean_gains_alone_tell_the_reward_where_only_seeds_count(settings: RewardSettings) -> None:
    rng = np.random.default_rng(3)
    tables = [table(rng, effect) for effect in (0.0, 0.3, 0.6) for _ in range(100)]
    wanted = [bool(judge(gains.tolist(), [0.0] * 8, settings).reward) for gains in tables]
    assert early_level(settings) in (settings.level, 0.5) and 0 < sum(wanted) < len(wanted)
    assert rewarded_by(np.array([gains.mean(1) for gains in tables]), settings).tolist() == wanted


@pytest.mark.parametrize("settings", [T, SIGN])
def test_elsewhere_mean_gains_only_tell_what_is_not_rewarded(settings: RewardSettings) -> None:
    rng = np.random.default_rng(4)
    tables = [table(rng, 0.3) for _ in range(300)]
    may_be = rewarded_by(np.array([gains.mean(1) for gains in tables]), settings)
    judged = [judge(gains.tolist(), [0.0] * 8, settings).reward for gains in tables]
    assert early_level(settings) == 0 and sum(judged) < may_be.sum() < 300
    assert all(may for may, reward in zip(may_be, judged, strict=True) if reward and settings is T)


def test_a_foretold_verdict_tells_of_the_copies_that_there_are() -> None:
    verdict = foretold([[0.5, 0.7]], [0.0, 0.2], SEEDS, chance=0.99, noise=0.2, freedom=12)
    assert (verdict.reward, verdict.before, verdict.after) == pytest.approx((1, 0.1, 0.6))
    assert verdict.noise == 0.2 and verdict.chance == pytest.approx(stats.t.sf(0.5 / 0.2, 12))
    assert foretold([[0.5, 0.7]], [0.0, 0.2], SEEDS, chance=0.2, noise=0.2, freedom=12).reward == 0
    diverged = foretold([[math.nan]], [0.0], SEEDS, chance=0.0, noise=math.inf, freedom=0)
    assert diverged.reward == 0 and math.isnan(diverged.noise) and math.isnan(diverged.chance)


CONTEXTS = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def worlds(helps: float, seed: int, count: int = 200) -> Iterator[NDArray[np.float64]]:
    """Scores of ten dreams on five contexts: a dream's form, the context and chance, and what it knows of its own."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        scores = 3 * rng.normal(size=(10, 1)) + rng.normal(size=(1, 5)) + rng.normal(size=(10, 5))
        scores[np.arange(10), CONTEXTS] += helps
        yield scores


def test_of_dreams_that_know_nothing_so_many_are_rewarded_as_the_level_says() -> None:
    rewards = [verdict.reward for world in worlds(0.0, 0) for verdict in judge_among(world, CONTEXTS, AMONG)]
    assert 0.03 < fmean(rewards) < 0.07


def test_most_dreams_that_know_their_context_are_rewarded() -> None:
    rewards = [verdict.reward for world in worlds(4.0, 1) for verdict in judge_among(world, CONTEXTS, AMONG)]
    assert fmean(rewards) > 0.8


def test_what_a_form_does_to_every_context_is_no_merit() -> None:
    (world,) = worlds(0.0, 2, 1)
    louder = world.copy()
    louder[3] += 100.0
    for plain, loud in zip(judge_among(world, CONTEXTS, AMONG), judge_among(louder, CONTEXTS, AMONG), strict=True):
        assert (plain.reward, plain.gain) == (loud.reward, pytest.approx(loud.gain))


def foretold_without(world: NDArray[np.float64], row: int, column: int) -> float:
    """What the effects of all other cells that are nobody's own say of one cell, by descent instead of algebra."""
    cells = [(j, k) for j in range(10) for k in range(5) if k != CONTEXTS[j] and (j, k) != (row, column)]
    dreams, contexts = np.zeros(10), np.zeros(5)
    for _ in range(300):
        for j in range(10):
            dreams[j] = fmean(world[j, k] - contexts[k] for i, k in cells if i == j)
        for k in range(5):
            contexts[k] = fmean(world[j, k] - dreams[j] for j, i in cells if i == k)
    return float(dreams[row] + contexts[column])


def test_a_verdict_among_others_is_that_of_a_slow_reference() -> None:
    (world,) = worlds(1.0, 3, 1)
    dream, own = 4, 2
    gain = world[dream, own] - foretold_without(world, dream, own)
    nulls = [world[j, own] - foretold_without(world, j, own) for j in range(10) if CONTEXTS[j] != own]
    verdict = judge_among(world, CONTEXTS, AMONG)[dream]
    assert (verdict.gain, verdict.noise) == (pytest.approx(gain), pytest.approx(stdev(nulls)))
    assert verdict.chance == pytest.approx(float(stats.t.sf(gain / stdev(nulls), 7)))
    margin = RewardSettings(margin=abs(gain) - 1e-6, test="margin")
    assert judge_among(world, CONTEXTS, margin)[dream].reward == int(gain > 0)
    assert judge_among(world, CONTEXTS, margin.model_copy(update={"margin": abs(gain) + 1e-6}))[dream].reward == 0


def test_without_two_dreams_of_other_contexts_nothing_is_told_and_nothing_earned() -> None:
    (world,) = worlds(9.0, 4, 1)
    for contexts in ([0, 0, 0], [0, 0, 1]):
        verdict = judge_among(world[:3], contexts, AMONG)[0]
        assert verdict.reward == 0 and math.isnan(verdict.gain) and math.isnan(verdict.chance)


def test_two_contexts_are_compared_without_what_a_dream_does_elsewhere() -> None:
    scores = np.array([[5.0, 0.0], [5.2, 0.1], [0.0, 5.0], [0.1, 5.1], [-0.1, 5.2]])
    assert [verdict.reward for verdict in judge_among(scores, [0, 0, 1, 1, 1], AMONG)][:2] == [1, 1]


def test_copies_that_diverged_earn_nothing_and_spoil_nothing() -> None:
    (world,) = worlds(6.0, 5, 1)
    broken = world.copy()
    broken[0] = math.nan
    verdicts = judge_among(broken, CONTEXTS, AMONG)
    assert verdicts[0].reward == 0 and all(math.isfinite(verdict.chance) for verdict in verdicts[1:])


@pytest.mark.parametrize("other", [{"test": "sign"}, {"baseline": "before"}, {"scope": "all"}, {"racing": 1.0}])
def test_what_does_not_go_with_a_comparison_among_dreams_is_refused(other: dict[str, Any]) -> None:
    (name,) = other
    with pytest.raises(ValueError, match=rf"{name}=.* does not go with noise: dreams"):
        RewardSettings(**other)


def test_right_answers_that_are_all_alike_are_no_certainty() -> None:
    # No dream of another context did anything to the first one: with six of them a gain has a chance of one in seven.
    scores = np.full((9, 4), 0.3) + np.linspace(0, 0.7, 9)[:, None]
    scores[0, 0] += 0.5
    contexts = [0, 0, 0, 1, 1, 2, 2, 3, 3]
    verdict = judge_among(scores, contexts, AMONG)[0]
    assert verdict.noise == pytest.approx(0) and verdict.chance == pytest.approx(1 / 7) and verdict.reward == 0
    many = np.full((43, 4), 0.1) + np.linspace(0, 0.6, 43)[:, None]
    many[0, 0] += 0.5
    assert [verdict.reward for verdict in judge_among(many, [0] + [1, 2, 3] * 14, AMONG)] == [1] + [0] * 42


def test_scores_without_chance_leave_no_noise_and_earn_nothing() -> None:
    rng = np.random.default_rng(7)
    for _ in range(100):
        contexts = rng.integers(12, size=36)
        scores = rng.integers(9, size=(36, 1)) / 8 + rng.integers(9, size=(1, 12)) / 8
        for settings in (AMONG, RewardSettings(test="margin")):
            verdicts = judge_among(scores, contexts.tolist(), settings)
            assert {verdict.reward for verdict in verdicts} == {0}
            assert all(verdict.noise == 0 and abs(verdict.gain) < 1e-12 for verdict in verdicts)


def test_hundreds_of_contexts_are_judged_as_few_are() -> None:
    rng = np.random.default_rng(6)
    contexts = np.repeat(np.arange(150), 4)
    scores = rng.normal(size=(600, 1)) + rng.normal(size=(1, 150)) + rng.normal(size=(600, 150))
    verdicts = judge_among(scores, contexts.tolist(), AMONG)
    assert 0.02 < fmean(verdict.reward for verdict in verdicts) < 0.08
    assert fmean(verdict.noise for verdict in verdicts) == pytest.approx(1, rel=0.05)
