"""Frees the disk of what no later night and no report of a life needs; see `find` for what that is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sleep_pipeline.night_number import folder_of
from sleep_pipeline.registry import MANIFEST, Night, NightRegistry

CHECKPOINT = "checkpoint"
PRUNED = ".pruned"
"""Ends the name of a folder that is being deleted, so that a crash leaves none that looks whole."""


@dataclass(frozen=True)
class Removal:
    """One folder that may go.

    Attributes:
        night: its number.
        what: it holds, for people.
        path: of the folder.
        size: bytes that become free; files that the disk holds for another folder as well count nothing.
    """

    night: int
    what: str
    path: Path
    size: int


@dataclass(frozen=True)
class Pruning:
    """What would be removed, and what would be given up by it.

    Attributes:
        removals: by night.
        checkpoints: nights that can be asked no more, and whose report cannot be written again.
        rollbacks: those of them that the champion grew from, and could have been rolled back to.
        unfinished: registered nights that lack their report; whatever is theirs stays.
    """

    removals: tuple[Removal, ...]
    checkpoints: tuple[int, ...]
    rollbacks: tuple[int, ...]
    unfinished: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes that become free."""
        return sum(removal.size for removal in self.removals)


def find(
    registry: NightRegistry, reporting_folder: Path, intermediate: Mapping[str, Path], keep: int | None = None
) -> Pruning:
    """Look for what may go; nothing is changed.

    That is, of registered nights whose report is written: the models on the way to their checkpoint; the checkpoint if
    the night was rejected; with `keep`, the checkpoint if it lies that far back in the champion's line. The champion,
    the challenger, nights that were rolled back, and what an unfinished night grew from stay.

    Args:
        registry: of the life.
        reporting_folder: of the life.
        intermediate: the folders that hold a folder a night of models on the way, by what is in them.
        keep: checkpoints of the champion's line that stay, itself among them; None for all.

    Raises:
        ValueError: `keep` is less than 1.
        RegistryError: the register is damaged.
    """
    if keep is not None and keep < 1:
        raise ValueError(f"keep={keep} would leave no champion; give 1 or more")
    nights = registry.nights()
    ended = [number for number in nights if (reporting_folder / folder_of(number) / "report.html").is_file()]
    aliases = registry.aliases()
    needed = {aliases.get("champion"), aliases.get("challenger")}
    needed |= set(_parents_of_unfinished((registry.folder, *intermediate.values()), nights))
    old = [night.number for night in (registry.lineage()[:-keep] if keep else [])]
    gone = [
        number
        for number in ended
        if (number in old or nights[number].status == "rejected")
        and number not in needed
        and _is_folder(registry.folder / nights[number].checkpoint)
    ]
    found = [
        *_leftovers((registry.folder, *intermediate.values())),
        *(
            _removal(number, what, folder / folder_of(number))
            for what, folder in intermediate.items()
            for number in ended
            if _is_folder(folder / folder_of(number))
        ),
        *(_removal(number, _described(nights[number]), registry.folder / nights[number].checkpoint) for number in gone),
    ]
    return Pruning(
        removals=tuple(sorted(found, key=lambda removal: removal.night)),
        checkpoints=tuple(gone),
        rollbacks=tuple(number for number in old if number in gone),
        unfinished=tuple(number for number in nights if number not in ended),
    )


def prune(registry: NightRegistry, pruning: Pruning) -> None:
    """Remove what `find` found; whoever calls holds the `NightLock` of the register's folder.

    The register learns first of the checkpoints that go, and every folder is renamed before it is deleted. A crash
    leaves folders that the next call finds.

    Raises:
        RegistryError: the register does not allow it; nothing was removed.
        OSError: a folder cannot be deleted.
    """
    registry.prune(pruning.checkpoints)
    for removal in pruning.removals:
        doomed = removal.path
        if doomed.suffix != PRUNED:
            doomed = doomed.with_name(doomed.name + PRUNED)
            if doomed.exists():
                shutil.rmtree(doomed)
            removal.path.rename(doomed)
        shutil.rmtree(doomed)


def _described(night: Night) -> str:
    return f"{CHECKPOINT}, rejected" if night.status == "rejected" else CHECKPOINT


def _removal(night: int, what: str, path: Path) -> Removal:
    return Removal(night, what, path, _size(path))


def _is_folder(path: Path) -> bool:
    """Whether a folder is here; a link to one belongs to whoever made it."""
    return path.is_dir() and not path.is_symlink()


def _size(folder: Path) -> int:
    stats = (path.lstat() for path in folder.rglob("*") if not path.is_dir() and not path.is_symlink())
    return sum(stat.st_size for stat in stats if stat.st_nlink == 1)


def _number(folder: Path) -> int | None:
    """The night that a folder is named for."""
    digits = folder.name.removesuffix(PRUNED).removeprefix("night_")
    return int(digits) if digits.isdigit() and folder.name.startswith(folder_of(int(digits))) else None


def _leftovers(folders: Iterable[Path]) -> Iterator[Removal]:
    for path in (path for folder in folders for path in folder.glob(f"night_*{PRUNED}")):
        number = _number(path)
        if number is not None and _is_folder(path):
            yield _removal(number, "left by a prune that was cut short", path)


def _parents_of_unfinished(folders: Iterable[Path], nights: Mapping[int, Night]) -> Iterator[int]:
    """What the nights grew from that have left a model and are not registered yet."""
    for manifest in (path for folder in folders for path in folder.glob(f"night_*/{MANIFEST}")):
        number = _number(manifest.parent)
        if number is not None and number not in nights:
            parent = json.loads(manifest.read_text(encoding="utf-8")).get("parent")
            if parent is not None:
                yield int(parent)
