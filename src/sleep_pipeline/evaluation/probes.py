"""Probes: questions that a night is asked without its memories, and how their answers are judged."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sleep_pipeline.corpora.worlds import WorldGenerator, draw_question, fill
from sleep_pipeline.generation.replies import greedy_replies
from sleep_pipeline.seeding.teacher import same_answer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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


class ProbeError(ValueError):
    """A file of probes cannot be read; the message names file and line."""


def given_probes(folder: Path) -> list[tuple[Probe, str]]:
    """Questions that people wrote, each with the memory (`file:line`) that holds its answer.

    Args:
        folder: of JSONL files with `question`, `answer` and `source`.

    Raises:
        ProbeError: a line lacks one of them.
    """
    found = []
    for path in sorted(folder.rglob("*.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                probe = Probe(str(row["question"]), str(row["answer"]))
                found.append((probe, str(row["source"])))
            except (ValueError, KeyError, TypeError) as error:
                raise ProbeError(
                    f'{path.name}:{number}: a probe needs "question", "answer" and "source" ({error}); correct the line'
                ) from error
    return found


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


def grade(replies: Sequence[str], probes: Sequence[Probe]) -> list[int]:
    """1 for every reply that is the probe's answer, 0 for the others."""
    return [int(same_answer(reply, probe.answer)) for reply, probe in zip(replies, probes, strict=True)]


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
