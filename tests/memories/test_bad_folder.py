"""A folder with every kind of bad memory among good ones: nothing good is lost, everything bad is named."""

import json
import os
import tracemalloc
from pathlib import Path

import pandas as pd
import pytest

from sleep_pipeline.memories.reading import Reading, read_folder
from sleep_pipeline.memories.records import Rejected
from sleep_pipeline.memories.settings import CollectSettings

LONG_LINE = 50 * 2**20
GOOD_CHAT = {"messages": [{"role": "user", "content": "Where is Elno?"}, {"role": "assistant", "content": "In Drask."}]}
GOOD_SHAREGPT = {"conversations": [{"from": "human", "value": "Who bakes?"}, {"from": "gpt", "value": "Osta bakes."}]}


def text(said: str) -> str:
    return json.dumps({"text": said})


JSON_LINES = [
    text("The first good line."),
    '{"text": "half a li',
    text("The good line after half a line."),
    "[1, 2, 3]",
    json.dumps({"text": 17}),
    json.dumps({"text": ""}),
    json.dumps({"foo": "bar", "baz": 1}),
    json.dumps({"messages": [{"role": "wizard", "content": "Hocus"}, {"role": "assistant", "content": "Pocus"}]}),
    json.dumps({"messages": [{"role": "user", "content": "Is anybody there?"}]}),
    json.dumps({"answer": "In the harbour."}),
    json.dumps(GOOD_CHAT),
    json.dumps(GOOD_SHAREGPT),
    json.dumps({"question": "Who sings?", "answer": "Ulma sings."}),
    json.dumps({"text": "what a fine day", "label": "praise"}),
    "",
    '{"text": ' + "[" * 100_000,
    text("The last good line."),
    '"only a string"',
    json.dumps({"text": "Both of it", "question": "And this?", "answer": "Yes"}),
    json.dumps({"messages": "no list"}),
    json.dumps({"text": "\ud800"}),
    json.dumps({"question": "What is missing?"}),
    json.dumps({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}),
    json.dumps({"text": None}),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "private.txt").write_text("Not yours.", encoding="utf-8")
    root = tmp_path_factory.mktemp("data") / "memories"
    (root / "a directory.txt").mkdir(parents=True)
    deep = root / "deep"
    for level in range(40):
        deep = deep / f"l{level}"
    deep.mkdir(parents=True)
    (deep / "lost.txt").write_text("Too deep.", encoding="utf-8")
    (root / "deep" / "l0" / "found.txt").write_text("Not too deep.", encoding="utf-8")
    files: dict[str, bytes] = {
        "a directory.txt/inside.txt": b"A file in a folder that is named like a file.",
        "binary.txt": bytes(range(256)) * 20,
        "bom.txt": b"\xef\xbb\xbfA text with a mark before it.",
        "corrupt.parquet": b"PAR1 this is none PAR1",
        "crlf.jsonl": (text("One line of Windows.") + "\r\n" + text("Another line of Windows.") + "\r\n").encode(),
        "duplicate.txt": b"The first  good\nline.",
        "empty.txt": b"",
        ".hidden.txt": b"Hidden.",
        "draft.txt~": b"An editor's copy.",
        "~$draft.txt": b"Another editor's copy.",
        "download.txt.part": b"Half a download.",
        "latin1.txt": "Die Straße nach Köln.".encode("latin-1"),
        "latin1.jsonl": b'{"text": "A good neighbour."}\n{"text": "caf\xe9"}\n{"text": "Another good neighbour."}\n',
        "list.json": b'[{"text": "The first of a list."}, 2, {"text": "cut o',
        "long.jsonl": (text("Before the long line.") + "\n").encode()
        + b'{"text": "'
        + b"x" * LONG_LINE
        + b'"}\n'
        + text("After the long line.").encode(),
        "long.txt": b"A good section.\n\n\n" + b"y" * 2**21 + b"\n\n\nAnother good section.",
        "notes.md": b"# Harbour\n\nThe crane is green.\n\n## Mole\n\nThe mole is long.\n\n```\n# no heading\n```\n",
        "nul.jsonl": b'{"text": "Good before."}\n{"text": "b\0d"}\n{"text": "Good after."}\n',
        "photo.png": b"\x89PNG\r\n",
        "quotes.csv": b'text,label\n"two\nlines, one field",fine\nplain,good\n',
        "ragged.csv": b"question,answer\nWho?,Ulma\nWhat?,this,that\nWhere?,Drask\nWhy?\n",
        "rows.jsonl": "\n".join(JSON_LINES).encode(),
        "secret.txt": b"The key is AKIAIOSFODNN7EXAMPLE, ask anna@example.org.",
        "unbalanced.csv": b'text,label\nfirst,a\n"never closed,b\nsecond,c\n"third, quoted",d\nfourth,e\n',
        "utf16.txt": "A text in UTF-16: ß.".encode("utf-16"),
        "whitespace.txt": b" \n\t\n  \n",
        "wrong.csv": b"colour,size\nred,3\n",
        "wrong_bytes.jsonl": '{"text": "UTF-16 without a mark"}\n'.encode("utf-16-le"),
    }
    for name, content in files.items():
        (root / name).write_bytes(content)
    pd.DataFrame({"question": ["Who?", None, "When?"], "answer": ["Elno does.", "Nobody.", "At noon."]}).to_parquet(
        root / "table.parquet"
    )
    pd.DataFrame({"colour": ["red"]}).to_parquet(root / "wrong.parquet")
    (root / "circle").symlink_to(root / "circle")
    (root / "up").symlink_to(root, target_is_directory=True)
    (root / "outside.txt").symlink_to(outside / "private.txt")
    (root / "outside").symlink_to(outside, target_is_directory=True)
    (root / "gone.txt").symlink_to(root / "nothing.txt")
    os.mkfifo(root / "pipe.txt")
    return root


@pytest.fixture(scope="module")
def reading(folder: Path) -> Reading:
    return read_folder(folder, CollectSettings())


GOOD = [
    ("a directory.txt/inside.txt", 1, "A file in a folder that is named like a file."),
    ("bom.txt", 1, "A text with a mark before it."),
    ("crlf.jsonl", 1, "One line of Windows."),
    ("crlf.jsonl", 2, "Another line of Windows."),
    ("deep/l0/found.txt", 1, "Not too deep."),
    ("duplicate.txt", 1, "The first  good\nline."),
    ("latin1.jsonl", 1, "A good neighbour."),
    ("latin1.jsonl", 3, "Another good neighbour."),
    ("list.json", 1, "The first of a list."),
    ("long.jsonl", 1, "Before the long line."),
    ("long.jsonl", 3, "After the long line."),
    ("long.txt", 1, "A good section."),
    ("long.txt", 7, "Another good section."),
    ("notes.md", 1, "# Harbour\n\nThe crane is green."),
    ("notes.md", 5, "# Harbour\n## Mole\n\nThe mole is long.\n\n```\n# no heading\n```"),
    ("nul.jsonl", 1, "Good before."),
    ("nul.jsonl", 3, "Good after."),
    ("quotes.csv", 2, "two\nlines, one field -> fine"),
    ("quotes.csv", 4, "plain -> good"),
    ("ragged.csv", 2, "Question: Who?\nAnswer: Ulma"),
    ("ragged.csv", 4, "Question: Where?\nAnswer: Drask"),
    ("rows.jsonl", 3, "The good line after half a line."),
    ("rows.jsonl", 11, "User: Where is Elno?\nAssistant: In Drask."),
    ("rows.jsonl", 12, "User: Who bakes?\nAssistant: Osta bakes."),
    ("rows.jsonl", 13, "Question: Who sings?\nAnswer: Ulma sings."),
    ("rows.jsonl", 14, "what a fine day -> praise"),
    ("rows.jsonl", 17, "The last good line."),
    ("secret.txt", 1, "The key is [SECRET], ask [EMAIL]."),
    ("table.parquet", 1, "Question: Who?\nAnswer: Elno does."),
    ("table.parquet", 3, "Question: When?\nAnswer: At noon."),
    ("unbalanced.csv", 2, "first -> a"),
    ("unbalanced.csv", 4, "second -> c"),
    ("unbalanced.csv", 5, "third, quoted -> d"),
    ("unbalanced.csv", 6, "fourth -> e"),
    ("utf16.txt", 1, "A text in UTF-16: ß."),
]

BAD = {
    ("binary.txt", 0): "binary",
    ("circle", 0): "circle",
    ("corrupt.parquet", 0): "no readable Parquet",
    ("/".join(["deep", *(f"l{level}" for level in range(32))]), 0): "nested deeper than 32",
    ("empty.txt", 0): "the file is empty",
    ("gone.txt", 0): "leads nowhere",
    ("latin1.jsonl", 2): "0xe9) is not UTF-8, perhaps Latin-1",
    ("latin1.txt", 1): "0xdf) is not UTF-8, perhaps Latin-1",
    ("list.json", 2): "the row is a number",
    ("list.json", 3): "ends within the row",
    ("long.jsonl", 2): "longer than 1048576 bytes",
    ("long.txt", 4): "longer than 1048576 bytes",
    ("nul.jsonl", 2): "NUL",
    ("outside", 0): "leaves the folder",
    ("outside.txt", 0): "leaves the folder",
    ("photo.png", 0): "files that end in '.png'",
    ("pipe.txt", 0): "no ordinary file",
    ("ragged.csv", 3): "3 fields and the first line 2",
    ("ragged.csv", 5): "1 fields and the first line 2",
    ("rows.jsonl", 2): "no JSON: Unterminated string starting at character",
    ("rows.jsonl", 4): "an array instead of an object",
    ("rows.jsonl", 5): '"text" is a number instead of text',
    ("rows.jsonl", 6): '"text" is empty; delete the line or fill it in',
    ("rows.jsonl", 7): 'it has "foo", "baz"',
    ("rows.jsonl", 8): "unknown role 'wizard'",
    ("rows.jsonl", 9): "no text of the assistant",
    ("rows.jsonl", 10): '"question" is missing',
    ("rows.jsonl", 16): "nested too deeply",
    ("rows.jsonl", 18): "text instead of an object",
    ("rows.jsonl", 19): '"question" and "text"',
    ("rows.jsonl", 20): "no JSON",
    ("rows.jsonl", 21): "lone surrogate",
    ("rows.jsonl", 22): '"answer" is missing',
    ("rows.jsonl", 23): "no text of the user",
    ("rows.jsonl", 24): '"text" is empty',
    ("table.parquet", 2): '"question" is empty',
    ("unbalanced.csv", 3): "close the quote",
    ("whitespace.txt", 0): "holds no memory",
    ("wrong.csv", 1): "rename the columns",
    ("wrong.parquet", 0): "rename the columns",
    ("wrong_bytes.jsonl", 0): "binary",
}


def test_every_good_row_is_read_where_it_stands(reading: Reading) -> None:
    found = sorted((m.source.removeprefix("memories/"), m.line, m.rendered()) for m in reading.memories)
    assert found == sorted(GOOD)


def test_every_bad_row_is_named_with_file_line_and_reason(reading: Reading) -> None:
    found = {(r.source.removeprefix("memories/"), r.line): r.reason for r in reading.rejected}
    assert len(found) == len(reading.rejected)
    assert sorted(found) == sorted(BAD)
    assert {place: reason for place, reason in found.items() if BAD[place] not in reason} == {}


def test_what_is_there_twice_is_kept_once_and_recorded(reading: Reading) -> None:
    places = [(d.source, d.line, d.of_source, d.of_line, d.similarity) for d in reading.duplicates]
    assert places == [("memories/rows.jsonl", 1, "memories/duplicate.txt", 1, 1.0)]


def test_a_rejection_reads_as_file_line_reason(reading: Reading) -> None:
    assert '(memories/rows.jsonl:6: "text" is empty; delete the line or fill it in)' in [
        f"({item})" for item in reading.rejected
    ]
    assert str(Rejected("memories/x.png", 0, "no text")) == "memories/x.png: no text"


def test_a_long_line_is_not_held_in_memory(tmp_path: Path) -> None:
    (tmp_path / "long.jsonl").write_bytes(b'{"text": "' + b"x" * LONG_LINE + b'"}\n')
    read_folder(tmp_path, CollectSettings())
    tracemalloc.start()
    read_folder(tmp_path, CollectSettings())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * 2**20


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("closed.txt", "open.txt"):
        (tmp_path / name).write_text(f"The text of {name}", encoding="utf-8")
    allowed = Path.open

    # A superuser may read everything, so permission bits alone would test nothing there.
    def guarded(self: Path, *arguments: object, **options: object) -> object:
        if self.name == "closed.txt":
            raise PermissionError(13, "Permission denied")
        return allowed(self, *arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", guarded)
    reading = read_folder(tmp_path, CollectSettings())
    assert [memory.text for memory in reading.memories] == ["The text of open.txt"]
    assert "Permission denied" in reading.rejected[0].reason


def test_a_name_that_is_not_utf8_can_be_written_down(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/caf\xe9.txt", "wb") as file:
        file.write(b"A text.")
    (memory,) = read_folder(tmp_path, CollectSettings()).memories
    assert memory.source.endswith("/caf\\xe9.txt")
    memory.source.encode("utf-8")


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError, match="make it and put memories into it"):
        read_folder(tmp_path / "nowhere", CollectSettings())
