"""A model in evaluation mode, or without its own settings for `generate`, for the time of a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout and the like off; after the block every module is in the mode that it was in.

    `model.train(was_training)` would not do: a wrapper that is new stands in training mode around a model that does
    not, and would switch its dropout on.
    """
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def plain_generation(model: nn.Module) -> Iterator[None]:
    """`generate` does what it is told and nothing else.

    A model's own settings may forbid it to repeat, as it must to copy out of a text, demand so many tokens, draw, or
    favour some tokens. `generate` takes them up even beside settings that it is given.
    """
    from transformers import GenerationConfig

    from sleep_pipeline.memory.beside import network_of

    network = network_of(model)
    before = network.generation_config
    network.generation_config = GenerationConfig()
    try:
        yield
    finally:
        network.generation_config = before
