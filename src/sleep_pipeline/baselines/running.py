"""One method's life with a stream of labelled tasks, and what is reported of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sleep_pipeline.evaluation.retention import Retention
from sleep_pipeline.evaluation.statistics import Estimate, auroc, mean_interval

if TYPE_CHECKING:
    from sleep_pipeline.baselines.labelled import LabelledLearner
    from sleep_pipeline.evaluation.classification import Choice
    from sleep_pipeline.evaluation.tasks import ClassStream, ClassTask

Answers = tuple[int, ...]


@dataclass(frozen=True)
class OutOfScope:
    """What a method makes of texts that belong to no class.

    Attributes:
        auroc: probability that an in-scope text's answer scores higher than an out-of-scope text's.
        refused: share of out-of-scope texts to which free generation gives no label.
        texts: how many.
    """

    auroc: float
    refused: float
    texts: int


@dataclass(frozen=True)
class StreamResult:
    """What came of a stream.

    Attributes:
        task: name of the data.
        version: of its declaration.
        seed: of the class order.
        labels: in the order in which they came, a tuple a task.
        retention: the matrix R by likelihood; None for a method that answers after the last task alone.
        final: answers to each task's questions after the last task, by likelihood, 1 if right.
        final_freely: the same by free generation.
        out_of_scope: None where the data have none.
        stored: bytes kept after each task.
        seconds: of learning each task; what joint training puts off counts to the last.
        tokens: the same, of tokens read.
        asking_seconds: of all questions, which is no part of learning.
    """

    task: str
    version: int
    seed: int
    labels: tuple[tuple[str, ...], ...]
    retention: Retention | None
    final: tuple[Answers, ...]
    final_freely: tuple[Answers, ...]
    out_of_scope: OutOfScope | None
    stored: tuple[int, ...]
    seconds: tuple[float, ...]
    tokens: tuple[int, ...]
    asking_seconds: float = field(compare=False)

    def accuracy(self) -> Estimate:
        """Share of right answers over all classes after the last task, by likelihood."""
        return mean_interval([score for answers in self.final for score in answers])

    def accuracy_freely(self) -> Estimate:
        """The same by free generation."""
        return mean_interval([score for answers in self.final_freely for score in answers])

    def figures(self) -> dict[str, Estimate | float | None]:
        """Every measure by name; those of the matrix are left out where there is none."""
        figures: dict[str, Estimate | float | None] = {
            "final_accuracy": self.accuracy(),
            "final_accuracy_freely": self.accuracy_freely(),
        }
        if self.retention is not None:
            summary = self.retention.summary()
            names = ("accuracy", "accuracy_over_time", "backward_transfer", "forgetting", "forgetting_since_learned")
            figures |= {name: summary[name] for name in names}
        if self.out_of_scope is not None:
            figures["out_of_scope_auroc"] = self.out_of_scope.auroc
            figures["out_of_scope_refused"] = self.out_of_scope.refused
        figures |= {
            "stored_bytes": float(self.stored[-1]),
            "seconds": sum(self.seconds),
            "tokens": float(sum(self.tokens)),
            "asking_seconds": self.asking_seconds,
        }
        return figures

    def to_json(self) -> dict[str, Any]:
        """Return the whole in JSON's types."""
        from dataclasses import asdict

        record = asdict(self)
        record["retention"] = None if self.retention is None else self.retention.to_json()
        record["figures"] = {
            name: asdict(figure) if isinstance(figure, Estimate) else figure for name, figure in self.figures().items()
        }
        return record


def run_stream(
    method: LabelledLearner, stream: ClassStream, progress: Callable[[str], None] | None = None
) -> StreamResult:
    """Let a method live through a stream, and ask it everything it has met after every task.

    Args:
        method: that has observed nothing yet.
        stream: see `class_stream`.
        progress: told a line a task.
    """
    retention = Retention() if method.incremental else None
    stored: list[int] = []
    seconds: list[float] = []
    tokens: list[int] = []
    asking = 0.0
    row: list[Answers] = []
    choices: list[list[Choice]] = []
    for task in stream.tasks:
        before = method.spent.seconds, method.spent.tokens
        method.observe(task)
        last = task is stream.tasks[-1]
        if method.incremental or last:
            # What a method puts off until it is asked is learning, not asking.
            so_far, began = method.spent.seconds, time.perf_counter()
            met = stream.tasks[: task.number]
            choices = [method.predict([one.text for one in each.test]) for each in met]
            asking += time.perf_counter() - began - (method.spent.seconds - so_far)
            row = [_right(own, each) for own, each in zip(choices, met, strict=True)]
            if retention is not None:
                retention = retention.append(task.number, row)
        stored.append(method.stored)
        seconds.append(method.spent.seconds - before[0])
        tokens.append(method.spent.tokens - before[1])
        if progress is not None:
            shares = " ".join(f"{sum(answers) / len(answers):.2f}" for answers in row)
            progress(f"task {task.number}: {shares or '-'}, {seconds[-1]:.1f} s, {stored[-1]:,} bytes")
    began = time.perf_counter()
    freely = tuple(_right(method.predict([one.text for one in each.test], freely=True), each) for each in stream.tasks)
    outside = _outside(method, stream.out_of_scope, [choice.score for own in choices for choice in own])
    return StreamResult(
        stream.name,
        stream.version,
        stream.seed,
        tuple(task.labels for task in stream.tasks),
        retention,
        tuple(row),
        freely,
        outside,
        tuple(stored),
        tuple(seconds),
        tuple(tokens),
        asking + time.perf_counter() - began,
    )


def _right(choices: Sequence[Choice], task: ClassTask) -> Answers:
    return tuple(int(choice.label == one.label) for choice, one in zip(choices, task.test, strict=True))


def _outside(method: LabelledLearner, texts: Sequence[str], inside: Sequence[float]) -> OutOfScope | None:
    if not texts:
        return None
    scores = [choice.score for choice in method.predict(texts)]
    refused = sum(not choice.label for choice in method.predict(texts, freely=True)) / len(texts)
    return OutOfScope(auroc(inside, scores), refused, len(texts))
