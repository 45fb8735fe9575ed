import numpy as np
import pytest

from sleep_pipeline.evaluation.statistics import mean_interval


def test_exact_matches_get_wilsons_interval() -> None:
    # Wilson (1927) for 8 of 10 at 95 %: centre and half-width from the formula, by hand.
    estimate = mean_interval([1.0] * 8 + [0.0] * 2)
    z = 1.959963984540054
    centre = (0.8 + z**2 / 20) / (1 + z**2 / 10)
    half = z / (1 + z**2 / 10) * np.sqrt(0.8 * 0.2 / 10 + z**2 / 400)
    assert (estimate.value, estimate.samples) == (0.8, 10)
    assert (estimate.low, estimate.high) == pytest.approx((centre - half, centre + half))


def test_a_perfect_score_is_not_certain() -> None:
    estimate = mean_interval([1.0] * 20)
    assert 0.8 < estimate.low < 1.0 and estimate.high == pytest.approx(1.0)


def test_the_bootstrap_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    draws = [mean_interval(list(rng.beta(2, 3, size=60))) for _ in range(60)]
    assert 0.85 <= np.mean([draw.low <= 0.4 <= draw.high for draw in draws]) <= 1.0


@pytest.mark.parametrize("scores", [[], [float("nan")], [1.0, float("inf")]])
def test_what_has_no_mean_is_refused(scores: list[float]) -> None:
    with pytest.raises(ValueError, match="finite scores"):
        mean_interval(scores)


def test_equal_shares_have_no_spread() -> None:
    estimate = mean_interval([0.25, 0.25])
    assert (estimate.low, estimate.high) == (0.25, 0.25)
