"""A stream of classes told apart by one word, and an embedder that sees that word."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sleep_pipeline.baselines.embedding import Vectors
from sleep_pipeline.evaluation.tasks import ClassStream, Example, LabelledData, class_stream, declared

WORDS = ("apple", "river", "music", "paper")


def stream(shots: int = 4, tasks: int = 2) -> ClassStream:
    """Four classes, two a task, each with a word of its own in all of its texts."""
    declaration = declared("clinc150").model_copy(update={"classes": 4, "tasks": tasks})
    labels = tuple(f"the {word}" for word in WORDS)
    train = tuple(Example(f"{word} {n}", f"the {word}") for word in WORDS for n in range(shots))
    test = tuple(Example(f"{word} 0", f"the {word}") for word in WORDS)
    return class_stream(LabelledData(declaration, labels, train, (), test, ("nothing known", "else"), ()), seed=0)


class WordEmbedder:
    """One axis a word, and a little of the text's length."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        """See `Embedder`."""
        rows = [[float(word in text) for word in WORDS] + [len(text) / 100] for text in texts]
        return np.array(rows, dtype=np.float32)
