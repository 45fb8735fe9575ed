"""Which of a folder's memories a night learns."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from sleep_pipeline.memories.duplicates import drop_near_duplicates
from sleep_pipeline.memories.files import READERS
from sleep_pipeline.memories.passages import HEADING
from sleep_pipeline.memories.reading import Reading, day_of, new_memories, read_folder
from sleep_pipeline.memories.records import Duplicate, Memory, Rejected, digests_of_beginnings, digests_of_turns
from sleep_pipeline.memories.settings import CollectSettings

FAR_OFF = 1000
"""Nights ahead from which on a folder `day_N` is taken for a mistake."""


@dataclass(frozen=True)
class Tonight:
    """What a night finds.

    Attributes:
        memories: to be learned, no two of them alike.
        refused: what could not be read.
        said_twice: what another memory says already.
        reading: the whole folder, whatever its night.
        learned: how many memories of the folder earlier nights have learned.
        waiting: files whose memories are for a later night.
    """

    memories: tuple[Memory, ...]
    refused: tuple[Rejected, ...]
    said_twice: tuple[Duplicate, ...]
    reading: Reading
    learned: int = 0
    waiting: tuple[str, ...] = ()

    def far_off(self, night: int) -> dict[int, str]:
        """A file of every day so far ahead that a date may have been meant."""
        days = {day_of(source): source for source in reversed(self.waiting)}
        return {day: days[day] for day in sorted(days) if day > night + FAR_OFF}

    def too_bad(self, max_bad_share: float) -> str | None:
        """Why so much could not be read that the night must not begin; None if it may.

        Files of kinds that are never read, as pictures among notes are, say nothing of the others.
        """
        bad = [item for item in self.refused if item.line or _could_hold_memories(item.source)]
        # Rows that were bad on earlier nights are refused again, so what those nights could read counts as well.
        seen = len(self.memories) + len(bad) + self.learned
        if len(bad) <= max_bad_share * seen:
            return None
        first = "; ".join(map(str, bad[:3]))
        return (
            f"memories: {len(bad)} of {seen} could not be read, more than the share {max_bad_share:g} that "
            f"is allowed ({first}); correct them, or raise collect.max_bad_share"
        )


def _could_hold_memories(source: str) -> bool:
    """Whether a file is of a kind that is read, or of one that its owner may take for such."""
    return PurePosixPath(source).suffix.lower() in {*READERS, ""}


def without_learned(memory: Memory, known: Collection[str]) -> Memory:
    """What of a memory is new where its beginning was learned before, as in a diary or a conversation that goes on.

    Headings at its beginning stay. A beginning that has changed is learned again, with what follows it; and so is a
    conversation that does not go on with the user and a reply.

    Args:
        memory: whose digest is not known.
        known: digests of what earlier nights learned.
    """
    if memory.kind == "chat":
        turns = enumerate(digests_of_turns(memory.messages), 1)
        more = memory.messages[max((end for end, digest in turns if digest in known), default=0) :]
        goes_on = more and more[0]["role"] == "user" and any(turn["role"] == "assistant" for turn in more)
        return replace(memory, messages=more) if goes_on else memory
    if memory.kind != "text" or memory.text is None:
        return memory
    lines = memory.text.split("\n")
    learned = max((end for end, digest in enumerate(digests_of_beginnings(lines), 1) if digest in known), default=0)
    rest = "\n".join(lines[learned:]).strip("\n")
    if not learned or not rest.strip():
        return memory
    headings = itertools.takewhile(lambda line: not line.strip() or HEADING.match(line), lines[:learned])
    return replace(memory, text="\n".join([*(line for line in headings if line.strip()), rest]))


def taken(sources: Sequence[str], at_most: int | None) -> list[int]:
    """Which memories a night takes: their places, ascending.

    Args:
        sources: of all that are new, in the order in which they were read.
        at_most: how many; those of earlier days come first. None takes all.
    """
    return sorted(sorted(range(len(sources)), key=lambda at: day_of(sources[at]))[:at_most])


def read_tonight(folder: Path, settings: CollectSettings, night: int, known: Collection[str]) -> Tonight:
    """Read a folder and keep what is new, said once, and not for a later night.

    Args:
        folder: of memories.
        settings: see `CollectSettings`.
        night: its number, 1 or more.
        known: digests of what earlier nights learned.

    Raises:
        NotADirectoryError: there is no such folder.
    """
    reading = read_folder(folder, settings)
    new = new_memories(reading, known)
    fresh = [without_learned(memory, known) for memory in new if day_of(memory.source) <= night]
    learned = [memory for memory in reading.memories if memory.digest in known]
    unique = drop_near_duplicates(fresh, settings.duplicates, learned)
    return Tonight(
        memories=unique.memories,
        refused=tuple(item for item in reading.rejected if day_of(item.source) <= night),
        said_twice=tuple(item for item in (*reading.duplicates, *unique.duplicates) if day_of(item.source) <= night),
        reading=reading,
        learned=len(learned),
        waiting=tuple(dict.fromkeys(memory.source for memory in new if day_of(memory.source) > night)),
    )
