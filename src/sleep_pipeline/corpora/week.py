"""A week of made-up memories in the forms in which people keep them, with probes whose answers are known.

Every day tells of eight documents with four facts each: two in Markdown, two in a text, two as JSON lines, one as a
conversation and one as questions with answers. Two or three rows a day are bad in a way that happens. The probes ask
for every fact in other words and lie outside the memories.

    python -m sleep_pipeline.corpora.week data/01_raw
"""

from __future__ import annotations

import csv
import datetime
import io
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sleep_pipeline.corpora.worlds import Document, Fact, WorldGenerator, draw_statement, fill, questions

DAYS = 7
DOCUMENTS = 8
FACTS = 4
_MONDAY = datetime.datetime(2026, 3, 2, 8, tzinfo=datetime.UTC)
_NEWS, _CHATS = "news.jsonl", "chats.jsonl"
_ASIDES = {2: "Write to clerk@example.org if it changes. ", 6: "My password is wren47harbour. "}
# Day -> (file, row that is put among its rows).
_BAD_ROWS: dict[int, list[tuple[str, str]]] = {
    1: [(_NEWS, '{"text": "The ferry to the upper quay was l'), (_NEWS, '{"text": ""}')],
    2: [
        ("questions.csv", "Who swept the market?,nobody,yesterday"),
        (_CHATS, '{"messages": [{"role": "wizard", "content": "Hm?"}, {"role": "assistant", "content": "Hm."}]}'),
    ],
    3: [(_NEWS, '["a list", "of notes"]'), ("questions.jsonl", '{"answer": "beside the mill"}')],
    4: [(_CHATS, '{"messages": [{"role": "user", "content": "Is anybody there?"}]}')],
    5: [(_NEWS, '{"headline": "Rain", "body": "It rained."}')],
    6: [("questions.csv", '"Who forgot to close this quote?,the clerk'), (_NEWS, '{"text": 47}')],
    7: [(_CHATS, '{"conversations": [{"from": "human", "value": ""}, {"from": "gpt", "value": "Yes."}]}')],
}
# Day -> files that hold no memory.
_BAD_FILES: dict[int, dict[str, str]] = {
    3: {"todo.txt": ""},
    5: {"list.txt": " \n\n\t\n"},
    7: {"letter.rtf": "{\\rtf1 Dear all}\n"},
}


@dataclass
class _File:
    """Lines on their way to a file, and the probes that ask for what they say."""

    name: str
    lines: list[str] = field(default_factory=list)
    probes: list[tuple[int, Fact]] = field(default_factory=list)

    def add(self, text: str, facts: Sequence[Fact] = ()) -> None:
        """Append a text; its facts are probed at its first line."""
        self.probes += [(len(self.lines) + 1, fact) for fact in facts]
        self.lines += text.split("\n")

    def insert(self, line: str, at: int) -> None:
        """Put a line of its own before the line with this index."""
        self.lines.insert(at, line)
        self.probes = [(number + (number > at), fact) for number, fact in self.probes]


def write_week(folder: Path, seed: int | str = "week") -> None:
    """Write `memories/day_1` to `memories/day_7` and `probes/day_1.jsonl` to `probes/day_7.jsonl` below a folder.

    A probe has `question`, `answer` and, in `source`, file and line of the memory that tells it.

    Args:
        folder: made if it is missing; files of the same names are replaced.
        seed: the same seed writes the same bytes. No name occurs on two days.
    """
    generator = WorldGenerator(seed, "test", facts=(FACTS, FACTS))
    rng = random.Random(f"week/{seed}")
    for day in range(1, DAYS + 1):
        documents = [_document(generator) for _ in range(DOCUMENTS)]
        asked = {id(fact): rng.sample(_asked(fact), 2) for document in documents for fact in document.facts}
        files = _files(day, documents, {key: pair[0] for key, pair in asked.items()}, rng)
        place = folder / "memories" / f"day_{day}"
        place.mkdir(parents=True, exist_ok=True)
        probes = []
        for file in files:
            for name, row in _BAD_ROWS.get(day, []):
                if name == file.name:
                    file.insert(row, rng.randint(1, len(file.lines) - 1) if len(file.lines) > 1 else 0)
            _write(place / file.name, "\n".join(file.lines) + "\n")
            for line, fact in file.probes:
                source = f"memories/day_{day}/{file.name}:{line}"
                probes.append({"question": asked[id(fact)][1], "answer": fact.value, "source": source})
        for name, text in _BAD_FILES.get(day, {}).items():
            _write(place / name, text)
        (folder / "probes").mkdir(exist_ok=True)
        _write(folder / "probes" / f"day_{day}.jsonl", "".join(_json(probe) + "\n" for probe in probes))


def _document(generator: WorldGenerator) -> Document:
    """A document with all its facts; some subjects have too few of them."""
    return next(document for document in generator if len(document.facts) == FACTS)


def _asked(fact: Fact) -> list[str]:
    return questions(fact.subject, fact.relation, "test")


def _files(day: int, documents: Sequence[Document], asked: dict[int, str], rng: random.Random) -> list[_File]:
    date = _MONDAY + datetime.timedelta(days=day - 1)
    notes = _File("notes.md")
    notes.add(f"# {date:%A}\n")
    for title, document in zip(("Morning", "Evening"), documents[:2], strict=True):
        notes.add(f"## {title}\n\n{document.text}\n", document.facts)
    notes.lines.pop()
    diary = _File("diary.txt")
    diary.add(documents[2].text, documents[2].facts)
    diary.add("\n" if day % 2 else "\n---\n")
    diary.add(documents[3].text, documents[3].facts)
    news = _File(_NEWS)
    for hour, document in enumerate(documents[4:6]):
        time = (date + datetime.timedelta(hours=hour)).isoformat()
        news.add(_json({"text": document.text, "time": time}), document.facts)
    if day == 4:
        news.add(news.lines[0])  # somebody sent it twice
    chats = _File(_CHATS)
    chats.add(_json(_chat(day, documents[6], asked, rng)), documents[6].facts)
    return [notes, diary, news, chats, _questions(day, documents[7], asked)]


def _chat(day: int, document: Document, asked: dict[int, str], rng: random.Random) -> dict[str, Any]:
    """A conversation about a document: in the form of OpenAI on odd days, of ShareGPT on even ones."""
    turns: list[tuple[str, str]] = []
    for number, fact in enumerate(document.facts):
        template, noun = draw_statement(rng, fact.relation, "test")
        turns.append(("user", ("" if number else _ASIDES.get(day, "")) + asked[id(fact)]))
        turns.append(("assistant", fill(template, fact.subject.name, fact.value, noun)))
    if day % 2:
        return {"messages": [{"role": role, "content": text} for role, text in turns]}
    names = {"user": "human", "assistant": "gpt"}
    return {"conversations": [{"from": names[role], "value": text} for role, text in turns]}


def _questions(day: int, document: Document, asked: dict[int, str]) -> _File:
    """Questions with answers: JSON lines on odd days, a table on even ones."""
    if day % 2:
        file = _File("questions.jsonl")
        for fact in document.facts:
            file.add(_json({"question": asked[id(fact)], "answer": fact.value}), [fact])
        return file
    file = _File("questions.csv")
    file.add("question,answer")
    for fact in document.facts:
        row = io.StringIO()
        csv.writer(row, lineterminator="").writerow([asked[id(fact)], fact.value])
        file.add(row.getvalue(), [fact])
    return file


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    write_week(Path(sys.argv[1]))
