"""Settings of a night's seeding."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from sleep_pipeline.seeding.teacher import TeacherSettings

Kind = Literal["forward_kl", "reverse_kl", "jsd"]
"""Divergences of `divergences.divergence`."""


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_by_name=True, validate_by_alias=True)


class ReplaySettings(_Settings):
    """What is rehearsed beside tonight's lessons.

    Attributes:
        stored_rows: lessons of earlier nights in every step.
        stored_capacity: lessons of earlier nights that are kept.
        open_book_rows: lessons in reading in every step: of documents that the model made up, and of tonight's texts.
        open_book_capacity: lessons in reading that are kept.
        open_book_documents: documents that the model makes up every night to read about; 0 for none. With few, the
            first night reads them by heart, since no earlier night left others.
        open_book_replies: what it says about each.
        document_tokens: where such a document is cut, and dropped.
        document_requests: for documents, in turn, which are then cut to their last sentence; with none, the model opens
            a system turn and writes what it was trained to find there: general models write instructions.
        altered_texts: of tonight's texts with one answer put for another, to read what stands there and not what is
            remembered; 0 for none.
        free_texts: texts that the model begins of itself every night, to go on speaking as it does; 0 for none.
        free_text_tokens: of each.
        conversations: requests that the model makes up every night and answers, to go on knowing what it knows of
            itself; 0 for none. General models forget some of it otherwise, and nothing else rehearses it
            (`benchmarks/LOG.md`, 2026-11-28).
        conversation_tokens: of a request, and of a reply; longer requests are dropped, longer replies cut.
        base_reader: whether documents, what is said about them, free texts and conversations come from the model
            without its experts, so that what one night does to its reading is not the measure of the next.
        settled_share: of the last steps, in which every night has as many rows as every other, tonight's too, so that
            tonight's lessons do not drown those of earlier nights; tonight keeps a tenth of the rows however many
            nights there were. 0 for none.
        gate_penalty: weight of the new expert's mean gate on lessons in reading, where the text says it all (gate
            sparsity); 0 for none.
    """

    stored_rows: NonNegativeInt = 32
    stored_capacity: PositiveInt = 6000
    open_book_rows: NonNegativeInt = 6
    open_book_capacity: PositiveInt = 1200
    open_book_documents: NonNegativeInt = 36
    open_book_replies: PositiveInt = 4
    document_tokens: PositiveInt = 160
    document_requests: tuple[str, ...] = ()
    altered_texts: NonNegativeInt = 96
    free_texts: NonNegativeInt = 48
    free_text_tokens: PositiveInt = 64
    conversations: NonNegativeInt = 0
    conversation_tokens: PositiveInt = 128
    base_reader: bool = True
    settled_share: float = Field(0.3, ge=0, le=1)
    gate_penalty: float = Field(0.0, ge=0)


class OptimizerSettings(_Settings):
    """How the new expert is trained, and earlier ones with it.

    Attributes:
        steps: optimizer steps a night, or as many more as `passes` asks for.
        passes: a night takes so many steps that `steps * rows` is `passes` times its lessons
            (`SeedingSettings.for_night`). Settled steps have fewer rows of tonight, and so have all with `lambda`, so
            that lessons are read less often than that. 0 takes `steps` whatever a night brings.
        learning_rate: peak of AdamW's, which falls linearly to zero.
        muon_rate: the same of Muon's for the new expert's matrices, whose steps are as large as AdamW's of that rate
            (`torch.optim.Muon`); None leaves them to AdamW. It learns as much in two thirds of the steps, and more of a
            night that brings much (`benchmarks/LOG.md`, 2026-11-27).
        earlier_rate: AdamW's rate for earlier nights' experts as a share of `learning_rate`; 0 leaves them as they are,
            as the paper does, and so does a night that replays nothing. Trained along, they make room for each other:
            late nights are learned as well as the first ones (`benchmarks/LOG.md`, 2026-11-27). Their keys are stored
            times `router_gain` and move that much less.
        earlier_muon: whether Muon has their matrices, too, at `earlier_rate` of its rate, where it has the new one's.
        warmup_share: of the steps.
        betas: of AdamW.
        weight_decay: of AdamW and of Muon; earlier nights' experts do not decay.
        clip_norm: largest norm of the gradient.
        precision: `bf16` autocast or `fp32`.
        gradient_checkpointing: whether to save memory at the price of a second forward pass.
        checkpoint_every: steps after which a killed run goes on; 0 never saves.
    """

    steps: PositiveInt = 320
    passes: float = Field(4.0, ge=0)
    learning_rate: PositiveFloat = 5e-3
    muon_rate: PositiveFloat | None = 1e-2
    earlier_rate: float = Field(1.0, ge=0)
    earlier_muon: bool = False
    warmup_share: float = Field(0.05, ge=0, le=1)
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: PositiveFloat = 1.0
    precision: Literal["bf16", "fp32"] = "bf16"
    gradient_checkpointing: bool = False
    checkpoint_every: NonNegativeInt = 0


class ImitationSettings(_Settings):
    """Learning to imitate (paper.md eq. 4).

    Attributes:
        gamma: weight of the judge against the literal comparison; 0 asks no judge.
        threshold: `z_0`, the largest distance in tokens that earns anything.
        group: continuations of each cut sample, which are each other's baseline.
        max_new_tokens: of a continuation.
        temperature: at which the student goes on.
    """

    gamma: float = Field(0.5, ge=0, le=1)
    threshold: NonNegativeInt = 4
    group: int = Field(4, ge=2)
    max_new_tokens: PositiveInt = 24
    temperature: PositiveFloat = 1.0


class SeedingSettings(_Settings):
    """A night's seeding: paper.md eq. 3 to 5.

    Attributes:
        teacher: how the teacher is sampled.
        rows: lessons of tonight in every step, on- and off-policy together. Few: of the same lessons, many small steps
            teach more than few large ones (`benchmarks/LOG.md`, 2026-11-26).
        on_policy: `lambda`, the share of these that the student says itself; rounded to whole groups, of which there is
            at least one unless it is 0. It brought nothing on the embedded model for all its time
            (`benchmarks/LOG.md`), so it is 0 unless set.
        alpha: weight of the distillation, against `1 - alpha` of the imitation reward.
        divergence: from the teacher's distribution to the student's; see `divergences.divergence`.
        beta: of the divergence `jsd`.
        replay: see `ReplaySettings`.
        imitation: see `ImitationSettings`.
        optimizer: see `OptimizerSettings`.
    """

    teacher: TeacherSettings = Field(default_factory=TeacherSettings)
    rows: PositiveInt = 16
    on_policy: float = Field(0.0, ge=0, le=1, alias="lambda")
    alpha: float = Field(0.9, ge=0, le=1)
    divergence: Kind = "forward_kl"
    beta: float = Field(0.5, gt=0, lt=1)
    replay: ReplaySettings = Field(default_factory=ReplaySettings)
    imitation: ImitationSettings = Field(default_factory=ImitationSettings)
    optimizer: OptimizerSettings = Field(default_factory=OptimizerSettings)

    @property
    def plastic(self) -> bool:
        """Whether earlier nights' experts learn, too: they would forget if nothing of theirs were rehearsed."""
        return self.optimizer.earlier_rate > 0 and self.replay.stored_rows > 0

    @model_validator(mode="after")
    def _teachers_stand_still(self) -> Self:
        if self.teacher.experts and self.plastic:
            raise ValueError(
                "with teacher.experts a night that dreams asks the teacher after seeding, too, when optimizer."
                f"earlier_rate={self.optimizer.earlier_rate} has changed its experts: set earlier_rate to 0, or "
                "experts to false"
            )
        return self

    def for_night(self, lessons: int) -> Self:
        """The settings with the steps of a night that brings so many lessons."""
        optimizer = self.optimizer
        steps = max(optimizer.steps, math.ceil(optimizer.passes * lessons / self.rows))
        return self.model_copy(update={"optimizer": optimizer.model_copy(update={"steps": steps})})

    @property
    def prompts(self) -> int:
        """Samples that are cut and continued in every step: whole groups that make up the share `lambda`."""
        if not self.on_policy:
            return 0
        return max(1, round(self.on_policy * self.rows / self.imitation.group))


class RefineSettings(_Settings):
    """How the dreams that helped are learned: as seeding does, but for these.

    Attributes:
        steps: optimizer steps, or as many more as `passes` asks for.
        passes: as of seeding's optimizer, for tonight's lessons and those of dreams together; 0 takes `steps` whatever
            a night brings.
        learning_rate: peak; where seeding has a `muon_rate`, that is smaller or larger by as much.
    """

    steps: PositiveInt = 200
    passes: float = Field(2.0, ge=0)
    learning_rate: PositiveFloat = 1e-3

    def seeding(self, seeding: SeedingSettings) -> SeedingSettings:
        """The settings of seeding with these in their place; the student says nothing itself."""
        rate = seeding.optimizer.muon_rate
        changed = {
            "steps": self.steps,
            "passes": self.passes,
            "learning_rate": self.learning_rate,
            "muon_rate": rate and rate * self.learning_rate / seeding.optimizer.learning_rate,
        }
        optimizer = seeding.optimizer.model_copy(update=changed)
        return seeding.model_copy(update={"optimizer": optimizer, "on_policy": 0.0, "alpha": 1.0})
