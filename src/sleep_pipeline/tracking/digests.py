"""Digests of what a run read: DVC's own where it keeps the file, so that the bytes can be fetched by it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sleep_pipeline.datasets.pretrained import file_digests

LOCK = "dvc.lock"
LENGTH = 36
"""Characters that MLflow takes of a digest."""


@dataclass(frozen=True)
class ContentDigest:
    """A digest of a file or folder, and who else knows it by that.

    Attributes:
        value: hexadecimal, at most `LENGTH` characters.
        kind: `dvc` is the MD5 that stands in `dvc.lock`, `sha256` our own.
    """

    value: str
    kind: Literal["dvc", "sha256"]


def content_digest(path: Path, project: Path) -> ContentDigest:
    """Return the digest of a file or folder as it is now.

    A file is read once, and once more only if DVC knows another one of the same size by its name.

    Args:
        path: an absolute path; one of a folder stands for the names and contents of all files below it.
        project: the folder of `dvc.lock`.

    Raises:
        OSError: it cannot be read.
        yaml.YAMLError: `dvc.lock` is damaged.
    """
    if path.is_dir():
        told = "\n".join(f"{digest}  {name}" for name, digest in file_digests(path).items())
        return ContentDigest(hashlib.sha256(told.encode("utf-8", "surrogateescape")).hexdigest()[:LENGTH], "sha256")
    size = path.stat().st_size
    kept = {digest for digest, length in _locked(path, project) if length == size}
    if kept and (found := _file_digest(path, "md5")) in kept:
        return ContentDigest(found, "dvc")
    return ContentDigest(_file_digest(path, "sha256")[:LENGTH], "sha256")


def _file_digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        # DVC's MD5 is a name, not a seal.
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def _locked(path: Path, project: Path) -> set[tuple[str, int]]:
    """MD5 and size of every version of a file that stages of `dvc.lock` have read or written."""
    lock = project / LOCK
    if not lock.is_file() or not path.is_relative_to(project):
        return set()
    import yaml

    # The C loader reads a week of nights in milliseconds, the other one in a tenth of a second.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    stages = (yaml.load(lock.read_text(encoding="utf-8"), loader) or {}).get("stages") or {}
    name = path.relative_to(project).as_posix()
    return {
        (entry["md5"], entry["size"])
        for stage in stages.values()
        for entry in (*stage.get("deps", ()), *stage.get("outs", ()))
        if entry["path"] == name and "md5" in entry and "size" in entry
    }
