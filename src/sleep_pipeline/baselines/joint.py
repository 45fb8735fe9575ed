"""Joint training on all tasks at once: the bound, which no method that meets them in sequence is expected to pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sleep_pipeline.baselines.labelled import text_bytes
from sleep_pipeline.baselines.tuning import Tuning, labelled_lessons

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sleep_pipeline.baselines.labelled import Answering
    from sleep_pipeline.evaluation.classification import Choice
    from sleep_pipeline.evaluation.tasks import ClassTask, Example
    from sleep_pipeline.seeding.settings import SeedingSettings


class Joint(Tuning):
    """Keeps all examples and trains once, when it is first asked, for as many steps as all tasks have together.

    Args:
        base: the base model; full fine-tuning changes it.
        answering: how it is asked.
        settings: see `Tuning`.
        rank: see `Tuning`.
        seed: of everything that is drawn.
    """

    incremental = False

    def __init__(
        self,
        base: PreTrainedModel,
        answering: Answering,
        settings: SeedingSettings,
        rank: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(base, answering, settings, rank, seed=seed)
        self._examples: list[Example] = []
        self._tasks = 0
        self._trained = False

    def observe(self, task: ClassTask) -> None:
        """See `LabelledLearner`.

        Raises:
            RuntimeError: it was trained already.
        """
        if self._trained:
            raise RuntimeError(
                f"joint training is over, and task {task.number} comes too late: ask after the last task"
            )
        self.labels += task.labels
        self._examples += task.train
        self._tasks += 1

    def predict(self, texts: Sequence[str], freely: bool = False) -> list[Choice]:
        """See `LabelledLearner`; trains first if that has not been done."""
        if not self._trained and self._examples:
            with self.spent.metering(self.model):
                lessons = labelled_lessons(self._answering, self.model, self.labels, self._examples)
                self._train(self._settings, lessons, 7919 * self._seed, times=self._tasks)
            self._trained = True
        return super().predict(texts, freely)

    @property
    def stored(self) -> int:
        """See `LabelledLearner`."""
        return super().stored + text_bytes(self._examples)
