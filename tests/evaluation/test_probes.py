"""Questions that people wrote: what is wrong in their files is named, and their memories are found by any line."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from sleep_pipeline.evaluation.probes import MemoryPlaces, Probe, ProbeError, given_probes, grade
from sleep_pipeline.memories.reading import read_folder
from sleep_pipeline.memories.records import Content, Memory, memories_from_frame, memories_to_frame
from sleep_pipeline.memories.settings import CollectSettings, MaskSettings

GOOD = {"question": "Who lives in Geska?", "answer": "Mira", "source": "memories/notes.md:3"}


def written(tmp_path: Path, *lines: bytes | str) -> Path:
    folder = tmp_path / "probes"
    folder.mkdir()
    raw = [line if isinstance(line, bytes) else line.encode() for line in lines]
    (folder / "mine.jsonl").write_bytes(b"\n".join(raw) + b"\n")
    return folder


def test_a_probe_has_its_question_its_answer_and_the_place_of_its_memory(tmp_path: Path) -> None:
    year = {**GOOD, "answer": 1901, "source": "memories/a:b/notes.md:12"}
    found = given_probes(written(tmp_path, json.dumps(GOOD), "", json.dumps(year)))
    assert [(each.probe, each.source, each.line, each.place) for each in found] == [
        (Probe("Who lives in Geska?", "Mira"), "memories/notes.md", 3, "probes/mine.jsonl:1"),
        (Probe("Who lives in Geska?", "1901"), "memories/a:b/notes.md", 12, "probes/mine.jsonl:3"),
    ]


def test_hidden_files_are_passed_over_and_others_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = written(tmp_path, '{"question": "Who?", "answer": "Mira", "source": "m/a.md:1"}')
    line = next(folder.glob("*.jsonl")).read_bytes()
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / ".ipynb_checkpoints" / "a.jsonl").write_bytes(line)
    (folder / "._a.jsonl").write_bytes(b"\x00\xff")
    (folder / "README.md").write_text("Questions.", encoding="utf-8")
    (folder / "more.ndjson").write_bytes(line)
    (folder / "more.csv").write_text("question,answer", encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        assert len(given_probes(folder)) == 2
    assert [record.getMessage().split()[0] for record in caplog.records] == [f"{folder.name}/more.csv"]


def test_only_the_end_of_a_line_ends_it(tmp_path: Path) -> None:
    row = json.dumps({**GOOD, "answer": "Mira\u2028Talven"}, ensure_ascii=False)
    assert [each.place for each in given_probes(written(tmp_path, row, row))][1] == "probes/mine.jsonl:2"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (json.dumps({"question": "Who?", "answer": "Mira"}), '"source" is missing or empty; correct the line'),
        (json.dumps({**GOOD, "question": " "}), '"question" is missing or empty'),
        (json.dumps({**GOOD, "answer": None}), '"answer" is missing or empty'),
        (json.dumps({**GOOD, "answer": True}), '"answer" is missing or empty'),
        ("[1]", '"question" is missing or empty'),
        ("{", "no readable JSON"),
        (json.dumps({**GOOD, "source": "memories/notes.md"}), r"\"source\" is 'memories/notes.md'; name the memory"),
        (json.dumps({**GOOD, "source": "memories/notes.md:three"}), "by file and line"),
        (json.dumps(GOOD).replace("Mira", "Miéra").encode("latin-1"), "is not UTF-8, perhaps Latin-1; save the file"),
    ],
)
def test_what_is_wrong_is_named_by_file_and_line(tmp_path: Path, line: bytes | str, reason: str) -> None:
    with pytest.raises(ProbeError, match=rf"^probes/mine\.jsonl:2: .*{reason}"):
        given_probes(written(tmp_path, json.dumps(GOOD), line))


def memory(source: str, line: int, text: str = "Mira lives in Geska.") -> Memory:
    content = Content("text", text=f"{text} {source} {line}")
    digest = content.digest()
    return Memory(digest[:16], "text", content.text, (), None, None, None, source, line, "2026-01-01T00:00:00Z", digest)


@pytest.mark.parametrize(
    ("source", "line", "begins"),
    [
        ("m/notes.md", 3, 3),
        ("m/notes.md", 6, 3),
        ("m/notes.md", 7, 7),
        ("m/notes.md", 99, 7),
        ("m/notes.md", 2, None),
        ("m/others.md", 3, None),
        ("m/rows.jsonl", 4, 4),
        ("m/rows.jsonl", 5, None),
        ("m/table.CSV", 5, 4),
        ("m/table.CSV", 6, None),
    ],
)
def test_a_line_belongs_to_the_last_memory_that_begins_there_or_above(source: str, line: int, begins: Any) -> None:
    memories = [memory("m/notes.md", 7), memory("m/notes.md", 3), memory("m/rows.jsonl", 4, "two\nlines")]
    found = MemoryPlaces([*memories, memory("m/table.CSV", 4, "two\nlines")]).at(source, line)
    assert (None if found is None else found.line) == begins


def test_a_line_below_a_passage_that_ended_is_none_of_its(tmp_path: Path) -> None:
    diary = tmp_path / "m" / "diary.md"
    diary.parent.mkdir()
    diary.write_text("# Friday\n\nNew today.\n\n# Thursday\n\nOld.\n", encoding="utf-8")
    (new, old) = read_folder(diary.parent, CollectSettings()).memories
    assert [(memory.line, memory.end) for memory in (new, old)] == [(1, 3), (5, 7)]
    # Thursday was learned on an earlier night.
    tonight = MemoryPlaces(memories_from_frame(memories_to_frame([new])))
    assert tonight.at("m/diary.md", 3) == new and tonight.at("m/diary.md", 7) is None


@pytest.mark.parametrize(
    ("reply", "answer", "right"),
    [
        ("She lives in Osk by the river.", "Osk", 1),
        ("No", "No, she moved to Berlin in May", 0),
        ("Bob", "Anna Smith and Bob Jones", 0),
        ("Berlin in May", "to Berlin in May", 1),
        ("答案是东京。", "东京", 1),
        ("东", "东京都涩谷区", 0),
    ],
)
def test_a_fragment_of_an_answer_is_none(reply: str, answer: str, right: int) -> None:
    assert grade([reply], [Probe("Where?", answer, "a text")], "contains") == [right]


def test_secrets_are_masked_in_questions_and_answers_as_they_are_in_memories(tmp_path: Path) -> None:
    row = {"question": "Whose is anna@example.org?", "answer": "password: hunter2x", "source": "memories/a.md:1"}
    (tmp_path / "mine.jsonl").write_text(json.dumps(row), encoding="utf-8")
    (given,) = given_probes(tmp_path)
    assert (given.probe.question, given.probe.answer) == ("Whose is [EMAIL]?", "password: [SECRET]")
    (given,) = given_probes(tmp_path, MaskSettings(emails=False))
    assert given.probe.question == row["question"]
