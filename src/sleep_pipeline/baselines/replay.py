"""Fine-tuning in sequence with a bounded store of earlier examples."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sleep_pipeline.baselines.tuning import Tuning

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sleep_pipeline.baselines.labelled import Answering
    from sleep_pipeline.seeding.settings import SeedingSettings


def replay(
    base: PreTrainedModel,
    answering: Answering,
    settings: SeedingSettings,
    rank: int | None = None,
    seed: int = 0,
    growth: float = 0.0,
) -> Tuning:
    """Fine-tuning with `settings.replay.stored_rows` earlier examples in every step; see `Tuning`."""
    return Tuning(base, answering, settings, rank, replay=True, seed=seed, growth=growth)
