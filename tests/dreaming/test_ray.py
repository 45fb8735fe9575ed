"""Trials on two workers of a real Ray, on this machine alone, against the same trials in this process."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import tiny_models
import torch
from torch import nn

from sleep_pipeline.dreaming import extras
from sleep_pipeline.dreaming.dreams import DreamText
from sleep_pipeline.dreaming.night import judge_dreams
from sleep_pipeline.dreaming.rows import Dream, Row
from sleep_pipeline.dreaming.settings import DreamingSettings, RewardSettings, ScoreSettings, TrialSettings
from sleep_pipeline.dreaming.tau import Probe
from sleep_pipeline.dreaming.trials import Evaluate, TrialReport, run_trials
from sleep_pipeline.dreaming.workers import Workers
from sleep_pipeline.memory import base_view

pytest.importorskip("ray", reason="the extra `ray` is not installed")
pytestmark = pytest.mark.slow

SETTINGS = TrialSettings(rank=2, alpha=4.0, lr=0.01, steps=5, trials_at_once=2, max_padding=1.0)
DREAMS = [
    Dream((Row(tuple(tiny_models.tokens(1, length, length)[0].tolist())),), seed=length, steps=steps)
    for length, steps in ((9, 5), (10, 3), (20, None), (20, 4), (9, None), (9, 2), (20, 6), (20, None))
]


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    """Two workers of one thread each beside a process of one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extras, "usable_cores", lambda: 2)
        with Workers(2) as started:
            yield started
    torch.set_num_threads(threads)


def made_here() -> Evaluate:
    """A judge that can be sent to a process that cannot import this file."""

    def judge(model: nn.Module, trials: Sequence[int]) -> list[float]:
        ids = torch.arange(3, 9).repeat(len(trials), 1)
        return [float(row.sum()) for row in model(input_ids=ids).logits]

    return judge


def assert_same(left: TrialReport, right: TrialReport) -> None:
    for one, other in zip(left.trials, right.trials, strict=True):
        assert (one.index, one.losses, one.outcome) == (other.index, other.losses, other.outcome)
        for name, factors in one.adapter.layers.items():
            assert torch.equal(factors.down, other.adapter.layers[name].down)
            assert torch.equal(factors.up, other.adapter.layers[name].up)


def test_two_workers_find_what_one_process_finds_to_the_last_bit(workers: Workers) -> None:
    model = tiny_models.build()
    workers.hold(model)
    dreams = [*DREAMS, Dream(())]
    here = run_trials(model, dreams, SETTINGS, made_here())
    there = run_trials(model, dreams, SETTINGS, made_here(), workers)
    assert len(here.trials) == len(DREAMS) and here.dropped == there.dropped
    assert_same(here, there)


def test_a_stack_that_is_cut_gives_the_same_but_for_rounding(workers: Workers) -> None:
    model, settings = tiny_models.build(dtype=torch.float64), SETTINGS.model_copy(update={"trials_at_once": None})
    workers.hold(model)
    here = run_trials(model, DREAMS, settings, made_here())
    there = run_trials(model, DREAMS, settings, made_here(), workers)
    for one, other in zip(here.trials, there.trials, strict=True):
        assert one.losses == pytest.approx(other.losses, rel=1e-9)
        assert one.outcome == pytest.approx(other.outcome, rel=1e-9, abs=1e-9)


def test_the_workers_see_the_memory_as_it_is_when_they_are_given_it(workers: Workers) -> None:
    model = tiny_models.with_memory()
    tiny_models.learn(model)
    found = []
    for view in (False, True):
        with base_view(model) if view else torch.enable_grad():
            workers.hold(model)
            found.append(run_trials(model, DREAMS, SETTINGS, made_here(), workers))
            assert_same(run_trials(model, DREAMS, SETTINGS, made_here()), found[-1])
    assert found[0].trials[0].outcome != found[1].trials[0].outcome


def test_a_model_that_the_workers_do_not_hold_is_refused(workers: Workers) -> None:
    workers.hold(tiny_models.build())
    with pytest.raises(ValueError, match=r"hold another model .* call hold\(model\) first"):
        run_trials(tiny_models.build(), DREAMS, SETTINGS, None, workers)


def test_an_error_in_a_worker_is_an_error_here(workers: Workers) -> None:
    def fail(model: nn.Module, trials: Sequence[int]) -> list[float]:
        raise KeyError("the judge is asleep")

    model = tiny_models.build()
    workers.hold(model)
    with pytest.raises(KeyError, match="the judge is asleep"):
        run_trials(model, DREAMS, SETTINGS, fail, workers)
    assert len(run_trials(model, DREAMS, SETTINGS, None, workers).trials) == len(DREAMS)


def test_nothing_is_told_of_its_use_and_there_is_no_dashboard(workers: Workers) -> None:
    import ray

    def switch(model: nn.Module, trials: Sequence[int]) -> list[str]:
        return [os.environ["RAY_USAGE_STATS_ENABLED"]] * len(trials)

    model = tiny_models.build()
    workers.hold(model)
    assert {trial.outcome for trial in run_trials(model, DREAMS, SETTINGS, switch, workers).trials} == {"0"}
    assert ray.init(ignore_reinit_error=True, log_to_driver=False).dashboard_url in (None, "")


CONTEXTS = ["Mira lives in Osk.", "Osk has 12 inns."]
PROBES = [
    Probe(0, "Where does Mira live?", "In Osk"),
    Probe(0, "Who lives in Osk?", "Mira does"),
    Probe(1, "How many inns are there?", "There are 12"),
]
TAUGHT = (
    (0, (("Where does Mira live?", "In Osk"), ("Who lives in Osk?", "Mira does"))),
    (0, (("Where is it?", "Seven brown hats"), ("Why?", "For ever and a day"))),
    (1, (("How many inns are there?", "There are 12"),)),
)


@pytest.mark.parametrize("racing", [None, 3.0])
def test_the_same_dreams_are_rewarded(
    workers: Workers, tiny_model: Any, tiny_tokenizer: Any, racing: float | None
) -> None:
    dreams = [DreamText(at, "questions", CONTEXTS[at], "Quiz", str(pairs), pairs) for at, pairs in TAUGHT]
    settings = DreamingSettings(
        scores=ScoreSettings(top_k=3, random_b=0),
        trials=TrialSettings(steps=12, lr=5e-3, trials_at_once=1),
        rewards=RewardSettings(seeds=3, noise="seeds", racing=racing),
    )
    given = (tiny_model, tiny_tokenizer, CONTEXTS, dreams, PROBES, settings, 1)
    here, there = judge_dreams(*given), judge_dreams(*given, workers=workers)
    assert there.records() == here.records()
    assert [dream.marks for dream in there.dreams] == [dream.marks for dream in here.dreams]
    assert [dream.reward for dream in there.dreams] == [1, 0, 1]
