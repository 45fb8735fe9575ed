"""What collecting makes: memories, what was rejected, what was there twice; as dataclasses and as tables."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, get_args

from sleep_pipeline.memories.settings import Kind

if TYPE_CHECKING:
    import pandas as pd

Message = dict[str, str]

_SPEAKERS = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}


@dataclass(frozen=True)
class Content:
    """What a memory says, without where it is from.

    Attributes:
        kind: which of the other attributes are set: `text` (text), `chat` (messages), `qa` (question and answer) or
            `label` (text and label).
        time: as the row states it, ISO 8601 in UTC; None if it does not.
        flags: what is odd about it.
        left_out: how many messages and parts of messages of an exported conversation are no words between the two, by
            kind.
    """

    kind: Kind
    text: str | None = None
    messages: tuple[Message, ...] = ()
    question: str | None = None
    answer: str | None = None
    label: str | None = None
    time: str | None = None
    flags: tuple[str, ...] = ()
    left_out: dict[str, int] = field(default_factory=dict)

    def size(self) -> int:
        """How many characters it says."""
        texts = (self.text, self.question, self.answer, self.label, *(message["content"] for message in self.messages))
        return sum(len(text) for text in texts if text)

    def digest(self) -> str:
        """SHA-256 of what is said: the same whatever the spaces, line ends and Unicode form it is written in."""
        said = [self.kind, self.text, [[m["role"], m["content"]] for m in self.messages]]
        said += [self.question, self.answer, self.label]
        return hashlib.sha256(json.dumps(_plain(said), ensure_ascii=False).encode()).hexdigest()


def digests_of_beginnings(lines: Sequence[str]) -> Iterator[str]:
    """For every line of a text the digest of a memory that ends with it; all together in the time of one."""
    mark = "\0"
    before, _, after = json.dumps(_plain(["text", mark, [], None, None, None])).partition(json.dumps(mark)[1:-1])
    digest, said = hashlib.sha256(before.encode()), False
    for line in lines:
        if words := _plain(line):
            digest.update(((" " if said else "") + json.dumps(words, ensure_ascii=False)[1:-1]).encode())
            said = True
        whole = digest.copy()
        whole.update(after.encode())
        yield whole.hexdigest()


def digests_of_turns(messages: Sequence[Message]) -> Iterator[str]:
    """For every message of a conversation the digest of a memory that ends with it; all together in the time of one."""
    before, _, after = json.dumps(_plain(["chat", None, [], None, None, None])).partition("]")
    digest = hashlib.sha256(before.encode())
    for number, message in enumerate(messages):
        turn = json.dumps(_plain([message["role"], message["content"]]), ensure_ascii=False)
        digest.update(f"{', ' if number else ''}{turn}".encode())
        whole = digest.copy()
        whole.update(f"]{after}".encode())
        yield whole.hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return " ".join(unicodedata.normalize("NFC", value).split())
    return [_plain(item) for item in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class Memory:
    """One memory.

    Attributes:
        id: the first 16 digits of `digest`.
        kind: which of the next five are set, see `Content`.
        text: of kinds `text` and `label`.
        messages: of kind `chat`, each with `role` and `content`.
        question: of kind `qa`.
        answer: of kind `qa`.
        label: of kind `label`.
        source: its file, from the name of the folder on, with forward slashes.
        line: where it begins in the file, from 1; for JSON and Parquet the row.
        time: ISO 8601 in UTC: the row's own `time` or `timestamp`, else when the file was last changed.
        digest: of what it says, after masking; where an earlier night has learned its beginning, with that.
        flags: `prompt_injection`, `control_tokens`, `hidden_characters`, `unread_time`.
        masked: how many secrets, e-mail addresses and so on were masked.
        end: the last line of a passage; 0 where that is not known, as in tables of earlier releases.
    """

    id: str
    kind: Kind
    text: str | None
    messages: tuple[Message, ...]
    question: str | None
    answer: str | None
    label: str | None
    source: str
    line: int
    time: str
    digest: str
    flags: tuple[str, ...] = ()
    masked: dict[str, int] = field(default_factory=dict)
    end: int = 0

    def rendered(self) -> str:
        """The memory as running text: what a teacher reads, and what duplicates are found by."""
        if self.kind == "chat":
            return "\n".join(f"{_SPEAKERS.get(m['role'], m['role'])}: {m['content']}" for m in self.messages)
        if self.kind == "qa":
            return f"Question: {self.question}\nAnswer: {self.answer}"
        return f"{self.text} -> {self.label}" if self.kind == "label" else str(self.text)


@dataclass(frozen=True)
class Rejected:
    """Something that was not read.

    Attributes:
        source: file, as in `Memory`.
        line: from 1; 0 for the file as a whole.
        reason: what is wrong and what to do.
        excerpt: its beginning, masked.
    """

    source: str
    line: int
    reason: str
    excerpt: str = ""

    @property
    def place(self) -> str:
        """`file:line`, or the file."""
        return f"{self.source}:{self.line}" if self.line else self.source

    def __str__(self) -> str:
        """`file:line: reason`."""
        return f"{self.place}: {self.reason}"


@dataclass(frozen=True)
class Duplicate:
    """A memory that says what another one says.

    Attributes:
        id: of the one that was dropped.
        source: its file.
        line: its line.
        of: id of the one that stays.
        of_source: its file.
        of_line: its line.
        similarity: Jaccard similarity of the two, 1 for the same words.
    """

    id: str
    source: str
    line: int
    of: str
    of_source: str
    of_line: int
    similarity: float


def duplicate(dropped: Memory, kept: Memory, similarity: float) -> Duplicate:
    """The record that `dropped` was left out for `kept`."""
    return Duplicate(
        dropped.id, dropped.source, dropped.line, kept.id, kept.source, kept.line, round(float(similarity), 6)
    )


_TEXTS = ("text", "question", "answer", "label")
_JSON = ("messages", "flags", "masked")
MEMORY_COLUMNS: tuple[str, ...] = tuple(item.name for item in fields(Memory))
REJECTED_COLUMNS: tuple[str, ...] = tuple(item.name for item in fields(Rejected))
DUPLICATE_COLUMNS: tuple[str, ...] = tuple(item.name for item in fields(Duplicate))


def memories_to_frame(memories: Iterable[Memory]) -> pd.DataFrame:
    """One row a memory; `messages`, `flags` and `masked` as JSON, so that the columns' types never vary."""
    rows = []
    for memory in memories:
        row = asdict(memory)
        rows.append({**row, **{name: json.dumps(row[name], ensure_ascii=False) for name in _JSON}})
    return _frame(rows, MEMORY_COLUMNS)


def memories_from_frame(frame: pd.DataFrame) -> list[Memory]:
    """The memories of a table that `memories_to_frame` made; columns that it does not know are left out.

    Raises:
        ValueError: a column is missing or a row has an unknown kind.
    """
    if "end" not in frame.columns:
        frame = frame.assign(end=0)
    missing = [name for name in MEMORY_COLUMNS if name not in frame.columns]
    if missing:
        raise ValueError(f"the table of memories lacks the columns {missing}; make it with memories_to_frame")
    memories = []
    rows: list[dict[Any, Any]] = frame[list(MEMORY_COLUMNS)].to_dict("records")
    for row in rows:
        if row["kind"] not in get_args(Kind):
            raise ValueError(f"memory {row['id']!r} has the unknown kind {row['kind']!r}; use one of {get_args(Kind)}")
        texts = {name: row[name] if isinstance(row[name], str) else None for name in _TEXTS}
        read = {name: json.loads(row[name]) for name in _JSON}
        lists = {"messages": tuple(read["messages"]), "flags": tuple(read["flags"]), "masked": read["masked"]}
        values: dict[str, Any] = {**row, **texts, **lists, "line": int(row["line"]), "end": int(row["end"])}
        memories.append(Memory(**values))
    return memories


def rejected_to_frame(rejected: Iterable[Rejected]) -> pd.DataFrame:
    """One row for each thing that was rejected."""
    return _frame([asdict(item) for item in rejected], REJECTED_COLUMNS)


def rejected_from_frame(frame: pd.DataFrame) -> list[Rejected]:
    """What `rejected_to_frame` made a table of."""
    rows: list[dict[Any, Any]] = frame[list(REJECTED_COLUMNS)].to_dict("records")
    return [Rejected(**{**row, "line": int(row["line"])}) for row in rows]


def places_by_reason(rejected: Iterable[Rejected]) -> dict[str, list[str]]:
    """Where each reason was given, in the order of the reasons' first places."""
    places: dict[str, list[str]] = {}
    for item in rejected:
        places.setdefault(item.reason, []).append(item.place)
    return places


def duplicates_to_frame(duplicates: Iterable[Duplicate]) -> pd.DataFrame:
    """One row for each memory that was dropped as a duplicate."""
    return _frame([asdict(item) for item in duplicates], DUPLICATE_COLUMNS)


def _frame(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    import pandas as pd

    kinds = {"line": "int64", "end": "int64", "of_line": "int64", "similarity": "float64"}
    frame = pd.DataFrame(rows, columns=list(columns))
    return frame.astype({name: kinds.get(name, "string") for name in columns})
