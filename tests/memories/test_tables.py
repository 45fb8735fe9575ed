import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sleep_pipeline.memories.reading import Reading, read_folder
from sleep_pipeline.memories.settings import CollectSettings

SETTINGS = CollectSettings()


def read(folder: Path, name: str, content: bytes, **options: Any) -> Reading:
    (folder / name).write_bytes(content)
    return read_folder(folder, SETTINGS.model_copy(update=options))


def said(reading: Reading) -> list[tuple[int, str]]:
    return [(memory.line, memory.rendered()) for memory in reading.memories]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_first_line_tells_how_columns_are_separated(tmp_path: Path, delimiter: str) -> None:
    rows = [["id", "Text", "LABEL"], ["1", "what a day", "good"]]
    content = "\n".join(delimiter.join(row) for row in rows).encode()
    assert said(read(tmp_path, "a.csv", content)) == [(2, "what a day -> good")]


def test_a_table_may_hold_several_kinds(tmp_path: Path) -> None:
    chat = json.dumps([{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Elno."}]).replace('"', '""')
    content = f'text,label,question,answer,conversations\nA,,,,\nB,good,,,\n,,Q?,A.,\n,,,,"{chat}"\n,,,,\n'
    reading = read(tmp_path, "a.csv", content.encode())
    assert [memory.kind for memory in reading.memories] == ["text", "label", "qa", "chat"]
    assert [item.line for item in reading.rejected] == [6]


def test_empty_and_repeated_names_of_other_columns_do_no_harm(tmp_path: Path) -> None:
    assert said(read(tmp_path, "a.csv", b"text,,,x,x\nA text,,,1,2\n")) == [(2, "A text")]


def test_a_column_of_ours_that_is_named_twice_is_an_error(tmp_path: Path) -> None:
    (rejected,) = read(tmp_path, "a.csv", b"text,text\nA,B\n").rejected
    assert (rejected.line, 'column "text" twice' in rejected.reason) == (1, True)


def test_a_quote_that_is_never_closed_reads_no_more_than_the_limit(tmp_path: Path) -> None:
    content = b'text,label\n"open,a\n' + b"fine,b\n" * 400
    reading = read(tmp_path, "a.csv", content, max_line_bytes=200)
    assert [(item.line, "a quote is opened" in item.reason) for item in reading.rejected] == [(2, True)]
    assert len(reading.memories) + len(reading.duplicates) == 400


def test_a_file_whose_end_was_never_written_keeps_what_was(tmp_path: Path) -> None:
    content = b'{"text": "One."}\n{"text": "Two."}\n' + bytes(9000)
    reading = read(tmp_path, "a.jsonl", content)
    assert said(reading) == [(1, "One."), (2, "Two.")]
    assert [(item.line, "NUL" in item.reason) for item in reading.rejected] == [(3, True)]


def test_a_damaged_part_of_a_parquet_file_costs_no_other_part(tmp_path: Path) -> None:
    texts = [f"Text {number} {'x' * 50}" for number in range(30)]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": texts}), path, row_group_size=10, compression="none", use_dictionary=False)
    whole = pq.ParquetFile(path).metadata.row_group(1).column(0)
    raw = bytearray(path.read_bytes())
    raw[whole.data_page_offset : whole.data_page_offset + 40] = b"\xff" * 40
    reading = read(tmp_path, "a.parquet", bytes(raw))
    assert [memory.line for memory in reading.memories] == [*range(1, 11), *range(21, 31)]
    assert [(item.line, "from here to 20" in item.reason) for item in reading.rejected] == [(11, True)]


def test_a_row_of_a_parquet_file_that_is_no_unicode_costs_no_other_row(tmp_path: Path) -> None:
    binary = pa.array([b"One.", b"caf\xe9", b"Three."], type=pa.binary())
    pq.write_table(pa.table({"text": pa.Array.from_buffers(pa.string(), 3, binary.buffers())}), tmp_path / "a.parquet")
    reading = read_folder(tmp_path, SETTINGS)
    assert said(reading) == [(1, "One."), (3, "Three.")]
    assert [item.line for item in reading.rejected] == [2]


def test_parquet_reads_lists_of_messages_and_times(tmp_path: Path) -> None:
    messages = [[{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Elno."}]]
    time = pa.array([1_700_000_000_000], type=pa.timestamp("ms", tz="UTC"))
    pq.write_table(pa.table({"messages": messages, "time": time}), tmp_path / "a.parquet")
    (memory,) = read_folder(tmp_path, SETTINGS).memories
    assert (memory.rendered(), memory.time) == ("User: Who?\nAssistant: Elno.", "2023-11-14T22:13:20Z")


def test_a_table_of_bytes_is_called_that(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [b"bytes"]}), tmp_path / "a.parquet")
    assert "of type bytes instead of text" in read_folder(tmp_path, SETTINGS).rejected[0].reason


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400), st.sampled_from(["json", "jsonl", "csv", "md", "txt", "parquet"]))
def test_nothing_that_a_file_holds_is_an_error(tmp_path_factory: pytest.TempPathFactory, junk: bytes, end: str) -> None:
    folder = tmp_path_factory.mktemp("junk")
    reading = read(folder, f"a.{end}", junk)
    assert reading.memories or reading.rejected


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 3))
def test_junk_between_good_rows_costs_none_of_them(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes, at: int
) -> None:
    rows = [json.dumps({"text": f"Good row {number}."}).encode() + b"\n" for number in range(4)]
    rows.insert(at + 1, junk.replace(b"\n", b"") + b"\n")
    reading = read(tmp_path_factory.mktemp("junk"), "a.jsonl", b"".join(rows))
    assert {f"Good row {number}." for number in range(4)} <= {memory.text for memory in reading.memories}
