"""Supervised fine-tuning task by task, with nothing against forgetting."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sleep_pipeline.baselines.tuning import Tuning

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sleep_pipeline.baselines.labelled import Answering
    from sleep_pipeline.seeding.settings import SeedingSettings


def sft(
    base: PreTrainedModel, answering: Answering, settings: SeedingSettings, rank: int | None = None, seed: int = 0
) -> Tuning:
    """Fine-tuning in sequence; see `Tuning`."""
    return Tuning(base, answering, settings, rank, seed=seed)
