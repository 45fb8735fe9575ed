"""Sleep itself, behind the protocol of its rivals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from peft import get_peft_model

from sleep_pipeline.memory import ContinuumMemoryConfig
from sleep_pipeline.seeding.night import Seeded, seed_night
from sleep_pipeline.seeding.replay import ReplayStore, nbytes
from sleep_pipeline.seeding.settings import SeedingSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Sleep:
    """Knowledge seeding into a new expert every night.

    Args:
        base: the base model.
        tokenizer: with a chat template.
        settings: see `SeedingSettings`.
        memory: with a slot for every night.
        seed: of everything that is drawn.
        progress: whether to show bars.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: SeedingSettings,
        memory: ContinuumMemoryConfig,
        seed: int = 0,
        progress: bool = False,
    ) -> None:
        self.model: PreTrainedModel = get_peft_model(base, memory).eval()
        self.store = ReplayStore(settings.replay.stored_capacity, settings.replay.open_book_capacity)
        self.nights: list[Seeded] = []
        self._tokenizer, self._settings, self._seed, self._progress = tokenizer, settings, seed, progress

    def learn(self, documents: Sequence[str], night: int) -> None:
        """See `Learner`."""
        self.nights.append(
            seed_night(
                self.model,
                self._tokenizer,
                documents,
                self._settings,
                self.store,
                night,
                self._seed,
                progress=self._progress,
            )
        )

    @property
    def training_seconds(self) -> list[float]:
        """See `Learner`."""
        return [seeded.learned.seconds for seeded in self.nights if seeded.slot is not None]

    @property
    def stored(self) -> int:
        """See `Learner`; free slots are not counted."""
        expert = sum(p.nbytes for n, p in self.model.named_parameters() if ".new_" in n)
        return expert * sum(seeded.slot is not None for seeded in self.nights) + nbytes(self.store)
