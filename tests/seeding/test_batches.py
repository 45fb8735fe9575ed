"""Rows side by side: nothing lost, and split only where that saves padding."""

from collections.abc import Iterator
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_up import lesson
from tiny_models import VOCAB

from sleep_pipeline.seeding.batches import PASS_TOKENS, batches, join_teachers, pad, positions

CPU = torch.device("cpu")
ROWS = st.lists(st.integers(1, 12), min_size=1, max_size=6).map(
    lambda lengths: [list(range(100 * number + 1, 100 * number + 1 + length)) for number, length in enumerate(lengths)]
)


def cost(parts: list[list[list[int]]]) -> int:
    return sum(len(part) * max(map(len, part)) for part in parts)


def partitions(rows: list[list[int]]) -> Iterator[list[list[list[int]]]]:
    """All ways to lay rows into batches."""
    if not rows:
        yield []
        return
    first, rest = rows[0], rows[1:]
    for size in range(len(rest) + 1):
        for chosen in combinations(range(len(rest)), size):
            others = [row for index, row in enumerate(rest) if index not in chosen]
            for parts in partitions(others):
                yield [[first, *(rest[index] for index in chosen)], *parts]


@given(ROWS)
def test_every_row_is_there_once_and_as_it_was(rows: list[list[int]]) -> None:
    made = batches(rows, 0, CPU)
    assert sorted(row for batch in made for row in batch.rows) == list(range(len(rows)))
    for batch in made:
        assert batch.ids.shape == batch.mask.shape
        for row, ids, mask in zip(batch.rows, batch.ids, batch.mask, strict=True):
            length = len(rows[row])
            assert ids[:length].tolist() == rows[row]
            assert mask.tolist() == [1] * length + [0] * (batch.mask.shape[1] - length)
            assert not ids[length:].any()


@given(ROWS, st.integers(0, 20))
def test_rows_are_split_only_where_it_pays_and_then_as_well_as_can_be(rows: list[list[int]], more: int) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(PASS_TOKENS, "cpu", more)
        made = batches(rows, 0, CPU)
    found = sum(batch.ids.numel() + more for batch in made)
    assert found == min(cost(parts) + more * len(parts) for parts in partitions(rows))


def test_an_unknown_device_is_taken_for_one_that_likes_large_batches() -> None:
    rows = [[1] * 4] * 20 + [[1] * 60] * 20
    assert len(batches(rows, 0, CPU)) == 2
    assert len(batches(rows, 0, torch.device("meta"))) == 1


def test_padding_is_on_the_right_with_the_pad_token() -> None:
    ids, mask = pad([[5, 6, 7], [8]], 3, CPU)
    assert ids.tolist() == [[5, 6, 7], [8, 3, 3]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_a_token_is_predicted_one_place_before_it() -> None:
    rows, places = positions([(2, 4), (5, 5), (1, 2)], CPU)
    assert list(zip(rows.tolist(), places.tolist(), strict=True)) == [(0, 1), (0, 2), (2, 0)]


def test_teachers_are_joined_in_order() -> None:
    taught = [lesson(7, 3, 1, k=4), lesson(5, 4, 2, k=4)]
    joined = join_teachers(taught, CPU)
    assert joined.tokens_NK.shape == (5, 4)
    for part, rows in ((taught[0].teacher, slice(0, 4)), (taught[1].teacher, slice(4, 5))):
        assert torch.equal(joined.tokens_NK[rows], part.tokens_NK)
        assert torch.equal(joined.log_probs_NK[rows], part.log_probs_NK)
        assert torch.equal(joined.tail_N[rows], part.tail_N)


def test_teachers_of_different_width_are_joined_over_the_tokens_that_all_of_them_know() -> None:
    wide, narrow = lesson(7, 3, 1, k=9), lesson(7, 3, 1, k=4)
    joined = join_teachers([wide, lesson(6, 3, 2, k=4)], CPU)[slice(0, 4)]
    assert torch.equal(joined.tokens_NK, narrow.teacher.tokens_NK)
    torch.testing.assert_close(joined.log_probs_NK, narrow.teacher.log_probs_NK)
    torch.testing.assert_close(joined.tail_N, narrow.teacher.tail_N)
    whole = lesson(7, 3, 1, k=VOCAB)
    torch.testing.assert_close(
        join_teachers([whole, narrow], CPU)[slice(0, 4)].tail_N, narrow.teacher.tail_N, rtol=1e-6, atol=1e-6
    )
