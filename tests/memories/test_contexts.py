import re
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sleep_pipeline.memories.chunking import sentences, split_text, token_counter
from sleep_pipeline.memories.contexts import (
    contexts_from_frame,
    contexts_to_frame,
    is_held_out,
    pack_contexts,
    split_probes,
)
from sleep_pipeline.memories.records import Content, Memory


class Letters:
    """A tokenizer whose tokens are groups of three characters of a word, and single other characters."""

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> Mapping[str, Any]:
        assert not add_special_tokens
        return {"input_ids": re.findall(r"\w{1,3}|\W", text)}


COUNT = token_counter(Letters())


def memory(content: Content, source: str = "memories/a.jsonl", line: int = 1, flags: tuple[str, ...] = ()) -> Memory:
    digest = content.digest()
    said = (content.kind, content.text, content.messages, content.question, content.answer, content.label)
    return Memory(digest[:16], *said, source, line, "2026-01-01T00:00:00Z", digest, flags)


def text(said: str, **where: Any) -> Memory:
    return memory(Content("text", text=said), **where)


def qa(number: int, **where: Any) -> Memory:
    return memory(Content("qa", question=f"What is {number}?", answer=f"It is {number}."), **where)


def label(number: int, **where: Any) -> Memory:
    return memory(Content("label", text=f"example {number}", label="good"), **where)


def test_each_kind_is_read_in_its_own_form() -> None:
    chat = Content("chat", messages=({"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Elno."}))
    contexts = pack_contexts([text("As it is."), memory(chat), qa(1), label(2)], Letters(), 64)
    assert [context.text for context in contexts] == [
        "As it is.",
        "User: Who?\nAssistant: Elno.",
        "Question: What is 1?\nAnswer: It is 1.",
        "example 2 -> good",
    ]


def test_small_memories_of_a_file_share_a_context_up_to_the_budget() -> None:
    memories = [label(number) for number in range(30)]
    contexts = pack_contexts(memories, Letters(), 40)
    assert [id for context in contexts for id in context.memory_ids] == [item.id for item in memories]
    assert all(context.tokens == COUNT(context.text) <= 40 for context in contexts)
    assert all(len(context.memory_ids) > 2 for context in contexts[:-1])
    assert contexts[0].text.splitlines()[:2] == ["example 0 -> good", "example 1 -> good"]


def test_kinds_and_files_are_never_mixed() -> None:
    memories = [qa(1), qa(2), label(3), label(4), label(5, source="memories/b.jsonl"), qa(6)]
    contexts = pack_contexts(memories, Letters(), 512)
    assert [(context.kind, len(context.memory_ids)) for context in contexts] == [
        ("qa", 2),
        ("label", 2),
        ("label", 1),
        ("qa", 1),
    ]


def test_texts_share_a_context_only_where_that_is_asked_for() -> None:
    memories = [text("One."), text("Two.")]
    assert len(pack_contexts(memories, Letters(), 64)) == 2
    assert [c.text for c in pack_contexts(memories, Letters(), 64, together=("text",))] == ["One.\n\nTwo."]


def test_a_long_text_is_cut_between_sentences() -> None:
    said = " ".join(f"Sentence number {number} is here." for number in range(20))
    contexts = pack_contexts([text(said, flags=("odd",))], Letters(), 60)
    assert " ".join(context.text for context in contexts) == said
    assert all(context.text.endswith("here.") and context.tokens <= 60 for context in contexts)
    assert [(context.part, context.parts) for context in contexts] == [
        (n + 1, len(contexts)) for n in range(len(contexts))
    ]
    assert {context.flags for context in contexts} == {("odd",)}


def test_a_sentence_longer_than_the_window_is_cut_between_words_and_marked() -> None:
    said = "Short one. " + " ".join(["Word"] * 30) + ". Last one."
    contexts = pack_contexts([text(said)], Letters(), 20)
    assert " ".join(context.text for context in contexts) == said
    assert [context.flags for context in contexts] == [(), *[("broken_sentence",)] * (len(contexts) - 2), ()]


def test_a_word_longer_than_the_window_is_cut_too() -> None:
    pieces = split_text("x" * 100, COUNT, 10)
    assert "".join(piece.text for piece in pieces) == "x" * 100 and all(piece.broken for piece in pieces)


def test_a_window_that_holds_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="max_tokens=2"):
        split_text("A text.", COUNT, 2)


@given(st.text(alphabet=st.sampled_from("ab. !?\n\u3002'\"1"), max_size=300), st.integers(8, 40))
def test_cutting_loses_nothing_but_spaces_and_keeps_the_limit(said: str, limit: int) -> None:
    pieces = split_text(said, COUNT, limit)
    assert "".join("".join(piece.text.split()) for piece in pieces) == "".join(said.split())
    assert all(piece.tokens == COUNT(piece.text) <= limit for piece in pieces)
    assert all(said[piece.start :].startswith(piece.text) for piece in pieces)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("One. Two! Three?", ["One. ", "Two! ", "Three?"]),
        ("Dr. Elno met Mr. Osta. They spoke.", ["Dr. Elno met Mr. Osta. ", "They spoke."]),
        ("It costs 3.50 marks, e.g. today. Yes.", ["It costs 3.50 marks, e.g. today. ", "Yes."]),
        ('"Go!" he said. "Now."', ['"Go!" ', "he said. ", '"Now."']),
        ("A line\nanother", ["A line\n", "another"]),
    ],
)
def test_sentences_end_where_readers_end_them(said: str, expected: list[str]) -> None:
    assert sentences(said) == expected


def test_contexts_survive_a_table() -> None:
    contexts = pack_contexts([qa(1, flags=("a", "b")), qa(2), text("One.")], Letters(), 64)
    assert contexts_from_frame(contexts_to_frame(contexts)) == contexts


def test_the_id_of_a_context_depends_on_nothing_but_what_is_in_it() -> None:
    alone = pack_contexts([text("One.")], Letters(), 64)
    assert pack_contexts([text("Zero."), text("One.")], Letters(), 32)[1].id == alone[0].id


QUESTIONS = [f"What is the number of house {number}?" for number in range(2000)]


def test_probes_are_about_the_share_asked_for_and_nothing_is_lost() -> None:
    training, probes = split_probes(QUESTIONS, 0.2, "salt")
    assert sorted(training + probes) == sorted(QUESTIONS)
    assert 330 < len(probes) < 470


def test_a_question_stays_on_its_side_whatever_else_is_there() -> None:
    _, probes = split_probes(QUESTIONS, 0.2, "salt")
    assert split_probes(QUESTIONS[::-7], 0.2, "salt")[1] == [q for q in QUESTIONS[::-7] if q in set(probes)]
    assert all(is_held_out(f"  {question.upper()}", 0.2, "salt") for question in probes)


def test_another_salt_holds_out_other_questions() -> None:
    assert split_probes(QUESTIONS, 0.2, "salt")[1] != split_probes(QUESTIONS, 0.2, "pepper")[1]


def test_all_and_nothing_can_be_held_out() -> None:
    assert split_probes(QUESTIONS, 0.0, "salt") == (QUESTIONS, [])
    assert split_probes(QUESTIONS, 1.0, "salt") == ([], QUESTIONS)
    with pytest.raises(ValueError, match="share=2"):
        split_probes(QUESTIONS, 2, "salt")
