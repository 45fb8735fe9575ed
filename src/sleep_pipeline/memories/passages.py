"""Markdown and plain text as passages, each with the line where it begins."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Literal

from sleep_pipeline.memories.lines import Line
from sleep_pipeline.memories.records import Content
from sleep_pipeline.memories.tables import Found

HEADING = re.compile(r" {0,3}(#{1,6})\s+\S")
_FENCE = re.compile(r" {0,3}(```|~~~)")
_RULE = re.compile(r"\s*([-*_=])(?:\s*\1){2,}\s*$")


class _Passage:
    """Lines on their way to a passage."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.start = self.end = 0
        self.size = 0
        self.empty_lines = 0
        self.problems: list[Line] = []

    def add(self, line: Line) -> None:
        if line.problem is not None:
            # It is named, and costs the passage nothing else.
            self.problems.append(line)
            return
        if not self.start and line.text.strip():
            self.start = line.number
        if line.text.strip():
            self.end = line.number
        if self.start:
            self.lines.append(line.text)
            self.size += len(line.text) + 1
        self.empty_lines = 0 if line.text.strip() else self.empty_lines + 1

    def found(self, above: tuple[str, ...]) -> Iterator[Found]:
        """The passage below the headings that stand above it, if it says something; and its lines that say nothing."""
        for line in self.problems:
            yield Found(line.number, reason=line.problem or "", excerpt=line.text)
        if text := "\n".join(self.lines).strip("\n").rstrip():
            yield Found(self.start, Content("text", text="\n".join([*above, text])), end=self.end)


def read_passages(
    lines: Iterable[Line],
    markdown: bool,
    cut: Literal["section", "paragraph", "file"],
    max_bytes: int,
    headings: bool = True,
) -> Iterator[Found]:
    """The passages of a text.

    Args:
        lines: of the file.
        markdown: whether headings cut, each passage keeping the headings above it; else rules and pairs of empty lines.
        cut: see `CollectSettings.text_passages`.
        max_bytes: a longer passage is cut at a line's end.
        headings: whether passages begin with the headings above them; a whole file keeps its own anyway.
    """
    above: dict[int, str] = {}
    own = 0
    passage = _Passage()
    fence = ""

    def flush() -> Iterator[Found]:
        # A heading alone is no passage: it stands above those that follow.
        if own and not any(text.strip() for text in passage.lines[1:]):
            passage.lines.clear()
        elif own and not headings:
            passage.lines[0] = ""
        yield from passage.found(tuple(text for level, text in sorted(above.items()) if headings and level != own))

    for line in lines:
        mark = _FENCE.match(line.text) if markdown else None
        inside = bool(fence)
        if mark is not None and (not fence or mark.group(1) == fence):
            fence = "" if fence else mark.group(1)
        heading = None if inside or not markdown else HEADING.match(line.text)
        if heading is not None and cut != "file":
            yield from flush()
            level = len(heading.group(1))
            above = {at: text for at, text in above.items() if at < level}
            own = 0
            if line.problem is None:
                own, above[level] = level, line.text
            passage = _Passage()
        elif not inside and _ends(line, passage, markdown, cut):
            yield from flush()
            passage, own = _Passage(), 0
            if not markdown and cut == "section" and _RULE.match(line.text):
                continue
        elif passage.lines and passage.size + len(line.text) > max_bytes:
            yield from flush()
            passage, own = _Passage(), 0
        passage.add(line)
    yield from flush()


def _ends(line: Line, passage: _Passage, markdown: bool, cut: str) -> bool:
    if not passage.lines or cut == "file":
        return False
    if cut == "paragraph":
        says = any(text.strip() and not HEADING.match(text) for text in passage.lines)
        return says and passage.empty_lines >= 1 and bool(line.text.strip())
    if markdown:
        return False
    return bool(_RULE.match(line.text)) or (passage.empty_lines >= 2 and bool(line.text.strip()))
