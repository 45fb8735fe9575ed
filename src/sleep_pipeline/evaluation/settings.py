"""Settings of a night's evaluation."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from sleep_pipeline.evaluation.gate import GateSettings
from sleep_pipeline.seeding.answers import Match


class HarnessSettings(BaseModel):
    """Tasks of lm-evaluation-harness (extra `harness`).

    Attributes:
        tasks: names of tasks, groups or tags; none leaves the harness out.
        include_path: folder with declarations of further tasks; their `!function`s are run as code.
        limit: examples a task at most; None for all.
        num_fewshot: examples before a question; None is each task's own number.
        batch_size: requests at a time.
        chat_template: whether questions are put as turns of a conversation.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tasks: tuple[str, ...] = ()
    include_path: str | None = None
    limit: PositiveInt | None = 100
    num_fewshot: NonNegativeInt | None = None
    batch_size: PositiveInt = 16
    chat_template: bool = False


class EvaluationSettings(BaseModel):
    """What a night is asked afterwards.

    Attributes:
        match: when an answer is right; see `seeding.answers.same_answer`. For models that answer in sentences:
            `contains`.
        max_new_tokens: of an answer.
        batch_size: questions at a time.
        teacher_probes: questions of the teacher that are held out and asked at most, a night.
        reading_questions: questions about made-up documents that no night learns, with the document at hand.
        texts: files of ordinary text that the model must go on predicting, as patterns below data/01_raw; none takes
            the text that comes with the package.
        max_invalid_share: share of the teacher's samples that may fail their checks before a night is not promoted.
        examples: questions that the report shows of each kind.
        harness: tasks of lm-evaluation-harness that the model is asked besides; the gate does not look at them.
        gate: what a night must reach to be promoted.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    match: Match = "exact"
    max_new_tokens: PositiveInt = 32
    batch_size: PositiveInt = 128
    teacher_probes: NonNegativeInt = 32
    reading_questions: PositiveInt = 384
    texts: tuple[str, ...] = ()
    max_invalid_share: float = Field(0.05, ge=0, le=1)
    examples: PositiveInt = 8
    harness: HarnessSettings = Field(default_factory=HarnessSettings)
    gate: GateSettings = Field(default_factory=GateSettings)

    def asked(self) -> dict[str, Any]:
        """How answers are asked for and judged: scores of nights can be compared where it is the same."""
        return {"match": self.match, "max_new_tokens": self.max_new_tokens}
