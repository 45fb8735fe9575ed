"""Files of rows, JSON lines, CSV and Parquet, row by row; a row that cannot be read takes no other row with it."""

from __future__ import annotations

import csv
import json
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from sleep_pipeline.memories.bad_rows import BadRow
from sleep_pipeline.memories.lines import Line
from sleep_pipeline.memories.records import Content
from sleep_pipeline.memories.rows import BESIDES, COLUMNS, read_row

_DELIMITERS = (",", ";", "\t", "|")
_SHOWN = 1000
_BATCH = 64


@dataclass(frozen=True)
class Found:
    """What stands at a line of a file: a memory's content, or the reason why there is none.

    Attributes:
        line: where it begins, from 1, or which row it is in JSON and Parquet; 0 for the file as a whole.
        content: None if it was rejected.
        reason: why it was rejected.
        excerpt: its beginning, unmasked.
        end: the last line of a passage that says something; 0 where that is not known.
    """

    line: int
    content: Content | None = None
    reason: str = ""
    excerpt: str = ""
    end: int = 0


def _found(line: int, row: Any, excerpt: str) -> Found:
    try:
        return Found(line, read_row(row))
    except BadRow as error:
        return Found(line, reason=str(error), excerpt=excerpt[:_SHOWN])


def read_jsonl(lines: Iterable[Line]) -> Iterator[Found]:
    """The rows of a file with one JSON object a line; empty lines are skipped."""
    for line in lines:
        if line.problem is not None:
            yield Found(line.number, reason=line.problem, excerpt=line.text)
            continue
        if line.text.strip():
            yield json_row(line.number, line.text, "line")


def json_row(number: int, text: str, called: str) -> Found:
    """The row that a text in JSON is.

    Args:
        number: where it stands.
        text: of one JSON value.
        called: what to mend if it is none.
    """
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        told = error.msg.removesuffix(" at")
        reason = f"no JSON: {told} at character {error.pos + 1}; mend or delete the {called}"
        return Found(number, reason=reason, excerpt=text[:_SHOWN])
    except (RecursionError, ValueError) as error:
        told = "nested too deeply" if isinstance(error, RecursionError) else "a number is too long"
        reason = f"no readable JSON: {told}; mend or delete the {called}"
        return Found(number, reason=reason, excerpt=text[:_SHOWN])
    return _found(number, row, text)


class RecordLines:
    """Feeds `csv.reader` and remembers what it took, so that a record that fails can be put back."""

    def __init__(self, lines: Iterable[Line], max_bytes: int) -> None:
        self._lines, self._max = iter(lines), max_bytes
        self._waiting: deque[Line] = deque()
        self.taken: list[Line] = []
        self._size = 0

    def next_line(self) -> Line | None:
        return self._waiting.popleft() if self._waiting else next(self._lines, None)

    def start(self, first: Line) -> None:
        self.taken, self._size = [], 0
        self._waiting.appendleft(first)

    def put_back_all_but_first(self) -> None:
        self._waiting.extendleft(reversed(self.taken[1:]))

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self.next_line()
        if line is None:
            raise StopIteration
        self.taken.append(line)
        self._size += len(line.text)
        if line.problem is not None:
            raise BadRow(line.problem)
        if self._size > self._max:
            raise BadRow("a quote is opened and not closed again; close it, or double the quotes within the field")
        return line.text + "\n"


def records(lines: RecordLines, delimiter: str) -> Iterator[tuple[Line, list[str] | None, str]]:
    """(first line, fields or None, reason): after a record that fails, reading goes on with the line after its first.

    So a quote that is never closed costs its own line and not the rest of the file.
    """
    while (first := lines.next_line()) is not None:
        if first.problem is not None:
            yield first, None, first.problem
            continue
        if not first.text.strip():
            continue
        lines.start(first)
        try:
            fields = next(csv.reader(lines, delimiter=delimiter, strict=True))
        except BadRow as error:
            reason = str(error)
        except csv.Error as error:
            told = "a quote is opened and not closed again" if "end of data" in str(error) else str(error)
            reason = f"no CSV: {told}; close the quote, or double the quotes within the field"
        else:
            yield first, fields, ""
            continue
        if len(lines.taken) > 1 and lines.taken[-1].problem == reason:
            reason = f"the record runs into line {lines.taken[-1].number}, where {reason}"
        lines.put_back_all_but_first()
        yield first, None, reason


def _names(line: str, delimiter: str) -> list[str]:
    try:
        return [name.strip().lower() for name in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:
        return []


def read_csv(lines: Iterable[Line], max_bytes: int) -> Iterator[Found]:
    """The records of a table whose first line names the columns, separated by commas, semicolons, tabs or bars."""
    csv.field_size_limit(max(csv.field_size_limit(), 2 * max_bytes))
    feed = RecordLines(lines, max_bytes)
    first = feed.next_line()
    while first is not None and first.problem is None and not first.text.strip():
        first = feed.next_line()
    if first is None:
        return
    header: list[str] = []
    delimiter = ","
    if first.problem is None:
        for delimiter in _DELIMITERS:
            header = _names(first.text, delimiter)
            if any(name in COLUMNS for name in header):
                break
    if not any(name in COLUMNS for name in header):
        reason = first.problem or (
            f"the first line names none of the columns {', '.join(COLUMNS)}; rename the columns and read the file again"
        )
        yield Found(first.number, reason=reason, excerpt=first.text[:_SHOWN])
        return
    twice = next((name for name in COLUMNS if header.count(name) > 1), None)
    if twice is not None:
        reason = f'the first line names the column "{twice}" twice; rename one of them and read the file again'
        yield Found(first.number, reason=reason, excerpt=first.text[:_SHOWN])
        return
    for line, fields, reason in records(feed, delimiter):
        if fields is None:
            yield Found(line.number, reason=reason, excerpt=line.text[:_SHOWN])
        elif len(fields) != len(header):
            told = f"the record has {len(fields)} fields and the first line {len(header)}; quote a field that holds"
            yield Found(line.number, reason=f"{told} {delimiter!r}, or fill in", excerpt=line.text[:_SHOWN])
        else:
            row = {name: value if value != "" else None for name, value in zip(header, fields, strict=True)}
            yield _found(line.number, row, line.text)


def read_parquet(stream: BinaryIO, max_bytes: int) -> Iterator[Found]:
    """The rows of a Parquet file, a batch at a time; the line is the row's number, from 1."""
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    broken = (pa.ArrowException, OSError, ValueError)
    try:
        file = pq.ParquetFile(stream)
        columns = file.schema_arrow.names
        groups = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    except broken as error:
        yield Found(0, reason=f"no readable Parquet ({_told(error)}); write the file anew")
        return
    names = [name for name in columns if name in (*COLUMNS, *BESIDES)]
    if not any(name in COLUMNS for name in names):
        told = ", ".join(columns[:8])
        reason = f"the table has none of the columns {', '.join(COLUMNS)}; it has {told}; rename the columns"
        yield Found(0, reason=reason)
        return
    first = 0
    for group, rows in enumerate(groups):
        number = first
        try:
            for batch in file.iter_batches(batch_size=_BATCH, row_groups=[group], columns=names):
                for row in _batch_rows(batch, broken):
                    number += 1
                    yield _table_row(number, row, max_bytes)
        except broken as error:
            reason = f"the rows from here to {first + rows} cannot be read ({_told(error)}); write the file anew"
            yield Found(number + 1, reason=reason)
        first += rows
    if not first:
        yield Found(0, reason="the table has no rows; delete it or fill it in")


def _told(error: Exception) -> str:
    return " ".join(str(error).split())[:160]


def _batch_rows(batch: Any, broken: tuple[type[Exception], ...]) -> Iterator[dict[str, Any] | Exception]:
    try:
        yield from batch.to_pylist()
        return
    except broken:
        pass
    for at in range(batch.num_rows):
        try:
            yield batch.slice(at, 1).to_pylist()[0]
        except broken as error:
            yield error


def _table_row(number: int, row: dict[str, Any] | Exception, max_bytes: int) -> Found:
    if isinstance(row, Exception):
        return Found(number, reason=f"the row cannot be read ({_told(row)}); write it anew")
    excerpt = next((str(value)[:_SHOWN] for value in row.values() if value is not None), "")
    if sum(len(value) for value in row.values() if isinstance(value, str)) > max_bytes:
        reason = f"the row is longer than {max_bytes} bytes; split it, or raise max_line_bytes"
        return Found(number, reason=reason, excerpt=excerpt)
    return _found(number, row, excerpt)
