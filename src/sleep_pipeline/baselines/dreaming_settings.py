"""Settings of dreaming about classes; nothing here loads torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from sleep_pipeline.dreaming.settings import (
    DreamingSettings,
    DreamPrompt,
    DreamSettings,
    RestEmSettings,
    RewardSettings,
    ScoreSettings,
    TauSettings,
    TrialSettings,
)
from sleep_pipeline.seeding.settings import RefineSettings


def _night() -> DreamingSettings:
    """What the night's dreaming is told of classes.

    Trials are short, since a copy learns without replay and long ones show what it forgets.
    """
    return DreamingSettings(
        dreams=DreamSettings(
            prompts=[DreamPrompt(kind="utterance", ask="Write another sentence like these.", form="text")],
            dreams=16,
            max_new_tokens=32,
            temperature=0.8,
        ),
        scores=ScoreSettings(top_k=4, random_b=2, each="context"),
        trials=TrialSettings(lr=1e-3, steps=10),
        tau=TauSettings(kind="questions"),
        rewards=RewardSettings(seeds=4, level=0.1),
        rest_em=RestEmSettings(lr=1e-2, steps=80, rows=16),
    )


class ClassDreamSettings(BaseModel):
    """How sleep dreams of the classes that it learned.

    Attributes:
        held_out: share of a task's training examples by which dreams are judged. Seeding does not see them; refining
            learns them with the dreams that helped, so that nothing is lost.
        shots: examples of its label that the dreamer has before it while it writes.
        night: the night's dreaming: `dreams.dreams` utterances a label; `scores` choose among sets of one utterance a
            label, which are the dreams that are tried, and must choose for each context: sets that were dreamt are one
            and sets of known examples another; `trials`, `tau` and `rewards` as for any night, `others` being the known
            ones; of `rest_em` the form of the dreamer's adapter and how it learns to write from tonight's examples,
            without any round.
        refining: steps that distil the examples held out and the dreams that helped into what the night trains;
            `passes` have no part in it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    held_out: float = Field(0.1, gt=0, lt=1)
    shots: PositiveInt = 3
    night: DreamingSettings = Field(default_factory=_night)
    refining: RefineSettings = Field(default_factory=lambda: RefineSettings(steps=50, passes=0.0, learning_rate=2e-3))
