"""A store of bounded size in which every lesson ever offered has had the same chance to be."""

import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from made_up import lesson
from safetensors.torch import save_file
from scipy import stats

from sleep_pipeline.seeding.lessons import Lesson
from sleep_pipeline.seeding.replay import ReplayStore, Reservoir

OFFERED = [lesson(5, 4, seed, k=2) for seed in range(40)]
NUMBER = {one.ids: number for number, one in enumerate(OFFERED)}


def nights(store: ReplayStore, seed: int = 0, pool: str = "stored") -> ReplayStore:
    """Four nights of ten, five, twenty and five lessons."""
    for night, (start, end) in enumerate(((0, 10), (10, 15), (15, 35), (35, 40)), start=1):
        store.add(pool, OFFERED[start:end], night, seed)
    return store


def kept(store: ReplayStore, pool: str = "stored") -> list[int]:
    return [NUMBER[one.ids] for one in store.lessons(pool)]


def test_a_store_takes_all_until_it_is_full_and_never_grows_over_that() -> None:
    store = ReplayStore(stored=12, open_book=3)
    store.add("stored", OFFERED[:10], night=1)
    assert kept(store) == list(range(10))
    nights(store)
    assert len(store.lessons("stored")) == 12
    assert store.pools["stored"].offered == 50
    assert store.lessons("open_book") == []


def test_every_lesson_is_kept_as_often_whatever_its_night() -> None:
    runs, capacity = 600, 8
    counts = Counter(number for seed in range(runs) for number in kept(nights(ReplayStore(capacity, 1), seed)))
    assert sum(counts.values()) == runs * capacity
    assert stats.chisquare([counts[number] for number in range(40)]).pvalue > 0.01


def test_the_places_of_two_lessons_are_independent() -> None:
    """An algorithm could keep each as often and yet always together with its neighbour."""
    runs, capacity = 600, 20
    both = sum({3, 4} <= set(kept(nights(ReplayStore(capacity, 1), seed))) for seed in range(runs))
    chance = capacity * (capacity - 1) / (40 * 39)
    assert stats.binomtest(both, runs, chance).pvalue > 0.01


def test_the_same_lessons_leave_the_same_store_and_another_seed_another() -> None:
    first, again, other = (kept(nights(ReplayStore(8, 1), seed)) for seed in (0, 0, 1))
    assert first == again != other


def test_contexts_are_gone_and_nights_are_known() -> None:
    store = ReplayStore(4, 4)
    store.add("open_book", [lesson(6, 3, 0, view=1)], night=3)
    ((one, night),) = store.pools["open_book"].lessons
    assert (one.teacher_prompt, one.view, night) == ((), 0, 3)


def test_a_saved_store_comes_back_exactly_and_goes_on_as_before(tmp_path: Path) -> None:
    store = ReplayStore(8, 5)
    store.add("stored", [lesson(5 + seed, 2 + seed % 3, seed, k=3) for seed in range(12)], night=1)
    store.add("open_book", [lesson(9, 4, seed, k=3) for seed in range(2)], night=2)
    store.save(tmp_path / "deeper" / "replay.safetensors")
    loaded = ReplayStore.load(tmp_path / "deeper" / "replay.safetensors")
    for name, pool in store.pools.items():
        assert (loaded.pools[name].capacity, loaded.pools[name].offered) == (pool.capacity, pool.offered)
        for (one, night), (other, other_night) in zip(pool.lessons, loaded.pools[name].lessons, strict=True):
            same(one, other)
            assert night == other_night
    for one in (store, loaded):
        nights(one)
    assert [one.ids for one in store.lessons("stored")] == [one.ids for one in loaded.lessons("stored")]


def same(one: Lesson, other: Lesson) -> None:
    assert (one.ids, one.start, one.teacher_prompt, one.view) == (
        other.ids,
        other.start,
        other.teacher_prompt,
        other.view,
    )
    assert torch.equal(one.teacher.tokens_NK, other.teacher.tokens_NK)
    assert other.teacher.tokens_NK.dtype == torch.int64
    assert torch.equal(one.teacher.log_probs_NK.float(), other.teacher.log_probs_NK)
    assert torch.equal(one.teacher.tail_N.float(), other.teacher.tail_N)


def test_an_empty_store_comes_back_empty(tmp_path: Path) -> None:
    ReplayStore(8, 5).save(tmp_path / "replay.safetensors")
    loaded = ReplayStore.load(tmp_path / "replay.safetensors")
    assert loaded.lessons("stored") == loaded.lessons("open_book") == []
    assert loaded.pools["stored"] == Reservoir(8)


def test_lessons_of_different_top_k_can_be_saved(tmp_path: Path) -> None:
    store = ReplayStore(8, 5)
    store.add("stored", [lesson(6, 3, 0, k=7), lesson(6, 3, 1, k=4)], night=1)
    store.save(tmp_path / "replay.safetensors")
    first, second = ReplayStore.load(tmp_path / "replay.safetensors").lessons("stored")
    same(lesson(6, 3, 1, k=4, context=0), second)
    narrow = lesson(6, 3, 0, k=4)
    assert torch.equal(first.teacher.tokens_NK, narrow.teacher.tokens_NK)
    torch.testing.assert_close(first.teacher.tail_N, narrow.teacher.tail_N.float())


def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    other, text = tmp_path / "model.safetensors", tmp_path / "notes.safetensors"
    save_file({"weight": torch.zeros(2)}, other)
    text.write_text("not a tensor in sight")
    for path in (other, text):
        with pytest.raises(ValueError, match=f"{path.name} is no replay store"):
            ReplayStore.load(path)
    with pytest.raises(FileNotFoundError):
        ReplayStore.load(tmp_path / "missing.safetensors")


def test_a_reservoir_is_filled_in_order() -> None:
    """Algorithm R: lesson n replaces a place with the chance capacity / n."""
    pool = Reservoir(2)
    pool.offer(OFFERED[:2], 1, random.Random(0))
    assert [NUMBER[one.ids] for one, _ in pool.lessons] == [0, 1]

    class Draws(random.Random):
        def randrange(self, stop: int) -> int:  # type: ignore[override]
            assert stop == pool.offered
            return {3: 2, 4: 0, 5: 1}[stop]

    pool.offer(OFFERED[2:5], 2, Draws())
    assert [(NUMBER[one.ids], night) for one, night in pool.lessons] == [(3, 2), (4, 2)]


def test_a_store_that_shrinks_keeps_an_even_choice_and_one_that_grows_takes_more() -> None:
    store = ReplayStore(stored=20, open_book=5)
    store.add("stored", OFFERED[:20], night=1)
    store.resize(stored=10, open_book=5)
    assert len(kept(store)) == 10 and set(kept(store)) < set(range(20))
    assert kept(store) != list(range(10)), "not the oldest alone"
    store.resize(stored=15, open_book=5)
    store.add("stored", OFFERED[20:], night=2)
    assert len(kept(store)) == 15 and store.nights("stored") == {1, 2}
