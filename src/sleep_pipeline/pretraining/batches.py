"""The stream of training batches: conversations and running text, packed into rows without padding between them.

Batch `i` is a pure function of the seed and `i`, so a run can resume anywhere, exactly, and workers can build
batches in any order.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch.utils.data import Dataset

from sleep_pipeline.corpora.english import English
from sleep_pipeline.corpora.mixture import training_skills
from sleep_pipeline.corpora.worlds import WorldGenerator
from sleep_pipeline.pretraining.settings import PretrainSettings
from sleep_pipeline.pretraining.tokenizer import ConversationEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IGNORED = -100
_DRAWN_AT_ONCE = 8
_SHORTEST_TEXT = 16


Batch = list[dict[str, torch.Tensor]]


class PackedBatches(Dataset[Batch]):
    """Batches by index.

    A batch is a list with one dictionary of tensors for each row length in use, since attention over short rows is
    cheaper than over long ones. Its tensors are `[rows, row length]`: `input_ids`; `position_ids`, which start at 0
    with each conversation, by which `transformers` keeps conversations apart; `labels`, already shifted, -100 where
    nothing is learned; `weights` of the labels' losses, float.

    Args:
        settings: mixture, row lengths, tokens a batch, seed and number of steps.
        tokenizer: of the model.
        english: real text, or None to train on made-up text alone.

    Raises:
        ValueError: a weight names no skill, or no weight is above 0.
    """

    def __init__(self, settings: PretrainSettings, tokenizer: PreTrainedTokenizerFast, english: English | None) -> None:
        self.settings = settings
        self.encoder = ConversationEncoder(tokenizer)
        self.english = english
        self.pad = int(tokenizer.pad_token_id)
        skills = training_skills()
        mixture = settings.mixture
        unknown = sorted(set(mixture.weights) - set(skills))
        if unknown:
            raise ValueError(f"mixture.weights names no skill: {unknown}; known are {sorted(skills)}")
        self._skills = {name: skills[name] for name, weight in mixture.weights.items() if weight > 0}
        if not self._skills:
            raise ValueError("mixture.weights has no weight above 0; give at least one skill a share")
        lengths = self._mean_lengths()
        self._odds = [mixture.weights[name] / lengths[name] for name in self._skills]

    def __len__(self) -> int:
        return self.settings.steps

    def _mean_lengths(self) -> dict[str, float]:
        """Mean tokens of each skill's examples, so that shares can be shares of tokens."""
        rng = random.Random("lengths")
        lengths = {}
        for name, skill in self._skills.items():
            drawn = [skill(rng, "train").messages for _ in range(40)]
            lengths[name] = sum(len(ids) for ids, _ in self.encoder.conversations(drawn)) / len(drawn)
        return lengths

    def __getitem__(self, index: int) -> Batch:
        settings, mixture = self.settings, self.settings.mixture
        rng = random.Random(f"batch/{settings.seed}/{index}")
        rows = _Rows(settings.row_lengths, settings.batch_tokens)
        wanted = int((1 - mixture.english_share) * settings.batch_tokens)
        for ids, said in sorted(self._conversations(rng, wanted), key=lambda item: -len(item[0])):
            rows.place(ids, [1.0 if flag else mixture.context_weight for flag in said])
        while rows.open(1):
            pass
        for row in rows:
            while (space := row.space) >= _SHORTEST_TEXT:
                piece = self._text(rng, space)
                row.put(piece, [mixture.text_weight] * len(piece))
        return rows.tensors(self.pad)

    def _conversations(self, rng: random.Random, wanted: int) -> Iterator[tuple[list[int], list[bool]]]:
        """Encoded conversations of `wanted` tokens in all or slightly more, drawn by their skills' shares."""
        skills = list(self._skills.values())
        practice = self.settings.mixture.practice_share if self.english else 0.0
        total = 0
        while total < wanted:
            examples = []
            for _ in range(_DRAWN_AT_ONCE):
                if self.english and rng.random() < practice:
                    examples.append(self.english.practice(rng))
                else:
                    examples.append(rng.choices(skills, self._odds)[0](rng, "train"))
            for ids, said in self.encoder.conversations([example.messages for example in examples]):
                if total < wanted:
                    total += len(ids)
                    yield ids, said

    def _text(self, rng: random.Random, space: int) -> list[int]:
        """A piece of running text of at most `space` tokens."""
        if self.english:
            ids = self.encoder.text(self.english.passage(rng))
            start = rng.randrange(max(1, len(ids) - space // 2))
        else:
            ids, start = self.encoder.text(WorldGenerator(rng.getrandbits(64)).document().text), 0
        return ids[start : start + space]


class _Row:
    """One row and the pieces that it holds, with a weight for every token."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.space = length
        self.pieces: list[tuple[list[int], list[float]]] = []

    def put(self, ids: list[int], weights: list[float]) -> None:
        self.pieces.append((ids, weights))
        self.space -= len(ids)


class _Rows:
    """Rows of several lengths, at most `capacity` tokens in all; a piece goes where it leaves the least space."""

    def __init__(self, lengths: Sequence[int], capacity: int) -> None:
        self.left = capacity
        self._by_length: dict[int, list[_Row]] = {length: [] for length in lengths}

    def __iter__(self) -> Iterator[_Row]:
        return (row for rows in self._by_length.values() for row in rows)

    def open(self, tokens: int) -> _Row | None:
        """Add the shortest row that holds `tokens`; None if no row is long enough or the capacity is spent."""
        length = next((length for length in self._by_length if length >= tokens), None)
        if length is None or length > self.left:
            return None
        self.left -= length
        self._by_length[length].append(row := _Row(length))
        return row

    def place(self, ids: list[int], weights: list[float]) -> None:
        """Put a piece into the row that it fills best, or into a new one; it is dropped if there is room in none."""
        fitting = [row for row in self if row.space >= len(ids)]
        row = min(fitting, key=lambda row: row.space) if fitting else self.open(len(ids))
        if row:
            row.put(ids, weights)

    def tensors(self, pad: int) -> Batch:
        """One dictionary of tensors for each row length in use."""
        return [_tensors(rows, pad) for rows in self._by_length.values() if rows]


def _tensors(rows: list[_Row], pad: int) -> dict[str, torch.Tensor]:
    length = rows[0].length
    ids = torch.full((len(rows), length), pad)
    positions = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED)
    weights = torch.zeros(ids.shape)
    for row, packed in enumerate(rows):
        at = 0
        for piece, weighted in packed.pieces:
            end = at + len(piece)
            ids[row, at:end] = torch.tensor(piece)
            positions[row, at:end] = torch.arange(len(piece))
            labels[row, at : end - 1] = torch.tensor(piece[1:])
            weights[row, at : end - 1] = torch.tensor(weighted[1:])
            at = end
        positions[row, at:] = torch.arange(length - at)
    return {"input_ids": ids, "position_ids": positions, "labels": labels, "weights": weights}
