"""Rows of a training step, and how they are laid side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sleep_pipeline.seeding.divergences import CachedTeacher, join
from sleep_pipeline.seeding.lessons import Lesson

WORTH_SPLITTING = 0.8
"""Share of the padded tokens below which two batches are better than one."""


@dataclass(frozen=True)
class Batch:
    """Conversations padded on the right.

    Attributes:
        rows: which rows they are.
        ids: `[B, T]`.
        mask: `[B, T]`.
    """

    rows: list[int]
    ids: Tensor
    mask: Tensor


def pad(rows: Sequence[Sequence[int]], pad_token_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask `[B, T]`, padded on the right."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad_token_id)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        mask[index, : len(row)] = 1
    return ids.to(device), mask.to(device)


def batches(rows: Sequence[Sequence[int]], pad_token_id: int, device: torch.device) -> list[Batch]:
    """All rows in one batch, or in a short and a long one where that saves much padding."""
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    lengths = [len(rows[index]) for index in order]
    costs = [cut * lengths[cut - 1] + (len(rows) - cut) * lengths[-1] for cut in range(1, len(rows))]
    whole = len(rows) * lengths[-1]
    parts = [order]
    if costs and min(costs) < WORTH_SPLITTING * whole:
        cut = costs.index(min(costs)) + 1
        parts = [order[:cut], order[cut:]]
    return [Batch(part, *pad([rows[index] for index in part], pad_token_id, device)) for part in parts]


def positions(spans: Sequence[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and position of every token's *predictor*, for spans `[start, end)` of tokens, one a row, in order."""
    row = [index for index, (start, end) in enumerate(spans) for _ in range(start, end)]
    at = [token - 1 for start, end in spans for token in range(start, end)]
    return torch.tensor(row, device=device), torch.tensor(at, device=device)


def join_teachers(lessons: Sequence[Lesson], device: torch.device) -> CachedTeacher:
    """The beliefs of several lessons, one after another; see `divergences.join`."""
    joined = join([lesson.teacher for lesson in lessons])
    return CachedTeacher(joined.tokens_NK.to(device), joined.log_probs_NK.to(device), joined.tail_N.to(device))
