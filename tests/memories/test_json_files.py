"""Files of one JSON value: every row is read, however the file is laid out and wherever it is damaged."""

import io
import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sleep_pipeline.memories import json_files
from sleep_pipeline.memories.json_files import read_json

ROWS = [{"text": "One."}, {"text": 'Two, "three" \\ [four} ß \U0001f33b'}, {"text": "Five.", "label": "5"}]
SAID = [row["text"] for row in ROWS]


def read(content: str | bytes, max_bytes: int = 2**20) -> tuple[list[tuple[int, str | None]], list[tuple[int, str]]]:
    found = list(read_json(io.BytesIO(content if isinstance(content, bytes) else content.encode()), max_bytes))
    good = [(item.line, item.content.text) for item in found if item.content is not None]
    return good, [(item.line, item.reason) for item in found if item.content is None]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 2**18])
@pytest.mark.parametrize(
    "content",
    [
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2, ensure_ascii=False),
        "\n ".join(json.dumps(row) for row in ROWS),
        "\ufeff" + json.dumps(ROWS) + "\n",
        json.dumps(ROWS)[:-1] + ",]",
    ],
)
def test_rows_are_read_in_pieces_of_any_size(content: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_files, "_CHUNK", chunk)
    assert read(content) == (list(enumerate(SAID, start=1)), [])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_the_encoding_is_what_the_file_says(encoding: str) -> None:
    assert read(json.dumps(ROWS, ensure_ascii=False).encode(encoding)) == (list(enumerate(SAID, start=1)), [])


def test_a_file_may_be_one_row() -> None:
    assert read(json.dumps(ROWS[1], indent=1)) == ([(1, SAID[1])], [])


@pytest.mark.parametrize("content", ["[]", "  ", "[ ]\n"])
def test_a_file_without_rows_has_none(content: str) -> None:
    assert read(content) == ([], [])


ONE, TWO = '{"text": "One."}', '{"text": "Two."}'


@pytest.mark.parametrize(
    ("content", "good", "bad"),
    [
        (
            f'[{ONE}, {{"text": oops}}, {TWO}]',
            [1, 3],
            [(2, "no JSON: Expecting value at character 10; mend or delete")],
        ),
        (f"[{ONE}, 5, {TWO}]", [1, 3], [(2, "the row is a number instead of an object")]),
        (f"[{ONE}, [{ONE}], {TWO}]", [1, 3], [(2, "an array instead of an object")]),
        (f'[{ONE}, {{"a": [}}, {TWO}]', [1], [(2, "no JSON"), (0, "ends before its array does")]),
        (f"[{ONE}, {TWO}", [1, 2], [(0, "ends before its array does")]),
        (f'[{ONE}, {{"text": "Tw', [1], [(2, "ends within the row")]),
        (f'[{ONE}, {{"text": "Tw\\', [1], [(2, "ends within the row")]),
        (f"[{ONE}] junk", [1], [(2, "no JSON")]),
        (f"[{ONE}]]", [1], [(2, "no JSON")]),
        (f'{ONE}\n{{"text": 5}}\n{TWO}', [1, 3], [(2, '"text" is a number')]),
        ('"text"', [], [(1, "text instead of an object")]),
        ("oops", [], [(1, "no JSON")]),
        (f"[{'[' * 50_000}{']' * 50_000}, {ONE}]", [2], [(1, "nested too deeply")]),
        (f'[{ONE}, {{"text": {"9" * 5000}}}]', [1], [(2, "a number is too long")]),
        (b'[{"text": "caf\xe9"}, {"text": "One."}]', [2], [(1, "character of row 1 is not valid UTF-8")]),
    ],
)
def test_what_is_broken_is_named_and_costs_no_other_row(
    content: str | bytes, good: list[int], bad: list[tuple[int, str]]
) -> None:
    found, refused = read(content)
    assert [number for number, _ in found] == good
    assert [number for number, _ in refused] == [number for number, _ in bad]
    assert all(reason in told for (_, reason), (_, told) in zip(bad, refused, strict=True))


TORN = "not closed again in its line"
CHAT = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Here.", "text": "No row."}]


@pytest.mark.parametrize("chunk", [1, 3, 2**18])
@pytest.mark.parametrize(
    ("content", "good", "bad"),
    [
        (f'{ONE}\n{{"text": "Tw\n{ONE}\n{TWO}\n', [1, 3, 4], [(2, TORN)]),
        (f'[{{"text": "A 5" pipe"}},\n{ONE},\n{TWO}]', [2, 3], [(1, TORN)]),
        (json.dumps(ROWS, indent=1).replace('One."', "One."), [2, 3], [(1, TORN)]),
        (json.dumps([*ROWS, *ROWS], indent=1).replace('Five."', "Five.", 1), [1, 2, 4, 5, 6], [(3, TORN)]),
        (json.dumps(ROWS, indent=1).replace('"5"', '"5'), [1, 2], [(3, TORN)]),
        (
            json.dumps([ROWS[0], {"messages": CHAT}, *ROWS], indent=2).replace('"user"', '"user'),
            [1, 3, 4, 5],
            [(2, TORN)],
        ),
        (f'{{"text": "Tw\n{{"text": "Tw\n{ONE}\n', [3], [(1, TORN), (2, TORN)]),
        (f'[{{"text": "Tw\r\n\r\n o."}}, {TWO}]', [2], [(1, "Invalid control character")]),
        (f'{{"text": "Tw\n{ONE[:-2]}', [], [(1, TORN), (2, "ends within the row")]),
        (f'[{{"text": "{"x" * 2000}\n]', [], [(1, TORN)]),
    ],
)
def test_a_quote_that_is_not_closed_costs_its_row_alone(
    content: str, good: list[int], bad: list[tuple[int, str]], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_files, "_CHUNK", chunk)
    found, refused = read(content, 100)
    assert [number for number, _ in found] == good
    assert [number for number, _ in refused] == [number for number, _ in bad]
    assert all(reason in told for (_, reason), (_, told) in zip(bad, refused, strict=True))


def test_what_a_row_says_is_limited_more_than_what_it_takes() -> None:
    rows: list[Any] = [{"text": "x" * 101}, {"text": "y" * 100, "more": "z" * 1400}, {"text": "a", "more": "z" * 1600}]
    good, bad = read(json.dumps(rows), 100)
    assert [number for number, _ in good] == [2]
    assert [(number, reason.split(";")[0]) for number, reason in bad] == [
        (1, "the row says more than 100 characters"),
        (3, "the row is longer than 1600 characters"),
    ]


@pytest.mark.slow
def test_a_large_file_is_not_held_in_memory() -> None:
    row = json.dumps({"text": "short", "more": "x\\n" * 20_000})
    stream = io.BytesIO(f"[{','.join([row] * 400)}, {json.dumps({'text': 'z' * 2**24})}]".encode())
    assert len(list(read_json(io.BytesIO(b"[{}]"), 2**16))) == 1
    tracemalloc.start()
    count = sum(1 for _ in read_json(stream, 2**16))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 401
    assert peak < 8 * 2**20


@given(st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=20), max_size=3), max_size=5), st.integers(0, 4))
def test_whatever_rows_hold_each_is_counted(rows: list[dict[str, str]], indent: int) -> None:
    found = list(read_json(io.BytesIO(json.dumps(rows, indent=indent or None, ensure_ascii=False).encode()), 1000))
    assert [item.line for item in found] == list(range(1, len(rows) + 1))
    assert not any("no JSON" in item.reason for item in found)
