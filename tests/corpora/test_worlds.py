import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sleep_pipeline.corpora.worlds import (
    UNKNOWN,
    WorldGenerator,
    implied,
    inverse_questions,
    phrasings,
    questions,
    statements,
    subject_answer,
)

SPLITS = ("train", "test")


@pytest.mark.parametrize("split", SPLITS)
def test_the_same_seed_tells_the_same_world(split: str) -> None:
    first, second = (list(itertools.islice(WorldGenerator(7, split), 20)) for _ in range(2))
    assert [document.text for document in first] == [document.text for document in second]
    assert first != list(itertools.islice(WorldGenerator(8, split), 20))


@given(st.integers(), st.sampled_from(SPLITS))
def test_a_document_contains_every_value_and_every_subject_that_it_tells_of(seed: int, split: str) -> None:
    document = WorldGenerator(seed, split).document()
    assert document.facts
    for fact in document.facts:
        assert fact.value.lower() in document.text.lower()  # a sentence may begin with it
        assert fact.subject.name.lower() in document.text.lower()


@given(st.integers(), st.sampled_from(SPLITS))
def test_a_document_knows_the_answer_to_every_wording_of_its_facts(seed: int, split: str) -> None:
    document = WorldGenerator(seed, split).document()
    for fact in document.facts:
        for question in questions(fact.subject, fact.relation, split):
            assert document.answer_to(question) == fact.value
        holders = [f for f in document.facts if f.relation is fact.relation and f.value == fact.value]
        for question in inverse_questions(fact, split):
            expected = subject_answer(fact.subject) if len(holders) == 1 else None
            assert document.answer_to(question) == expected


@given(st.integers())
def test_a_question_about_what_is_not_told_is_known_to_have_no_answer(seed: int) -> None:
    document = WorldGenerator(seed, "train", facts=(1, 3)).document()
    told = {(fact.subject.name, fact.relation.name) for fact in document.facts}
    for entity in document.entities:
        for relation in phrasings().of_kind(entity.kind):
            if (entity.name, relation.name) not in told:
                assert document.answer_to(questions(entity, relation, "train")[0]) == UNKNOWN


@given(st.integers(), st.sampled_from(SPLITS))
def test_true_sentences_are_recognised_and_false_ones_are_not(seed: int, split: str) -> None:
    world = WorldGenerator(seed, split)
    document, other = world.document(), world.document()
    for fact in document.facts:
        for sentence in statements(fact, split) + implied(fact, split):
            told = document.truth_of(sentence)
            assert told is not None
            assert (told.subject, told.value) == (fact.subject, fact.value)
    for fact in other.facts:
        assert document.truth_of(statements(fact, split)[0]) is None


def test_train_and_test_share_no_wording() -> None:
    words = phrasings()
    for relation in words.relations.values():
        for use, by_split in relation.wordings.items():
            assert by_split["train"] and (by_split.get("test") or use == "clauses"), (relation.name, use)
            assert not set(by_split["train"]) & set(by_split.get("test", ())), (relation.name, use)
    for use, by_split in words.frames.items():
        assert not set(by_split["train"]) & set(by_split.get("test", ())), use
    assert not set(filter(None, words.openings["train"])) & set(filter(None, words.openings["test"]))
    assert not set(words.fillers["train"]) & set(words.fillers["test"])


def test_every_relation_has_a_maker_for_its_values_and_several_wordings() -> None:
    world = WorldGenerator(0)
    for relation in phrasings().relations.values():
        assert world.value(relation.value)
        assert len(relation.templates("statements", "train")) >= 4
        assert len(relation.templates("questions", "train")) >= 4


@pytest.mark.slow
def test_pronouns_and_leads_keep_their_grammar() -> None:
    texts = [document.text for document in itertools.islice(WorldGenerator(3), 3000)]
    for text in texts:
        for wrong in (" it's ", "She's ", "Also, The ", "In fact, It ", "{", "}", "  "):
            assert wrong not in text, text


@pytest.mark.parametrize("bounds", [{"facts": (0, 3)}, {"facts": (4, 2)}, {"entities": (0, 1)}])
def test_impossible_bounds_are_refused(bounds: dict[str, tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="least"):
        WorldGenerator(0, **bounds)


def test_documents_come_as_reports_conversations_and_forms() -> None:
    documents = list(itertools.islice(WorldGenerator("styles"), 300))
    starts = {"form": 0, "conversation": 0, "report": 0}
    for document in documents:
        first = document.text.splitlines()[0]
        if first.startswith("Name: "):
            starts["form"] += 1
        elif any(first.startswith(f"{entity.name}: ") for entity in document.entities):
            starts["conversation"] += 1
        else:
            starts["report"] += 1
    assert min(starts.values()) > 5, starts
