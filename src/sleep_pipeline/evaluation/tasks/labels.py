"""Published class names as words that a language model can say."""

from __future__ import annotations

import re
from collections.abc import Iterable

_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_NO_WORD = re.compile(r"[\W_]+")
_SPACES = re.compile(r"[\s_-]+")


def in_words(label: str) -> str:
    """Lower-case words of a class name: `Refund_not_showing_up` and `SportsTeam` become as many words as they hold."""
    return " ".join(_NO_WORD.sub(" ", _HUMP.sub(" ", label)).lower().split())


def words_of(labels: Iterable[str]) -> dict[str, str]:
    """Words of each published name, in the order of the names.

    Names that differ in case, underscores, hyphens and spaces alone are one label, and have the same words.

    Raises:
        ValueError: a name has no words, or two that differ in more have the same.
    """
    words: dict[str, str] = {}
    owners: dict[str, str] = {}
    for label in sorted(set(labels)):
        said = in_words(label)
        if not said:
            raise ValueError(f"the label {label!r} has no letters or digits; rename it")
        if _SPACES.sub("", owners.get(said, label)).lower() != _SPACES.sub("", label).lower():
            raise ValueError(
                f"the labels {owners[said]!r} and {label!r} are both {said!r} in words, so that no answer could tell "
                "them apart; rename one, or give both the same name"
            )
        owners.setdefault(said, label)
        words[label] = said
    return words
