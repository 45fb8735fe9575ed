"""Questions with short answers: how they are read from a reply, and when two answers are the same."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

Match = Literal["exact", "contains"]
"""How answers are compared; see `same_answer`."""

# Nothing is given back that was taken (`*+`): a reply may be one mark or space over and over, hundreds of times.
_MARK = r"[ \t]*+(?:[*_#>-]++[ \t]*+)?(?:\d++[.)][ \t]*+)?[*_]*+"
_LABEL = r"[ \t]*+\d*+[ \t]*+[*_]*+[ \t]*+:[ \t]*+[*_]*+[ \t]*+(\S.*+)"
_PAIR = re.compile(rf"^{_MARK}(?:Question|Q){_LABEL}\n\s*{_MARK}(?:Answer|A){_LABEL}$", flags=re.M | re.I)


def read_pairs(reply: str) -> list[tuple[str, str]]:
    """The `Question:` and `Answer:` lines of a reply as pairs; anything else is left out.

    Numbers, Markdown around the two words, `Q:` and `A:`, and blank lines in between are read as well: models write
    them unasked.
    """
    return [(_bare(question), _bare(answer)) for question, answer in _PAIR.findall(reply)]


def _bare(text: str) -> str:
    """Without Markdown's marks after it."""
    return text.strip().rstrip("*_").strip()


def without_pairs(reply: str, unwanted: Callable[[str], bool]) -> str:
    """A reply without the pairs whose questions are unwanted."""
    kept = _PAIR.sub(lambda found: "" if unwanted(_bare(found[1])) else found[0], reply)
    return reply if kept == reply else re.sub(r"\n\s*\n", "\n", kept).strip()


def same_answer(one: str, other: str, match: Match = "exact") -> bool:
    """Whether two short answers are the same.

    Args:
        one: an answer.
        other: another.
        match: `exact`: but for case, outer punctuation and spaces. `contains`: or all words of one stand in the other
            in a row, as when a model answers in a sentence.
    """
    if plain_answer(one) == plain_answer(other):
        return True
    if match == "exact":
        return False
    shorter, longer = sorted((words(one), words(other)), key=len)
    return bool(shorter) and any(
        longer[start : start + len(shorter)] == shorter for start in range(len(longer) - len(shorter) + 1)
    )


def plain_answer(answer: str) -> str:
    """Without case, outer punctuation and spaces."""
    return " ".join(answer.casefold().split()).strip(" .,;:!?\"'")


def words(answer: str) -> list[str]:
    """In lower case, without what stands between them."""
    return re.findall(r"\w+", answer.casefold())
