import copy
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sleep_pipeline.seeding.judges import Trio
from sleep_pipeline.seeding.rewards import absolute_reward, cut_prefix, imitation_reward
from sleep_pipeline.seeding.trainer import silent_ids

tokens = st.lists(st.integers(0, 4), max_size=9)


def levenshtein(a: list[int], b: list[int]) -> int:
    """The textbook recursion, row by row."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (x != y)))
    return row[-1]


@given(tokens, tokens, st.integers(0, 9))
def test_the_absolute_reward_is_that_of_the_paper(said: list[int], reference: list[int], threshold: int) -> None:
    distance, longest = levenshtein(said, reference), max(len(said), len(reference))
    wanted = 0.0 if distance > threshold else 1.0 if not longest else 1 - distance / longest
    assert absolute_reward(said, reference, threshold) == pytest.approx(wanted)


class Notes:
    """A judge that remembers what it was asked and agrees where both answers start alike."""

    def __init__(self) -> None:
        self.asked: list[Trio] = []

    def agree(self, trios: list[Trio]) -> list[bool]:
        self.asked += trios
        return [one[0] == other[0] for _, one, other in trios]


def test_both_rewards_are_mixed_and_the_judge_is_asked_only_where_it_must_be() -> None:
    judge = Notes()
    reward = imitation_reward(0.25, 2, judge, end=[0])
    values = reward(
        completions=["red house", "red", "red", "blue", " "],
        completion_ids=[[1, 2, 0], [1, 0, 0], [1], [3], [0]],
        reference_ids=[[1, 2], [1, 2], [1, 2], [1], [1]],
        reference=["red house", "rose", "rose", "red", "red"],
        question=["q"] * 5,
    )
    assert values == pytest.approx([1.0, 0.25 + 0.75 * 0.5, 0.25 + 0.75 * 0.5, 0.0, 0.0])
    assert judge.asked == [("q", "red", "rose"), ("q", "blue", "red")]


def test_messages_are_read_like_strings_and_gamma_zero_never_asks() -> None:
    judge = Notes()
    assert imitation_reward(1.0, 0, judge)([[{"role": "assistant", "content": "ab"}]], [[1]], [[2]], ["ac"]) == [1.0]
    assert imitation_reward(0.0, 1, None)(["x"], [[1, 2]], [[1, 3]]) == [0.5]
    assert judge.asked == [("", "ab", "ac")]


@pytest.mark.parametrize(
    ("gamma", "threshold", "message"),
    [(1.5, 1, "gamma of the imitation reward is 1.5"), (0.0, -1, "z_0 .* is -1"), (0.5, 1, "no judge")],
)
def test_a_reward_that_cannot_be_given_is_refused(gamma: float, threshold: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        imitation_reward(gamma, threshold, None)


def test_a_judge_without_a_reference_is_told_so() -> None:
    with pytest.raises(ValueError, match="no column `reference`"):
        imitation_reward(0.5, 1, Notes())(["x"], [[1]], [[1]])


@given(st.lists(st.integers(), min_size=1, max_size=20), st.integers())
def test_a_cut_loses_nothing_and_always_leaves_something_to_say(ids: list[int], seed: int) -> None:
    prefix, rest = cut_prefix(ids, random.Random(seed))
    assert prefix + rest == ids and rest


def test_cuts_fall_everywhere_and_an_empty_sample_has_none() -> None:
    rng = random.Random(0)
    assert {len(cut_prefix([1, 2, 3], rng)[0]) for _ in range(60)} == {0, 1, 2}
    with pytest.raises(ValueError, match="empty sample"):
        cut_prefix([], rng)


def test_marks_that_the_tokenizer_does_not_name_say_nothing_either(tiny_tokenizer: Any) -> None:
    from tokenizers import AddedToken

    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_tokens([AddedToken("<|turn|>", special=True), AddedToken("Osk", special=False)])
    turn, osk = tokenizer.convert_tokens_to_ids(["<|turn|>", "Osk"])
    assert turn not in tokenizer.all_special_ids
    assert silent_ids(tokenizer) == {*tokenizer.all_special_ids, turn} and osk not in silent_ids(tokenizer)
