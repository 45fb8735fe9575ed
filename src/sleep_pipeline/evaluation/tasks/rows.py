"""Rows of the published files: CSV, JSON lines, Parquet, and CLINC's JSON of splits; any of the first two gzipped."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from sleep_pipeline.evaluation.tasks.data import TaskError
from sleep_pipeline.memories.lines import read_lines
from sleep_pipeline.memories.tables import RecordLines, records

SUFFIXES = (".csv", ".jsonl", ".json", ".parquet")
MAX_BYTES = 2**20
"""Of a line or record: beyond it a quote was surely not closed."""


@dataclass(frozen=True)
class Row:
    """A row as it stands in a file.

    Attributes:
        file: its name.
        line: where it begins, from 1; the row's number in Parquet and in JSON of splits.
        text: what is classified.
        label: as published.
        problem: why the row cannot be used; None if it can.
    """

    file: str
    line: int
    text: str
    label: str
    problem: str | None = None


def suffix_of(path: Path) -> str:
    """The suffix that says what a file is, `.gz` aside."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def read_rows(path: Path, text_columns: Sequence[str], label_columns: Sequence[str]) -> Iterator[Row]:
    """The rows of a file.

    Args:
        path: a CSV, JSON lines or Parquet file.
        text_columns: names of the text's column, best first.
        label_columns: names of the label's column, best first.

    Raises:
        TaskError: the file cannot be read, or has other columns.
    """
    kind = suffix_of(path)
    if kind == ".parquet":
        yield from _parquet(path, text_columns, label_columns)
        return
    with _opened(path) as stream:
        read = _csv if kind == ".csv" else _json_lines
        yield from read(stream, path.name, text_columns, label_columns)


def read_splits(path: Path) -> dict[str, list[Row]]:
    """The rows of a JSON file whose keys are splits and whose values are lists of `[text, label]`.

    Raises:
        TaskError: it is something else.
    """
    remedy = "get the file as published"
    with _opened(path) as stream:
        try:
            loaded = json.loads(stream.read().decode("utf-8-sig"))
        except json.JSONDecodeError as error:
            raise TaskError(f"{path.name}:{error.lineno}: no JSON: {error.msg}; {remedy}") from error
        except (UnicodeDecodeError, EOFError, OSError) as error:
            raise TaskError(f"{path.name}: cannot be read ({error}); {remedy}") from error
    if not isinstance(loaded, dict) or not all(isinstance(rows, list) for rows in loaded.values()):
        raise TaskError(f"{path.name}: is no object of lists, one a split; {remedy}")
    found: dict[str, list[Row]] = {}
    for split, rows in loaded.items():
        found[split] = []
        for number, row in enumerate(rows, start=1):
            if not (isinstance(row, list) and len(row) == 2 and all(isinstance(part, str) for part in row)):
                raise TaskError(
                    f"{path.name}: row {number} of {split!r} is {str(row)[:80]}, no [text, label]; {remedy}"
                )
            found[split].append(Row(f"{path.name}/{split}", number, *row))
    return found


def column(names: Sequence[str], wanted: Sequence[str], where: str) -> str:
    """The first of the wanted columns that is among `names`, case aside.

    Raises:
        TaskError: none is.
    """
    known = {name.strip().lower(): name for name in reversed(names)}
    for name in wanted:
        if name in known:
            return known[name]
    raise TaskError(
        f"{where}: the columns are {', '.join(names[:8]) or 'none'}, and none is {' or '.join(wanted)}; rename one, or "
        "get the file as published"
    )


def _opened(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.name.lower().endswith(".gz") else path.open("rb")


def _csv(stream: BinaryIO, file: str, text_columns: Sequence[str], label_columns: Sequence[str]) -> Iterator[Row]:
    lines = records(RecordLines(read_lines(stream, MAX_BYTES), MAX_BYTES), ",")
    first = next(lines, None)
    if first is None:
        raise TaskError(f"{file}: is empty; get the file as published")
    head, header, reason = first
    if header is None:
        raise TaskError(f"{file}:{head.number}: {reason}")
    where = f"{file}:{head.number}"
    text = header.index(column(header, text_columns, where))
    label = header.index(column(header, label_columns, where))
    for line, fields, reason in lines:
        if fields is None:
            yield Row(file, line.number, "", "", reason)
        elif len(fields) != len(header):
            told = f"the record has {len(fields)} fields and the header {len(header)}; quote a field that holds a comma"
            yield Row(file, line.number, "", "", told)
        else:
            yield Row(file, line.number, fields[text], fields[label])


def _json_lines(
    stream: BinaryIO, file: str, text_columns: Sequence[str], label_columns: Sequence[str]
) -> Iterator[Row]:
    names: tuple[str, str] | None = None
    for line in read_lines(stream, MAX_BYTES):
        if line.problem is None and not line.text.strip():
            continue
        record: Any = None
        problem = line.problem
        if problem is None:
            try:
                record = json.loads(line.text)
            except (ValueError, RecursionError) as error:
                problem = f"no JSON ({error}); mend or delete the line"
        if problem is None and not isinstance(record, dict):
            problem = "no JSON object; mend or delete the line"
        if problem is not None:
            yield Row(file, line.number, "", "", problem)
            continue
        if names is None:
            where, keys = f"{file}:{line.number}", list(record)
            names = column(keys, text_columns, where), column(keys, label_columns, where)
        yield _row(file, line.number, record, names)


def _row(file: str, line: int, record: Mapping[str, Any], names: tuple[str, str]) -> Row:
    missing = [name for name in names if record.get(name) is None]
    if missing:
        return Row(file, line, "", "", f'"{missing[0]}" is missing; fill it in or delete the row')
    return Row(file, line, *(str(record[name]) for name in names))


def _parquet(path: Path, text_columns: Sequence[str], label_columns: Sequence[str]) -> Iterator[Row]:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        text, label = column(names, text_columns, path.name), column(names, label_columns, path.name)
        classes = _class_names(file.schema_arrow.metadata or {}, label)
        number = 0
        for batch in file.iter_batches(columns=[text, label]):
            for record in batch.to_pylist():
                number += 1
                record[label] = named(record[label], classes)
                yield _row(path.name, number, record, (text, label))
    except (pa.ArrowException, OSError) as error:
        raise TaskError(f"{path.name}: no readable Parquet ({error}); get the file as published") from error


def named(label: Any, classes: Sequence[str] | None) -> Any:
    """The name of a class number; None for a number that stands for none, such as -1 of rows without a label."""
    if classes is None or not isinstance(label, int):
        return label
    return classes[label] if 0 <= label < len(classes) else None


def _class_names(metadata: Mapping[bytes, bytes], name: str) -> list[str] | None:
    """What `datasets` writes into a Parquet file about a column of class numbers."""
    try:
        feature = json.loads(metadata[b"huggingface"])["info"]["features"][name]
        return [str(label) for label in feature["names"]]
    except (KeyError, ValueError, TypeError):
        return None
