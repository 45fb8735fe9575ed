"""Probes: questions that a night is asked without its memories, and how their answers are judged."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from sleep_pipeline.corpora.worlds import WorldGenerator, draw_question, fill
from sleep_pipeline.generation.replies import greedy_replies
from sleep_pipeline.memories.files import READERS, passed_over
from sleep_pipeline.memories.lines import read_lines
from sleep_pipeline.memories.masking import mask
from sleep_pipeline.memories.settings import MaskSettings
from sleep_pipeline.seeding.answers import Match, same_answer, words

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sleep_pipeline.memories.records import Memory

logger = logging.getLogger(__name__)

_LONGEST_LINE = 2**24
_SUFFIXES = (".jsonl", ".ndjson")
_FIELDS = ("question", "answer", "source")


@dataclass(frozen=True)
class Probe:
    """A question with its answer.

    Attributes:
        question: asked without the memory.
        answer: what counts as right, but for case and outer punctuation.
        context: what the teacher reads when it is asked; empty where that is not kept.
        origin: `given` by people, or held out of what the `teacher` wrote.
    """

    question: str
    answer: str
    context: str = ""
    origin: str = "given"


@dataclass(frozen=True)
class GivenProbe:
    """A question that people wrote.

    Attributes:
        probe: the question with its answer.
        source: file of the memory that holds the answer, as memories name it.
        line: of that file.
        place: where the question itself stands, `file:line`.
    """

    probe: Probe
    source: str
    line: int
    place: str

    def __str__(self) -> str:
        """The question's place, and the memory's."""
        return f"{self.place} ({self.source}:{self.line})"


class ProbeError(ValueError):
    """A file of probes cannot be read; the message names file and line."""


def given_probes(folder: Path, masks: MaskSettings | None = None) -> list[GivenProbe]:
    """Questions that people wrote, each with the place of the memory that holds its answer.

    Args:
        folder: of JSONL files with `question`, `answer` and `source`, which is `file:line`; hidden files and what
            editors leave behind are passed over, as among memories, and other files with a warning.
        masks: what is masked in questions and answers, as it is in memories; None for the defaults.

    Raises:
        ProbeError: a line is not UTF-8, no JSON, or lacks one of them.
    """
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        inside = path.relative_to(folder)
        if any(map(passed_over, inside.parts)) or path.name in ("README.md", "README"):
            continue
        name = (folder.name / inside).as_posix()
        if path.suffix.lower() not in _SUFFIXES:
            logger.warning("%s is no file of questions and is not read; write them into a .jsonl file", name)
            continue
        with path.open("rb") as stream:
            for line in read_lines(stream, _LONGEST_LINE):
                place = f"{name}:{line.number}"
                if line.problem is not None:
                    raise ProbeError(f"{place}: {line.problem}")
                if line.text.strip():
                    found.append(_given(line.text, place, masks or MaskSettings()))
    return found


def asked_earlier(models_folder: Path, primary_folder: Path) -> list[Probe]:
    """What the nights that tonight stands on were asked, oldest first; what each was asked about is left out."""
    import pandas as pd

    from sleep_pipeline.night_number import folder_of
    from sleep_pipeline.registry import NightRegistry

    probes = []
    for ancestor in NightRegistry(models_folder).lineage():
        path = primary_folder / folder_of(ancestor.number) / "probes.parquet"
        if path.is_file():
            table = pd.read_parquet(path, columns=["question", "answer", "origin"])
            rows = zip(table["question"], table["answer"], table["origin"], strict=True)
            probes += [Probe(question, answer, origin=origin) for question, answer, origin in rows]
    return probes


def _given(text: str, place: str, masks: MaskSettings) -> GivenProbe:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProbeError(f"{place}: no readable JSON ({error}); correct the line") from error
    said = {name: _said(row.get(name)) for name in _FIELDS} if isinstance(row, dict) else {}
    lacking = [name for name in _FIELDS if not said.get(name)]
    if lacking:
        raise ProbeError(
            f'{place}: a probe needs "question", "answer" and "source", and "{lacking[0]}" is missing or empty; '
            "correct the line"
        )
    source, _, line = said["source"].rpartition(":")
    if not source or not (line.isascii() and line.isdigit() and int(line)):
        raise ProbeError(
            f'{place}: "source" is {said["source"]!r}; name the memory that holds the answer by file and line, such as '
            "memories/notes.md:3"
        )
    question, answer = (mask(said[name], masks).text for name in ("question", "answer"))
    return GivenProbe(Probe(question, answer), source, int(line), place)


def _said(value: Any) -> str:
    """A text or a number as text; empty for anything else."""
    says = isinstance(value, str | int | float) and not isinstance(value, bool) and str(value).strip()
    return str(value) if says else ""


class MemoryPlaces:
    """Finds memories by a line of their file, the first or any other.

    Args:
        memories: of a night.
    """

    def __init__(self, memories: Iterable[Memory]) -> None:
        self._files: dict[str, list[Memory]] = {}
        for memory in memories:
            self._files.setdefault(memory.source, []).append(memory)

    def at(self, source: str, line: int) -> Memory | None:
        """The memory that a line belongs to: the last one of its file that begins there or above.

        Nothing belongs to a memory below its last line, so that neither a row that was left out nor a passage of an
        earlier night counts as the one above it.
        """
        above = [memory for memory in self._files.get(source, ()) if memory.line <= line]
        if not above:
            return None
        found = max(above, key=lambda memory: memory.line)
        last = _last_line(found)
        return found if last is None or line <= last else None


def _last_line(memory: Memory) -> int | None:
    """Where a memory ends at the latest; None where the next one says."""
    reader = READERS.get(PurePosixPath(memory.source).suffix.lower())
    if reader in ("jsonl", "parquet"):
        return memory.line
    if reader == "csv":
        fields = (memory.text, memory.label, memory.question, memory.answer)
        return memory.line + sum(field.count("\n") for field in fields if field)
    return memory.end or None


def ask(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    probes: Sequence[Probe],
    open_book: bool,
    max_new_tokens: int = 32,
    batch_size: int = 128,
    progress: str | None = None,
) -> list[str]:
    """The model's greedy answers, with each probe's context before it or without.

    Raises:
        ValueError: a conversation does not fit into the model's window.
    """
    conversations = [
        [
            *([{"role": "system", "content": probe.context}] if open_book else []),
            {"role": "user", "content": probe.question},
        ]
        for probe in probes
    ]
    return greedy_replies(model, tokenizer, conversations, max_new_tokens, batch_size, progress)


def grade(replies: Sequence[str], probes: Sequence[Probe], match: Match = "exact") -> list[int]:
    """1 for every reply that is the probe's answer (`contains`: or holds it, or half of its words in a row), else 0."""
    return [
        int(same_answer(reply, probe.answer, match) and 2 * len(words(reply)) >= len(words(probe.answer)))
        for reply, probe in zip(replies, probes, strict=True)
    ]


def reading_probes(count: int) -> list[Probe]:
    """Questions about made-up documents that no night learns, always the same ones."""
    import random

    world = WorldGenerator("reading probes", "test")
    rng = random.Random("reading probes")
    probes: list[Probe] = []
    while len(probes) < count:
        document = world.document()
        for fact in document.facts:
            template, noun = draw_question(rng, fact.relation, "test")
            probes.append(Probe(fill(template, fact.subject.name, noun=noun), fact.value, document.text, "reading"))
    return probes[:count]
