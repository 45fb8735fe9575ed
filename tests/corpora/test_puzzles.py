"""Puzzles: what training never shows of the held-out ones."""

import itertools
import random

import pytest

from sleep_pipeline.corpora import puzzles
from sleep_pipeline.corpora.names import Split


def held_out_words() -> set[str]:
    table = puzzles._topics()["subjects"]["test"]
    return {word for bank in table.values() for words in bank.values() for word in words} | set(table)


def test_common_words_hold_none_of_the_held_out_subjects() -> None:
    words = puzzles._common_words()
    assert len(words) == len(set(words)) > 1000
    assert not held_out_words() & set(words)


def test_put_together_sentences_hold_no_held_out_word_and_no_held_out_sentence() -> None:
    words = {word for parts in puzzles._frames().values() for part in parts for word in part.split()}
    assert not held_out_words() & words
    rng = random.Random(0)
    sentences = [puzzles._put_together(rng) for _ in range(3000)]
    assert len(set(sentences)) > 2000
    assert all("{b}" in sentence for sentence in sentences)
    for held_out in puzzles._topics()["carriers"]["test"]:
        assert not [sentence for sentence in sentences if held_out in sentence or sentence in held_out]


def test_in_training_as_in_the_test_classes_often_share_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(puzzles, "_classify_form", lambda rng, split: ("", "{u} -> {y}", "{u} ->"))

    def share(split: Split) -> float:
        """Share of tasks in which five pairs of lines of two classes differ in two words at most."""
        rng = random.Random(0)
        alike = 0
        for _ in range(100):
            text = puzzles.classification(rng, split, 5, 4).messages[0]["content"]
            lines = [(line.split(" -> ")[0].split(), line.split(" -> ")[1]) for line in text.splitlines()]
            pairs = [
                (one, other)
                for (one, label), (other, another) in itertools.combinations(lines, 2)
                if label != another and len(one) == len(other) > 3
            ]
            alike += sum(sum(a != b for a, b in zip(*pair, strict=True)) <= 2 for pair in pairs) >= 5
        return alike / 100

    assert share("test") > 0.9
    assert 0.5 < share("train") < 0.95


def test_many_training_tasks_have_words_of_any_english() -> None:
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
