"""Lessons of random tokens, a model in a sleep to learn them, and a sampler that says what it is told to."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from tiny_models import VOCAB, fill, learn, one_level, tokens, with_memory
from torch import Tensor, nn

from sleep_pipeline.generation.sampler import Reply
from sleep_pipeline.memory import CONTEXT, Consolidation
from sleep_pipeline.seeding.divergences import cache_teacher
from sleep_pipeline.seeding.lessons import Lesson
from sleep_pipeline.seeding.rewards import RewardFunction
from sleep_pipeline.seeding.settings import SeedingSettings
from sleep_pipeline.seeding.trainer import KnowledgeSeedingTrainer


def lesson(length: int, start: int, seed: int, k: int = 5, context: int = 4, view: int = 0) -> Lesson:
    """A conversation of random tokens; the teacher has `context` more of them before it, and random beliefs."""
    ids = tuple(tokens(1, length, seed)[0].tolist())
    before = tuple(tokens(1, context, seed + 1000)[0].tolist()) if context else ()
    generator = torch.Generator().manual_seed(seed)
    beliefs = cache_teacher(torch.randn(length - start, VOCAB, generator=generator, dtype=torch.float64), k)
    return Lesson(ids, start, beliefs, before + ids[:start] if context else (), view)


def lessons(count: int = 6, k: int = 5, first: int = 0) -> list[Lesson]:
    """Lessons of lengths so different that they are worth two batches."""
    return [lesson(6 + 2 * i + 14 * (i % 2), 2 + i % 3, first + i, k) for i in range(count)]


def louder(model: nn.Module) -> nn.Module:
    """A random model's blocks are almost silent, and an expert is only as loud as the block beside it."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("mlp.base_layer.down_proj.weight", "mlp.base_layer.c_proj.weight", "lm_head.weight")):
                parameter.mul_(20)
    return model


def asleep(
    dtype: torch.dtype = torch.float32,
    experts: int = 1,
    filled: bool = True,
    architecture: str = "llama",
    plastic: bool = False,
) -> nn.Module:
    """A model with active experts in a sleep that trains one more, which already does something if `filled`."""
    model = louder(with_memory(one_level(), architecture, autocast_adapter_dtype=False)).to(dtype)
    for seed in range(experts):
        learn(model, seed=seed + 1)
    Consolidation(model, CONTEXT, 1, night=1, plastic=plastic).begin()
    if filled:
        fill(model, 1, seed=99)
    return model


def settings(**changes: Any) -> SeedingSettings:
    """Small, in fp32, half on-policy, earlier experts as they are; a dictionary changes a part of its name."""
    base: dict[str, Any] = {
        "rows": 8,
        "on_policy": 0.5,
        "alpha": 0.7,
        "teacher": {"experts": True},
        "replay": {
            "stored_rows": 2,
            "open_book_rows": 1,
            "open_book_documents": 0,
            "free_texts": 0,
            "settled_share": 0.0,
        },
        "imitation": {"group": 2, "gamma": 0.0, "threshold": 6, "max_new_tokens": 4},
        "optimizer": {"steps": 4, "learning_rate": 1e-2, "muon_rate": None, "precision": "fp32", "earlier_rate": 0.0},
    }
    for name, value in changes.items():
        base[name] = {**base.get(name, {}), **value} if isinstance(value, dict) else value
    return SeedingSettings.model_validate(base)


def trainer_of(
    model: nn.Module, tokenizer: Any, taught: Sequence[Lesson] = (), reward: RewardFunction | None = None, **rest: Any
) -> KnowledgeSeedingTrainer:
    """A trainer with the settings above, or those among `rest`."""
    given = rest.pop("settings", None) or settings()
    return KnowledgeSeedingTrainer(model, given, taught or lessons(), tokenizer, reward, **rest)


def whimsical(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
    """A reward that differs from one continuation to the next, which a random student never earns by imitation."""
    return [sum(ids) % 5 / 4 for ids in completion_ids]


def without_context(taught: Sequence[Lesson]) -> list[Lesson]:
    """As lessons come back from the replay store."""
    return [dataclasses.replace(one, teacher_prompt=()) for one in taught]


def state(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer, copied."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in named}


class Script:
    """Stands in for the sampler: replies by what is asked, the n-th reply of a prompt being the n-th of its list."""

    replies: ClassVar[dict[str, list[str]]] = {}
    otherwise: ClassVar[list[str]] = ["..."]

    def __init__(self, model: Any, tokenizer: Any, settings: Any) -> None:
        self.tokenizer = tokenizer

    def sample(
        self, prompts: Sequence[Any], count: int = 1, seed: int = 0, progress: str | None = None
    ) -> list[list[Reply]]:
        """Texts that end in dots are cut off."""
        return [self._say(prompt[-1]["content"], count) for prompt in prompts]

    def continue_ids(
        self, prompts: Sequence[Sequence[int]], count: int = 1, seed: int = 0, progress: str | None = None
    ) -> list[list[Reply]]:
        """As `sample`, by the decoded prompt."""
        return [self._say(self.tokenizer.decode(ids), count) for ids in prompts]

    def _say(self, asked: str, count: int) -> list[Reply]:
        texts = self.replies.get(asked, self.otherwise)
        drawn = [texts[number % len(texts)] for number in range(count)]
        return [Reply(text.removesuffix("..."), (), (), ended=not text.endswith("...")) for text in drawn]
