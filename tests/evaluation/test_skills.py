from typing import Any

import pytest

from sleep_pipeline.corpora.mixture import SKILLS
from sleep_pipeline.corpora.names import word_split
from sleep_pipeline.evaluation.skills import CLOSED_BOOK, closed_book, evaluate_skills, held_out_examples


def test_held_out_examples_are_the_same_every_time_and_of_the_test_split() -> None:
    examples = held_out_examples("question_answering", 30, seed=0)
    assert [e.messages for e in examples] == [e.messages for e in held_out_examples("question_answering", 30, 0)]
    for example in held_out_examples("stories", 20, seed=0):
        person = example.messages[0]["content"].split()[0]
        assert word_split(person) == "test"


def test_closed_book_takes_the_text_away_and_nothing_else() -> None:
    opened = held_out_examples("question_answering", 5, seed=0)
    for example, shut in zip(opened, closed_book(opened), strict=True):
        assert shut.messages == example.messages[1:]
        assert shut.answer == example.answer


@pytest.mark.slow
def test_every_skill_is_graded_on_as_many_examples_as_asked(tiny_model: Any, tiny_tokenizer: Any) -> None:
    reports = evaluate_skills(tiny_model, tiny_tokenizer, 2, skills=["question_answering", "arithmetic"])
    assert set(reports) == {"question_answering", "arithmetic", CLOSED_BOOK}
    assert all(report.estimate.samples == 2 for report in reports.values())
    assert all(report.estimate.value == 0 for report in reports.values())
    assert set(SKILLS) > {"question_answering", "arithmetic"}
