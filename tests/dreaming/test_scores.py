import math
from collections import Counter

import pytest
import tiny_models
import torch
from pydantic import ValidationError
from test_gradients import DREAMS, HELD_OUT, one_by_one, row
from torch import Tensor

from sleep_pipeline.dreaming.gradients import linear_weights
from sleep_pipeline.dreaming.rows import Dream
from sleep_pipeline.dreaming.scores import SCORERS, Scores, score, select
from sleep_pipeline.dreaming.settings import ScoreSettings

MADE = [Dream(rows) for rows in DREAMS]
TASKS = [0, 1, 1, 0, 1]


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return tiny_models.build("llama", torch.float64)


@pytest.fixture(scope="module")
def separate(model: torch.nn.Module) -> tuple[Tensor, Tensor]:
    """Gradients of dreams and of held-out samples, each of a backward pass of its own."""
    weights = linear_weights(model)
    return one_by_one(model, DREAMS, weights), one_by_one(model, HELD_OUT, weights)


def found(model: torch.nn.Module, **settings: object) -> Scores:
    # So few tokens at once that several passes are made.
    return score(model, MADE, ScoreSettings(tokens_at_once=70, **settings), TASKS, HELD_OUT)  # type: ignore[arg-type]


def near(omega: tuple[float, ...], wanted: Tensor) -> bool:
    return torch.allclose(torch.tensor(omega, dtype=torch.float64), wanted, rtol=1e-9, atol=0)


def test_the_gradient_norm_is_that_of_a_backward_pass_a_dream(
    model: torch.nn.Module, separate: tuple[Tensor, Tensor]
) -> None:
    dreams, _ = separate
    scores = found(model, kind="gradient_norm")
    assert near(scores.omega, dreams.norm(dim=1))
    assert list(scores.order) == dreams.norm(dim=1).argsort(descending=True).tolist()


def test_alignment_compares_each_dream_with_its_own_task(
    model: torch.nn.Module, separate: tuple[Tensor, Tensor]
) -> None:
    dreams, held_out = separate
    scores = found(model, kind="alignment")
    assert near(scores.omega, (dreams * held_out[TASKS]).sum(1))
    assert list(scores.order) == torch.tensor(scores.omega).argsort(descending=True).tolist()


def test_greats_takes_what_earlier_choices_bring_off_the_score(
    model: torch.nn.Module, separate: tuple[Tensor, Tensor]
) -> None:
    dreams, held_out = separate
    scores = found(model, kind="greats", interaction=0.3)
    left, chosen = list(range(len(DREAMS))), []
    omega = torch.zeros(len(DREAMS), dtype=torch.float64)
    while left:
        gains = {
            i: float(dreams[i] @ held_out[TASKS[i]] - 0.3 * sum(dreams[i] @ dreams[j] for j in chosen)) for i in left
        }
        best = max(left, key=lambda i: gains[i])
        omega[best] = gains[best]
        left.remove(best)
        chosen.append(best)
    assert list(scores.order) == chosen
    assert near(scores.omega, omega)


def test_with_interaction_a_dream_that_was_dreamt_twice_is_worth_less_the_second_time(model: torch.nn.Module) -> None:
    settings = ScoreSettings(kind="greats", interaction=1.0)
    once, twice = score(model, [MADE[1], MADE[1]], settings, [0, 0], HELD_OUT).omega
    assert once == pytest.approx(score(model, [MADE[1]], settings, [0], HELD_OUT).omega[0])
    assert twice < once


def test_influence_comes_near_the_cosine(model: torch.nn.Module, separate: tuple[Tensor, Tensor]) -> None:
    dreams, held_out = separate
    scores = found(model, kind="influence", projection=256)
    cosines = torch.cosine_similarity(dreams, held_out[TASKS])
    assert float((torch.tensor(scores.omega) - cosines).abs().max()) < 0.1


def test_a_dream_without_a_finite_gradient_comes_last(model: torch.nn.Module) -> None:
    broken = tiny_models.build("llama", torch.float64)
    with torch.no_grad():
        broken.get_input_embeddings().weight[47] = torch.nan  # type: ignore[operator, union-attr]
    rows = [row(6, 3), row(7, 4)]
    clean = [Dream((type(r)(tuple(min(t, 46) for t in r.ids)),)) for r in rows]
    dreams = [clean[0], Dream((type(rows[0])((3, 47, 5)),)), clean[1]]
    for kind in SCORERS:
        scores = score(broken, dreams, ScoreSettings(kind=kind), None, [clean[0].rows])
        assert scores.order[-1] == 1 and math.isnan(scores.omega[1])
        assert all(math.isfinite(scores.omega[index]) for index in (0, 2))


def test_what_a_score_needs_must_be_there(model: torch.nn.Module) -> None:
    with pytest.raises(ValueError, match="score 'luck' is unknown; choose one of alignment, "):
        score(model, MADE, ScoreSettings(kind="luck"))
    with pytest.raises(ValueError, match="'alignment' compares with held-out samples and there are none"):
        score(model, MADE, ScoreSettings())
    with pytest.raises(ValueError, match="task 1 has dreams but no held-out sample"):
        score(model, MADE, ScoreSettings(), TASKS, [HELD_OUT[0], []])
    assert len(score(model, MADE[:1], ScoreSettings(), [0], [HELD_OUT[0], []]).omega) == 1
    assert score(model, [], ScoreSettings()) == Scores((), ())


SCORES = Scores((0.1, 0.5, 0.3, 0.2, 0.4, 0.0), (1, 4, 2, 3, 0, 5))


def test_the_best_are_kept_and_some_of_the_others_drawn() -> None:
    choices = select(SCORES, 2, 1, seed=3)
    assert [choice.index for choice in choices] == list(range(6))
    assert {choice.index for choice in choices if choice.kept == "top"} == {1, 4}
    drawn = {tuple(c.index for c in select(SCORES, 2, 1, seed) if c.kept == "random") for seed in range(40)}
    assert drawn == {(0,), (2,), (3,), (5,)}
    assert select(SCORES, 2, 1, seed=3) == choices


def test_every_choice_says_why() -> None:
    choices = select(SCORES, 1, 5, seed=0)
    assert choices[1].reason == "rank 1 of 6 is among the best 1"
    assert choices[4].reason == "rank 2 of 6, drawn at random among the 5 behind the best 1"
    assert select(SCORES, 1, 0, seed=0)[5].reason == "rank 6 of 6 is behind the best 1 and was not drawn"


def test_without_any_top_dream_the_scores_count_for_nothing() -> None:
    drawn = Counter(c.index for seed in range(600) for c in select(SCORES, 0, 2, seed) if c.kept)
    assert drawn.total() == 1200
    # Six dreams, a third of the draws each: 200, with a standard deviation of about 12.
    assert all(150 < drawn[index] < 250 for index in range(6))


def test_numbers_can_be_for_each_group() -> None:
    choices = select(SCORES, 1, 0, seed=0, groups=[0, 1, 0, 1, 1, 0])
    assert [choice.index for choice in choices if choice.kept] == [1, 2]
    assert [choice.rank for choice in choices] == [2, 1, 1, 3, 2, 3]


def test_a_choice_of_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match="leave no dream to try"):
        ScoreSettings(top_k=0, random_b=0)
