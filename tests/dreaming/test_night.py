import copy
import math
from collections import Counter
from typing import Any

import pytest
import torch

from sleep_pipeline.dreaming import night
from sleep_pipeline.dreaming.dreams import DreamData, DreamText
from sleep_pipeline.dreaming.night import DreamReport, Tau, by_lot, dream_night, judge_dreams
from sleep_pipeline.dreaming.settings import (
    DreamingSettings,
    DreamPrompt,
    DreamSettings,
    RewardSettings,
    ScoreSettings,
    TrialSettings,
)
from sleep_pipeline.dreaming.tau import Probe
from sleep_pipeline.seeding.teacher import TeacherSample

CONTEXTS = ["Mira lives in Osk.", "Osk has 12 inns.", "It rains."]
PROBES = [
    Probe(0, "Where does Mira live?", "In Osk"),
    Probe(0, "Who lives in Osk?", "Mira does"),
    Probe(1, "How many inns are there?", "There are 12"),
]


def dreamt(context: int, *pairs: tuple[str, str], source: str | None = None, kind: str = "questions") -> DreamText:
    return DreamText(context, kind, source or CONTEXTS[context], "Quiz", str(pairs), pairs)


RIGHT = dreamt(0, ("Where does Mira live?", "In Osk"), ("Who lives in Osk?", "Mira does"))
WRONG = dreamt(0, ("Where is it?", "Seven brown hats"), ("Why?", "For ever and a day"))
INNS = dreamt(1, ("How many inns are there?", "There are 12"), source=f"{CONTEXTS[1]}\n\nOlder.", kind="combination")
RAIN = dreamt(2, ("Does it rain?", "It does"))
SETTINGS = DreamingSettings(
    scores=ScoreSettings(top_k=3, random_b=1),
    trials=TrialSettings(steps=12, lr=5e-3),
    rewards=RewardSettings(seeds=2, noise="seeds"),
)


def judged(model: Any, tokenizer: Any, dreams: list[DreamText], settings: DreamingSettings = SETTINGS) -> DreamReport:
    return judge_dreams(model, tokenizer, CONTEXTS, dreams, PROBES, settings, seed=1)


@pytest.fixture(scope="module")
def report(tiny_settings: Any, tiny_tokenizer: Any) -> DreamReport:
    from sleep_pipeline.pretraining.trainer import build_model

    model = build_model(tiny_settings.architecture, tiny_tokenizer, seed=0).eval()
    return judged(model, tiny_tokenizer, [RIGHT, WRONG, INNS, RAIN])


@pytest.mark.parametrize("baseline", ["before", "others"])
def test_a_copy_that_learns_nothing_gains_nothing_in_bf16(tiny_model: Any, tiny_tokenizer: Any, baseline: Any) -> None:
    trials = TrialSettings(steps=1, lr=1e-12, precision="bf16")
    rewards = RewardSettings(seeds=2, noise="seeds", baseline=baseline)
    settings = SETTINGS.model_copy(update={"trials": trials, "rewards": rewards})
    told = judge_dreams(tiny_model, tiny_tokenizer, CONTEXTS[:1], [RIGHT, WRONG], PROBES[:2], settings, seed=1)
    assert [dream.reward for dream in told.dreams] == [0, 0]
    assert all(abs(dream.verdict.gain) < 1e-6 for dream in told.dreams if dream.verdict is not None)


def test_dreams_that_teach_the_probes_are_rewarded_and_others_are_not(report: DreamReport) -> None:
    assert [dream.reward for dream in report.dreams] == [1, 0, 1, None]
    assert [dream.dream for dream in report.rewarded] == [RIGHT, INNS]


def test_every_dream_says_what_became_of_it(report: DreamReport) -> None:
    assert [bool(dream.kept) for dream in report.dreams] == [True, True, True, False]
    assert report.dreams[3].reason == "no probe of its context to judge it by"
    assert all("rank" in dream.reason for dream in report.dreams[:3])
    assert [len(dream.marks) for dream in report.dreams] == [2, 2, 2, 0]
    assert all(len(row) == len(PROBES) for dream in report.tried for row in dream.marks)
    assert set(report.seconds) == {"baseline", "scores", "trials"}


def test_a_dream_is_judged_on_the_probes_of_its_own_context(report: DreamReport) -> None:
    verdict = report.dreams[0].verdict
    assert verdict is not None
    own = [row[:2] for row in report.dreams[0].marks]
    assert verdict.after == pytest.approx(sum(map(sum, own)) / 4)


def test_rewarded_dreams_become_lessons_under_the_source_that_they_were_dreamt_of(report: DreamReport) -> None:
    sources, samples = report.lessons()
    assert sources == [*CONTEXTS, INNS.source]
    assert samples == [
        TeacherSample(0, "questions", "Where does Mira live?", "In Osk", 1.0),
        TeacherSample(0, "questions", "Who lives in Osk?", "Mira does", 1.0),
        TeacherSample(3, "combination", "How many inns are there?", "There are 12", 1.0),
    ]


def test_records_are_flat(report: DreamReport) -> None:
    first, *_, last = report.records()
    assert first["reward"] == 1 and first["after"] > first["before"]
    assert last["reward"] is None and last["score"] is None
    assert all(isinstance(value, str | int | float | None) for value in first.values())


def test_the_summary_says_so_when_nothing_helped(report: DreamReport, tiny_model: Any, tiny_tokenizer: Any) -> None:
    assert report.summary() == "4 dreams drawn, 4 usable, 3 tried, 2 helped."
    nothing = judged(
        tiny_model,
        tiny_tokenizer,
        [RIGHT, INNS],
        SETTINGS.model_copy(update={"rewards": RewardSettings(seeds=2, noise="seeds", margin=1e6)}),
    )
    assert "0 helped. No dream was better than the noise" in nothing.summary()
    assert nothing.lessons() == (CONTEXTS, [])


def test_without_any_dream_the_night_ends_without_trials(tiny_model: Any, tiny_tokenizer: Any) -> None:
    empty = judged(tiny_model, tiny_tokenizer, [])
    assert empty.dreams == () and "nothing to learn" in empty.summary()


def test_against_the_model_before_any_fine_tuning_on_answers_may_look_good(
    tiny_model: Any, tiny_tokenizer: Any
) -> None:
    settings = SETTINGS.model_copy(
        update={"rewards": RewardSettings(seeds=2, noise="seeds", baseline="before", test="margin")}
    )
    against_before = judged(tiny_model, tiny_tokenizer, [RIGHT, WRONG, INNS], settings)
    others = judged(tiny_model, tiny_tokenizer, [RIGHT, WRONG, INNS])
    for mine, theirs in zip(against_before.dreams, others.dreams, strict=True):
        assert mine.verdict is not None and theirs.verdict is not None
        assert mine.marks == theirs.marks
        assert mine.verdict.gain != theirs.verdict.gain
    mean = sum(against_before.before[:2]) / 2
    assert against_before.dreams[0].verdict is not None
    assert against_before.dreams[0].verdict.before == pytest.approx(mean)


def test_the_same_seed_gives_the_same_night_and_the_model_stays_as_it_was(
    tiny_model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [DreamPrompt(kind="tell", ask="Tell", form="text", recall="{words}?")]
    settings = SETTINGS.model_copy(update={"dreams": DreamSettings(prompts=prompts, dreams=2, max_new_tokens=8)})
    before = copy.deepcopy(tiny_model.state_dict())
    found = [dream_night(tiny_model, tiny_tokenizer, CONTEXTS, PROBES, settings, seed=3) for _ in range(2)]
    assert found[0].records() == found[1].records()
    assert found[0].asked == 6 and found[0].dropped.total() + len(found[0].dreams) == 6
    assert all(torch.equal(value, before[name]) for name, value in tiny_model.state_dict().items())

    data = DreamData([RIGHT, INNS], Counter({"cut off": 4}), 6, True)
    monkeypatch.setattr(night, "sample_dreams", lambda *args, **_: data)
    report = dream_night(tiny_model, tiny_tokenizer, CONTEXTS, PROBES, settings, seed=1)
    assert (report.asked, report.dropped, report.random_experts) == (6, {"cut off": 4}, True)
    assert [dream.dream for dream in report.tried] == [RIGHT, INNS]
    assert set(report.seconds) == {"sampling", "baseline", "scores", "trials"}


def test_a_race_rewards_the_same_dreams_after_fewer_copies(
    report: DreamReport, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    rewards = RewardSettings(seeds=4, noise="seeds", racing=1.0)
    raced = judged(tiny_model, tiny_tokenizer, [RIGHT, WRONG, INNS], SETTINGS.model_copy(update={"rewards": rewards}))
    assert [dream.reward for dream in raced.dreams] == [1, 0, 1]
    assert all(1 <= len(dream.marks) <= 4 for dream in raced.dreams)
    assert sum(len(dream.marks) for dream in raced.dreams) < 12
    for mine, all_at_once in zip(raced.dreams, report.dreams, strict=False):
        for one, other in zip(mine.marks, all_at_once.marks, strict=False):
            assert one == pytest.approx(other, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("test", ["sign", "t"])
def test_where_single_probes_count_a_race_rewards_no_dream_early(
    test: Any, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    rewards = RewardSettings(seeds=4, racing=1.0, test=test, noise="both")
    raced = judged(tiny_model, tiny_tokenizer, [RIGHT, WRONG, INNS], SETTINGS.model_copy(update={"rewards": rewards}))
    assert sum(len(dream.marks) for dream in raced.dreams) < 12
    assert all(len(dream.marks) == 4 or dream.reward == 0 for dream in raced.dreams)


def test_a_race_does_not_move_the_baseline_towards_dreams_that_run_long() -> None:
    tau = Tau([0, 1, 1], (0.0, 0.0), [PROBES[0], PROBES[2]], RewardSettings(seeds=3, noise="seeds"))
    gains = tau.gains({0: [(5.0, 0.0)], 1: [(1.0, 0.0)] * 3, 2: [(3.0, 0.0)]})
    assert gains[0] == [pytest.approx(5.0 - 2.0)]
    diverged = tau.gains({0: [(5.0, 0.0)], 1: [(math.nan, 0.0), (1.0, 0.0)], 2: [(math.nan, 0.0)]})
    assert diverged[0] == [pytest.approx(5.0 - 1.0)]


def test_rewards_by_lot_are_as_many_and_tell_nothing(report: DreamReport, tiny_model: Any, tiny_tokenizer: Any) -> None:
    earned = {index: dream.verdict for index, dream in enumerate(report.dreams) if dream.verdict is not None}
    dealt = [[verdict.reward for verdict in by_lot(earned, seed).values()] for seed in range(20)]
    assert {sum(rewards) for rewards in dealt} == {2}
    assert {tuple(rewards) for rewards in dealt} == {(1, 1, 0), (1, 0, 1), (0, 1, 1)}

    rewards = SETTINGS.rewards.model_copy(update={"by_lot": True})
    night = judged(
        tiny_model, tiny_tokenizer, [RIGHT, WRONG, INNS, RAIN], SETTINGS.model_copy(update={"rewards": rewards})
    )
    assert [dream.reward for dream in night.dreams if dream.verdict] == [
        verdict.reward for verdict in by_lot(earned, seed=1).values()
    ]


def test_dreams_that_have_none_of_other_memories_beside_them_are_not_tried(
    tiny_model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = night.run_trials

    def only_none(model: Any, copies: Any, *rest: Any, **more: Any) -> Any:
        assert not copies, "a copy was trained for nothing"
        return train(model, copies, *rest, **more)

    monkeypatch.setattr(night, "run_trials", only_none)
    among = SETTINGS.model_copy(update={"rewards": RewardSettings()})
    alone = judged(tiny_model, tiny_tokenizer, [RIGHT, WRONG, RAIN], among)
    assert not alone.tried and not alone.rewarded
    assert [dream.reason for dream in alone.dreams[:2]] == [night.ALONE] * 2
    assert alone.dreams[2].reason == "no probe of its context to judge it by"
    assert alone.summary().endswith(f"Nothing could be told of them: {night.ALONE}.")
    # One dream of another memory is too few, and so are two of which the scores leave one.
    both = judged(tiny_model, tiny_tokenizer, [RIGHT, INNS], among)
    assert {dream.reason for dream in both.dreams} == {night.ALONE}
    few = among.model_copy(update={"scores": ScoreSettings(top_k=2, random_b=0)})
    chosen = judged(tiny_model, tiny_tokenizer, [RIGHT, WRONG, INNS], few)
    assert not chosen.tried and sum(dream.reason == night.ALONE for dream in chosen.dreams) == 2


@pytest.mark.parametrize(("contexts", "may"), [([], False), ([0, 0, 0], False), ([0, 1], False), ([0, 1, 1], True)])
def test_one_dream_with_two_of_other_contexts_is_enough_to_tell(contexts: list[int], may: bool) -> None:
    assert night.comparable(contexts) == may
