"""Everything that a night's report shows, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sleep_pipeline.evaluation.gate import Decision
from sleep_pipeline.evaluation.retention import Retention


@dataclass(frozen=True)
class Example:
    """A question with what the model said to it.

    Attributes:
        question: as asked, without context.
        answer: the right one: as it was given, or as the teacher gave it with the context at hand.
        before: the model's answer before the night; None if it was right, in words that are not kept.
        after: the model's answer after it.
        night: the night that the question belongs to.
    """

    question: str
    answer: str
    before: str | None
    after: str
    night: int


@dataclass(frozen=True)
class NightPoint:
    """One night on the curves; None where something was not measured.

    Attributes:
        night: its number.
        recall: closed-book score of its own questions right after it, 0 to 1.
        forgetting: of earlier nights since they were learned, -1 to 1.
        open_book: score with the context at hand after the night, 0 to 1.
        seconds: the whole night.
    """

    night: int
    recall: float | None = None
    forgetting: float | None = None
    open_book: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class DreamSample:
    """A dream worth showing in the report.

    Attributes:
        kind: what the model was asked to write.
        text: what it wrote.
        score: importance by its gradient.
        reward: of its trial.
    """

    kind: str
    text: str
    score: float | None = None
    reward: float | None = None


@dataclass(frozen=True)
class Memories:
    """What the night read.

    Attributes:
        learned: memories that went into the night.
        masked: memories in which something private was blanked out.
        quarantined: reason -> places of the folder that are left out for it, those of earlier nights among them.
        kinds: kind -> how many of those that were learned.
        unlearnable: places of texts of which the teacher could write nothing that it stood by.
    """

    learned: int = 0
    masked: int = 0
    quarantined: Mapping[str, Sequence[str]] = field(default_factory=dict)
    kinds: Mapping[str, int] = field(default_factory=dict)
    unlearnable: tuple[str, ...] = ()


@dataclass(frozen=True)
class NightReport:
    """A night, ready to be shown.

    Attributes:
        night: its number.
        parent: the night it grew from; 0 for the base model.
        time: when it ended, ISO 8601.
        model: name of the base model.
        decision: of the gate.
        retention: the matrix with this night last.
        command: what reproduces the night.
        git_commit: of the code, if known.
        environment: name -> value of machine and software.
        learned: examples of what it can answer now and could not before.
        forgotten: examples of what it could answer before and cannot now.
        history: this night and its ancestors, oldest first.
        levels: `SlotTable.to_dict()["levels"]`: for each level, fastest first, its slots.
        dreams: dreams that helped, best first.
        dreams_helpful: how many helped, shown or not.
        dreams_dreamt: how many there were in all.
        dreamer: how the dreamer's training went, in a sentence; empty without any.
        memories: what was read.
        phases: phase -> seconds, in order.
        in_use: the night whose model is in use now, where this one is not; None for its parent.
    """

    night: int
    parent: int
    time: str
    model: str
    decision: Decision
    retention: Retention
    command: str
    git_commit: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    learned: Sequence[Example] = ()
    forgotten: Sequence[Example] = ()
    history: Sequence[NightPoint] = ()
    levels: Sequence[Sequence[Mapping[str, Any]]] = ()
    dreams: Sequence[DreamSample] = ()
    dreams_helpful: int = 0
    dreams_dreamt: int = 0
    dreamer: str = ""
    memories: Memories = field(default_factory=Memories)
    phases: Mapping[str, float] = field(default_factory=dict)
    in_use: int | None = None

    @property
    def asked(self) -> bool:
        """Whether there were questions of this night; without any, the matrix is that of the nights before."""
        return bool(len(self.retention)) and self.retention.nights[-1] == self.night
