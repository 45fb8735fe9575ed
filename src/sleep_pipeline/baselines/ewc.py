"""Fine-tuning in sequence with elastic weight consolidation (`finetuning.Anchor`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sleep_pipeline.baselines.tuning import Tuning

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sleep_pipeline.baselines.labelled import Answering
    from sleep_pipeline.seeding.settings import SeedingSettings


def ewc(
    base: PreTrainedModel,
    answering: Answering,
    settings: SeedingSettings,
    rank: int | None = None,
    weight: float = 0.2,
    seed: int = 0,
    decay: float = 0.9,
) -> Tuning:
    """Fine-tuning whose weights are held where they mattered to earlier tasks; see `Tuning` and `Anchor`.

    Classes that arrive a few at a time are what it is known to fail at (van de Ven et al. 2022): nothing that it holds
    says how an old class is told from a new one.
    """
    return Tuning(base, answering, settings, rank, anchor=weight, seed=seed, decay=decay)
