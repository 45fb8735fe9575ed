"""Reads a folder of memories: every good row, and for every bad one its file, its line, and what to do about it."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from sleep_pipeline.memories.exports import tally
from sleep_pipeline.memories.files import FileToRead, walk
from sleep_pipeline.memories.injection import injection_flags
from sleep_pipeline.memories.json_files import read_json
from sleep_pipeline.memories.lines import looks_binary, read_lines
from sleep_pipeline.memories.masking import mask, mask_content
from sleep_pipeline.memories.passages import read_passages
from sleep_pipeline.memories.records import Duplicate, Memory, Rejected, duplicate
from sleep_pipeline.memories.rows import utc
from sleep_pipeline.memories.settings import CollectSettings, MaskSettings
from sleep_pipeline.memories.tables import Found, read_csv, read_jsonl, read_parquet

logger = logging.getLogger(__name__)

_DAY = re.compile(r"(?:^|/)day_(\d+)(?:/|$)")
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|[nrtbf]|([\"/]))")
_HEAD = 8192
_LATEST = 10**11 - 1  # seconds that `utc` does not take for milliseconds; a file system can claim any


@dataclass(frozen=True)
class ReadFile:
    """A file that was read, for lineage.

    Attributes:
        source: as in `Memory`.
        digest: SHA-256 of its bytes.
        size: in bytes.
        memories: how many it gave.
        rejected: how many of its rows were rejected.
        left_out: how many messages and parts of messages its exported conversations hold that are no words between the
            two, by kind.
    """

    source: str
    digest: str
    size: int
    memories: int
    rejected: int
    left_out: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Reading:
    """What a folder holds.

    Attributes:
        memories: by file and line, each digest once.
        rejected: what could not be read.
        duplicates: what was there twice, word for word.
        files: what was read.
    """

    memories: tuple[Memory, ...]
    rejected: tuple[Rejected, ...]
    duplicates: tuple[Duplicate, ...]
    files: tuple[ReadFile, ...]

    def digest(self) -> str:
        """SHA-256 over the files that were read, by name and content."""
        told = "\n".join(f"{file.digest}  {file.source}" for file in self.files)
        return hashlib.sha256(told.encode()).hexdigest()


def read_folder(folder: Path, settings: CollectSettings, only: Collection[str] | None = None) -> Reading:
    """Read all memories below a folder.

    Args:
        folder: of files as people have them; see the module `files` for the kinds.
        settings: limits, masks, and what to do with text that reads like an attack.
        only: sources of the files to read; None for all.

    Raises:
        NotADirectoryError: there is no such folder. Nothing that is in the folder raises.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder}: no such folder; make it and put memories into it")
    memories: dict[str, Memory] = {}
    rejected: list[Rejected] = []
    duplicates: list[Duplicate] = []
    files: list[ReadFile] = []
    for item in walk(folder, settings.max_depth, settings.outside_links):
        if only is not None and item.source not in only:
            continue
        if isinstance(item, Rejected):
            rejected.append(item)
            continue
        found, refused, file = _read_file(item, settings)
        rejected.extend(refused)
        if file is not None:
            files.append(file)
        for memory in found:
            first = memories.setdefault(memory.digest, memory)
            if first is memory:
                continue
            if day_of(memory.source) < day_of(first.source):
                # It is learned on the earlier day, whichever folder comes first: day_10 stands before day_2.
                memories[memory.digest], memory, first = memory, first, memory
            duplicates.append(duplicate(memory, first, 1.0))
    return Reading(tuple(memories.values()), tuple(rejected), tuple(duplicates), tuple(files))


def day_of(source: str) -> int:
    """The night from which a memory may be learned: N for what lies in a folder `day_N`, else 0."""
    found = _DAY.search(source)
    return int(found.group(1)) if found else 0


def new_memories(reading: Reading, known: Collection[str]) -> list[Memory]:
    """The memories whose digest is not among those of earlier nights."""
    return [memory for memory in reading.memories if memory.digest not in known]


def _read_file(file: FileToRead, settings: CollectSettings) -> tuple[list[Memory], list[Rejected], ReadFile | None]:
    """Read a file until it stands still; one that does not is left for the next night."""
    for _ in range(settings.rereads + 1):
        try:
            with file.path.open("rb") as stream:
                before = _state(os.fstat(stream.fileno()))
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
                stream.seek(0)
                memories, rejected, left_out = _read_stream(stream, file, before[1], settings)
            after = _state(file.path.stat())
        except OSError as error:
            told = error.strerror or type(error).__name__
            reason = f"the file cannot be read ({told}); correct its permissions or move it away"
            return [], [Rejected(file.source, 0, reason)], None
        if before == after:
            if left_out:
                logger.info("%s: left out of its conversations: %s", file.source, tally(left_out))
            read = ReadFile(file.source, digest, before[0], len(memories), len(rejected), left_out)
            return memories, rejected, read
    reason = "the file changed while it was read; it is left for the next night, when nothing should write to it"
    return [], [Rejected(file.source, 0, reason)], None


def _state(stat: os.stat_result) -> tuple[int, int, int]:
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _read_stream(
    stream: BinaryIO, file: FileToRead, changed_ns: int, settings: CollectSettings
) -> tuple[list[Memory], list[Rejected], dict[str, int]]:
    memories: list[Memory] = []
    rejected: list[Rejected] = []
    left_out: Counter[str] = Counter()
    nothing = True
    for found in _found(stream, file, settings):
        nothing = False
        if found.content is None:
            rejected.append(_rejected(file.source, found, settings))
            continue
        left_out.update(found.content.left_out)
        result = _memory(file.source, found, changed_ns, settings)
        if isinstance(result, Memory):
            memories.append(result)
        else:
            rejected.append(result)
    if nothing:
        rejected.append(Rejected(file.source, 0, "the file holds no memory; delete it or fill it in"))
    return memories, rejected, dict(left_out)


def _found(stream: BinaryIO, file: FileToRead, settings: CollectSettings) -> Iterator[Found]:
    limit = settings.max_line_bytes
    head = stream.read(_HEAD)
    stream.seek(0)
    if not head:
        yield Found(0, reason="the file is empty; delete it or fill it in")
    elif file.reader == "parquet":
        yield from read_parquet(stream, limit)
    elif looks_binary(head):
        yield Found(0, reason="the file is binary and no text; save it as text in UTF-8, or move it away")
    elif file.reader == "json":
        yield from read_json(stream, limit)
    else:
        lines = read_lines(stream, limit)
        if file.reader == "jsonl":
            yield from read_jsonl(lines)
        elif file.reader == "csv":
            yield from read_csv(lines, limit)
        else:
            markdown = file.reader == "markdown"
            yield from read_passages(lines, markdown, settings.text_passages, limit, settings.keep_headings)


def _memory(source: str, found: Found, changed_ns: int, settings: CollectSettings) -> Memory | Rejected:
    assert found.content is not None
    content, masked = mask_content(found.content, settings.mask)
    if content.kind == "text" and not (content.text or "").strip():
        return _rejected(
            source, Found(found.line, reason="it holds files and no words; write down what they show"), settings
        )
    digest = content.digest()
    memory = Memory(
        id=digest[:16],
        kind=content.kind,
        text=content.text,
        messages=content.messages,
        question=content.question,
        answer=content.answer,
        label=content.label,
        source=source,
        line=found.line,
        time=content.time or utc(min(max(0, changed_ns // 10**9), _LATEST)),
        digest=digest,
        flags=content.flags,
        masked=masked,
        end=found.end,
    )
    flags = injection_flags(memory.rendered()) if settings.injection != "ignore" else ()
    if flags and settings.injection == "quarantine":
        reason = f"the text reads like an attack on the model ({', '.join(flags)}); look at it, or set injection: flag"
        return _rejected(source, Found(found.line, reason=reason, excerpt=memory.rendered()), settings)
    return replace(memory, flags=(*memory.flags, *flags))


def _rejected(source: str, found: Found, settings: CollectSettings) -> Rejected:
    # Quarantine is read by people: whatever the switches, it shows no secrets.
    everything = MaskSettings(phone_regions=settings.mask.phone_regions)
    shown = _plain(mask(_whole(_unescaped(found.excerpt[:2000])), everything).text)
    if len(shown) > settings.excerpt:
        shown = shown[: settings.excerpt - 1] + "…"
    return Rejected(source, found.line, _plain(mask(_whole(found.reason), everything).text), shown)


def _unescaped(text: str) -> str:
    """The text with the characters that JSON's escapes stand for: the letter of one hides a secret right behind it."""
    return _ESCAPE.sub(lambda found: chr(int(found[1], 16)) if found[1] else found[2] or " ", text)


def _whole(text: str) -> str:
    """The text without halves of characters, which JSON can spell and no file can hold."""
    return re.sub(r"[\ud800-\udfff]", " ", text)


def _plain(text: str) -> str:
    """The text on one line, without what cannot be printed."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def rejected_duplicates(duplicates: Sequence[Duplicate]) -> list[Rejected]:
    """Duplicates as entries of the quarantine."""
    return [
        Rejected(item.source, item.line, f"says again what {item.of_source}:{item.of_line} says; delete one of the two")
        for item in duplicates
    ]
