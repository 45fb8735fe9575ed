"""What the benchmarks share whose files grow over many runs."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes from reading a file, changing what they read, and writing it, until the block is over."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def merged(base: dict[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the leaves of `change` in place of its own, or beside them."""
    found = dict(base)
    for key, value in change.items():
        inner = found.get(key)
        found[key] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return found


def as_it_was(seeding: dict[str, Any], sampled: bool = True) -> dict[str, Any]:
    """A run's settings of seeding, with what was so before there was a setting for it.

    Earlier experts stood still, AdamW trained all, every night took the same steps, and the teacher was asked about
    whole texts only, and its questions again.

    Args:
        seeding: the settings as they were kept.
        sampled: whether a teacher's samples had any part in the run.
    """
    before = {"earlier_rate": 0.0, "muon_rate": None, "passes": 0.0}
    found = {**seeding, "optimizer": {**before, **seeding.get("optimizer", {})}}
    teacher = {"excerpt_sentences": 0, "check": "replies", **seeding.get("teacher", {})}
    return {**found, "teacher": teacher} if sampled else found
