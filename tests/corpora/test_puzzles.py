"""Puzzles: what training never shows of the held-out ones."""

import random

from sleep_pipeline.corpora import puzzles


def held_out_words() -> set[str]:
    table = puzzles._topics()["subjects"]["test"]
    return {word for bank in table.values() for words in bank.values() for word in words} | set(table)


def test_common_words_hold_none_of_the_held_out_subjects() -> None:
    words = puzzles._common_words()
    assert len(words) == len(set(words)) > 1000
    assert not held_out_words() & set(words)


def test_half_of_the_training_tasks_have_sentences_of_their_own() -> None:
    carriers = {word for carrier in puzzles._topics()["carriers"]["train"] for word in carrier.split()}
    strange_words = set(puzzles._common_words()) - carriers - set(puzzles._any_words())
    rng = random.Random(0)
    strange = 0
    for _ in range(200):
        example = puzzles.classification(rng, "train", 3, 3)
        text = example.messages[0]["content"]
        strange += len(strange_words & set(text.split())) > 6
    assert 60 < strange < 140


def test_no_sum_of_the_test_split_is_one_of_training() -> None:
    rng = random.Random(0)
    asked = {
        split: {puzzles.arithmetic(rng, split).prompt[-1]["content"] for _ in range(4000)}
        for split in ("train", "test")
    }
    assert len(asked["test"]) > 3000
    assert not asked["train"] & asked["test"]
