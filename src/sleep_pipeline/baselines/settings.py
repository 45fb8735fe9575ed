"""Settings of one benchmark run: one method's life with one stream of labelled tasks."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, field_validator

from sleep_pipeline.baselines.methods import METHODS, MethodSettings
from sleep_pipeline.evaluation.tasks import declared


class BenchmarkSettings(BaseModel):
    """What is run on what.

    Attributes:
        task: name of a declared task.
        folder: of its files, below data/01_raw unless absolute, or with `hub` a data set's name; None for the task's
            own name, or the declared one on the hub.
        hub: whether the data come through `datasets`, which may fetch them.
        method: from `METHODS`.
        variant: a name for other settings than the usual ones, or their results would replace those of these.
        seed: of the class order and of everything that the method draws.
        tasks: parts of the stream; None as declared.
        classes: of a part; None as declared.
        ask: the `test` rows; or, to choose settings by, those for `validation` (see `asked_on_validation`).
        test_rows_per_class: questions a class at most, the same for all methods and seeds; None asks all.
        text_words: of a text that are read, from its beginning; None as the task declares, 0 reads all.
        threads: CPU threads; None as the machine's settings say.
        precision: of seeding and fine-tuning; None as `settings.seeding.optimizer` says. What learns by day does so in
            the model's own, and dreams as `settings.dreaming` says.
        normalise: whether labels are compared by log-probability a token.
        settings: of the methods.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str = "clinc150"
    folder: str | None = None
    hub: bool = False
    method: str = "sleep"
    variant: str = Field("", pattern=r"^[A-Za-z0-9_.]*$")
    seed: NonNegativeInt = 0
    tasks: PositiveInt | None = None
    classes: PositiveInt | None = None
    ask: Literal["test", "validation"] = "test"
    test_rows_per_class: PositiveInt | None = None
    text_words: NonNegativeInt | None = None
    threads: PositiveInt | None = None
    precision: Literal["bf16", "fp32"] | None = None
    normalise: bool = False
    settings: MethodSettings = Field(default_factory=MethodSettings)

    @field_validator("variant", "folder", mode="before")
    @classmethod
    def _named_by_a_number(cls, name: object) -> object:
        # Of --params Kedro makes numbers of what looks like some.
        return str(name) if isinstance(name, int | float) else name

    @field_validator("task")
    @classmethod
    def _declared(cls, name: str) -> str:
        return declared(name).name

    @field_validator("method")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in METHODS:
            raise ValueError(f"there is no method {name!r}; choose one of {', '.join(METHODS)}")
        return name

    @property
    def of_method(self) -> MethodSettings:
        """The settings of the methods with the precision of this run."""
        if self.precision is None:
            return self.settings
        seeding = self.settings.seeding
        optimizer = seeding.optimizer.model_copy(update={"precision": self.precision})
        return self.settings.model_copy(update={"seeding": seeding.model_copy(update={"optimizer": optimizer})})

    @property
    def key(self) -> str:
        """Names the run among those of other tasks, questions, methods, variants and seeds."""
        asked = "-validation" if self.ask == "validation" else ""
        variant = f"-{self.variant}" if self.variant else ""
        return f"{self.task}{asked}/{self.method}{variant}/seed_{self.seed}"
