import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import peft
import pytest
import torch

from sleep_pipeline.dreaming import rest_em as module
from sleep_pipeline.dreaming.dreams import DreamData, DreamText
from sleep_pipeline.dreaming.rest_em import fine_tune, rest_em, rewarded_kinds, trial_reward
from sleep_pipeline.dreaming.settings import (
    DreamingSettings,
    DreamPrompt,
    DreamSettings,
    RestEmSettings,
    RewardSettings,
    TrialSettings,
)
from sleep_pipeline.memory import ContinuumMemoryConfig, LevelConfig, add_beside, unlock

MIRA, OSK, RAIN = "Mira lives in Osk.", "Osk has 12 inns.", "It rains."
SETTINGS = RestEmSettings(rounds=2, steps=4, rows=2, lr=0.01)


@pytest.fixture
def pair(tiny_model: Any) -> tuple[Any, Any]:
    """A model with a memory in mid-sleep, and the dreamer beside it."""
    model = peft.get_peft_model(tiny_model, ContinuumMemoryConfig(levels=[LevelConfig(num_slots=4, rank=4)]))
    unlock(model, 1)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    return model, add_beside(model, config, "dreamer")


def dreamt(text: str, context: int = 0, source: str = MIRA) -> DreamText:
    return DreamText(context, "quiz", source, "Quiz", text, (("Where?", text),))


def others(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" not in name}


def own(dreamer: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in dreamer.named_parameters() if "lora_" in name}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_fine_tuning_makes_a_dream_likelier_and_changes_the_adapter_alone(
    pair: tuple[Any, Any], tiny_tokenizer: Any
) -> None:
    model, dreamer = pair
    before, adapter = others(model), own(dreamer)
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    history = fine_tune(
        dreamer, tiny_tokenizer, [dreamt("Osk"), dreamt("In Osk")], SETTINGS.model_copy(update={"steps": 60})
    )
    assert history[-1] < 0.95 * history[0] and len(history) == 60
    assert same(before, others(model)) and not same(adapter, own(dreamer))
    assert flags == {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert all(parameter.grad is None for parameter in model.parameters())


def test_rows_that_are_read_apart_give_the_gradient_of_all_together(
    pair: tuple[Any, Any], tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, dreamer = pair
    dreamer.double()
    texts = ["Osk", "In Osk, where the rain is", "Osk has 12 inns.", "It"]
    rows = [module._row(tiny_tokenizer, dreamt(text)) for text in texts]
    gradients, found = [], []
    for limit in (10_000, 1, 2 * max(len(row.ids) for row in rows)):
        monkeypatch.setattr(module, "_TOKENS", limit)
        for parameter in own_parameters(dreamer):
            parameter.grad = None
        found.append(module._backward(dreamer, rows, torch.device("cpu")))
        gradients.append([parameter.grad.clone() for parameter in own_parameters(dreamer)])
    assert found[1:] == pytest.approx([found[0]] * 2, rel=1e-12)
    for apart in gradients[1:]:
        for one, whole in zip(apart, gradients[0], strict=True):
            torch.testing.assert_close(one, whole, rtol=1e-9, atol=1e-14)
    assert any(gradient.abs().max() > 0 for gradient in gradients[0])


def own_parameters(dreamer: Any) -> list[Any]:
    return [parameter for name, parameter in dreamer.named_parameters() if "lora_" in name]


class World:
    """Scripted dreams and rewards: a list a call, by whether the held-out contexts are dreamt of."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, training: list[list[float]], held_out: list[list[float]]):
        self.rewards = {False: list(training), True: list(held_out)}
        self.weights: list[dict[str, torch.Tensor]] = []
        self.seeds: list[int] = []
        self.shares: list[dict[str, float]] = []
        monkeypatch.setattr(module, "sample_dreams", self.sample)

    def sample(
        self,
        dreamer: Any,
        tokenizer: Any,
        contexts: Sequence[str],
        settings: Any,
        seed: int,
        older: Sequence[str],
        **_: Any,
    ) -> DreamData:
        self.weights.append(own(dreamer))
        self.seeds.append(seed)
        self.shares.append({prompt.kind: prompt.share for prompt in settings.prompts})
        values = self.rewards[RAIN in contexts][0]
        return DreamData([dreamt(f"Osk {at}") for at in range(len(values))], Counter(), len(values) + 1)

    def reward(self, contexts: Sequence[str], data: DreamData, seed: int) -> list[float]:
        return self.rewards[RAIN in contexts].pop(0)


Run = Callable[[World, RestEmSettings], Any]


@pytest.fixture
def run(pair: tuple[Any, Any], tiny_tokenizer: Any) -> Run:
    return lambda world, settings: rest_em(
        pair[1], tiny_tokenizer, [MIRA, OSK], [RAIN], world.reward, settings, DreamSettings(), seed=2
    )


def test_a_round_that_lowers_the_held_out_reward_is_taken_back(
    pair: tuple[Any, Any], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(monkeypatch, [[1, 0], [1, 1]], [[0, 1], [1, 1], [0, 0]])
    report = run(world, SETTINGS)
    assert report.before == pytest.approx(1 / 3)
    assert [(done.rewarded, done.kept) for done in report.rounds] == [(1, True), (2, False)]
    assert [done.held_out for done in report.rounds] == pytest.approx([2 / 3, 0])
    assert report.after == pytest.approx(2 / 3)
    assert (report.dropped, report.idle) == (1, 0)
    assert "33% helped before and 67% after" in report.summary()
    start, _, first, before_second, second = world.weights
    assert same(own(pair[1]), first) and same(first, before_second)
    assert not same(first, start) and not same(second, first)


def test_held_out_contexts_are_dreamt_of_with_the_same_noise_every_time(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(monkeypatch, [[1], [1]], [[0], [0], [0]])
    run(world, SETTINGS)
    assert [world.seeds[at] for at in (0, 2, 4)] == [2000] * 3
    assert world.seeds[1] != world.seeds[3]


@pytest.mark.parametrize("restart", [True, False])
def test_a_round_begins_at_the_first_dreamer_or_at_the_last(
    restart: bool, pair: tuple[Any, Any], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[dict[str, torch.Tensor]] = []
    real = module.fine_tune

    def spied(dreamer: Any, *args: Any) -> list[float]:
        begun.append(own(dreamer))
        return real(dreamer, *args)

    monkeypatch.setattr(module, "fine_tune", spied)
    world = World(monkeypatch, [[1], [1]], [[0], [1], [1]])
    run(world, SETTINGS.model_copy(update={"restart": restart}))
    assert same(begun[0], begun[1]) == restart
    assert restart or same(begun[1], world.weights[2])


def test_a_round_without_a_rewarded_dream_changes_nothing(
    pair: tuple[Any, Any], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = own(pair[1])
    report = run(World(monkeypatch, [[0, 0], []], [[1, 0]]), SETTINGS)
    assert [(done.rewarded, done.kept, done.losses) for done in report.rounds] == [(0, False, ())] * 2
    assert report.after == report.before
    assert (report.dropped, report.idle) == (0, 2)
    assert "2 without a dream that helped, 0 dropped by the guard" in report.summary()
    assert same(before, own(pair[1]))


KINDS = [
    DreamPrompt(kind="quiz", ask="Quiz", share=2),
    DreamPrompt(kind="tell", ask="Tell", form="text", recall="And?", share=1),
    DreamPrompt(kind="sum", ask="Sum", form="text", recall="And?", share=1),
    DreamPrompt(kind="mix", ask="Quiz", older=1, share=3),
]


def test_kinds_are_dreamt_of_as_often_as_they_were_rewarded_and_a_little_as_set() -> None:
    good = [dreamt("a"), dreamt("b"), dreamt("c"), replace(dreamt("d"), kind="tell", ask="Tell")]
    mix = rewarded_kinds(KINDS[:3], good, RestEmSettings(explore=0.2))
    assert mix == pytest.approx({("quiz", "Quiz"): 1.4, ("tell", "Tell"): 1.0, ("sum", "Sum"): 0.2})
    mixed = DreamSettings(prompts=KINDS).mixed(mix).prompts
    assert [prompt.share for prompt in mixed] == pytest.approx([2.8, 1.0, 0.2, 3.0])
    assert sum(prompt.share for prompt in mixed) == pytest.approx(7), "what was not asked keeps its share"
    assert set(rewarded_kinds(KINDS[:3], good, RestEmSettings(explore=1)).values()) == {1.0}


def test_the_kinds_of_a_round_are_kept_and_taken_back_with_it(
    pair: tuple[Any, Any], tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(monkeypatch, [[1, 1], [1]], [[0], [1], [0]])
    set_as, old = DreamSettings(prompts=KINDS), {("quiz", "Quiz"): 0.5, ("gone", "Gone"): 2.0}
    report = rest_em(
        pair[1], tiny_tokenizer, [MIRA], [RAIN], world.reward, SETTINGS, set_as, seed=2, older=["Old."], mix=old
    )
    assert [done.kept for done in report.rounds] == [True, False]
    first, second = (
        {"quiz": 1.0, "tell": 1.0, "sum": 1.0, "mix": 3.0},
        {"quiz": 6.5, "tell": 0.1, "sum": 0.1, "mix": 0.3},
    )
    assert world.shares[:2] == [pytest.approx(first)] * 2, "as earlier nights left it"
    assert world.shares[2:4] == [pytest.approx(second)] * 2, "as the round was rewarded"
    assert report.mix[("quiz", "Quiz")] == pytest.approx(3.25)
    assert report.mix[("gone", "Gone")] == 2.0, "a prompt that comes back is asked as before"
    assert "quiz 3.3" in report.summary() and "sum 0.1" in report.summary()


def test_contexts_must_be_held_out(pair: tuple[Any, Any], tiny_tokenizer: Any) -> None:
    for held_out in ([], [MIRA]):
        with pytest.raises(ValueError, match="hold at least one context out"):
            rest_em(pair[1], tiny_tokenizer, [MIRA], held_out, lambda *_: [], SETTINGS, DreamSettings())


def test_trials_judge_every_dream_without_the_dreamers_adapter(pair: tuple[Any, Any], tiny_tokenizer: Any) -> None:
    model, dreamer = pair
    probes = {MIRA: [("Where does Mira live?", "In Osk")], OSK: [("How many inns?", "There are 12")]}
    settings = DreamingSettings(
        trials=TrialSettings(steps=12, lr=5e-3), rewards=RewardSettings(seeds=2, noise="seeds", racing=1.0)
    )
    right = DreamText(0, "quiz", MIRA, "Quiz", "", (("Where does Mira live?", "In Osk"),))
    wrong = DreamText(0, "quiz", MIRA, "Quiz", "", (("Why?", "Seven brown hats"),))
    inns = DreamText(1, "quiz", OSK, "Quiz", "", (("How many inns?", "There are 12"),))
    reward = trial_reward(model, dreamer, tiny_tokenizer, probes, settings)
    dreams = DreamData([right, wrong, inns])
    found = reward([MIRA, OSK], dreams, 0)
    assert found == [1.0, 0.0, 1.0]
    state = copy.deepcopy(own(dreamer))
    with torch.no_grad():
        for name, weight in dreamer.named_parameters():
            if "lora_" in name:
                weight.normal_()
    assert reward([MIRA, OSK], dreams, 0) == found
    assert not same(state, own(dreamer))
