"""In-context learning: nothing is learned; all examples are kept, and the most similar ones go into the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sleep_pipeline.baselines.embedding import Embedder, Vectors, nearest
from sleep_pipeline.baselines.labelled import Answering, Spent, text_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sleep_pipeline.evaluation.classification import Choice
    from sleep_pipeline.evaluation.tasks import ClassTask, Example


class InContext:
    """Retrieval of examples into the window.

    Args:
        model: a causal LM; not changed.
        answering: how it is asked.
        embedder: by which examples are found.
        shots: examples in a prompt at most; fewer where the window is full.
    """

    incremental = True

    def __init__(self, model: PreTrainedModel, answering: Answering, embedder: Embedder, shots: int = 16) -> None:
        self.model, self.labels, self.spent = model, list[str](), Spent()
        self._answering, self._embedder, self.shots = answering, embedder, shots
        self._examples: list[Example] = []
        self._vectors: list[Vectors] = []

    def observe(self, task: ClassTask) -> None:
        """See `LabelledLearner`."""
        with self.spent.metering(self.model):
            self.labels += task.labels
            self._examples += task.train
            self._vectors.append(self._embedder.embed([one.text for one in task.train]))

    def predict(self, texts: Sequence[str], freely: bool = False) -> list[Choice]:
        """See `LabelledLearner`."""
        shown: list[list[Example]] | None = None
        if self._vectors and texts:
            places = nearest(self._embedder.embed(texts), np.concatenate(self._vectors), self.shots)
            shown = [[self._examples[place] for place in row] for row in places.tolist()]
        return self._answering.ask(self.model, texts, self.labels, shown, freely=freely)

    @property
    def stored(self) -> int:
        """See `LabelledLearner`."""
        return text_bytes(self._examples) + sum(rows.nbytes for rows in self._vectors)
