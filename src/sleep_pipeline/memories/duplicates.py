"""Memories that say again what another one says: found by MinHash, decided by their exact Jaccard similarity."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

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
    from datasketch import MinHash, MinHashLSH  # type: ignore[import-untyped]

    index = MinHashLSH(threshold=settings.threshold, num_perm=settings.permutations, weights=_WEIGHTS)
    known: dict[int, tuple[Memory, frozenset[str]]] = {}
    kept: list[Memory] = []
    dropped: list[Duplicate] = []
    empty = MinHash(num_perm=settings.permutations, seed=settings.seed)
    for number, memory in enumerate([*earlier, *memories]):
        said = shingles(memory.rendered(), settings.shingle)
        sketch = empty.copy()
        sketch.update_batch([shingle.encode() for shingle in sorted(said)])
        best: tuple[float, int] | None = None
        for candidate in sorted(index.query(sketch)) if number >= len(earlier) else ():
            other, others = known[candidate]
            similarity = jaccard(said, others)
            if other.kind != memory.kind or similarity < settings.threshold:
                continue
            if settings.keep_changed_facts and _brings_facts(memory, other):
                continue
            if best is None or similarity > best[0]:
                best = (similarity, candidate)
        if best is not None:
            dropped.append(duplicate(memory, known[best[1]][0], best[0]))
            continue
        index.insert(number, sketch)
        known[number] = (memory, said)
        if number >= len(earlier):
            kept.append(memory)
    return Deduplicated(tuple(kept), tuple(dropped))


def _brings_facts(memory: Memory, other: Memory) -> bool:
    """Whether one has a word or a label that the other lacks.

    A lamp that is off is no less of a fact than a name, and to take back a "not" is one as well.
    """
    news, known = ({word.casefold() for word in _WORD.findall(one.rendered())} for one in (memory, other))
    return memory.label != other.label or news != known
