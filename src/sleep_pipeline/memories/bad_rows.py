"""Why a row is no memory."""

from __future__ import annotations

from typing import Any

SHOWN = 24
"""Characters of a name or value that a reason shows."""


class BadRow(ValueError):
    """A row is no memory; the message says why and what to do."""


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
