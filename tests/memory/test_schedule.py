import pytest
from hypothesis import given
from hypothesis import strategies as st

from sleep_pipeline.memory import ContinuumMemoryConfig, LevelConfig, Pair, Schedule

periods = st.lists(st.integers(2, 5), max_size=3).flatmap(
    lambda factors: st.integers(1, 4).map(lambda first: cumulative(first, factors))
)


def cumulative(first: int, factors: list[int]) -> list[int]:
    out = [first]
    for factor in factors:
        out.append(out[-1] * factor)
    return out


def simulate(chunks: list[int], steps: int) -> dict[int, list[Pair]]:
    """Follow the definition step by step: a counter per level that starts anew when the level changes."""
    since_change = [0] * len(chunks)
    sleeps: dict[int, list[Pair]] = {}
    for step in range(1, steps + 1):
        about_to_change = []
        for level in range(len(chunks)):
            since_change[level] += 1
            if since_change[level] == chunks[level]:
                about_to_change.append(level)
                since_change[level] = 0
        if about_to_change:
            sleeps[step] = [Pair(level, level + 1) for level in about_to_change]
    return sleeps


@given(periods, st.integers(0, 200))
def test_due_pairs_are_those_of_the_definition(chunks: list[int], steps: int) -> None:
    schedule = Schedule(chunks)
    expected = simulate(chunks, steps)
    assert {p: schedule.due(p) for p in range(steps + 1) if schedule.due(p)} == expected
    assert dict(schedule.between(0, steps)) == expected


@given(periods)
def test_a_level_receives_one_whole_period_before_it_changes(chunks: list[int]) -> None:
    schedule = Schedule(chunks)
    received = [0] * (len(chunks) + 1)
    for _, pairs in schedule.between(0, chunks[-1]):
        for pair in pairs:
            if pair.sender > 0:
                assert received[pair.sender] == chunks[pair.sender] // chunks[pair.sender - 1]
                received[pair.sender] = 0
            received[pair.receiver] += 1


@given(periods, st.integers(0, 300), st.integers(0, 300))
def test_between_continues_where_it_left_off(chunks: list[int], first: int, second: int) -> None:
    schedule = Schedule(chunks)
    start, stop = sorted((first, second))
    assert [*schedule.between(0, start), *schedule.between(start, stop)] == list(schedule.between(0, stop))


@given(periods, st.integers(0, 300))
def test_next_due_is_the_first_position_with_a_sleep(chunks: list[int], position: int) -> None:
    schedule = Schedule(chunks)
    following = schedule.next_due(position)
    assert schedule.due(following)
    assert not any(schedule.due(between) for between in range(position + 1, following))


def test_ten_consolidations_precede_the_slower_blocks_own_change() -> None:
    schedule = Schedule([1000, 10_000])
    order = [pair for _, pairs in schedule.between(0, 10_000) for pair in pairs]
    assert order == [Pair(0, 1)] * 10 + [Pair(1, 2)]


@given(periods, st.lists(st.integers(1, 40), min_size=1, max_size=8, unique=True).map(sorted))
def test_what_was_missed_is_overdue_until_it_is_done(chunks: list[int], visited: list[int]) -> None:
    schedule, last = Schedule(chunks), dict.fromkeys(range(len(chunks)), 0)
    for position in visited:
        missed = [
            Pair(level, level + 1)
            for level, chunk in enumerate(chunks)
            if level and any(at % chunk == 0 for at in range(last[level] + 1, position + 1))
        ]
        assert schedule.overdue(position, lambda level: last[level]) == missed
        for pair in missed:
            last[pair.sender] = position


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([], "at least the period of the context"),
        ([0], "level 0 is 0"),
        ([True], "level 0 is True"),
        ([2, 2], "level 1 has 2 after 2"),
        ([4, 2], "periods must increase"),
        ([2, 5], "5, which is not a multiple of 2.*take 4 or 6"),
    ],
)
def test_periods_without_a_meaning_are_refused(chunks: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule(chunks)


def test_a_negative_position_is_refused() -> None:
    with pytest.raises(ValueError, match="-1 is negative"):
        Schedule([1]).due(-1)


def test_the_configuration_knows_its_schedule() -> None:
    config = ContinuumMemoryConfig(levels=[LevelConfig(period=3, num_slots=3), LevelConfig()], context_period=1)
    assert config.schedule().due(3) == [Pair(0, 1), Pair(1, 2)]
    assert ContinuumMemoryConfig().schedule().due(7) == [Pair(0, 1)]
