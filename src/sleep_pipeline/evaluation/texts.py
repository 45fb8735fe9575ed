"""Ordinary text that a model must go on predicting, and what tells one choice of it from another."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path


class TextsError(ValueError):
    """The texts cannot be had; the message names the pattern or the file."""


def ordinary_texts(patterns: Sequence[str], folder: Path) -> list[str]:
    """The texts of the files that patterns name, or the one that comes with the package.

    Args:
        patterns: relative to `folder`, such as `english/*.txt`; none for the package's own text.
        folder: of raw data.

    Raises:
        TextsError: a pattern matches no file, a file is not UTF-8 or cannot be read, or they say nothing.
    """
    if not patterns:
        return [resources.files("sleep_pipeline").joinpath("evaluation/plain_english.txt").read_text(encoding="utf-8")]
    texts = [_read(path) for path in sorted({path for pattern in patterns for path in _matches(pattern, folder)})]
    if not any(text.strip() for text in texts):
        raise TextsError(f"evaluation.texts={list(patterns)}: the files are empty; give some with text in them")
    return texts


def _matches(pattern: str, folder: Path) -> list[Path]:
    try:
        found = [path for path in folder.glob(pattern) if path.is_file()]
    except (ValueError, NotImplementedError) as error:
        raise TextsError(
            f"evaluation.texts: {pattern!r} is no pattern below {folder} ({error}); give one such as english/*.txt"
        ) from error
    if not found:
        raise TextsError(
            f"evaluation.texts: {pattern!r} matches no file below {folder}; correct the pattern, or give none at all "
            "and the text that comes with the package is taken"
        )
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        byte = error.object[error.start]
        raise TextsError(
            f"evaluation.texts: {path}:{line}: the byte 0x{byte:02x} is not UTF-8, perhaps Latin-1; save the file as "
            "UTF-8, for instance with iconv -f latin1 -t utf-8"
        ) from error
    except OSError as error:
        raise TextsError(
            f"evaluation.texts: {path} cannot be read ({error.strerror}); correct its permissions, or the pattern"
        ) from error


def texts_digest(texts: Sequence[str]) -> str:
    """SHA-256 over the texts in their order: perplexities compare only where it is the same."""
    return hashlib.sha256("".join(hashlib.sha256(text.encode()).hexdigest() for text in texts).encode()).hexdigest()
