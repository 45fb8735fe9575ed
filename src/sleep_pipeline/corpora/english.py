"""Ordinary text: corpora read from files, and the skills that can be practised on them without any labels.

A corpus is a `.txt` file (one running text) or a `.jsonl` file (one object with a `text` a line), plain or gzipped,
in UTF-8. Every corpus is cut into passages; a passage is held out by a hash of its own words, so the held-out part
stays the same whatever else is read with it.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sleep_pipeline.corpora.names import Split
from sleep_pipeline.corpora.skills import Example, conversation

_PASSAGE_CHARACTERS = 4000
_TRIES = 1000
_HELD_OUT_SHARE = 0.01
_SUFFIXES = (".txt", ".jsonl", ".txt.gz", ".jsonl.gz")


@dataclass(frozen=True)
class Corpus:
    """The passages of one file.

    Attributes:
        name: file name.
        sha256: digest of the file as it lies on disk.
        passages: running text of about 4,000 characters each.
    """

    name: str
    sha256: str
    passages: tuple[str, ...]

    def of_split(self, split: Split) -> list[str]:
        """The passages to train on, or those held out."""
        return [passage for passage in self.passages if _is_held_out(passage) == (split == "test")]


def _is_held_out(passage: str) -> bool:
    return zlib.crc32(passage.encode()) % 1000 < 1000 * _HELD_OUT_SHARE


def load_corpora(patterns: Sequence[str], root: Path) -> list[Corpus]:
    """Read every file that the patterns name, relative to `root`.

    Raises:
        FileNotFoundError: a pattern matches nothing.
        ValueError: a file of another kind, not UTF-8, with a broken line, or without text.
    """
    corpora: dict[Path, Corpus] = {}
    for pattern in patterns:
        path = Path(pattern)
        base = Path(path.anchor) if path.is_absolute() else root
        relative = str(path.relative_to(path.anchor)) if path.is_absolute() else pattern
        found = sorted(path for path in base.glob(relative) if path.is_file())
        if not found:
            raise FileNotFoundError(
                f"corpora: {pattern!r} matches no file below {base}; put the text there or correct the pattern"
            )
        for path in found:
            corpora.setdefault(path, read_corpus(path))
    return list(corpora.values())


def read_corpus(path: Path) -> Corpus:
    """Read one corpus; see `load_corpora` for the errors."""
    if not path.name.endswith(_SUFFIXES):
        raise ValueError(f"{path}: not a corpus; give one of {', '.join(_SUFFIXES)}")
    raw = path.read_bytes()
    data = gzip.decompress(raw) if path.suffix == ".gz" else raw
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path}:{line}: byte {error.start} is not UTF-8; convert the file, for instance with iconv -t utf-8"
        ) from error
    texts = _jsonl_texts(path, text) if ".jsonl" in path.name else [text]
    passages = tuple(passage for text in texts for passage in _passages(text))
    if not passages:
        raise ValueError(f"{path}: holds no text; remove it from the corpora or fill it")
    return Corpus(path.name, hashlib.sha256(raw).hexdigest(), passages)


def _jsonl_texts(path: Path, text: str) -> list[str]:
    texts = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            texts.append(str(json.loads(line)["text"]))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f'{path}:{number}: not a JSON object with "text"; delete or mend the line') from error
    return texts


def _passages(text: str) -> list[str]:
    """Cut at line ends into pieces of about `_PASSAGE_CHARACTERS`."""
    passages, piece, size = [], [], 0
    for line in text.splitlines(keepends=True):
        piece.append(line)
        size += len(line)
        if size >= _PASSAGE_CHARACTERS:
            passages.append("".join(piece).strip())
            piece, size = [], 0
    passages.append("".join(piece).strip())
    return [passage for passage in passages if passage]


class English:
    """Draws passages and practice from corpora, small ones more often than their size alone would have it.

    Args:
        corpora: at least one, with at least one passage in the split.
        split: passages to train on or those held out.
    """

    def __init__(self, corpora: Sequence[Corpus], split: Split) -> None:
        self.split = split
        self._passages = [(corpus.name, corpus.of_split(split)) for corpus in corpora]
        self._passages = [(name, passages) for name, passages in self._passages if passages]
        if not self._passages:
            raise ValueError(f"no passage of {[corpus.name for corpus in corpora]} is in the {split} split; add text")
        self._weights = [len(passages) ** 0.5 for _, passages in self._passages]

    def passages(self) -> list[str]:
        """All passages of the split."""
        return [passage for _, passages in self._passages for passage in passages]

    def passage(self, rng: random.Random) -> str:
        """A passage; the chance of a corpus grows with the square root of its size."""
        _, passages = rng.choices(self._passages, self._weights)[0]
        return rng.choice(passages)

    def sentences(self, rng: random.Random) -> list[str]:
        """Three to seven successive sentences of a passage.

        Raises:
            ValueError: hardly any passage has as many, as in lists and in scripts without capitals.
        """
        for _ in range(_TRIES):
            passage = " ".join(self.passage(rng).split())
            found = [s for s in re.split(r"(?<=[.!?]) (?=[A-Z\"'])", passage) if 15 <= len(s) <= 160]
            if len(found) >= 3:
                start = rng.randrange(len(found) - 2)
                return found[start : start + rng.randint(3, 7)]
        names = ", ".join(name for name, _ in self._passages)
        raise ValueError(
            f"{names}: of {_TRIES} passages none has three sentences that end with a full stop and are followed by a "
            "capital: add other text, or set pretrain.mixture.practice_share=0"
        )

    def practice(self, rng: random.Random) -> Example:
        """A task on real sentences whose answer is in them: fill a gap, quote a sentence, or go on with the text."""
        sentences = self.sentences(rng)
        text = " ".join(sentences)
        turns = []
        for _ in range(rng.randint(1, 3)):
            sentence = rng.choice(sentences)
            words = sentence.split()
            kind = rng.random()
            if kind < 0.5 and len(words) > 5:
                place = rng.randrange(2, len(words))
                word = words[place].strip(".,;:!?\"'")
                gap = " ".join(
                    words[:place] + [words[place].replace(word, "____") if word else "____"] + words[place + 1 :]
                )
                turns.append((f"Fill the gap: {gap}", word or words[place]))
            elif kind < 0.8:
                start = " ".join(words[: rng.randint(2, 3)])
                first = next(s for s in sentences if s.startswith(start))
                turns.append((f'Quote the sentence that begins with "{start}".', first))
            else:
                at = rng.randrange(len(sentences) - 1)
                turns.append((f"Which sentence comes after this one: {sentences[at]}", sentences[at + 1]))
        return Example("english", conversation(text, turns))
