"""What the benchmarks of dreaming share: made-up documents with questions that no dream is trained on."""

from __future__ import annotations

import random

from sleep_pipeline.corpora.worlds import WorldGenerator, draw_question, fill

FACTS = 4


def documents(name: str, count: int) -> dict[str, list[tuple[str, str]]]:
    """Made-up documents of `FACTS` facts in names and wordings of the test split.

    Args:
        name: the same name makes the same documents.
        count: how many.

    Returns:
        By document, a question a fact and its answer.
    """
    world = WorldGenerator(name, "test", facts=(FACTS, FACTS), entities=(1, 2))
    rng = random.Random(name)
    found: dict[str, list[tuple[str, str]]] = {}
    while len(found) < count:
        document = world.document()
        found[document.text] = []
        for fact in document.facts:
            template, noun = draw_question(rng, fact.relation, "test")
            found[document.text].append((fill(template, fact.subject.name, noun=noun), fact.value))
    return found
