"""Hope without sleep: the fast levels' own weights are updated online by paper.md eq. 2, and nothing is distilled."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from peft import get_peft_model
from torch import nn

from sleep_pipeline.baselines.labelled import Answering, Spent
from sleep_pipeline.baselines.tuning import labelled_lessons
from sleep_pipeline.memory import ContinuumMemoryConfig, WakeUpdates
from sleep_pipeline.memory.levels import BASE
from sleep_pipeline.memory.operations import level_tensors
from sleep_pipeline.seeding.batches import batches, positions
from sleep_pipeline.seeding.hidden import answer_head, hidden_states
from sleep_pipeline.seeding.lessons import Lesson

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sleep_pipeline.evaluation.classification import Choice
    from sleep_pipeline.evaluation.tasks import ClassTask


class Awake:
    """Learns lessons as they come, in the fast levels of a memory.

    Args:
        model: with a memory of at least two levels, whose periods count steps (2 at least).
        pad_token_id: of its tokenizer.
        learning_rate: of AdamW, whose state goes on from chunk to chunk; it does not decay.
    """

    def __init__(self, model: nn.Module, pad_token_id: int, learning_rate: float = 3e-3) -> None:
        self.model, self._pad = model, pad_token_id
        self.updates = WakeUpdates(model, partial(torch.optim.AdamW, lr=learning_rate, weight_decay=0.0))
        self._steps = 0

    def live(self, lessons: Sequence[Lesson], steps: int, rows: int, seed: int) -> list[float]:
        """Take so many steps over shuffled lessons; returns the loss of each (nats a token)."""
        state = self.updates.state
        head = answer_head(self.model)
        device = next(self.model.parameters()).device
        rng = random.Random(seed)
        queue: list[Lesson] = []
        losses = []
        for _ in range(steps):
            while len(queue) < rows:
                queue += rng.sample(list(lessons), len(lessons))
            batch, queue = queue[:rows], queue[rows:]
            tokens = sum(len(lesson.ids) - lesson.start for lesson in batch)
            total = 0.0
            with self.updates.awake():
                # Rows of like length together: one long text would else make all rows of the step as long as itself.
                for part in batches([lesson.ids for lesson in batch], self._pad, device):
                    mine = [batch[row] for row in part.rows]
                    said = torch.tensor([token for one in mine for token in one.ids[one.start :]], device=device)
                    spans = [(one.start, len(one.ids)) for one in mine]
                    states = hidden_states(self.model, part.ids, part.mask)[positions(spans, device)]
                    loss = nn.functional.cross_entropy(head(states).float(), said, reduction="sum") / tokens
                    loss.backward()
                    total += float(loss.detach())
                self.updates.observe()
            losses.append(total)
            self._steps += 1
            for level in range(1, state.depth):
                if self._steps % (state.config.levels[level - 1].period or 1) == 0:
                    self.updates.apply(level)
        return losses

    @property
    def nbytes(self) -> int:
        """Bytes of the fast levels' weights and of their optimisers' states."""
        state = self.updates.state
        weights = sum(
            tensors.get_parameter(name).nbytes
            for level in range(1, state.depth)
            for tensors in level_tensors(state, level)
            for name in BASE
        )
        return weights + sum(_tensor_bytes(one) for one in self.updates.state_dict().values())


def _tensor_bytes(record: Any) -> int:
    if isinstance(record, torch.Tensor):
        return record.nbytes
    return sum(map(_tensor_bytes, record.values())) if isinstance(record, dict) else 0


class Hope:
    """The continuum memory as it learns while awake alone.

    Args:
        base: the base model, which stays frozen.
        answering: how it is asked.
        memory: of at least two levels; periods count steps.
        steps: of each task.
        rows: examples a step.
        learning_rate: see `Awake`.
        seed: of the order of examples.
    """

    incremental = True

    def __init__(
        self,
        base: PreTrainedModel,
        answering: Answering,
        memory: ContinuumMemoryConfig,
        steps: int = 200,
        rows: int = 48,
        learning_rate: float = 3e-3,
        seed: int = 0,
    ) -> None:
        self.model: PreTrainedModel = get_peft_model(base, memory).eval()
        self.labels, self.spent = list[str](), Spent()
        self.awake = Awake(self.model, answering.tokenizer.pad_token_id, learning_rate)
        self._answering, self._steps, self._rows, self._seed = answering, steps, rows, seed

    def observe(self, task: ClassTask) -> None:
        """See `LabelledLearner`."""
        self.labels += task.labels
        with self.spent.metering(self.model):
            lessons = labelled_lessons(self._answering, self.model, self.labels, task.train)
            self.awake.live(lessons, self._steps, self._rows, 7919 * self._seed + task.number)

    def predict(self, texts: Sequence[str], freely: bool = False) -> list[Choice]:
        """See `LabelledLearner`."""
        return self._answering.ask(self.model, texts, self.labels, freely=freely)

    @property
    def stored(self) -> int:
        """See `LabelledLearner`."""
        return self.awake.nbytes
