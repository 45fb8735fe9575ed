"""Declarations of tasks: what each file `*.yml` beside this one says."""

from __future__ import annotations

from functools import cache
from importlib import resources

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

_PACKAGE = "sleep_pipeline.evaluation.tasks"


class HubName(BaseModel):
    """A data set on a hub, as `datasets.load_dataset` takes it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    config: str | None = None


class TaskDeclaration(BaseModel):
    """A class-incremental task.

    Attributes:
        name: by which it is chosen.
        version: changes whenever scores of before cannot be compared with those of after.
        obtain: where a user gets its files.
        licence: of the data.
        protocol: how it is run, in words.
        metric: what is reported, in words.
        higher_is_better: of the metric.
        classes: published.
        tasks: parts that the classes arrive in, all of one size.
        text_columns: names of the text's column, best first.
        label_columns: names of the label's column, best first.
        splits_file: JSON file with all splits as lists of [text, label]; None where each split has files of its own.
        out_of_scope: label of texts that belong to no class; None where there are none.
        train_rows: rows drawn for training; None takes all.
        test_rows: rows drawn for the test; None takes all.
        text_words: of a text that are read, from its beginning; None reads all.
        hub: where it can be had through `datasets`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    version: PositiveInt
    obtain: str
    licence: str
    protocol: str
    metric: str
    higher_is_better: bool
    classes: int = Field(ge=2)
    tasks: PositiveInt
    text_columns: tuple[str, ...] = Field(min_length=1)
    label_columns: tuple[str, ...] = Field(min_length=1)
    splits_file: str | None = None
    out_of_scope: str | None = None
    train_rows: PositiveInt | None = None
    test_rows: PositiveInt | None = None
    text_words: PositiveInt | None = None
    hub: HubName

    @model_validator(mode="after")
    def _divides(self) -> TaskDeclaration:
        if self.classes % self.tasks:
            raise ValueError(f"{self.classes} classes do not make {self.tasks} tasks of one size; change tasks")
        return self


@cache
def task_names() -> tuple[str, ...]:
    """Names of all declared tasks."""
    files = resources.files(_PACKAGE).iterdir()
    return tuple(sorted(file.name.removesuffix(".yml") for file in files if file.name.endswith(".yml")))


@cache
def declared(name: str) -> TaskDeclaration:
    """The declaration of a task.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in task_names():
        raise ValueError(f"there is no task {name!r}; choose one of {', '.join(task_names())}")
    text = resources.files(_PACKAGE).joinpath(f"{name}.yml").read_text(encoding="utf-8")
    return TaskDeclaration.model_validate(yaml.safe_load(text))
