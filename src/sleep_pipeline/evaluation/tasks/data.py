"""What a labelled task is made of once it is read."""

from __future__ import annotations

from dataclasses import dataclass

from sleep_pipeline.evaluation.tasks.declaration import TaskDeclaration

SPLITS = ("train", "validation", "test")


class TaskError(ValueError):
    """A task's files cannot be used; the message names file, line and remedy."""


@dataclass(frozen=True)
class Example:
    """A text with its label in words; the label is empty where the text is out of scope."""

    text: str
    label: str


@dataclass(frozen=True)
class Quarantined:
    """A row that was left out.

    Attributes:
        file: its name.
        line: where it begins, from 1; in Parquet and JSON the row's number.
        reason: what is wrong and what to do.
    """

    file: str
    line: int
    reason: str


@dataclass(frozen=True)
class LabelledData:
    """A whole task as published.

    Attributes:
        declaration: see `TaskDeclaration`.
        labels: in words, in the order of the published names.
        train: examples to learn.
        validation: examples to choose settings by; empty where none are published.
        test: examples to be asked.
        out_of_scope: texts of the test split that belong to no label.
        quarantined: rows that were left out.
        out_of_scope_validation: texts of the validation split that belong to no label.
    """

    declaration: TaskDeclaration
    labels: tuple[str, ...]
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    out_of_scope: tuple[str, ...]
    quarantined: tuple[Quarantined, ...]
    out_of_scope_validation: tuple[str, ...] = ()
