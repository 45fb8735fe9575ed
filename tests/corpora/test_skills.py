import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sleep_pipeline.corpora.mixture import SKILLS, training_skills
from sleep_pipeline.corpora.puzzles import classification, needles
from sleep_pipeline.corpora.skills import Example, check, parse_quiz, quiz
from sleep_pipeline.corpora.worlds import UNKNOWN

SPLITS = ("train", "test")


@pytest.mark.parametrize("name", sorted(SKILLS))
@pytest.mark.parametrize("split", SPLITS)
def test_every_reference_answer_is_right_and_an_empty_one_is_not(name: str, split: str) -> None:
    rng = random.Random(1)
    for _ in range(60):
        example = SKILLS[name](rng, split)
        assert check(example, example.answer) == 1.0, example
        assert check(example, "") == 0.0, example


@pytest.mark.parametrize("name", sorted(training_skills()))
def test_practice_alternates_questions_and_answers(name: str) -> None:
    rng = random.Random(2)
    for _ in range(30):
        roles = [turn["role"] for turn in training_skills()[name](rng, "train").messages]
        turns = roles[1:] if roles[0] == "system" else roles
        assert turns == ["user", "assistant"] * (len(turns) // 2)
        assert turns


@given(st.integers(), st.sampled_from(SPLITS))
def test_answers_to_questions_about_a_text_are_in_the_text(seed: int, split: str) -> None:
    example = SKILLS["question_answering"](random.Random(seed), split)
    assert example.answer.lower() in example.messages[0]["content"].lower()


@given(st.integers(), st.sampled_from(SPLITS))
def test_the_answer_to_an_unanswerable_question_is_that_one_does_not_know(seed: int, split: str) -> None:
    assert SKILLS["unanswerable"](random.Random(seed), split).answer == UNKNOWN


def _writing(seed: int) -> Example:
    return SKILLS["question_writing"](random.Random(seed), "train")


@given(st.integers())
def test_a_written_pair_with_a_wrong_answer_counts_against_the_writer(seed: int) -> None:
    example = _writing(seed)
    pairs = parse_quiz(example.answer)
    wrong = [(question, "nothing of the kind") for question, _ in pairs[:1]] + pairs[1:]
    assert check(example, quiz(wrong)) == pytest.approx((len(pairs) - 1) / len(pairs))


@given(st.integers())
def test_fewer_pairs_than_asked_for_are_not_full_marks(seed: int) -> None:
    example = _writing(seed)
    pairs = parse_quiz(example.answer)
    assert check(example, quiz(pairs[:1])) == pytest.approx(1 / len(pairs))


def test_a_true_i_do_not_know_is_no_question_worth_writing() -> None:
    from sleep_pipeline.corpora.worlds import phrasings, questions

    example = next(e for e in map(_writing, range(100)) if len(e.truth.facts) < 4)
    told = {(fact.subject.name, fact.relation.name) for fact in example.truth.facts}
    entity = example.truth.entities[0]
    left_out = next(r for r in phrasings().of_kind(entity.kind) if (entity.name, r.name) not in told)
    question = questions(entity, left_out, "train")[0]
    assert example.truth.answer_to(question) == UNKNOWN
    assert check(example, quiz([(question, UNKNOWN)])) == 0.0


@given(st.integers())
def test_a_false_sentence_lowers_the_score_of_a_rewriting(seed: int) -> None:
    example = SKILLS["rewriting"](random.Random(seed), "train")
    score = check(example, example.answer + " Nobody Whatever works for Nothing Ltd.")
    assert 0.5 < score < 1.0


@given(st.integers())
def test_the_order_of_a_summarys_parts_does_not_matter(seed: int) -> None:
    example = SKILLS["summarising"](random.Random(seed), "train")
    parts = example.answer.removeprefix("The text gives ").rstrip(".").split("; ")
    assert check(example, f"The text gives {'; '.join(reversed(parts))}.") == 1.0
    assert check(example, f"The text gives {'; '.join(parts[1:])}.") == 0.0


@given(st.integers(), st.integers(2, 32))
def test_needles_hide_one_key_among_as_many_as_asked(seed: int, keys: int) -> None:
    example = needles(random.Random(seed), "test", keys)
    assert example.answer in example.messages[0]["content"]
    assert len(example.messages[0]["content"].split()) >= 2 * keys


@given(st.integers())
def test_a_classified_utterance_is_none_of_the_examples_labels_by_chance(seed: int) -> None:
    example = classification(random.Random(seed), "test", classes=5, shots=4)
    lines = example.messages[0]["content"].splitlines()[1:]
    labels = [line.rsplit(" -> ", 1)[1] for line in lines]
    assert len(lines) == 20 and len(set(labels)) == 5
    assert example.answer in labels


@given(st.integers())
def test_sums_come_out_right(seed: int) -> None:
    example = SKILLS["arithmetic"](random.Random(seed), "train")
    expression = example.messages[1]["content"].removesuffix(" = ?")
    first, sign, second = expression.split()
    expected = int(first) + int(second) if sign == "+" else int(first) - int(second)
    assert example.answer.splitlines()[-1] == f"Answer: {expected}"


@given(st.integers())
def test_a_translation_follows_its_lexicon_word_by_word(seed: int) -> None:
    example = SKILLS["translation"](random.Random(seed), "test")
    rule, *entries = example.messages[0]["content"].splitlines()
    lexicon = dict(entry.split(" = ") for entry in entries)
    foreign = example.messages[1]["content"].removeprefix("Translate into English: ").split()
    english = [lexicon[word] for word in foreign]
    if "before" in rule:
        assert " ".join(english) == example.answer
    assert sorted(english) == sorted(example.answer.split())
