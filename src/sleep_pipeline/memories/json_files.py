"""Files of one JSON value: an array of rows, or rows one after the other, read row by row however large the file is."""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from sleep_pipeline.memories.lines import encoding_of
from sleep_pipeline.memories.tables import Found, json_row

_CHUNK = 2**18
_SHOWN = 1000
# JSON allows no line end within a string.
_STRING = re.compile(r'(?:[^"\\\n]+|\\.)*+', re.S)
_BLANKS = re.compile(r"\s*")
# How a line of JSON begins, and hardly one of prose.
_BEGINS = frozenset('"{}[],')
_INDENT = re.compile(r"\s*\n([^\S\n]*)\{")
# Up to the next bracket, or to a string that the piece of text does not end; between rows also to a comma.
_WITHIN = re.compile(rf'(?:[^"\[\]{{}}]+|"{_STRING.pattern}")*+', re.S)
_BETWEEN = re.compile(rf'(?:[^"\[\]{{}},]+|"{_STRING.pattern}")*+', re.S)
# An export repeats much around the words: ids, settings, what tools answered.
_AROUND = 16


class _Row:
    """The text of the row that is being read; of one that is too long only the beginning is held."""

    def __init__(self, max_chars: int) -> None:
        self._max, self._size = max_chars, 0
        self._parts: list[str] = []
        self._deepest = 0.0
        self.lost = False

    def add(self, text: str) -> None:
        self._size += len(text)
        self._parts.append(text)
        if self._size > self._max:
            self._parts = ["".join(self._parts)[:_SHOWN]]

    def take(self, torn: bool = False) -> tuple[str, bool]:
        """Its text, and whether that is all of it; the next row begins.

        What follows a torn row is its rest, up to a line that begins an object and is indented no deeper: what it
        holds, such as the turns of a conversation, must not pass for rows.
        """
        text, whole = "".join(self._parts), self._size <= self._max
        self._parts, self._size = [], 0
        begins = _INDENT.match(text)
        if self.lost:
            self.lost = begins is None or len(begins[1]) > self._deepest
        if self.lost:
            return "", whole
        if torn:
            self.lost, self._deepest = True, len(begins[1]) if begins else math.inf
        return text.strip(), whole


def read_json(stream: BinaryIO, max_bytes: int) -> Iterator[Found]:
    """The rows of a file that is an array of them, or holds one or more after each other.

    A row that cannot be read takes no other row with it, as far as its brackets are balanced, and its quotes closed or
    the next row on a line of its own.

    Args:
        stream: at its beginning: UTF-8, or what its byte order mark says.
        max_bytes: largest row, of what it says; with what stands around that, 16 times as much.
    """
    encoding, texts = _texts(stream)
    number = 0
    for text, problem in _rows(texts, _AROUND * max_bytes):
        if not text:
            yield Found(0, reason=problem or "")
            continue
        number += 1
        if problem is None and (re.search("[\udc80-\udcff]", text) or (encoding != "utf-8" and "�" in text)):
            problem = f"a character of row {number} is not valid {encoding.upper()}; save the file as UTF-8"
        if problem is not None:
            yield Found(number, reason=problem, excerpt=_shown(text))
            continue
        found = json_row(number, text, "row")
        if found.content is not None and found.content.size() > max_bytes:
            reason = f"the row says more than {max_bytes} characters; split it, or raise max_line_bytes"
            found = Found(number, reason=reason, excerpt=_shown(text))
        yield found


def _shown(text: str) -> str:
    return re.sub("[\udc80-\udcff]", "�", text[:_SHOWN])


def _texts(stream: BinaryIO) -> tuple[str, Iterator[str]]:
    mark, encoding = encoding_of(stream.read(4))
    stream.seek(len(mark) if encoding == "utf-8" else 0)
    # Bytes that are no UTF-8 stay recognisable, so that only their own row is lost.
    decoder = codecs.getincrementaldecoder(encoding)("surrogateescape" if encoding == "utf-8" else "replace")

    def read() -> Iterator[str]:
        while raw := stream.read(_CHUNK):
            yield decoder.decode(raw)
        yield decoder.decode(b"", True)

    return encoding, read()


def _rows(texts: Iterable[str], max_chars: int) -> Iterator[tuple[str, str | None]]:
    """The text of each row, and why it cannot be read; "" with a reason is one about the whole file.

    Only quotes and brackets are followed: whether what is between them is JSON is seen when a row is whole.
    """
    row = _Row(max_chars)
    outside: int | None = None  # brackets around a row: 1 in an array, else 0
    depth, quoted, rest = 0, False, ""
    for piece in texts:
        text, rest, start = rest + piece, "", 0
        if outside is None:
            text = text.lstrip()
            if not text:
                continue
            outside = depth = start = int(text[0] == "[")
        at = start
        while at < len(text):
            if quoted:
                at = _after(_STRING, text, at)
                mark = text[at : at + 1]
                follows = _after(_BLANKS, text, at)
                if mark == "\\" or (mark == "\n" and follows == len(text)):  # what follows comes with the next piece
                    text, rest = text[:at], text[at:]
                elif mark == "\n" and text[follows] not in _BEGINS:
                    at = follows
                elif mark == "\n":
                    row.add(text[start:at])
                    start, depth, quoted = at, outside, False
                    beginning, _ = row.take(torn=True)
                    if beginning:
                        yield beginning, "a quote is opened and not closed again in its line; close it"
                elif mark:
                    quoted, at = False, at + 1
                continue
            at = _after(_BETWEEN if depth == outside == 1 else _WITHIN, text, at) + 1
            if at > len(text):
                break
            mark = text[at - 1]
            if mark == '"':
                quoted = True
            elif mark in "[{":
                depth += 1
            else:
                depth -= mark != ","
                if depth > outside or (depth == outside == 1 and mark != ","):
                    continue
                # Of an array's rows the comma and the bracket behind them are no part.
                row.add(text[start : at - 1 if outside else at])
                start = at
                yield from _taken(row, max_chars)
                if depth < outside and mark == "]" and not row.lost:
                    outside = 0
                depth = max(depth, outside)
        row.add(text[start:])
    if outside is None:
        return
    if quoted or depth > outside:
        beginning, _ = row.take()
        if beginning:
            yield beginning, "the file ends within the row; export or copy it again"
    else:
        beginning = ""
        yield from _taken(row, max_chars)
    if outside and not beginning and not row.lost:
        yield "", "the file ends before its array does, so rows may be missing; export or copy it again"


def _after(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return found.end() if found else at


def _taken(row: _Row, max_chars: int) -> Iterator[tuple[str, str | None]]:
    text, whole = row.take()
    if text:
        too_long = f"the row is longer than {max_chars} characters; split it, or raise max_line_bytes"
        yield text, None if whole else too_long
