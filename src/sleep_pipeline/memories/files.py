"""The files of a folder: which are read, which are passed over, and which cannot be."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from sleep_pipeline.memories.records import Rejected

READERS: dict[str, str] = {
    ".md": "markdown",
    ".markdown": "markdown",
    ".txt": "text",
    ".text": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
# Hidden files, what editors and downloads leave behind, and the pointers of DVC.
_PASSED_OVER = (
    ".*",
    "~*",
    "*~",
    "#*#",
    "*.tmp",
    "*.swp",
    "*.part",
    "*.crdownload",
    "*.bak",
    "*.dvc",
    "Thumbs.db",
    "desktop.ini",
)


@dataclass(frozen=True)
class FileToRead:
    """A file with memories.

    Attributes:
        path: where it is.
        source: how it is named in memories and errors.
        reader: one of the values of `READERS`.
    """

    path: Path
    source: str
    reader: str


def printable(name: str) -> str:
    """A file's name as text that can be written anywhere, even if it is not UTF-8."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def passed_over(name: str) -> bool:
    """Whether a file or folder of this name is none that people want to be read."""
    return any(fnmatchcase(name, pattern) for pattern in _PASSED_OVER)


def walk(folder: Path, max_depth: int, outside_links: bool) -> Iterator[FileToRead | Rejected]:
    """Every file below a folder that is not passed over, in the order of their names.

    A link to what is in the folder anyway is passed over: it is read where it lies. What lies in a hidden place is not,
    so a link to that is followed.
    """
    root = folder.resolve()
    pending: list[tuple[Path, str, int]] = [(folder, printable(folder.name or root.name), 0)]
    while pending:
        here, source, depth = pending.pop()
        try:
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as error:
            yield Rejected(source, 0, f"the folder cannot be listed ({error.strerror}); correct its permissions")
            continue
        folders: list[tuple[Path, str, int]] = []
        for entry in entries:
            if passed_over(entry.name):
                continue
            path, name = Path(entry.path), f"{source}/{printable(entry.name)}"
            if entry.is_symlink():
                problem = _link_problem(path, root, outside_links)
                if problem is None:
                    continue
                if problem:
                    yield Rejected(name, 0, problem)
                    continue
            try:
                mode = path.stat().st_mode
            except OSError as error:
                yield Rejected(name, 0, f"the file cannot be read ({error.strerror}); correct its permissions")
                continue
            if stat.S_ISDIR(mode):
                if depth >= max_depth:
                    yield Rejected(
                        name, 0, f"the folder is nested deeper than {max_depth}; move it up, or raise max_depth"
                    )
                else:
                    folders.append((path, name, depth + 1))
            elif not stat.S_ISREG(mode):
                yield Rejected(name, 0, "this is no ordinary file but a pipe, socket or device; move it away")
            elif (reader := READERS.get(path.suffix.lower())) is None:
                yield Rejected(name, 0, _unknown(path.suffix))
            else:
                yield FileToRead(path, name, reader)
        pending.extend(reversed(folders))


def _link_problem(path: Path, root: Path, outside_links: bool) -> str | None:
    """Why a link is not followed; "" if it is, None if it leads to what is read anyway."""
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):
        return "the link leads nowhere or in a circle; delete it"
    if target == root or root in target.parents:
        # What lies in a hidden place is passed over there, so it is read through the link.
        hidden = any(passed_over(part) for part in target.relative_to(root).parts)
        return "" if hidden else None
    if outside_links and root not in target.parents and target not in root.parents:
        return ""
    return "the link leaves the folder; put the file itself here, or set outside_links"


def _unknown(suffix: str) -> str:
    known = ", ".join(READERS)
    return f"files that end in {suffix!r} are not read; save it as one of {known}, or move it away"
