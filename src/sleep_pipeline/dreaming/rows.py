"""Dreams as token rows, and rows of several trials laid side by side in one batch `[K * B, T]`, trial by trial.

Rows are padded on the right and no attention mask is given: in a causal model no token sees what is behind it, so
padding cannot reach a real token, positions are those of the unpadded row, and attention takes its fast causal path.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sleep_pipeline.memory.beside import network_of

IGNORED = -100
"""Label of a position that is not learned: the default `ignore_index` of torch's cross-entropy."""


@dataclass(frozen=True)
class Row:
    """A tokenised text with the part of it that is learned or judged.

    Attributes:
        ids: its tokens.
        start: index of the first token of the answer; what is before is only read. The first token of a row has
            nothing before it and is never predicted, so 0 means the same as 1.
    """

    ids: tuple[int, ...]
    start: int = 0

    @property
    def learned(self) -> int:
        """How many tokens are predicted."""
        return max(0, len(self.ids) - max(1, self.start))


@dataclass(frozen=True)
class Dream:
    """What one trial learns.

    Attributes:
        rows: read together in every step.
        seed: of the adapter's initial weights.
        steps: of this trial; None for the number in the settings.
    """

    rows: tuple[Row, ...]
    seed: int = 0
    steps: int | None = None

    @property
    def longest(self) -> int:
        """Tokens of its longest row."""
        return max(len(row.ids) for row in self.rows)

    @property
    def tokens(self) -> int:
        """Tokens of all its rows."""
        return sum(len(row.ids) for row in self.rows)


def fault(dream: Dream, window: int | None, vocabulary: int) -> str | None:
    """Why a dream cannot be tried, in few words that can be counted; None where it can.

    Args:
        dream: as written.
        window: the model's longest input in tokens; None for no limit.
        vocabulary: number of the model's tokens.
    """
    if not dream.rows or not all(row.ids for row in dream.rows):
        return "empty"
    if any(row.start < 0 or not row.learned for row in dream.rows):
        return "nothing to learn behind the start of the answer"
    if any(not 0 <= token < vocabulary for row in dream.rows for token in row.ids):
        return "tokens outside the vocabulary"
    if window is not None and dream.longest > window:
        return "longer than the window"
    if dream.steps is not None and dream.steps < 1:
        return "no steps"
    return None


@dataclass(frozen=True)
class Stack:
    """Rows of K trials in one batch.

    Attributes:
        ids_NT: tokens `[K * B, T]`, padded on the right with token 0.
        first: index of the earliest token that is predicted.
        labels_NS: what positions `first - 1` and on must predict, `[K * B, T - first]`; `IGNORED` elsewhere.
        counts_K: predicted tokens of each trial, at least 1 in a trial without any.
    """

    ids_NT: Tensor
    first: int
    labels_NS: Tensor
    counts_K: Tensor

    @property
    def trials(self) -> int:
        """K."""
        return self.counts_K.shape[0]


def side_by_side(trials: Sequence[Sequence[Row]], device: torch.device | str = "cpu") -> Stack:
    """Lay the rows of every trial into one batch; trials with fewer rows than others are filled up with padding.

    Raises:
        ValueError: there is no row with a token to predict.
    """
    rows = [row for trial in trials for row in trial if row.learned]
    if not rows:
        raise ValueError("no row has a token to predict; give rows of at least two tokens with an answer in them")
    depth = max(len(trial) for trial in trials)
    length = max(len(row.ids) for trial in trials for row in trial)
    ids = torch.zeros(len(trials), depth, length, dtype=torch.long)
    labels = torch.full_like(ids, IGNORED)
    for k, trial in enumerate(trials):
        for b, row in enumerate(trial):
            start = max(1, row.start)
            tokens = torch.tensor(row.ids, dtype=torch.long)
            ids[k, b, : len(tokens)] = tokens
            labels[k, b, start : len(tokens)] = tokens[start:]
    first = min(max(1, row.start) for row in rows)
    counts = (labels != IGNORED).sum((1, 2)).clamp(min=1)
    return Stack(ids.flatten(0, 1).to(device), first, labels[:, :, first:].flatten(0, 1).to(device), counts.to(device))


def predictions(model: nn.Module, batch: Stack) -> Tensor:
    """Logits `[K * B, T - first, V]` for the labels of a batch; earlier positions are not computed where avoidable."""
    length = batch.ids_NT.shape[1]
    # A PEFT model hands on what it does not name itself.
    if "logits_to_keep" in inspect.signature(network_of(model).forward).parameters:
        wanted = torch.arange(batch.first - 1, length - 1, device=batch.ids_NT.device)
        return model(input_ids=batch.ids_NT, use_cache=False, logits_to_keep=wanted).logits
    return model(input_ids=batch.ids_NT, use_cache=False).logits[:, batch.first - 1 : -1]


def losses(model: nn.Module, batch: Stack) -> Tensor:
    """Each trial's mean cross-entropy over its own predicted tokens, nats `[K]`, in float32 or better."""
    logits = predictions(model, batch)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    each = F.cross_entropy(logits.flatten(0, 1), batch.labels_NS.flatten(), ignore_index=IGNORED, reduction="none")
    return each.reshape(batch.trials, -1).sum(1) / batch.counts_K


def exact_match(model: nn.Module, questions: Sequence[Sequence[Row]]) -> list[float]:
    """Share of each trial's answers that greedy decoding would give to the last token.

    The answers are read, not generated: greedy decoding gives an answer exactly if every one of its tokens is the
    likeliest after the true ones before it. One pass therefore judges all trials, inside `adapters_on`.

    Args:
        model: with K adapters on.
        questions: for each of the K trials, its rows; the answer starts at `Row.start`.

    Raises:
        ValueError: a trial has no rows, or a row no answer.
    """
    for k, rows in enumerate(questions):
        if not rows or not all(row.learned for row in rows):
            raise ValueError(f"trial {k} has no questions, or one without an answer; leave it out or fill it in")
    batch = side_by_side(questions, next(model.parameters()).device)
    with torch.no_grad():
        said = predictions(model, batch).argmax(-1)
    right = ((said == batch.labels_NS) | (batch.labels_NS == IGNORED)).all(-1).reshape(batch.trials, -1)
    return [sum(row[: len(rows)]) / len(rows) for row, rows in zip(right.tolist(), questions, strict=True)]
