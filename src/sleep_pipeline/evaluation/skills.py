"""How well a model does what it must do with a text in its context, on worlds and wordings it has never met."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sleep_pipeline.corpora.mixture import SKILLS
from sleep_pipeline.corpora.skills import Example, check
from sleep_pipeline.evaluation.statistics import Estimate, mean_interval
from sleep_pipeline.generation.replies import greedy_replies

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CLOSED_BOOK = "closed_book"
_MAX_NEW_TOKENS = 320


@dataclass(frozen=True)
class SkillReport:
    """Score of one skill and its graded examples (example, reply, score from 0 to 1)."""

    estimate: Estimate
    graded: list[tuple[Example, str, float]]


def held_out_examples(skill: str, count: int, seed: int) -> list[Example]:
    """Unseen examples of a skill: names, subjects and wordings of the test split."""
    rng = random.Random(f"held out/{skill}/{seed}")
    return [SKILLS[skill](rng, "test") for _ in range(count)]


def closed_book(examples: Sequence[Example]) -> list[Example]:
    """The same questions without the text."""
    return [
        Example(CLOSED_BOOK, tuple(turn for turn in example.messages if turn["role"] != "system"), example.truth)
        for example in examples
    ]


def evaluate_skills(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    seed: int = 0,
    skills: Sequence[str] | None = None,
) -> dict[str, SkillReport]:
    """Greedy replies to held-out examples of every skill, graded by the generator's truth.

    The open-book questions are asked once more without their text, as skill `closed_book`.

    Args:
        model: a causal LM.
        tokenizer: with a chat template.
        count: examples a skill.
        seed: of the examples.
        skills: names from `corpora.mixture.SKILLS`; all of them by default.
    """
    suites = {name: held_out_examples(name, count, seed) for name in skills or SKILLS}
    if "question_answering" in suites:
        suites[CLOSED_BOOK] = closed_book(suites["question_answering"])
    reports = {}
    for name, examples in suites.items():
        prompts = [example.prompt for example in examples]
        replies = greedy_replies(model, tokenizer, prompts, _MAX_NEW_TOKENS, progress=name)
        graded = [(e, reply, check(e, reply)) for e, reply in zip(examples, replies, strict=True)]
        reports[name] = SkillReport(mean_interval([score for _, _, score in graded]), graded)
    return reports
