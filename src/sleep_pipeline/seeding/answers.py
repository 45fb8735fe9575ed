"""Questions with short answers: how they are read from a reply, and when two answers are the same."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import Literal

Match = Literal["exact", "contains"]
"""How answers are compared; see `same_answer`."""
UNSPACED = (
    # Thai, Lao, Myanmar, Khmer, Japanese kana and Chinese characters with their extensions, and halfwidth kana.
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30fa\u30fc-\u30ff\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
"""Characters of scripts that put no spaces between words, as ranges in a regular expression's brackets."""
_MEANT = "#%&@/\\\u2030"
"""Punctuation that is part of an answer where it stands at its end, as in `C#` and `5 %`."""

# Nothing is given back that was taken (`*+`): a reply may be one mark or space over and over, hundreds of times.
_MARK = r"[ \t]*+(?:[*_#>-]++[ \t]*+)?(?:\d++[.)][ \t]*+)?[*_]*+"
_LABEL = r"[ \t]*+\d*+[ \t]*+[*_]*+[ \t]*+[:\uff1a][ \t]*+[*_]*+[ \t]*+(\S.*+)"
_PAIR = re.compile(rf"^{_MARK}(?:Question|Q){_LABEL}\n\s*{_MARK}(?:Answer|A){_LABEL}$", flags=re.M | re.I)


def read_pairs(reply: str) -> list[tuple[str, str]]:
    """The `Question:` and `Answer:` lines of a reply as pairs; anything else is left out.

    Numbers, Markdown around the two words, `Q:` and `A:`, fullwidth colons, and blank lines in between are read as
    well: models write them unasked.
    """
    return [(_bare(question), _bare(answer)) for question, answer in _PAIR.findall(reply)]


def given_pairs(text: str) -> list[tuple[str, str]]:
    """The pairs that a text itself consists of, such as memories that are questions with their answers.

    A paragraph of it is a pair, or several, and nothing else, and what follows is another such one or the end: an
    answer that goes on over several lines or paragraphs is left out, since no half of it would do.
    """
    paragraphs = [part for part in re.split(r"\n[ \t]*\n", text) if part.strip()]
    found = [[] if without_pairs(part, lambda question: True).strip() else read_pairs(part) for part in paragraphs]
    return [pair for at, pairs in enumerate(found) if at + 1 == len(found) or found[at + 1] for pair in pairs]


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
            in a row, as when a model answers in a sentence; where a script has no spaces, all characters.
    """
    if plain_answer(one) == plain_answer(other):
        return True
    if match == "exact":
        return False
    shorter, longer = sorted((words(one.casefold()), words(other.casefold())), key=len)
    return bool(shorter) and any(
        longer[start : start + len(shorter)] == shorter for start in range(len(longer) - len(shorter) + 1)
    )


def plain_answer(answer: str) -> str:
    """Without case, outer punctuation and spaces; a minus before a digit stays, and what is nothing else does."""
    whole = " ".join(answer.casefold().split())
    begin, end = 0, len(whole)
    while begin < end and _outer(whole[begin]) and not re.match(r"[-\u2010-\u2013\uff0d]\d", whole[begin:end]):
        begin += 1
    while begin < end and _outer(whole[end - 1]):
        end -= 1
    return whole[begin:end] or whole


def _outer(char: str) -> bool:
    """Whether a character at an answer's end is none of it."""
    return char == " " or (
        unicodedata.category(char).startswith("P") and unicodedata.normalize("NFKC", char) not in _MEANT
    )


def words(text: str) -> list[str]:
    """What stands between spaces and punctuation; of scripts that put no spaces between words, every character."""
    return re.findall(rf"[{UNSPACED}]|[^\W{UNSPACED}]+", text)


def find_answer(answer: str) -> re.Pattern[str]:
    """Finds an answer in a text where it is no part of another word."""
    spaced = rf"[^\W{UNSPACED}]"
    before = rf"(?<!{spaced})" if re.match(spaced, answer) else ""
    behind = rf"(?!{spaced})" if re.match(spaced, answer[-1:]) else ""
    return re.compile(f"{before}{re.escape(answer)}{behind}")
