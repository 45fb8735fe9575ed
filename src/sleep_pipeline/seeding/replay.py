"""Replay: lessons of earlier nights in a store of bounded size, so that nothing is lost.

Two pools: what was learned (`stored`) and lessons in reading (`open_book`). Each is a reservoir (Vitter 1985, algorithm
R): after any number of lessons every one has had the same chance to be there, so an old night is not pushed out by new
ones, and the store never grows.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sleep_pipeline.seeding.lesson_file import pack, unpack
from sleep_pipeline.seeding.lessons import Lesson

POOLS = ("stored", "open_book")


@dataclass
class Reservoir:
    """A uniform sample, of bounded size, of all lessons ever offered.

    Attributes:
        capacity: how many it holds.
        offered: how many it has been offered.
        lessons: those it holds, each with the night that it came from.
    """

    capacity: int
    offered: int = 0
    lessons: list[tuple[Lesson, int]] = field(default_factory=list)

    def offer(self, lessons: Iterable[Lesson], night: int, rng: random.Random) -> None:
        """Take in some of the lessons of a night; their contexts are gone by the next."""
        for lesson in lessons:
            self.offered += 1
            kept = (replace(lesson, teacher_prompt=(), view=0), night)
            if len(self.lessons) < self.capacity:
                self.lessons.append(kept)
            elif (place := rng.randrange(self.offered)) < self.capacity:
                self.lessons[place] = kept

    def resize(self, capacity: int) -> None:
        """Hold so many from now on; of those that are too many, an even choice stays.

        What a smaller reservoir has dropped is gone, so in one that grew the nights to come weigh more for a while.
        """
        self.capacity = capacity
        if len(self.lessons) > capacity:
            chosen = random.Random(f"resize/{self.offered}").sample(range(len(self.lessons)), capacity)
            self.lessons = [self.lessons[place] for place in sorted(chosen)]


class ReplayStore:
    """What earlier nights leave for replay.

    Args:
        stored: lessons of earlier nights that are kept at most.
        open_book: lessons in reading that are kept at most.
    """

    def __init__(self, stored: int, open_book: int) -> None:
        self.pools = {"stored": Reservoir(stored), "open_book": Reservoir(open_book)}

    def resize(self, stored: int, open_book: int) -> None:
        """Change how many lessons the pools hold; see `Reservoir.resize`."""
        self.pools["stored"].resize(stored)
        self.pools["open_book"].resize(open_book)

    def lessons(self, pool: str) -> list[Lesson]:
        """The lessons of a pool."""
        return [lesson for lesson, _ in self.pools[pool].lessons]

    def nights(self, pool: str) -> set[int]:
        """The nights whose lessons a pool holds."""
        return {night for _, night in self.pools[pool].lessons}

    def add(self, pool: str, lessons: Sequence[Lesson], night: int, seed: int = 0) -> None:
        """Offer lessons to a pool; the same ones in the same order leave the same store."""
        self.pools[pool].offer(lessons, night, random.Random(f"{seed}/{night}/{pool}"))

    def save(self, path: Path) -> None:
        """Write the store as safetensors; lessons of different `top_k` are cut to the least."""
        tensors: dict[str, torch.Tensor] = {}
        for name, pool in self.pools.items():
            # As tensors: safetensors writes its metadata in another order every time, and equal stores are equal files.
            tensors[f"{name}.capacity"] = torch.tensor(pool.capacity)
            tensors[f"{name}.offered"] = torch.tensor(pool.offered)
            for key, tensor in pack(pool.lessons).items():
                tensors[f"{name}.{key}"] = tensor
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path)

    @classmethod
    def load(cls, path: Path) -> ReplayStore:
        """Read a saved store.

        Raises:
            ValueError: the file is not a replay store.
        """
        try:
            opened = safe_open(path, "pt")
        except SafetensorError as error:
            raise ValueError(f"{path} is no replay store: {error}") from error
        with opened as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}
        if any(f"{name}.{key}" not in tensors for name in POOLS for key in ("capacity", "offered")):
            raise ValueError(f"{path} is no replay store: it lacks the pools {' and '.join(POOLS)}")
        store = cls(*(int(tensors[f"{name}.capacity"]) for name in POOLS))
        for name in POOLS:
            packed = {
                key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")
            }
            store.pools[name].offered = int(packed.pop("offered"))
            del packed["capacity"]
            store.pools[name].lessons = unpack(packed)
        return store


def nbytes(store: ReplayStore) -> int:
    """Bytes of a store's tensors."""
    return sum(tensor.nbytes for pool in store.pools.values() for tensor in pack(pool.lessons).values())
