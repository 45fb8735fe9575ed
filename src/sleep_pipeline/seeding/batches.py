"""Rows of a training step, and how they are laid side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sleep_pipeline.seeding.divergences import CachedTeacher, join
from sleep_pipeline.seeding.lessons import Lesson

PASS_TOKENS = {"cpu": 256, "cuda": 4096}
"""Padded tokens that one more forward and backward pass must save, by device: a CPU starts a pass in no time."""


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
    """All rows, those of like length together: in as many batches as cost least, each counted as `PASS_TOKENS`."""
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    lengths = np.array([len(rows[index]) for index in order])
    more = PASS_TOKENS.get(device.type, PASS_TOKENS["cuda"])
    # least[n]: of the shortest n rows; begins[n]: where the last of their batches begins.
    least, begins = np.zeros(len(rows) + 1), np.zeros(len(rows) + 1, dtype=int)
    for end in range(1, len(rows) + 1):
        costs = least[:end] + np.arange(end, 0, -1) * lengths[end - 1] + more
        begins[end] = costs.argmin()
        least[end] = costs[begins[end]]
    parts = []
    end = len(rows)
    while end:
        parts.append(order[begins[end] : end])
        end = begins[end]
    return [Batch(part, *pad([rows[index] for index in part], pad_token_id, device)) for part in reversed(parts)]


def positions(spans: Sequence[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and position of every token's *predictor*, for spans `[start, end)` of tokens, one a row, in order."""
    row = [index for index, (start, end) in enumerate(spans) for _ in range(start, end)]
    at = [token - 1 for start, end in spans for token in range(start, end)]
    return torch.tensor(row, device=device), torch.tensor(at, device=device)


def join_teachers(lessons: Sequence[Lesson], device: torch.device) -> CachedTeacher:
    """The beliefs of several lessons, one after another; see `divergences.join`."""
    joined = join([lesson.teacher for lesson in lessons])
    return CachedTeacher(joined.tokens_NK.to(device), joined.log_probs_NK.to(device), joined.tail_N.to(device))
