import pytest

from sleep_pipeline.night_questions import too_few_questions
from sleep_pipeline.run_environment import set_environment


@pytest.mark.parametrize("questions", [6, 60])
def test_as_many_questions_as_the_gate_takes_are_enough(questions: int) -> None:
    assert too_few_questions(1, questions, 6) is None


def test_too_few_are_told_with_what_to_do_about_it() -> None:
    set_environment("mine")
    try:
        told = too_few_questions(3, 5, 6)
    finally:
        set_environment(None)
    assert told is not None
    assert told.startswith("night 3 has 5 questions about its memories, and the gate, which takes 6 ")
    assert "--params=night=3 --env=mine --from-nodes=sample_lessons_node" in told
