"""Invented words and names: an open vocabulary that no model can have met before.

Words are made of syllables; which of the two splits a word belongs to is decided by a hash of the word itself, so
train and test names are disjoint by construction, whatever seeds and numbers of names are drawn.
"""

from __future__ import annotations

import random
import zlib
from typing import Literal

Split = Literal["train", "test"]

_ONSETS = (
    "b br c ch cl d dr f fl fr g gl gr h j k kr l m n p pl pr qu r s sh sk sl st t th tr v w y z".split()
)  # fmt: skip
_VOWELS = "a a a a e e e e i i i o o o u u ai ea oa".split()
_CODAS = ["", "", "", "", "l", "m", "n", "n", "r", "r", "s", "x", "ck", "nd", "rn", "ld", "st", "th"]
_TEST_SHARE = 0.2

_FIRM_TAILS = [
    "Works",
    "Brothers",
    "Mills",
    "Traders",
    "Foundry",
    "Partners",
    "Shipping",
    "Press",
    "Ltd",
    "Bank",
]
_PLACE_HEADS = ["", "", "", "", "Upper ", "Lower ", "New ", "Port ", "Saint "]
_EVENT_TAILS = ["Fair", "Festival", "Games", "Congress", "Regatta", "Exhibition", "Concert", "Race", "Ball"]
_APPOINTMENTS = [
    "dentist appointment", "interview", "piano lesson", "check-up", "meeting", "haircut", "viewing", "hearing",
    "fitting", "driving lesson",
]  # fmt: skip


def word_split(word: str) -> Split:
    """The split that an invented word belongs to: a fixed function of its letters, capitals ignored."""
    return "test" if zlib.crc32(word.lower().encode()) % 1000 < 1000 * _TEST_SHARE else "train"


class NameGenerator:
    """Draws invented names of one split.

    Args:
        rng: source of randomness; the same state gives the same names.
        split: "train" or "test".
    """

    def __init__(self, rng: random.Random, split: Split) -> None:
        self.rng = rng
        self.split = split
        self._taken: set[str] = set()

    def word(self, syllables: int | None = None) -> str:
        """A new lower-case word of two or three syllables (or as many as asked), never given out before."""
        rng = self.rng
        while True:
            count = syllables or rng.choice((2, 2, 2, 3))
            parts = [rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(count)]
            word = "".join(parts) + rng.choice(_CODAS)
            if word not in self._taken and word_split(word) == self.split:
                self._taken.add(word)
                return word

    def short_name(self) -> str:
        """A single capitalised word, as a river, a dish or a dog has it."""
        return self.word().capitalize()

    def person(self) -> str:
        """First name and surname."""
        return f"{self.word(2).capitalize()} {self.short_name()}"

    def place(self) -> str:
        """A town."""
        return self.rng.choice(_PLACE_HEADS) + self.short_name()

    def firm(self) -> str:
        """A company."""
        if self.rng.random() < 0.3:
            return f"{self.short_name()} & {self.short_name()}"
        return f"{self.short_name()} {self.rng.choice(_FIRM_TAILS)}"

    def product(self) -> str:
        """A product with or without a model number; used with the definite article."""
        return self.short_name() + (f" {self.rng.randint(2, 990)}" if self.rng.random() < 0.5 else "")

    def event(self) -> str:
        """An event, with its article."""
        return f"the {self.short_name()} {self.rng.choice(_EVENT_TAILS)}"

    def appointment(self) -> str:
        """Somebody's appointment, with its article."""
        return f"the {self.rng.choice(_APPOINTMENTS)} of {self.person()}"
