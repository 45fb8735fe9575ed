import random

from hypothesis import given
from hypothesis import strategies as st

from sleep_pipeline.corpora.names import NameGenerator, word_split


@given(st.integers(), st.sampled_from(["train", "test"]))
def test_every_word_is_of_the_generators_split(seed: int, split: str) -> None:
    names = NameGenerator(random.Random(seed), split)
    assert {word_split(names.word()) for _ in range(20)} == {split}


@given(st.integers())
def test_no_word_is_given_out_twice(seed: int) -> None:
    names = NameGenerator(random.Random(seed), "train")
    words = [names.word() for _ in range(100)]
    assert len(set(words)) == len(words)


def test_train_and_test_people_share_neither_first_name_nor_surname() -> None:
    train, test = (
        {part for _ in range(2000) for part in NameGenerator(random.Random(seed), split).person().split()}
        for seed, split in enumerate(["train", "test"])
    )
    assert not train & test


def test_the_vocabulary_is_open() -> None:
    rng = random.Random(0)
    drawn = [NameGenerator(rng, "train").short_name() for _ in range(3000)]
    assert len(set(drawn)) > 2900
