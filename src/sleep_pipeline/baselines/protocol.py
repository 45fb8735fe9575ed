"""What every method can do: live through nights, and be asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Learner(Protocol):
    """A method that learns night by night.

    Attributes:
        model: the model as it is now, to be asked.
        stored: bytes that it keeps from one night to the next beside the base model.
        training_seconds: of the training of every night, which sampling the teacher is no part of.
    """

    model: PreTrainedModel

    @property
    def training_seconds(self) -> list[float]:
        """Seconds of training alone, one for each night that taught something."""
        ...

    @property
    def stored(self) -> int:
        """Bytes kept between nights: parameters of its own, and data."""
        ...

    def learn(self, documents: Sequence[str], night: int) -> None:
        """Live through one night; earlier documents are gone."""
        ...
