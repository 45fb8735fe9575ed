import numpy as np
import pytest

from sleep_pipeline.evaluation.statistics import auroc, mean_interval, paired_difference, seeds_and_questions


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


@pytest.mark.slow
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


def test_a_paired_difference_gets_the_adjusted_wald_interval() -> None:
    # Agresti and Min (2005) for 20 pairs of which 8 were gained and 2 lost: half a pair added to each outcome.
    after, before = [1] * 8 + [0] * 2 + [1] * 5 + [0] * 5, [0] * 8 + [1] * 2 + [1] * 5 + [0] * 5
    estimate = paired_difference(after, before)
    half = 1.959963984540054 * np.sqrt(11 - 36 / 22) / 22
    assert (estimate.value, estimate.samples) == (pytest.approx(0.3), 20)
    assert (estimate.low, estimate.high) == pytest.approx((6 / 22 - half, 6 / 22 + half))


def test_four_gains_of_a_hundred_are_no_proof_but_seven_are() -> None:
    def gains(number: int) -> float:
        return paired_difference([1] * number + [0] * (100 - number), [0] * 100).low

    assert gains(4) < 0 < gains(7)


def test_differences_of_shares_are_bootstrapped_in_pairs() -> None:
    rng = np.random.default_rng(1)
    before = rng.random(50)
    after = before + 0.1 + 0.01 * rng.standard_normal(50)
    estimate = paired_difference(list(after), list(before))
    assert 0.09 < estimate.low < estimate.value < estimate.high < 0.11


@pytest.mark.parametrize(("after", "before"), [([], []), ([1.0], [1.0, 0.0]), ([float("nan")], [0.0])])
def test_what_is_no_pair_is_refused(after: list[float], before: list[float]) -> None:
    with pytest.raises(ValueError, match="finite scores of the same questions"):
        paired_difference(after, before)


def test_auroc_counts_pairs_and_halves_ties() -> None:
    assert auroc([1.0, 2.0], [0.0, 1.0]) == (3 + 0.5) / 4
    assert auroc([0.0], [1.0]) == 0.0
    with pytest.raises(ValueError, match="got 0 above and 1 below"):
        auroc([], [1.0])


def test_seeds_and_questions_are_both_drawn() -> None:
    alike = [{"a": "1100", "b": "10"}] * 2
    apart = [{"a": "1111", "b": "11"}, {"a": "0000", "b": "00"}]
    assert seeds_and_questions(alike).value == seeds_and_questions(apart).value == 0.5
    certain = seeds_and_questions(apart)
    assert (certain.low, certain.high) == (0.0, 1.0), "every seed is sure, and they disagree"
    assert 0.0 < seeds_and_questions(alike).low < 0.5 < seeds_and_questions(alike).high < 1.0


def test_a_question_that_is_asked_again_is_no_other_question() -> None:
    once = seeds_and_questions([{"a": "1" * 20 + "0" * 20}])
    thrice = seeds_and_questions([{"a": "1" * 20 + "0" * 20}] * 3)
    assert thrice.high - thrice.low == pytest.approx(once.high - once.low, abs=0.02)
    assert (once.high - once.low) == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 40), rel=0.1)


def test_two_methods_are_compared_by_seed_and_question() -> None:
    rng = np.random.default_rng(0)
    mine = [{"a": "".join(map(str, rng.integers(2, size=40))), "b": "1" * 20} for _ in range(3)]
    same = seeds_and_questions(mine, mine)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0), "questions that both get wrong say nothing"
    # Of 60 questions, 6 more with one seed, 3 more with the second, none with the third.
    other = [
        {"a": answers["a"], "b": "1" * (20 - fewer) + "0" * fewer}
        for answers, fewer in zip(mine, (6, 3, 0), strict=True)
    ]
    found, back = seeds_and_questions(mine, other), seeds_and_questions(other, mine)
    assert found.value == pytest.approx(3 / 60) == -back.value
    # Seeds that differ more than their questions would make them; three seeds drawn from three may be one alone.
    assert found.low <= 0.01 and found.high >= 0.09
    with pytest.raises(ValueError, match="both have answered"):
        seeds_and_questions(mine, mine[:2])
    with pytest.raises(ValueError, match="20 questions with one seed and 19"):
        seeds_and_questions(mine, [{**answers, "b": "1" * 19} for answers in mine])


def test_seeds_may_have_other_classes() -> None:
    estimate = seeds_and_questions([{"a": "11"}, {"b": "00"}])
    assert (estimate.value, estimate.samples) == (0.5, 4)


@pytest.mark.parametrize("right", [[], [{}], [{"a": ""}], [{"a": "1"}, {"a": "11"}]])
def test_seeds_without_answers_or_with_other_questions_are_refused(right: list[dict[str, str]]) -> None:
    with pytest.raises(ValueError, match=r"questions|no answer"):
        seeds_and_questions(right)
