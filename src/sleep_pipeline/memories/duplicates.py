"""Memories that say again what another one says, decided by the exact Jaccard similarity of their shingles.

Where a word that the other lacks is news, only memories of the same words are compared: of many mails that differ in a
number none is a duplicate. Otherwise MinHash finds which ones to compare.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sleep_pipeline.memories.records import Duplicate, Memory, duplicate
from sleep_pipeline.memories.settings import DuplicateSettings

_WORD = re.compile(r"\w+")
# Missing a duplicate is worse here than looking at a pair in vain: the exact similarity decides anyway.
_WEIGHTS = (0.2, 0.8)


@dataclass(frozen=True)
class Deduplicated:
    """Memories without near-duplicates.

    Attributes:
        memories: what stays, in the order given.
        duplicates: what was dropped, and for which one.
    """

    memories: tuple[Memory, ...]
    duplicates: tuple[Duplicate, ...]


def shingles(text: str, size: int) -> frozenset[str]:
    """Runs of `size` words, case and punctuation aside; a shorter text is one shingle."""
    words = _WORD.findall(text.casefold())
    return frozenset(" ".join(words[at : at + size]) for at in range(max(1, len(words) - size + 1)))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """Size of the intersection over size of the union; 1 for two empty sets."""
    union = len(one | other)
    return len(one & other) / union if union else 1.0


def drop_near_duplicates(
    memories: Sequence[Memory], settings: DuplicateSettings, earlier: Sequence[Memory] = ()
) -> Deduplicated:
    """Drop every memory that an earlier one of the same kind resembles closely enough.

    Args:
        memories: the first of several duplicates stays.
        settings: see `DuplicateSettings`.
        earlier: memories of other nights, which drop new ones and are not returned.
    """
    index: _SameWords | _MuchTheSame = _SameWords() if settings.keep_changed_facts else _MuchTheSame(settings)
    known: dict[int, tuple[Memory, frozenset[str]]] = {}
    kept: list[Memory] = []
    dropped: list[Duplicate] = []
    for number, memory in enumerate([*earlier, *memories]):
        said = shingles(memory.rendered(), settings.shingle)
        key = index.key(memory, said)
        best: tuple[float, int] | None = None
        for candidate in sorted(index.near(key)) if number >= len(earlier) else ():
            other, others = known[candidate]
            similarity = jaccard(said, others)
            if other.kind != memory.kind or similarity < settings.threshold:
                continue
            if best is None or similarity > best[0]:
                best = (similarity, candidate)
        if best is not None:
            dropped.append(duplicate(memory, known[best[1]][0], best[0]))
            continue
        index.add(number, key)
        known[number] = (memory, said)
        if number >= len(earlier):
            kept.append(memory)
    return Deduplicated(tuple(kept), tuple(dropped))


class _SameWords:
    """Numbers of memories of the same kind, label and set of words.

    A lamp that is off is no less of a fact than a name, and to take back a "not" is one as well.
    """

    def __init__(self) -> None:
        self._numbers: defaultdict[Any, list[int]] = defaultdict(list)

    def key(self, memory: Memory, said: frozenset[str]) -> Any:
        return memory.kind, memory.label, frozenset(word.casefold() for word in _WORD.findall(memory.rendered()))

    def near(self, key: Any) -> list[int]:
        return self._numbers[key]

    def add(self, number: int, key: Any) -> None:
        self._numbers[key].append(number)


class _MuchTheSame:
    """Numbers of memories that share many shingles, and of some that do not."""

    def __init__(self, settings: DuplicateSettings) -> None:
        from datasketch import MinHash, MinHashLSH  # type: ignore[import-untyped]

        self._empty = MinHash(num_perm=settings.permutations, seed=settings.seed)
        self._index = MinHashLSH(threshold=settings.threshold, num_perm=settings.permutations, weights=_WEIGHTS)

    def key(self, memory: Memory, said: frozenset[str]) -> Any:
        sketch = self._empty.copy()
        sketch.update_batch([shingle.encode() for shingle in sorted(said)])
        return sketch

    def near(self, key: Any) -> list[int]:
        return [int(number) for number in self._index.query(key)]

    def add(self, number: int, key: Any) -> None:
        self._index.insert(number, key)
