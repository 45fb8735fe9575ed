"""Packs memories into contexts: what a teacher has before it while it speaks of them."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from sleep_pipeline.memories.chunking import Counter, Tokenizer, split_text, token_counter
from sleep_pipeline.memories.records import Memory
from sleep_pipeline.memories.settings import Kind

if TYPE_CHECKING:
    import pandas as pd

_BETWEEN: dict[Kind, str] = {"text": "\n\n", "chat": "\n\n", "qa": "\n\n", "label": "\n"}


@dataclass(frozen=True)
class Context:
    """A text for the system turn.

    Attributes:
        id: of its text and its memories.
        kind: of its memories.
        source: their file.
        memory_ids: the memories in it, in order; one memory has several contexts if it is longer than the window.
        text: what is read.
        tokens: its length.
        part: which part of its memory it is, from 1.
        parts: in how many parts its memory was cut; 1 if it was not.
        flags: those of its memories, and `broken_sentence` if it begins or ends within a sentence.
    """

    id: str
    kind: Kind
    source: str
    memory_ids: tuple[str, ...]
    text: str
    tokens: int
    part: int = 1
    parts: int = 1
    flags: tuple[str, ...] = ()


CONTEXT_COLUMNS: tuple[str, ...] = tuple(item.name for item in fields(Context))


def pack_contexts(
    memories: Sequence[Memory], tokenizer: Tokenizer, max_tokens: int, together: Collection[Kind] = ("qa", "label")
) -> list[Context]:
    """Lay memories out as contexts of at most `max_tokens`, in their order.

    A text is read as it is, a conversation as a transcript, questions as `Question:` and `Answer:` lines, labelled
    examples as `text -> label`. What does not fit is cut between sentences.

    Args:
        memories: of a night.
        tokenizer: the model's.
        max_tokens: of a context, without the chat template around it.
        together: kinds of which successive memories of one file share a context as far as they fit. Texts and
            conversations otherwise stand alone, so that each gets its share of the teacher's samples.

    Raises:
        ValueError: `max_tokens` is too small.
    """
    count = token_counter(tokenizer)
    contexts: list[Context] = []
    group: list[Memory] = []

    def flush() -> None:
        if group:
            text = _joined(group)
            contexts.append(_context(group, text, count(text)))
            group.clear()

    for memory in memories:
        pieces = split_text(memory.rendered(), count, max_tokens) if not _fits([memory], count, max_tokens) else []
        alike = group and (group[0].kind, group[0].source) == (memory.kind, memory.source)
        if pieces or not alike or memory.kind not in together or not _fits([*group, memory], count, max_tokens):
            flush()
        if not pieces:
            group.append(memory)
        for number, piece in enumerate(pieces, start=1):
            broken = ("broken_sentence",) if piece.broken else ()
            contexts.append(_context([memory], piece.text, piece.tokens, number, len(pieces), broken))
    flush()
    return contexts


def _joined(memories: Sequence[Memory]) -> str:
    return _BETWEEN[memories[0].kind].join(memory.rendered() for memory in memories)


def _fits(memories: Sequence[Memory], count: Counter, max_tokens: int) -> bool:
    return count(_joined(memories)) <= max_tokens


def _context(
    memories: Sequence[Memory], text: str, tokens: int, part: int = 1, parts: int = 1, flags: tuple[str, ...] = ()
) -> Context:
    ids = tuple(memory.id for memory in memories)
    digest = hashlib.sha256("\0".join([*ids, text]).encode()).hexdigest()[:16]
    merged = dict.fromkeys([*(flag for memory in memories for flag in memory.flags), *flags])
    return Context(digest, memories[0].kind, memories[0].source, ids, text, tokens, part, parts, tuple(merged))


def contexts_to_frame(contexts: Iterable[Context]) -> pd.DataFrame:
    """One row a context; `memory_ids` and `flags` as words with spaces between them."""
    import pandas as pd

    rows = [
        {**asdict(item), "memory_ids": " ".join(item.memory_ids), "flags": " ".join(item.flags)} for item in contexts
    ]
    numbers = {"tokens": "int64", "part": "int64", "parts": "int64"}
    frame = pd.DataFrame(rows, columns=list(CONTEXT_COLUMNS))
    return frame.astype({name: numbers.get(name, "string") for name in CONTEXT_COLUMNS})


def contexts_from_frame(frame: pd.DataFrame) -> list[Context]:
    """What `contexts_to_frame` made a table of."""
    contexts = []
    rows: list[dict[Any, Any]] = frame[list(CONTEXT_COLUMNS)].to_dict("records")
    for row in rows:
        lists = {name: tuple(row[name].split()) for name in ("memory_ids", "flags")}
        contexts.append(Context(**{**row, **lists, **{name: int(row[name]) for name in ("tokens", "part", "parts")}}))
    return contexts


def plain_question(question: str) -> str:
    """A question without what does not make it another one: case, and how words are spaced."""
    return " ".join(question.casefold().split())


def is_held_out(question: str, share: float, salt: str) -> bool:
    """Whether a question is a probe: a fixed function of its words, so that it is one in every night or never."""
    digest = hashlib.sha256(f"{salt}\0{plain_question(question)}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def split_probes(questions: Iterable[str], share: float, salt: str) -> tuple[list[str], list[str]]:
    """(for training, held out): the same question falls on the same side whatever else is there.

    Args:
        questions: or ids.
        share: of the questions that is held out, on average.
        salt: another salt holds out others.

    Raises:
        ValueError: `share` is no share.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share={share} is no share; give a number between 0 and 1")
    training: list[str] = []
    probes: list[str] = []
    for question in questions:
        (probes if is_held_out(question, share, salt) else training).append(question)
    return training, probes
