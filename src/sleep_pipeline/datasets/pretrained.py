"""Models and tokenizers on disk: written beside the old ones, the manifest last, then put in their place at once."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from kedro.io import AbstractDataset, DatasetError

MANIFEST = "manifest.json"
FILES = "files"


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by its path in it, the folder's own manifest left out."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / MANIFEST:
            with path.open("rb") as file:
                digests[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def check_files(folder: Path, remedy: str) -> None:
    """Make sure that a checkpoint's files are those that its manifest names; one without digests passes.

    Args:
        folder: of the checkpoint.
        remedy: what a user does about a damaged one.

    Raises:
        ValueError: a file is missing or has changed.
    """
    named = json.loads((folder / MANIFEST).read_text(encoding="utf-8")).get(FILES, {})
    found = file_digests(folder)
    for name, digest in named.items():
        if found.get(name) != digest:
            wrong = f"has the digest {found[name]}, not {digest}" if name in found else "is missing"
            raise ValueError(f"{folder / name} {wrong}, so this checkpoint is not the one that was saved: {remedy}")


class Saveable(Protocol):
    """A model, tokenizer or processor of `transformers` or `peft`."""

    def save_pretrained(self, save_directory: str) -> Any:
        """Write itself into a folder."""


@dataclass(frozen=True)
class Pretrained:
    """What a checkpoint folder holds: parts that know how to save themselves, and a manifest of how it was made."""

    parts: tuple[Saveable, ...]
    manifest: Mapping[str, Any] = field(default_factory=dict)


class PretrainedDataset(AbstractDataset[Pretrained, Path]):
    """Saves a `Pretrained`, loads as the folder's path, and exists once its manifest does.

    The manifest on disk names the digest of every other file.

    A crash while saving, of the process or of the machine, leaves the previous checkpoint, or none, but never half of
    one.

    Args:
        filepath: the folder, which Kedro resolves against the project.
    """

    def __init__(self, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        self._folder = Path(filepath)
        self.metadata = metadata

    def load(self) -> Path:
        if not self._exists():
            raise DatasetError(f"{self._folder} holds no complete checkpoint; run the pipeline that makes it")
        return self._folder

    def save(self, data: Pretrained) -> None:
        partial = self._folder.with_name(self._folder.name + ".partial")
        retired = self._folder.with_name(self._folder.name + ".retired")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for part in data.parts:
            part.save_pretrained(str(partial))
        manifest = {**data.manifest, FILES: file_digests(partial)}
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        for path in (*partial.rglob("*"), partial):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        shutil.rmtree(retired, ignore_errors=True)
        if self._folder.exists():
            self._folder.rename(retired)
        partial.rename(self._folder)
        shutil.rmtree(retired, ignore_errors=True)

    def clear(self) -> None:
        """Remove the folder: no checkpoint is there until one is saved again."""
        self._exists()
        # The manifest goes first, so that a crash leaves no checkpoint that looks whole.
        (self._folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _exists(self) -> bool:
        retired = self._folder.with_name(self._folder.name + ".retired")
        if not self._folder.exists() and (retired / MANIFEST).exists():
            # The process died between the two renames of a save: the old checkpoint is whole.
            retired.rename(self._folder)
        return (self._folder / MANIFEST).is_file()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._folder)}
