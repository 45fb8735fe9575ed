"""The write-ahead log of a night: which saved memory is live, whatever moment the process dies at.

A directory holds complete checkpoints of the memory and `journal.jsonl`, one JSON record a line, each written
to disk before the next step begins. The *only* record that changes which checkpoint is live is `committed`; a
checkpoint is written under another name, flushed and renamed before it is named there. A line torn by the
crash is not a record.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOG = "journal.jsonl"
PREFIX = "memory-"
PARTIAL = ".partial"


class JournalError(ValueError):
    """The directory does not hold what its log says."""


@dataclass(frozen=True)
class Recovery:
    """What a journal says after a crash.

    Attributes:
        live: the checkpoint that holds the last complete state; None if none was ever written.
        interrupted: the `begin` record of the sleep that was under way, or None. Its work is lost, or is in
            the trainer's own checkpoints; nothing of it is in `live`.
    """

    live: Path | None
    interrupted: dict[str, Any] | None


def directory_digest(directory: Path) -> str:
    """Return the SHA-256 over the names and bytes of a checkpoint's files."""
    total = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            total.update(f"{path.relative_to(directory).as_posix()} {path.stat().st_size} ".encode())
            total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def flush(path: Path) -> None:
    """Force a file, or the entries of a directory, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Journal:
    """The log and the checkpoints of one memory.

    Args:
        directory: made if it does not exist; belongs to this memory alone.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.path = self.directory / LOG

    def records(self) -> list[dict[str, Any]]:
        """Return the complete records, oldest first.

        Raises:
            JournalError: a line other than the last is damaged.
        """
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").split("\n")
        records = []
        for number, line in enumerate(lines, start=1):
            if not line:
                continue
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError as error:
                if number == len(lines):
                    break
                raise JournalError(f"{self.path}:{number}: damaged record ({error}); restore the file") from error
        return records

    def append(self, event: str, **fields: Any) -> None:
        """Write one record and force it onto the disk."""
        self._drop_torn_line()
        with self.path.open("a", encoding="utf-8") as log:
            log.write(json.dumps({"event": event, **fields}, sort_keys=True) + "\n")
            log.flush()
            os.fsync(log.fileno())
        flush(self.directory)

    def _drop_torn_line(self) -> None:
        """Cut off a last line that a crash left incomplete; the next record would continue it."""
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        if content and not content.endswith(b"\n"):
            with self.path.open("r+b") as log:
                log.truncate(content.rfind(b"\n") + 1)
                os.fsync(log.fileno())

    def write_checkpoint(self, name: str, save: Callable[[str], None]) -> str:
        """Write a checkpoint with `save(directory)`, completely or not at all; return its digest."""
        partial, final = self.directory / (name + PARTIAL), self.directory / name
        for leftover in (partial, final):
            if leftover.exists():
                shutil.rmtree(leftover)
        save(str(partial))
        for path in sorted(partial.rglob("*")):
            flush(path)
        flush(partial)
        digest = directory_digest(partial)
        os.replace(partial, final)
        flush(self.directory)
        return digest

    def live(self) -> dict[str, Any] | None:
        """Return the record of the live checkpoint, or None before the first.

        `aborted` after `committed` takes that commit back: the process saw the write fail and undid its side.
        """
        live: dict[str, Any] | None = None
        before = None
        for record in self.records():
            if record["event"] in ("started", "committed"):
                before, live = live, record
            elif record["event"] == "begin":
                before = live
            elif record["event"] == "aborted":
                live = before
        return live

    def prune(self) -> None:
        """Remove every checkpoint but the live one."""
        live = self.live()
        for path in self.directory.iterdir():
            if path.is_dir() and path.name.startswith(PREFIX) and (live is None or path.name != live["checkpoint"]):
                shutil.rmtree(path)

    def next_name(self) -> str:
        """Return an unused checkpoint name."""
        written = sum(record["event"] in ("started", "prepared") for record in self.records())
        return f"{PREFIX}{written:05d}"

    def recover(self) -> Recovery:
        """Find the live checkpoint, remove what an interrupted sleep left behind, and close its record.

        Raises:
            JournalError: the live checkpoint is missing or its files have changed.
        """
        live = self.live()
        interrupted = None
        for record in self.records():
            if record["event"] == "begin":
                interrupted = record
            elif record["event"] in ("committed", "aborted"):
                interrupted = None
        if live is not None:
            path = self.directory / live["checkpoint"]
            if not path.is_dir():
                raise JournalError(f"{self.path} names {path.name} as the live memory, but {path} does not exist")
            if directory_digest(path) != live["digest"]:
                raise JournalError(f"{path} has changed since it was committed: restore it")
        self.prune()
        if interrupted is not None:
            self.append("aborted", reason="the process ended before the sleep was committed")
        return Recovery(None if live is None else self.directory / live["checkpoint"] / live["folder"], interrupted)
