"""How pairs are read as models write them, and when two answers are the same."""

import time

import pytest

from sleep_pipeline.seeding.answers import find_answer, given_pairs, read_pairs, same_answer, without_pairs


def test_pairs_are_read_and_anything_else_is_left_out() -> None:
    reply = "Question: Who?\nAnswer: Mira.\nnoise\nQuestion: Where?\nQuestion: When?\nAnswer: Now\nAnswer: Never"
    assert read_pairs(reply) == [("Who?", "Mira."), ("When?", "Now")]
    assert read_pairs("Question: \nAnswer: Osk") == []


@pytest.mark.parametrize(
    "reply",
    [
        "**Question 1:** Who?\n**Answer 1:** Mira.",
        "1. Question: Who?\n   Answer: Mira.",
        "Q: Who?\nA: Mira.",
        "Question 1: Who?\n\nAnswer: Mira.",
        "### Question\n- **Question:** Who?\n- **Answer:** Mira.",
        "Here you are:\n\nquestion: Who?  \nanswer: Mira.  \n",
        "Q1: **Who?**\nA1: **Mira.**",
        "Question\uff1aWho?\nAnswer\uff1aMira.",
    ],
)
def test_pairs_are_read_as_models_write_them(reply: str) -> None:
    assert read_pairs(reply) == [("Who?", "Mira.")]


@pytest.mark.parametrize("reply", ["Question: " + "*" * 20_000, "Question: a" + " " * 20_000, "1. " * 20_000])
def test_a_reply_of_one_mark_over_and_over_takes_no_time(reply: str) -> None:
    began = time.process_time()
    assert read_pairs(reply) == []
    # Cubic time would be hours.
    assert time.process_time() - began < 10


def test_a_question_keeps_what_stands_in_it() -> None:
    reply = "Question: What is 2 * 3: six or *5*?\nAnswer: 6 (see Q: 7)"
    assert read_pairs(reply) == [("What is 2 * 3: six or *5*?", "6 (see Q: 7)")]
    assert read_pairs("A question: none\nNo answer: none") == []


def test_pairs_are_taken_out_as_they_are_read() -> None:
    reply = "Here:\n1. Question: Who?\n   Answer: Mira.\n\nQ: Where?\nA: Osk\n\n**Question:** When?\n**Answer:** Now"
    assert without_pairs(reply, lambda question: question in {"Who?", "When?"}) == "Here:\nQ: Where?\nA: Osk"
    assert without_pairs(reply, lambda question: False) is reply


def test_an_answer_in_a_sentence_is_the_same_only_where_that_is_asked_for() -> None:
    said, wanted = "She lives in the Old Mill, I think.", "the old mill"
    assert same_answer(said, wanted, "contains") and same_answer(wanted, said, "contains")
    assert not same_answer(said, wanted)
    assert not same_answer("140", "40", "contains") and not same_answer("mill old", wanted, "contains")
    assert not same_answer("anything", "", "contains")


def test_answers_are_the_same_but_for_case_and_outer_punctuation() -> None:
    assert same_answer("The Ball ", "the ball.")
    assert not same_answer("12", "21")


@pytest.mark.parametrize(
    ("said", "wanted", "same"),
    [
        ("答案是东京。", "东京", True),
        ("答案是東京です。", "東京", True),
        ("เขาอยู่ที่กรุงเทพครับ", "กรุงเทพ", True),
        ("他在Osk住了12年。", "osk", True),
        ("他有112只猫。", "12", False),
        ("他有112只猫。", "112", True),
        ("他住在Oskar家", "Osk", False),
        ("京东是公司。", "东京", False),
        ("东京。", "Tokyo", False),
    ],
)
def test_an_answer_is_found_where_words_have_no_spaces_between_them(said: str, wanted: str, same: bool) -> None:
    assert same_answer(said, wanted, "contains") == same_answer(wanted, said, "contains") == same


@pytest.mark.parametrize("said", ["「东京」。", "《东京》", "“东京”", "（东京）！", "东京……", "¿东京?", "— 东京"])
def test_punctuation_of_any_script_around_an_answer_is_none_of_it(said: str) -> None:
    assert same_answer(said, "东京")


@pytest.mark.parametrize(("one", "other"), [("-5", "5"), ("5 %", "5"), ("C#", "C"), ("&", "?"), ("(", ")"), ("", "?")])
def test_signs_that_mean_something_are_part_of_an_answer(one: str, other: str) -> None:
    assert same_answer(one, one) and not same_answer(one, other)


def test_an_answer_in_a_text_is_no_part_of_another_word() -> None:
    assert find_answer("12").sub("_", "12 of 112, 有12只") == "_ of 112, 有_只"
    assert find_answer("东京").sub("_", "他在东京住。") == "他在_住。"
    assert find_answer("the (old) mill").search("the (old) mills") is None
    assert find_answer("Osk!").search("Osk!s") is not None


def test_a_text_gives_its_pairs_where_it_is_nothing_else_and_no_answer_goes_on() -> None:
    pairs = "Question: Who?\nAnswer: Mira.\n\nQuestion: Where?\nAnswer: In Osk."
    assert given_pairs(pairs) == [("Who?", "Mira."), ("Where?", "In Osk.")]
    assert given_pairs(f"Some questions.\n\n{pairs}\n") == given_pairs(pairs), "what stands before is no answer's end"
    assert given_pairs("Mira lives in Osk.") == given_pairs("") == []
    over_lines = "Question: How?\nAnswer: First this.\nThen that.\n\nQuestion: When?\nAnswer: Now."
    over_paragraphs = "Question: How?\nAnswer: First this.\n\nThen that.\n\nQuestion: When?\nAnswer: Now."
    assert given_pairs(over_lines) == given_pairs(over_paragraphs) == [("When?", "Now.")]
