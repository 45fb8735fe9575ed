"""The stream of training batches: conversations and running text, packed into rows without padding between them.

Batch `i` is a pure function of the seed and `i`, so a run can resume anywhere, exactly, and workers can build
batches in any order.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
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
        rng = random.Random(f"batch/{self.settings.seed}/{index}")
        wanted = int((1 - self.settings.mixture.english_share) * self.settings.batch_tokens)
        pools = {length: _Rows(length) for length in self.settings.row_lengths}
        for ids, said in sorted(self._conversations(rng, wanted), key=lambda item: -len(item[0])):
            fitting = [length for length in pools if length >= len(ids)]
            if fitting:
                pools[fitting[0]].place(ids, said)
        shortest = pools[self.settings.row_lengths[0]]
        while sum(pool.capacity for pool in pools.values()) + shortest.length <= self.settings.batch_tokens:
            shortest.open()
        for pool in pools.values():
            self._fill_with_text(rng, pool)
        weight = self.settings.mixture.context_weight
        return [pool.tensors(self.pad, weight) for pool in pools.values() if pool.capacity]

    def _conversations(self, rng: random.Random, wanted: int) -> Iterator[tuple[list[int], list[bool]]]:
        """Encoded conversations of at least `wanted` tokens in all, drawn by their skills' shares."""
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
                total += len(ids)
                yield ids, said

    def _fill_with_text(self, rng: random.Random, pool: _Rows) -> None:
        for row in range(len(pool.used)):
            while (space := pool.length - pool.used[row]) >= _SHORTEST_TEXT:
                if self.english:
                    ids = self.encoder.text(self.english.passage(rng))
                    start = rng.randrange(max(1, len(ids) - space // 2))
                else:
                    ids, start = self.encoder.text(WorldGenerator(rng.getrandbits(64)).document().text), 0
                piece = ids[start : start + space]
                pool.put(row, piece, [True] * len(piece))


class _Rows:
    """Rows of one length that are filled piece by piece; a piece goes where it leaves the least space."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.pieces: list[list[tuple[list[int], list[bool]]]] = []
        self.used: list[int] = []

    @property
    def capacity(self) -> int:
        return self.length * len(self.used)

    def open(self) -> int:
        """Add an empty row and return its number."""
        self.pieces.append([])
        self.used.append(0)
        return len(self.used) - 1

    def place(self, ids: list[int], said: list[bool]) -> None:
        """Put a piece into the row that it fills best, or into a new one."""
        fitting = [row for row, used in enumerate(self.used) if self.length - used >= len(ids)]
        self.put(max(fitting, key=lambda row: self.used[row]) if fitting else self.open(), ids, said)

    def put(self, row: int, ids: list[int], said: list[bool]) -> None:
        self.pieces[row].append((ids, said))
        self.used[row] += len(ids)

    def tensors(self, pad: int, context_weight: float) -> dict[str, torch.Tensor]:
        ids = torch.full((len(self.used), self.length), pad)
        positions = torch.zeros_like(ids)
        labels = torch.full_like(ids, IGNORED)
        weights = torch.zeros(ids.shape)
        for row, pieces in enumerate(self.pieces):
            at = 0
            for piece, said in pieces:
                end = at + len(piece)
                ids[row, at:end] = torch.tensor(piece)
                positions[row, at:end] = torch.arange(len(piece))
                labels[row, at : end - 1] = torch.tensor(piece[1:])
                weights[row, at : end - 1] = torch.tensor([1.0 if flag else context_weight for flag in said[1:]])
                at = end
            positions[row, at:] = torch.arange(self.length - at)
        return {"input_ids": ids, "position_ids": positions, "labels": labels, "weights": weights}
