"""InCA (Momeni et al. 2025): an external learner chooses few classes, and the model decides among them.

The external learner is a Gaussian a class over embeddings, all with one covariance (`gaussian.py`); a class's summary
in the prompt is the examples nearest its mean, kept for good. Deviations from the paper: there a large model writes
tags for every text, which are embedded in its place, and a summary of every class; the embedded model can do neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sleep_pipeline.baselines.embedding import Embedder
from sleep_pipeline.baselines.gaussian import GaussianClasses
from sleep_pipeline.baselines.labelled import Answering, Spent, text_bytes
from sleep_pipeline.evaluation.classification import Choice

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sleep_pipeline.evaluation.tasks import ClassTask, Example


class InCA:
    """Gaussian classes over embeddings, the best of them in the prompt.

    Args:
        model: a causal LM; not changed.
        answering: how it is asked.
        embedder: of the texts.
        top_k: classes in a prompt; with 1 the external learner decides alone.
        shots: examples of each class in a prompt, which are kept.
        shrinkage: see `GaussianClasses`.
    """

    incremental = True

    def __init__(
        self,
        model: PreTrainedModel,
        answering: Answering,
        embedder: Embedder,
        top_k: int = 3,
        shots: int = 3,
        shrinkage: float = 0.1,
    ) -> None:
        self.model, self.labels, self.spent = model, list[str](), Spent()
        self._answering, self._embedder = answering, embedder
        self.top_k, self.shots = top_k, shots
        self.classes = GaussianClasses(shrinkage)
        self._kept: list[list[Example]] = []

    def observe(self, task: ClassTask) -> None:
        """See `LabelledLearner`."""
        with self.spent.metering(self.model):
            for label in task.labels:
                mine = [one for one in task.train if one.label == label]
                vectors = self._embedder.embed([one.text for one in mine]).astype(np.float64)
                self.classes.add(vectors)
                self.labels.append(label)
                near = np.argsort(np.square(vectors - self.classes.means[-1]).sum(-1), kind="stable")
                self._kept.append([mine[place] for place in near[: self.shots].tolist()])

    def predict(self, texts: Sequence[str], freely: bool = False) -> list[Choice]:
        """See `LabelledLearner`; with one class in the prompt the score is minus the distance to it."""
        if not self.labels or not texts:
            return self._answering.ask(self.model, texts, self.labels, freely=freely)
        distances = self.classes.distances(self._embedder.embed(texts))
        best = np.argsort(distances, axis=-1, kind="stable")[:, : self.top_k]
        if self.top_k == 1 and not freely:
            return [Choice(self.labels[row[0]], -float(distances[n, row[0]])) for n, row in enumerate(best.tolist())]
        # Round by round over the classes, so that a full window costs every class the same.
        shown = [
            [self._kept[place][shot] for shot in range(self.shots) for place in row if shot < len(self._kept[place])]
            for row in best.tolist()
        ]
        return self._answering.ask(self.model, texts, self.labels, shown, best.tolist(), freely)

    @property
    def stored(self) -> int:
        """See `LabelledLearner`."""
        return self.classes.nbytes + sum(text_bytes(examples) for examples in self._kept)
