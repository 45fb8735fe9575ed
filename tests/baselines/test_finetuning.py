"""Fine-tuning on documents in sequence; a tiny model, and lessons that the test makes itself."""

from typing import Any

import pytest
import torch

from sleep_pipeline.baselines import finetuning
from sleep_pipeline.baselines.finetuning import FineTuning, certain
from sleep_pipeline.seeding.divergences import CachedTeacher
from sleep_pipeline.seeding.lessons import Lesson
from sleep_pipeline.seeding.night import Learned, NightData
from sleep_pipeline.seeding.settings import SeedingSettings
from sleep_pipeline.seeding.teacher import TeacherData

DOUBTFUL = CachedTeacher(
    torch.tensor([[5, 7, 6]]), torch.log(torch.tensor([[0.5, 0.3, 0.1]])), torch.log(torch.tensor([0.1]))
)


def settings(experts: bool = False) -> SeedingSettings:
    return SeedingSettings.model_validate(
        {
            "rows": 4,
            "teacher": {"experts": experts},
            "optimizer": {"steps": 8, "learning_rate": 1e-2, "precision": "fp32", "earlier_rate": 0.0},
        }
    )


@pytest.fixture
def read(tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What the teacher of every night makes of one text; its lesson is always the same."""
    ids = tuple(tiny_tokenizer("where is the river")["input_ids"])
    logits: list[torch.Tensor] = []

    def gather(model: Any, *_: Any) -> NightData:
        with torch.no_grad():
            logits.append(model(torch.tensor([ids])).logits)
        return NightData(TeacherData([], [], 0), [certain(Lesson((*ids, 7), len(ids), DOUBTFUL))], [], {})

    monkeypatch.setattr(finetuning, "gather", gather)
    return logits


@pytest.mark.slow
@pytest.mark.parametrize("rank", [4, None])
def test_the_teacher_reads_without_what_earlier_nights_taught(
    tiny_model: Any, tiny_tokenizer: Any, read: list[Any], rank: int | None
) -> None:
    learner = FineTuning(tiny_model, tiny_tokenizer, settings(), "samples", rank=rank)
    for night in (1, 2):
        learner.learn(["a text"], night)
    torch.testing.assert_close(read[1], read[0], rtol=0, atol=0)
    tuned = learner.model(torch.tensor([tiny_tokenizer("where is the river")["input_ids"]])).logits
    assert not torch.allclose(tuned, read[0])


@pytest.mark.slow
@pytest.mark.parametrize("rank", [4, None])
def test_the_teacher_is_what_was_trained_where_the_settings_say_so(
    tiny_model: Any, tiny_tokenizer: Any, read: list[Any], rank: int | None
) -> None:
    learner = FineTuning(tiny_model, tiny_tokenizer, settings(experts=True), "samples", rank=rank)
    for night in (1, 2):
        learner.learn(["a text"], night)
    assert not torch.allclose(read[1], read[0])


def test_documents_take_fewer_rows_than_questions_so_that_tokens_are_equal(
    tiny_model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught: list[tuple[int, int]] = []

    def learn(
        _: Any, __: Any, lessons: list[Lesson], ___: Any, settings: SeedingSettings, *____: Any, **_____: Any
    ) -> Learned:
        taught.append((settings.rows, len(lessons[0].ids)))
        return Learned([], [], 2.5)

    monkeypatch.setattr(finetuning, "learn", learn)
    learner = FineTuning(tiny_model, tiny_tokenizer, settings(), "documents", rank=None)
    learner.learn(["the river is long " * 8], 1)
    ((rows, tokens),) = taught
    assert learner.training_seconds == [2.5]
    assert rows == max(1, round(4 * finetuning.QUESTION_TOKENS / tokens)) < 4


def test_a_certain_teacher_keeps_its_width_and_what_it_reads() -> None:
    lesson = Lesson((1, 2, 7), 2, DOUBTFUL, teacher_prompt=(3, 4))
    sure = certain(lesson)
    assert sure.teacher.tokens_NK.tolist() == [[7, 5, 6]]
    assert sure.teacher.log_probs_NK.exp().tolist() == [[1.0, 0.0, 0.0]]
    assert sure.teacher.tail_N.exp().tolist() == [0.0]
    assert sure.teacher_prompt == (3, 4)
    outside = certain(Lesson((1, 2, 9), 2, DOUBTFUL))
    assert outside.teacher.tokens_NK.tolist() == [[9, 5, 7]]
