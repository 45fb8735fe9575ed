"""All methods for labelled streams by name, each made from one set of settings."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt

from sleep_pipeline.baselines.dreaming_settings import ClassDreamSettings
from sleep_pipeline.seeding.settings import OptimizerSettings, ReplaySettings, SeedingSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sleep_pipeline.baselines.embedding import Embedder
    from sleep_pipeline.baselines.labelled import Answering, LabelledLearner
    from sleep_pipeline.baselines.labelled_sleep import Sender
    from sleep_pipeline.memory import ContinuumMemoryConfig


def _seeding() -> SeedingSettings:
    """What classes want: fewer and larger steps than facts do, all examples kept, and steps that settle.

    benchmarks/LOG.md, 2026-11-26 to 2026-11-28, has what was tried.
    """
    replay = ReplaySettings(stored_rows=64, stored_capacity=15000, settled_share=0.5)
    optimizer = OptimizerSettings(steps=200, passes=0.0, learning_rate=8e-3, muon_rate=2e-2)
    return SeedingSettings(rows=48, replay=replay, optimizer=optimizer)


class MethodSettings(BaseModel):
    """What the methods are made of; what a method does not have it leaves alone.

    Attributes:
        seeding: steps, optimizer, rows and replay of everything that trains; `passes` have no part in it, or methods
            would not take equal steps.
        lora_rank: of fine-tuning; None trains all weights.
        tuning_rate: peak learning rate of fine-tuning, sleep's being that of `seeding`.
        tuning_muon_rate: the same of Muon's for its matrices; None leaves them to AdamW, as `ewc` does in any case:
            Muon's steps are equally large in all directions, also in those that a pull would hold.
        ewc_weight: see `Anchor`.
        ewc_decay: see `Anchor`.
        shots: examples in a prompt of in-context learning, and of sleep's teacher where it has a context.
        top_k: classes in a prompt of InCA.
        class_shots: examples of each of them.
        shrinkage: of InCA's covariance.
        layer: of the backbone's hidden states that embed a text; None for the middle of the stack.
        sentence_model: name or folder of a sentence-transformers model that embeds in the backbone's place.
        fast_width: of the fast level's own weights.
        fast_period: steps between two of their updates, at least 2.
        fast_rate: their learning rate.
        day_steps: in which sleep's fast memory learns a task before the night; `hope` takes the steps of `seeding`.
        growth: share of the steps of sleep and `replay` that the first tasks leave to the last ones; see
            `tuning.steps_of`.
        expert_rank: of a night's expert, at most the model's hidden size.
        slots: of experts.
        dreaming: of `sleep_dreaming`; see `ClassDreamSettings`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seeding: SeedingSettings = Field(default_factory=_seeding)
    lora_rank: PositiveInt | None = None
    tuning_rate: PositiveFloat = 2e-3
    tuning_muon_rate: PositiveFloat | None = 1e-2
    ewc_weight: NonNegativeFloat = 0.2
    ewc_decay: float = Field(0.9, ge=0, le=1)
    shots: PositiveInt = 16
    top_k: PositiveInt = 3
    class_shots: PositiveInt = 3
    shrinkage: float = Field(0.1, gt=0, le=1)
    layer: int | None = None
    sentence_model: str | None = None
    fast_width: PositiveInt = 64
    fast_period: int = Field(2, ge=2)
    fast_rate: PositiveFloat = 3e-3
    day_steps: PositiveInt = 50
    growth: float = Field(0.75, ge=0, le=1)
    expert_rank: PositiveInt = 128
    slots: int = Field(16, ge=2)
    dreaming: ClassDreamSettings = Field(default_factory=ClassDreamSettings)

    @property
    def tuning(self) -> SeedingSettings:
        """The settings of seeding with the learning rates of fine-tuning."""
        rates = {"learning_rate": self.tuning_rate, "muon_rate": self.tuning_muon_rate}
        optimizer = self.seeding.optimizer.model_copy(update=rates)
        return self.seeding.model_copy(update={"optimizer": optimizer})

    def memory(self, fast: bool, width: int, seed: int) -> ContinuumMemoryConfig:
        """A level of slots, with a fast level above it or without, for a model of this hidden size.

        The seed is of the experts' first weights.
        """
        from sleep_pipeline.memory import ContinuumMemoryConfig, LevelConfig

        above = [
            LevelConfig(period=self.fast_period, num_slots=2 * self.fast_period, rank=1, base_width=self.fast_width)
        ]
        slow = LevelConfig(num_slots=self.slots, rank=min(self.expert_rank, width))
        return ContinuumMemoryConfig(levels=[*(above if fast else []), slow], seed=seed)


Maker = Callable[["PreTrainedModel", "Answering", MethodSettings, int], "LabelledLearner"]


def _embedder(base: PreTrainedModel, answering: Answering, settings: MethodSettings) -> Embedder:
    from sleep_pipeline.baselines.embedding import BackboneEmbedder, SentenceEmbedder

    if settings.sentence_model is not None:
        return SentenceEmbedder(settings.sentence_model)
    return BackboneEmbedder(base, answering.tokenizer, settings.layer)


def _icl(base: PreTrainedModel, answering: Answering, settings: MethodSettings, seed: int) -> LabelledLearner:
    from sleep_pipeline.baselines.icl import InContext

    return InContext(base, answering, _embedder(base, answering, settings), settings.shots)


def _inca(base: PreTrainedModel, answering: Answering, settings: MethodSettings, seed: int) -> LabelledLearner:
    from sleep_pipeline.baselines.inca import InCA

    embedder = _embedder(base, answering, settings)
    return InCA(base, answering, embedder, settings.top_k, settings.class_shots, settings.shrinkage)


def _sft(base: PreTrainedModel, answering: Answering, settings: MethodSettings, seed: int) -> LabelledLearner:
    from sleep_pipeline.baselines.sft import sft

    return sft(base, answering, settings.tuning, settings.lora_rank, seed)


def _ewc(base: PreTrainedModel, answering: Answering, settings: MethodSettings, seed: int) -> LabelledLearner:
    from sleep_pipeline.baselines.ewc import ewc

    tuning = settings.model_copy(update={"tuning_muon_rate": None}).tuning
    return ewc(base, answering, tuning, settings.lora_rank, settings.ewc_weight, seed, settings.ewc_decay)


def _replay(base: PreTrainedModel, answering: Answering, settings: MethodSettings, seed: int) -> LabelledLearner:
    from sleep_pipeline.baselines.replay import replay

    return replay(base, answering, settings.tuning, settings.lora_rank, seed, settings.growth)


def _joint(base: PreTrainedModel, answering: Answering, settings: MethodSettings, seed: int) -> LabelledLearner:
    from sleep_pipeline.baselines.joint import Joint

    return Joint(base, answering, settings.tuning, settings.lora_rank, seed)


def _hope(base: PreTrainedModel, answering: Answering, settings: MethodSettings, seed: int) -> LabelledLearner:
    from sleep_pipeline.baselines.hope import Hope

    seeding = settings.seeding
    rows = seeding.rows + seeding.replay.stored_rows
    steps = seeding.optimizer.steps
    memory = settings.memory(fast=True, width=base.config.get_text_config().hidden_size, seed=seed)
    return Hope(base, answering, memory, steps, rows, settings.fast_rate, seed)


def _sleep(sender: Sender, dreams: bool = False) -> Maker:
    def make(base: PreTrainedModel, answering: Answering, settings: MethodSettings, seed: int) -> LabelledLearner:
        from sleep_pipeline.baselines.labelled_dreaming import DreamingSleep
        from sleep_pipeline.baselines.labelled_sleep import LabelledSleep

        # The default is the backbone with its memory.
        own_embedder = sender != "fast" and (settings.sentence_model is not None or settings.layer is not None)
        kind = partial(DreamingSleep, dreaming=settings.dreaming) if dreams else LabelledSleep
        return kind(
            base,
            answering,
            settings.seeding,
            settings.memory(fast=sender != "context", width=base.config.get_text_config().hidden_size, seed=seed),
            sender,
            embedder=_embedder(base, answering, settings) if own_embedder else None,
            shots=settings.shots,
            day_steps=settings.day_steps,
            day_rate=settings.fast_rate,
            growth=settings.growth,
            seed=seed,
        )

    return make


METHODS: dict[str, Maker] = {
    "icl": _icl,
    "inca": _inca,
    "sft": _sft,
    "ewc": _ewc,
    "replay": _replay,
    "joint": _joint,
    "hope": _hope,
    "sleep": _sleep("fast"),
    "sleep_context": _sleep("context"),
    "sleep_both": _sleep("both"),
    "sleep_dreaming": _sleep("fast", dreams=True),
}


def make_method(
    name: str, base: PreTrainedModel, answering: Answering, settings: MethodSettings, seed: int = 0
) -> LabelledLearner:
    """A method that has observed nothing yet.

    Args:
        name: from `METHODS`.
        base: a base model of its own, which most methods change.
        answering: how it is asked.
        settings: see `MethodSettings`.
        seed: of everything that is drawn.

    Raises:
        ValueError: there is no method of that name.
    """
    if name not in METHODS:
        raise ValueError(f"there is no method {name!r}; choose one of {', '.join(METHODS)}")
    return METHODS[name](base, answering, settings, seed)
