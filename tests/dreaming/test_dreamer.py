"""A dreamer beside the memory: its form, what is held out, and a night's dreaming that improves it."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sleep_pipeline.dreaming import dreams, night, rest_em
from sleep_pipeline.dreaming.dreamer import ImprovedNight, dream_and_improve, hold_out, new_dreamer
from sleep_pipeline.dreaming.dreams import DreamData, DreamText, sample_dreams
from sleep_pipeline.dreaming.settings import (
    DreamingSettings,
    DreamPrompt,
    DreamSettings,
    RestEmSettings,
    RewardSettings,
    TrialSettings,
)
from sleep_pipeline.dreaming.tau import Probe
from sleep_pipeline.generation.sampler import TransformersSampler
from sleep_pipeline.memory import ContinuumMemoryConfig, LevelConfig, activate, unlock
from sleep_pipeline.memory.operations import level_tensors, state_of

CONTEXTS = ["Mira lives in Osk.", "Osk has 12 inns.", "The mill is red.", "Sela paints.", "Nobody asks of this."]
PROBES = [
    Probe(0, "Where does Mira live?", "In Osk"),
    Probe(1, "How many inns are there?", "There are 12"),
    Probe(2, "What colour is the mill?", "It is red"),
    Probe(3, "What does Sela do?", "She paints"),
    Probe(0, "Who lives in Osk?", "Mira does"),
]
SETTINGS = DreamingSettings(
    trials=TrialSettings(steps=12, lr=5e-3),
    rewards=RewardSettings(seeds=2, noise="seeds", racing=1.0),
    rest_em=RestEmSettings(rounds=2, rank=2, steps=2, rows=2, lr=0.01),
)
RANDOM = DreamSettings(
    prompts=[
        DreamPrompt(kind="tell", ask="Tell", form="text", recall="{words}?"),
        DreamPrompt(kind="both", ask="Tell", form="text", recall="{words}?", older=1),
    ],
    dreams=2,
    max_new_tokens=6,
)


@pytest.fixture
def model(tiny_model: Any) -> Any:
    """With one expert that is on, one in training, and nothing of the base trainable."""
    model = peft.get_peft_model(tiny_model, ContinuumMemoryConfig(levels=[LevelConfig(num_slots=4, rank=4)]))
    unlock(model, 1)
    generator = torch.Generator().manual_seed(0)
    for tensors in level_tensors(state_of(model), 1):
        with torch.no_grad():
            for name in ("new_key", "new_offset", "new_up"):
                parameter = tensors.get_parameter(name)
                parameter.add_(torch.randn(parameter.shape, generator=generator))
    activate(model, 1)
    unlock(model, 1)
    return model.eval()


def adapter(dreamer: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in dreamer.named_parameters() if "lora_" in name}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.arange(3, 12)[None]).logits
    return found


def shaken(dreamer: Any) -> None:
    """Give the dreamer weights that matter."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in dreamer.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator))


def test_a_new_dreamer_dreams_as_the_model_does_and_is_drawn_from_its_seed_alone(model: Any) -> None:
    before = logits(model)
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    state = torch.get_rng_state()
    first = adapter(new_dreamer(model, SETTINGS.rest_em, seed=5))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(logits(model), before)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name}
    assert trainable == {name for name, flag in flags.items() if flag and "lora_" not in name}
    parts = {name.split(".lora_")[0].rpartition(".")[2] for name in first}
    assert parts == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert {weight.shape[0] for name, weight in first.items() if "lora_A" in name} == {2}


def test_the_same_seed_gives_the_same_dreamer(tiny_settings: Any, tiny_tokenizer: Any) -> None:
    from sleep_pipeline.pretraining.trainer import build_model

    def built(seed: int) -> dict[str, torch.Tensor]:
        network = build_model(tiny_settings.architecture, tiny_tokenizer, seed=0).eval()
        return adapter(new_dreamer(network, RestEmSettings(rank=2, targets=("q_proj",)), seed))

    assert same(built(1), built(1)) and not same(built(1), built(2))


@given(count=st.integers(2, 60), share=st.floats(0.01, 0.99), seed=st.integers(0, 99))
def test_what_is_held_out_is_drawn_from_the_seed_and_never_trained_on(count: int, share: float, seed: int) -> None:
    contexts, settings = [f"context {number}" for number in range(count)], RestEmSettings(held_out=share)
    train, held_out = hold_out(contexts, settings, seed)
    assert (train, held_out) == hold_out(contexts, settings, seed)
    assert not set(train) & set(held_out) and sorted(train + held_out) == sorted(contexts)
    assert min(len(train), len(held_out)) >= min(2, count // 2)
    assert (len(train), len(held_out)) == settings.split(count)


def test_another_seed_holds_out_others() -> None:
    contexts = [f"context {number}" for number in range(20)]
    assert hold_out(contexts, RestEmSettings(), 1) != hold_out(contexts, RestEmSettings(), 2)


@pytest.mark.parametrize("count", [0, 1])
def test_one_context_alone_cannot_be_split(count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} contexts cannot be split"):
        RestEmSettings().split(count)


def test_a_dreamer_without_any_layer_is_refused() -> None:
    with pytest.raises(ValidationError, match="leaves nothing to train"):
        RestEmSettings(targets=())


class Stage:
    """Dreams that are written down beforehand, judged by real trials.

    Every context gets its probes as one dream, which helps, and another that does not.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, helps: bool = True) -> None:
        self.calls: list[tuple[tuple[str, ...], tuple[str, ...]]] = []
        self.weights: list[dict[str, torch.Tensor]] = []
        self.helps = helps
        monkeypatch.setattr(rest_em, "sample_dreams", self.sample)
        monkeypatch.setattr(night, "sample_dreams", self.sample)

    def sample(
        self,
        dreamer: Any,
        tokenizer: Any,
        contexts: Sequence[str],
        settings: Any,
        seed: int,
        older: Sequence[str],
        progress: bool = False,
        withheld: Any = None,
    ) -> DreamData:
        assert withheld(PROBES[0].question) and not withheld("Why?")
        self.calls.append((tuple(contexts), tuple(older)))
        self.weights.append(adapter(dreamer))
        found = []
        for at, text in enumerate(contexts):
            pairs = tuple((probe.question, probe.answer) for probe in PROBES if CONTEXTS[probe.context] == text)
            if pairs and self.helps:
                found.append(DreamText(at, "right", text, "Quiz", f"right {len(self.calls)}", pairs))
            wrong = (("Why?", "For ever and a day"),)
            found.append(DreamText(at, "wrong", text, "Quiz", f"wrong {len(self.calls)}", wrong))
        return DreamData(found, Counter({"cut off": len(contexts)}), 3 * len(contexts), True)


def improved(model: Any, tokenizer: Any, dreamer: Any, **changes: Any) -> ImprovedNight:
    settings = SETTINGS.model_copy(update={"rest_em": SETTINGS.rest_em.model_copy(update=changes)})
    return dream_and_improve(model, dreamer, tokenizer, CONTEXTS, PROBES, settings, seed=3, older=["Long ago."])


@pytest.mark.slow
def test_the_dreams_that_the_last_kept_round_tried_are_the_nights(
    model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, dreamer = Stage(monkeypatch), new_dreamer(model, SETTINGS.rest_em, seed=1)
    memory = {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" not in name}
    found = improved(model, tiny_tokenizer, dreamer)
    train, held_out = hold_out(CONTEXTS[:4], SETTINGS.rest_em, 3)
    assert (list(found.trained_on), list(found.held_out)) == (train, held_out)
    sides = [tuple(train), tuple(held_out)]
    assert [texts for texts, _ in stage.calls] == [sides[1], sides[0], sides[1], sides[0], sides[1]]
    assert all(older == ("Long ago.",) for _, older in stage.calls)
    assert found.rest_em is not None and [done.kept for done in found.rest_em.rounds] == [True, True]
    assert found.changed and not same(stage.weights[0], adapter(dreamer))

    report = found.report
    assert report.contexts == tuple(CONTEXTS)
    of_train = {CONTEXTS.index(text) for text in train}
    for dream in report.dreams:
        assert dream.dream.source == CONTEXTS[dream.dream.context]
        assert dream.dream.text.endswith("4" if dream.dream.context in of_train else "5"), "of the second round"
        assert dream.reward == (dream.dream.kind == "right")
    assert [dream.dream.context for dream in report.dreams] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert (report.asked, report.dropped, report.random_experts) == (12, {"cut off": 4}, True)
    assert len(report.before) == len(PROBES) and len(set(report.before)) == len(PROBES)
    sources, samples = report.lessons()
    assert sources == CONTEXTS
    assert {(s.context, s.question, s.answer) for s in samples} == {(p.context, p.question, p.answer) for p in PROBES}
    assert all(torch.equal(p, memory[name]) for name, p in model.named_parameters() if "lora_" not in name)


@pytest.mark.slow
def test_without_a_kept_round_the_first_dreams_are_the_nights_and_the_dreamer_stays(
    model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, dreamer = Stage(monkeypatch, helps=False), new_dreamer(model, SETTINGS.rest_em, seed=1)
    before = adapter(dreamer)
    found = improved(model, tiny_tokenizer, dreamer)
    assert found.rest_em is not None and (found.rest_em.idle, found.changed) == (2, False)
    assert {dream.dream.text for dream in found.report.dreams} == {"wrong 1", "wrong 2"}
    assert len(stage.calls) == 3 and same(before, adapter(dreamer))
    assert not found.report.rewarded


@pytest.mark.slow
def test_with_one_context_to_judge_by_the_rounds_are_skipped_and_the_dreamer_dreams_as_it_is(
    model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, dreamer = Stage(monkeypatch), new_dreamer(model, SETTINGS.rest_em, seed=1)
    plain = dream_and_improve(model, dreamer, tiny_tokenizer, CONTEXTS[:1], PROBES[:1], SETTINGS, seed=3)
    shaken(dreamer)
    before = adapter(dreamer)
    found = dream_and_improve(model, dreamer, tiny_tokenizer, CONTEXTS[:1], PROBES[:1], SETTINGS, seed=3)
    assert found.rest_em is None and not found.changed
    assert found.skipped.startswith("ReST-EM was skipped: 1 of 1 context had held-out questions")
    assert same(stage.weights[-1], before) and same(adapter(dreamer), before)
    assert [dream.marks for dream in found.report.dreams] == [dream.marks for dream in plain.report.dreams]
    assert found.report.before == plain.report.before, "the adapter is off in the trials"
    some = dream_and_improve(model, dreamer, tiny_tokenizer, CONTEXTS, PROBES[:1], SETTINGS, seed=3)
    assert "1 of 5 contexts had" in some.skipped
    assert "1 of 5 contexts had" in some.skipped


@pytest.mark.slow
def test_dreams_compared_with_those_of_other_contexts_need_two_contexts_on_either_side(
    model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    Stage(monkeypatch)
    dreamer = new_dreamer(model, SETTINGS.rest_em, seed=1)
    settings = SETTINGS.model_copy(update={"rewards": RewardSettings(seeds=2)})
    assert settings.rewards.noise == "dreams"
    for known, skipped in ((3, True), (4, False)):
        probes = PROBES[:known]
        found = dream_and_improve(model, dreamer, tiny_tokenizer, CONTEXTS, probes, settings, seed=3)
        assert bool(found.skipped) is skipped
        assert not skipped or ("3 of 5 contexts had held-out questions" in found.skipped and "needs 4" in found.skipped)


def test_random_experts_and_older_memories_take_part_with_the_dreamer_on(
    model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Noted(TransformersSampler):
        def sample(self, prompts: Any, *args: Any, **more: Any) -> Any:
            found = super().sample(prompts, *args, **more)
            said.append([reply.ids for (reply,) in found])
            sources.append([system["content"] for system, _ in prompts])
            return found

    said: list[Any] = []
    sources: list[list[str]] = []
    monkeypatch.setattr(dreams, "TransformersSampler", Noted)
    dreamer = new_dreamer(model, SETTINGS.rest_em, seed=1)
    shaken(dreamer)

    def dream(**changes: Any) -> bool:
        settings = RANDOM.model_copy(update=changes)
        return sample_dreams(dreamer, tiny_tokenizer, CONTEXTS[:2], settings, 1, ["Long ago."]).random_experts

    assert dream() and dream() and not dream(random_expert=False)
    with dreamer.disable_adapter():
        assert dream()
    once, again, no_expert, no_dreamer = said
    assert once == again and once not in (no_expert, no_dreamer)
    assert sources[0] == [text + end for text in CONTEXTS[:2] for end in ("", "\n\nLong ago.")]


def test_a_new_dreamer_has_layers_in_the_decoder_alone_and_leaves_flags_as_they_are(tiny_model: Any) -> None:
    tiny_model.tower = torch.nn.Sequential(torch.nn.Linear(4, 4))
    frozen = next(tiny_model.parameters()).requires_grad_(False)
    flags = {parameter: parameter.requires_grad for parameter in tiny_model.parameters()}
    dreamer = new_dreamer(tiny_model, RestEmSettings(), seed=1)
    assert flags == {parameter: parameter.requires_grad for parameter in flags} and not frozen.requires_grad
    inside = {name for name, _ in dreamer.named_modules() if name.endswith("lora_A")}
    assert inside and all(".layers." in name for name in inside)
    assert all(p.requires_grad for name, p in dreamer.named_parameters() if "lora_" in name)
