"""Cuts a text to the model's window: between sentences where it can, between words or characters where it must."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

_ABBREVIATIONS = frozenset("mr mrs ms dr prof st no vs etc e.g i.e cf fig sr jr approx vol ed p pp".split())
_END = re.compile(r"(?:[.!?…]+[\"'”’)\]]*(?=\s)|[。！？]+[」』”’)]*|\n)\s*")
_WORD = re.compile(r"\S+\s*")

Counter = Callable[[str], int]


class Tokenizer(Protocol):
    """What is needed of a transformers tokenizer."""

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> Mapping[str, Any]:
        """The text's tokens under `input_ids`."""
        ...


@dataclass(frozen=True)
class Piece:
    """A part of a text.

    Attributes:
        text: the part, spaces at its ends removed.
        start: index of its first character in the text.
        tokens: its length.
        broken: it begins or ends within a sentence that is longer than the window.
    """

    text: str
    start: int
    tokens: int
    broken: bool = False


def token_counter(tokenizer: Tokenizer) -> Counter:
    """A function that counts the tokens of a text, special ones aside."""
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])


def sentences(text: str) -> list[str]:
    """The sentences of a text with the spaces behind them: joined, they are the text. Lines end sentences, too."""
    found, start = [], 0
    for match in _END.finditer(text):
        after = text[match.end() : match.end() + 1]
        before = text[start : match.start()].rsplit(None, 1)[-1:] or [""]
        word = before[0].lstrip("(\"'“‘").rstrip(".")
        dotted = match[0].startswith(".") and "\n" not in match[0]
        abbreviated = dotted and (word.lower() in _ABBREVIATIONS or (len(word) == 1 and word.isalpha()))
        if abbreviated or (dotted and after.islower()):
            continue
        found.append(text[start : match.end()])
        start = match.end()
    return [sentence for sentence in [*found, text[start:]] if sentence]


def split_text(text: str, count: Counter, max_tokens: int) -> list[Piece]:
    """Cut a text into as few successive pieces as fill the window in order.

    Args:
        text: of any length.
        count: of tokens, see `token_counter`.
        max_tokens: of a piece; at least 8, so that a character always fits.

    Raises:
        ValueError: the window is too small.
    """
    if max_tokens < 8:
        raise ValueError(f"max_tokens={max_tokens} holds no sentence; give at least 8")
    return _fill(_units(text, count, max_tokens), count, max_tokens)


@dataclass(frozen=True)
class _Unit:
    text: str
    start: int
    tokens: int
    broken: bool


def _units(text: str, count: Counter, max_tokens: int) -> list[_Unit]:
    """Sentences, words of a sentence that does not fit, characters of a word that does not fit."""
    units, start = [], 0
    for sentence in sentences(text):
        if (size := count(sentence)) <= max_tokens:
            units.append(_Unit(sentence, start, size, False))
            start += len(sentence)
            continue
        for word in re.findall(r"\A\s+|\S+\s*", sentence):
            parts = [word] if (size := count(word)) <= max_tokens else list(word)
            for part in parts:
                units.append(_Unit(part, start, size if len(parts) == 1 else count(part), True))
                start += len(part)
    return units


def _fill(units: list[_Unit], count: Counter, max_tokens: int) -> list[Piece]:
    pieces: list[Piece] = []
    at = 0
    while at < len(units):
        end, size = at, 0
        # A broken sentence shares no piece with whole ones: what is said to be broken is then all of it.
        while (
            end < len(units)
            and units[end].broken == units[at].broken
            and (end == at or size + units[end].tokens <= max_tokens)
        ):
            size += units[end].tokens
            end += 1
        text = "".join(unit.text for unit in units[at:end])
        # The parts of a text can be shorter in tokens than the whole.
        while (size := count(text.strip())) > max_tokens and end > at + 1:
            end -= 1
            text = "".join(unit.text for unit in units[at:end])
        if text.strip():
            start = units[at].start + len(text) - len(text.lstrip())
            pieces.append(Piece(text.strip(), start, size, units[at].broken))
        at = end
    return pieces
