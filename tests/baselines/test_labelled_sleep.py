from typing import Any

import pytest
import torch
from made_up_streams import WordEmbedder, stream

from sleep_pipeline.baselines import labelled_sleep
from sleep_pipeline.baselines.labelled_sleep import LabelledSleep, corrected
from sleep_pipeline.baselines.running import run_stream
from sleep_pipeline.memory import ContinuumMemoryConfig, LevelConfig, state_of
from sleep_pipeline.memory.levels import BASE
from sleep_pipeline.memory.operations import level_tensors
from sleep_pipeline.seeding.divergences import cache_teacher
from sleep_pipeline.seeding.lessons import Lesson
from sleep_pipeline.seeding.settings import SeedingSettings

SETTINGS = SeedingSettings.model_validate(
    {
        "rows": 8,
        "lambda": 0.0,
        "alpha": 1.0,
        "replay": {"stored_rows": 4, "stored_capacity": 6},
        "optimizer": {"steps": 3, "learning_rate": 1e-2, "precision": "fp32"},
    }
)


def memory(sender: str, slots: int = 3) -> ContinuumMemoryConfig:
    fast = [] if sender == "context" else [LevelConfig(period=2, num_slots=2, rank=4, base_width=8)]
    return ContinuumMemoryConfig(levels=[*fast, LevelConfig(num_slots=slots, rank=4)])


def sleeping(model: Any, answering: Any, sender: Any, **rest: Any) -> LabelledSleep:
    slots = rest.pop("slots", 3)
    return LabelledSleep(
        model, answering, SETTINGS, memory(sender, slots), sender, WordEmbedder(), shots=3, day_steps=4, **rest
    )


@pytest.mark.slow
@pytest.mark.parametrize("sender", ["fast", "context", "both"])
def test_every_task_is_a_night_with_an_expert_of_its_own(tiny_model: Any, answering: Any, sender: str) -> None:
    method = sleeping(tiny_model, answering, sender)
    result = run_stream(method, stream())
    assert result.retention is not None and len(result.retention) == 2
    assert len(state_of(method.model).table.active(method._receiver)) == 2
    assert state_of(method.model).table.sleep is None
    assert len(method._store.lessons("stored")) == 6


def test_the_fast_memory_is_empty_after_the_night(tiny_model: Any, answering: Any) -> None:
    method = sleeping(tiny_model, answering, "fast")
    method.observe(stream().tasks[0])
    for tensors in level_tensors(state_of(method.model), 1):
        down, up = (tensors.get_parameter(name) for name in BASE)
        assert not up.any() and down.any(), "it can learn again, and does nothing until then"
    assert method.awake is not None and method.awake.updates.state_dict() == {}


def test_the_teacher_of_the_night_knows_what_the_day_taught(tiny_model: Any, answering: Any, monkeypatch: Any) -> None:
    from sleep_pipeline.baselines import labelled_sleep as module

    seen: dict[str, float] = {}
    task = stream().tasks[0]
    prompt = answering.tokenizer.apply_chat_template(
        answering.prompt(task.train[0].text), add_generation_prompt=True, return_dict=True
    )["input_ids"]

    def beliefs(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)

    base = beliefs(tiny_model)

    def note(model: Any, tokenizer: Any, lessons: Any, *_: Any) -> None:
        student, teacher = beliefs(model), lessons[0].teacher
        seen["taught"] = float((teacher.log_probs_NK[0] - student[teacher.tokens_NK[0]]).abs().max())
        seen["moved"] = float((student - base).abs().max())

    monkeypatch.setattr(module, "learn", note)
    sleeping(tiny_model, answering, "fast", day_rate=0.1).observe(task)
    assert seen["taught"] > 1e-2 and seen["moved"] < 1e-5


def test_the_context_s_teacher_sees_other_examples_and_the_student_none(tiny_model: Any, answering: Any) -> None:
    method = sleeping(tiny_model, answering, "context")
    task = stream().tasks[0]
    method.labels += task.labels
    decode = answering.tokenizer.decode
    for lesson, example in zip(method._lessons(task.train), task.train, strict=True):
        assert "system" not in decode(lesson.ids)
        system, user = decode(lesson.teacher_prompt).split("<|end|>")[:2]
        assert system.count(f"-> {example.label}") == 3
        assert example.text not in system and example.text in user


@pytest.mark.slow
def test_a_full_memory_merges_its_oldest_experts(tiny_model: Any, answering: Any) -> None:
    method = sleeping(tiny_model, answering, "context", slots=3)
    for task in stream(tasks=4).tasks:
        method.observe(task)
    assert len(state_of(method.model).table.active(1)) == 2


def test_a_memory_that_does_not_fit_the_sender_is_refused(tiny_model: Any, answering: Any) -> None:
    with pytest.raises(ValueError, match="the sender 'both' needs a memory of 2 levels, and this one has 1"):
        LabelledSleep(tiny_model, answering, SETTINGS, memory("context"), "both")


@pytest.mark.slow
def test_what_is_stored_grows_by_an_expert_a_night(tiny_model: Any, answering: Any) -> None:
    method = sleeping(tiny_model, answering, "context")
    first, second = run_stream(method, stream()).stored
    assert second > first > 0


def test_a_later_night_takes_more_steps(tiny_model: Any, answering: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(labelled_sleep, "learn", lambda *rest, **named: taken.append(rest[4].optimizer.steps))
    method = sleeping(tiny_model, answering, "fast", growth=1.0)
    for task in stream().tasks:
        method.observe(task)
    assert taken == [2, 4]


def test_a_teacher_that_errs_is_put_right_where_it_errs_alone() -> None:
    logits = torch.log(torch.tensor([[0.6, 0.2, 0.1, 0.1], [0.3, 0.5, 0.1, 0.1], [0.1, 0.2, 0.3, 0.4]]))
    lesson = Lesson((9, 0, 0, 1), 1, cache_teacher(logits, 2))
    teacher = corrected(lesson).teacher
    believed = torch.zeros(3, 4).scatter(-1, teacher.tokens_NK, teacher.log_probs_NK.exp())
    torch.testing.assert_close(believed[0], torch.tensor([0.6, 0.2, 0.0, 0.0]))
    torch.testing.assert_close(believed[1:], torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]))
    torch.testing.assert_close(teacher.tail_N.exp(), torch.tensor([0.2, 0.0, 0.0]))
    assert len(set(teacher.tokens_NK[2].tolist())) == 2
    right = Lesson((9, 0, 1, 3), 1, cache_teacher(logits, 2))
    assert corrected(right) is right
