"""Why a row is no memory."""

from __future__ import annotations

from typing import Any

from sleep_pipeline.memories.masking import mask
from sleep_pipeline.memories.settings import MaskSettings

_SHOWN = 24
_READ = 1000


class BadRow(ValueError):
    """A row is no memory; the message says why and what to do."""


def shown(said: Any) -> str:
    """The beginning of a name or value, as a reason shows it: masked first, for half a secret looks like none."""
    return mask(str(said)[:_READ], MaskSettings()).text[:_SHOWN]


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {
        str: "text",
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "an array",
        dict: "an object",
    }
    return "null" if value is None else names.get(type(value), f"of type {type(value).__name__}")
