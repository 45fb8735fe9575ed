"""Sleep that dreams of classes told apart by one word."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_up_streams import stream
from test_labelled_sleep import SETTINGS, memory

from sleep_pipeline.baselines.dreaming_settings import ClassDreamSettings
from sleep_pipeline.baselines.labelled_dreaming import DreamingSleep, hold_out
from sleep_pipeline.baselines.running import run_stream
from sleep_pipeline.evaluation.classification import Choice
from sleep_pipeline.evaluation.tasks import Example
from sleep_pipeline.memory import state_of

DREAMING = ClassDreamSettings.model_validate(
    {
        "held_out": 0.5,
        "shots": 2,
        "night": {
            "dreams": {
                "prompts": [{"kind": "utterance", "ask": "Write another.", "form": "text"}],
                "dreams": 3,
                "max_new_tokens": 6,
            },
            "scores": {"top_k": 2, "random_b": 0, "each": "context"},
            "trials": {"steps": 2, "rank": 2},
            "rewards": {"seeds": 2, "test": "margin", "scope": "all", "noise": "both", "racing": 1.0},
            "tau": {"kind": "likelihood"},
            "rest_em": {"steps": 2, "rank": 2, "rows": 2},
        },
        "refining": {"steps": 2, "learning_rate": 0.01},
    }
)


def dreaming(model: Any, answering: Any, **rest: Any) -> DreamingSleep:
    return DreamingSleep(model, answering, SETTINGS, memory("fast"), day_steps=4, dreaming=DREAMING, **rest)


def written(method: DreamingSleep, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dreamer that writes two utterances a label, and a teacher that is content with them."""

    def write(task: Any, own: int, dropped: Any) -> list[Example]:
        return [Example(f"{label} again {n}", label) for label in task.labels for n in range(2)]

    monkeypatch.setattr(method, "_write", write)
    monkeypatch.setattr(method, "_agreed", lambda found, dropped: list(found))


@pytest.mark.slow
def test_a_night_of_dreams_ends_with_one_expert_and_says_what_it_took(tiny_model: Any, answering: Any) -> None:
    method = dreaming(tiny_model, answering)
    result = run_stream(method, stream())
    assert result.retention is not None and len(result.retention) == 2
    assert len(state_of(method.model).table.active(2)) == 2
    assert [night.night for night in method.dreamt] == [1, 2]
    for night in method.dreamt:
        assert night.drawn == 6
        assert night.seconds.keys() == {"writing", "agreement", "trials", "refining"}
        assert json.loads(json.dumps(night.to_json(), allow_nan=True))["night"] == night.night


@pytest.mark.slow
def test_texts_longer_than_the_window_are_dreamt_of_from_their_beginnings(tiny_model: Any, answering: Any) -> None:
    """Abstracts of encyclopaedias are: three of them stand before the dreamer while it writes another."""
    tiny_model.config.max_position_embeddings = 160
    long = stream()
    tasks = [
        replace(task, train=tuple(replace(one, text=f"{one.text} " * 100) for one in task.train)) for task in long.tasks
    ]
    method = dreaming(tiny_model, answering)
    result = run_stream(method, replace(long, tasks=tuple(tasks)))
    assert result.retention is not None and len(result.retention) == 2
    assert [night.drawn for night in method.dreamt] == [6, 6]


@pytest.mark.slow
def test_what_was_rewarded_is_learned_with_the_held_out_examples_and_kept_for_replay(
    tiny_model: Any, answering: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sleep_pipeline.baselines import labelled_dreaming as module

    method = dreaming(tiny_model, answering)
    written(method, monkeypatch)
    whole = module.judge_dreams

    def the_first_alone(*given: Any, **rest: Any) -> Any:
        report = whole(*given, **rest)
        verdicts = [
            night.verdict and replace(night.verdict, reward=int(n == 0)) for n, night in enumerate(report.dreams)
        ]
        nights = [replace(night, verdict=verdict) for night, verdict in zip(report.dreams, verdicts, strict=True)]
        return replace(report, dreams=tuple(nights))

    monkeypatch.setattr(module, "judge_dreams", the_first_alone)
    seen: list[list[str]] = []

    def note(model: Any, tokenizer: Any, lessons: Any, *_: Any) -> None:
        seen.append([tokenizer.decode(lesson.ids) for lesson in lessons])

    monkeypatch.setattr(module, "learn", note)
    task = stream().tasks[0]
    method.observe(task)
    (taught,) = seen
    for example in task.train:
        assert sum(f"> {example.text} ->" in text for text in taught) == 1, "seeded or held out, it is refined once"
    assert sum("again" in text for text in taught) == 2 == method.dreamt[0].learned
    assert sum("again 0" in text for text in taught) == 2
    assert (method.dreamt[0].sets, method.dreamt[0].tried, method.dreamt[0].rewarded) == (2, 2, 1)


@pytest.mark.slow
def test_no_dream_is_judged_by_what_seeding_or_the_dreamer_saw(
    tiny_model: Any, answering: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sleep_pipeline.baselines import labelled_dreaming as module

    seen: dict[str, set[str]] = {}
    tune, judge = module.fine_tune, module.judge_dreams

    def tuned(dreamer: Any, tokenizer: Any, lessons: Any, *rest: Any) -> Any:
        seen["dreamer"] = {line for lesson in lessons for line in [lesson.text, *lesson.source.split("\n")]}
        return tune(dreamer, tokenizer, lessons, *rest)

    def judged(model: Any, tokenizer: Any, contexts: Any, dreams: Any, probes: Any, *rest: Any, **more: Any) -> Any:
        seen["probes"] = {probe.question.removesuffix(" ->") for probe in probes}
        known = [dream for dream in dreams if contexts[dream.context] == "known"]
        seen["known"] = {question.removesuffix(" ->") for dream in known for question, _ in dream.pairs}
        return judge(model, tokenizer, contexts, dreams, probes, *rest, **more)

    monkeypatch.setattr(module, "fine_tune", tuned)
    monkeypatch.setattr(module, "judge_dreams", judged)
    method = dreaming(tiny_model, answering)
    task = stream().tasks[0]
    monkeypatch.setattr(method, "_agreed", lambda found, dropped: [Example("again", label) for label in task.labels])
    method.observe(task)
    train = {example.text for example in task.train}
    assert seen["dreamer"] and seen["probes"] and seen["dreamer"] | seen["probes"] == train
    assert not seen["dreamer"] & seen["probes"]
    assert seen["known"] and seen["known"] <= seen["dreamer"], "what dreams are compared with was seeded"


def test_the_teacher_s_other_labels_are_dropped(
    tiny_model: Any, answering: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from collections import Counter

    method = dreaming(tiny_model, answering)
    method.labels += ["the apple", "the river"]
    monkeypatch.setattr(answering, "ask", lambda model, texts, labels: [Choice("the apple", 0.0) for _ in texts])
    dropped: Counter[str] = Counter()
    agreed = method._agreed([Example("a", "the apple"), Example("b", "the river")], dropped)
    assert agreed == [Example("a", "the apple")]
    assert dropped == {"the teacher gives another label": 1}


def test_the_dreamer_changes_nothing_while_it_does_not_write(tiny_model: Any, answering: Any) -> None:
    method = dreaming(tiny_model, answering)
    ids = torch.tensor([answering.tokenizer("the river is long")["input_ids"]])

    def logits() -> torch.Tensor:
        with torch.no_grad():
            return method.model(ids).logits

    before = logits()
    with method._writing() as dreamer, torch.no_grad():
        for name, parameter in dreamer.named_parameters():
            if "lora_" in name:
                parameter.normal_()
        assert not torch.allclose(logits(), before)
    torch.testing.assert_close(logits(), before)
    assert not [name for name, p in method._dreamer.named_parameters() if "lora_" in name and p.requires_grad]


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from(("x", "y"))), max_size=30))
def test_sides_share_no_text_and_lose_none(rows: list[tuple[str, str]]) -> None:
    examples = [Example(text, label) for text, label in rows]
    seen, held = hold_out(examples, 0.3)
    assert sorted([*seen, *held], key=repr) == sorted(examples, key=repr)
    assert not {(one.text, one.label) for one in seen} & {(one.text, one.label) for one in held}
    assert {one.label for one in seen} == {one.label for one in examples}
