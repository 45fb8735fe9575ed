import math

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
    rewarded_by,
    standard_error,
)
from sleep_pipeline.dreaming.settings import RewardSettings

T, SIGN, MARGIN = (RewardSettings(test=test, noise="both") for test in ("t", "sign", "margin"))  # type: ignore[arg-type]
SEEDS = RewardSettings(noise="seeds")


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
        RewardSettings(seeds=1)
    assert RewardSettings(seeds=1, noise="both").seeds == 1


def test_the_sign_test_counts_probes_by_their_mean_over_seeds() -> None:
    after = [[1.0, 1.0, 1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0, 1.0, 0.0]]
    assert judge(after, [0.0] * 6, SIGN).chance == pytest.approx(1 / 32)  # the sixth did not change
    assert judge(after, [0.0] * 6, SIGN).reward == 1
    assert judge([row[:4] for row in after], [0.0] * 4, SIGN).reward == 0


@pytest.mark.parametrize("test", ["t", "sign", "margin"])
def test_the_gain_must_exceed_the_margin(test: str) -> None:
    after = [[1.0, 1.1, 0.9, 1.0, 1.05, 0.95]] * 2
    settings = RewardSettings(test=test, margin=0.5)  # type: ignore[arg-type]
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
    with pytest.raises(ValueError, match="say nothing of noise"):
        judge([[1.0]], [0.0], T)


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
