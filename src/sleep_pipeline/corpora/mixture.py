"""All skills together: in the form in which they are measured, and in the one in which they are practised."""

from __future__ import annotations

import random
from collections.abc import Callable

from sleep_pipeline.corpora.names import Split
from sleep_pipeline.corpora.puzzles import PUZZLE_SKILLS, classification, needles
from sleep_pipeline.corpora.skills import DOCUMENT_SKILLS, Example, reading

Skill = Callable[[random.Random, Split], Example]

SKILLS: dict[str, Skill] = {**DOCUMENT_SKILLS, **PUZZLE_SKILLS}


def training_skills() -> dict[str, Skill]:
    """Every skill as it is practised: several questions to one text where that is possible."""
    return {
        **SKILLS,
        "reading": reading,
        "needles": lambda rng, split: needles(rng, split, keys=None, turns=rng.randint(1, 8)),
        "classification": _classification,
    }


def _classification(rng: random.Random, split: Split) -> Example:
    """A quarter of the tasks has any size, the others are large: among many lines the right one is hard to find."""
    if rng.random() < 0.25:
        return classification(rng, split, None, None, turns=rng.randint(1, 8))
    return classification(rng, split, rng.randint(4, 6), rng.randint(3, 4), turns=rng.randint(3, 8))
