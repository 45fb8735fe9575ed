"""The register of nights: which night grew from which, what became of it, and which model is live.

One file, `registry.json`, beside the nights' checkpoints. Every change writes a new file, forces it onto the disk and
renames it over the old one, so a process that dies at any moment leaves the old register or the new one, whole.
Changes are not safe against each other: whoever makes them holds the `NightLock` of the same folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from sleep_pipeline.run_environment import environment_option

REGISTRY = "registry.json"
MANIFEST = "manifest.json"
BASE = 0
"""In place of a night's number: the model before its first night."""

Alias = Literal["champion", "challenger", "previous_champion"]
Status = Literal["complete", "rejected"]
_VERSION = 1


class RegistryError(ValueError):
    """The register does not allow this, or does not fit what is on the disk; nothing was changed."""


class PrunedError(RegistryError):
    """The checkpoint of a night was deleted to free the disk."""


@dataclass(frozen=True)
class Night:
    """One night that ended.

    Attributes:
        number: counted from 1.
        parent: the night it grew from; `BASE` for the model before its first night.
        checkpoint: name of its folder beside the register.
        manifest_digest: `manifest_digest` of that folder.
        time: when it ended, ISO 8601.
        decision: `Decision.to_json()`.
        scores: what stands in a table of nights, by name.
        memories: digests of the memories it learned.
        status: `rejected` once the gate or a person has turned it down.
        pruned: whether its checkpoint was deleted to free the disk; DVC may have brought it back since.
    """

    number: int
    parent: int
    checkpoint: str
    manifest_digest: str
    time: str
    decision: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, float | None] = field(default_factory=dict)
    memories: tuple[str, ...] = ()
    status: Status = "complete"
    pruned: bool = False

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Night:
        """Return the night that `dataclasses.asdict` described."""
        return cls(**{**record, "memories": tuple(record["memories"])})


def manifest_digest(folder: Path) -> str:
    """Return the SHA-256 of a checkpoint's manifest, which in turn names the digests of its weights.

    Raises:
        RegistryError: the folder holds no manifest, so the checkpoint is not complete.
    """
    try:
        return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    except OSError as error:
        raise RegistryError(
            f"{folder} holds no complete checkpoint ({error.strerror}): fetch it with `dvc pull`, or go back with "
            f"`sleep-pipeline rollback{environment_option()}`"
        ) from error


class NightRegistry:
    """The nights below one folder.

    Args:
        folder: where `registry.json` and the checkpoints lie; made on the first change.

    Every method reads the file anew, so that what another process wrote is seen.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        self.path = self.folder / REGISTRY

    def nights(self) -> dict[int, Night]:
        """Return all nights by number, ascending."""
        return self._read()[0]

    def aliases(self) -> dict[Alias, int]:
        """Return the number of the night behind every alias that is set; `BASE` is the model before any night."""
        return self._read()[1]

    def night(self, number: int) -> Night:
        """Return one night.

        Raises:
            RegistryError: it is not registered.
        """
        return _known(self.nights(), number)

    def champion(self) -> Night | None:
        """Return the night whose model is live; None for the base model."""
        nights, aliases = self._read()
        number = aliases.get("champion", BASE)
        return None if number == BASE else nights[number]

    def lineage(self, number: int | None = None) -> list[Night]:
        """Return a night and its ancestors, oldest first; by default the champion's, which may be none.

        Raises:
            RegistryError: the night is not registered.
        """
        nights, aliases = self._read()
        return _ancestry(nights, aliases.get("champion", BASE) if number is None else number)

    def known_memories(self) -> frozenset[str]:
        """Return the digests of what the champion and its ancestors learned.

        What a rejected or rolled-back night learned is not among them: it is new again.
        """
        return frozenset(digest for night in self.lineage() for digest in night.memories)

    def next_night(self) -> int:
        """Return the number of the next night: one more than any that was registered."""
        return max(self.nights(), default=BASE) + 1

    def checkpoint(self, number: int) -> Path:
        """Return a night's checkpoint folder, after making sure that it is there and the one that was registered.

        Raises:
            PrunedError: its checkpoint was pruned.
            RegistryError: the night is unknown, or its checkpoint is missing or has another manifest.
        """
        night = self.night(number)
        folder = self.folder / night.checkpoint
        if self.lacks(night):
            raise PrunedError(
                f"the checkpoint of night {number} was pruned to free the disk: it can neither go live nor be asked, "
                f"nor its report be written again. If DVC has it, `dvc checkout {folder}` brings it back"
            )
        found = manifest_digest(folder)
        if found != night.manifest_digest:
            raise RegistryError(
                f"{folder} has the manifest {found}, but night {number} was registered with {night.manifest_digest}: "
                "restore it with `dvc checkout`"
            )
        return folder

    def register(self, night: Night) -> None:
        """Enter a night that ended and make it the challenger; the same night again changes nothing.

        Raises:
            RegistryError: another night has its number, its parent is unknown or rejected, or it is not complete.
        """
        nights, aliases = self._read()
        known = nights.get(night.number)
        if known is not None:
            if (known.manifest_digest, known.parent) != (night.manifest_digest, night.parent):
                raise RegistryError(
                    f"night {night.number} is registered with the manifest {known.manifest_digest} (from "
                    f"{_name(known.parent)}); {night.manifest_digest} (from {_name(night.parent)}) is another one: run "
                    f"it as night {max(nights) + 1}"
                )
            return
        if night.status != "complete":
            raise RegistryError(f"night {night.number} is {night.status}: register it as complete, then reject it")
        if night.number <= max(nights, default=BASE):
            raise RegistryError(
                f"night {night.number} is older than the last one, {max(nights)}: run it as night {max(nights) + 1}"
            )
        if night.parent != BASE and _known(nights, night.parent).status == "rejected":
            raise RegistryError(f"night {night.number} grew from night {night.parent}, which was rejected")
        self._write({**nights, night.number: night}, {**aliases, "challenger": night.number})

    def promote(self, number: int) -> None:
        """Make a night the champion, and the champion so far the previous one; the champion stays what it is.

        Raises:
            RegistryError: the night is unknown or rejected, or did not grow from the present champion, whose
                memories would be lost.
        """
        nights, aliases = self._read()
        night = _known(nights, number)
        champion = aliases.get("champion", BASE)
        if number == champion:
            return
        if night.status == "rejected":
            raise RegistryError(f"night {number} was rejected: run its memories again as night {max(nights) + 1}")
        if night.parent != champion:
            raise RegistryError(
                f"night {number} grew from {_name(night.parent)}, but {_name(champion)} is the champion now: run its "
                f"memories again as night {max(nights) + 1}"
            )
        kept = {alias: at for alias, at in aliases.items() if not (alias == "challenger" and at == number)}
        self._write(nights, {**kept, "champion": number, "previous_champion": champion})

    def reject(self, number: int) -> None:
        """Turn a night down: it stays in the register, and its memories count as not learned.

        Raises:
            RegistryError: the night is unknown, or the champion or one of its ancestors.
        """
        nights, aliases = self._read()
        night = _known(nights, number)
        if any(ancestor.number == number for ancestor in _ancestry(nights, aliases.get("champion", BASE))):
            raise RegistryError(f"the champion stands on night {number}: roll back first, then reject it")
        kept = {
            alias: at
            for alias, at in aliases.items()
            if at == BASE or all(ancestor.number != number for ancestor in _ancestry(nights, at))
        }
        if night.status != "rejected" or kept != aliases:
            self._write({**nights, number: replace(night, status="rejected")}, kept)

    def lacks(self, night: Night) -> bool:
        """Return whether a night's checkpoint was pruned, and nobody has brought it back."""
        return night.pruned and not (self.folder / night.checkpoint / MANIFEST).is_file()

    def prune(self, numbers: Iterable[int]) -> None:
        """Note that the checkpoints of nights are about to be deleted.

        Raises:
            RegistryError: a night is unknown, or live.
        """
        nights, aliases = self._read()
        pruned = {number: replace(_known(nights, number), pruned=True) for number in numbers}
        if (champion := aliases.get("champion", BASE)) in pruned:
            raise RegistryError(f"night {champion} is the champion: its checkpoint is what the next night grows from")
        if pruned:
            self._write({**nights, **pruned}, aliases)

    def restore(self, records: Iterable[Mapping[str, Any]]) -> list[int]:
        """Enter nights that were lived elsewhere, as each of them told when it was registered.

        Nights that are known already stay as they are. If the last night is new here, the aliases are those that it
        told; a rollback after it is not among them.

        Args:
            records: `dataclasses.asdict` of each night, and under `aliases` the register's aliases at that time.

        Returns:
            The numbers of the nights that were entered.

        Raises:
            RegistryError: a record is damaged, a night that others stand on is missing, or the register knows another
                night by the same number.
        """
        nights, aliases = self._read()
        new: dict[int, Night] = {}
        for record in records:
            told = dict(record)
            try:
                named: dict[Alias, int] = dict(told.pop("aliases"))
                night = Night.from_json(told)
            except (KeyError, TypeError, ValueError) as error:
                raise RegistryError(f"the record of a night is damaged ({error}): fetch it with `dvc pull`") from error
            known = nights.get(night.number)
            if known is None:
                if night.number > max([*nights, *new], default=BASE):
                    aliases = named
                new[night.number] = night
            elif (known.manifest_digest, known.parent) != (night.manifest_digest, night.parent):
                raise RegistryError(
                    f"night {night.number} is registered with the manifest {known.manifest_digest} (from "
                    f"{_name(known.parent)}), but its record tells of {night.manifest_digest} (from "
                    f"{_name(night.parent)}): these are two lives; move {self.path} away to take up the other one"
                )
        together = {**nights, **new}
        for number in (*together, *aliases.values()):
            _ancestry(together, number)
        if new:
            self._write(together, aliases)
        return sorted(new)

    def rollback(self, to: int | None = None) -> Night | None:
        """Make another night the champion, and the champion so far the previous one; None is the base model.

        Args:
            to: a night that the champion grew from, or `BASE`; by default the previous champion.

        Raises:
            RegistryError: there is no previous champion, the champion did not grow from that night, or its checkpoint
                is not what was registered.
        """
        nights, aliases = self._read()
        target = self.rollback_target(to)
        if target != BASE:
            self.checkpoint(target)
        self._write(nights, {**aliases, "champion": target, "previous_champion": aliases.get("champion", BASE)})
        return nights.get(target)

    def rollback_target(self, to: int | None = None) -> int:
        """The night that `rollback` would make the champion.

        Raises:
            RegistryError: see there.
        """
        nights, aliases = self._read()
        if to is None:
            if "previous_champion" not in aliases:
                raise RegistryError(f"{self.path} names no previous champion: there is nothing to roll back to")
            return aliases["previous_champion"]
        champion = aliases.get("champion", BASE)
        before = [BASE, *(night.number for night in _ancestry(nights, champion))]
        if to == champion or to not in before:
            known = ", ".join(_name(number) for number in before if number != champion)
            raise RegistryError(
                f"{_name(champion)} did not grow from {_name(to)}: roll back to one of {known or 'none'}"
                if to != champion
                else f"{_name(to)} is the champion already"
            )
        return to

    def _damaged(self, error: Exception) -> RegistryError:
        return RegistryError(
            f"{self.path} is damaged ({error}): restore it from a copy, or move it away and run `sleep-pipeline dvc "
            "restore`, which makes it anew from the nights' reports"
        )

    def _read(self) -> tuple[dict[int, Night], dict[Alias, int]]:
        try:
            record = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}, {}
        except ValueError as error:
            raise self._damaged(error) from error
        if not isinstance(record, dict) or record.get("version") != _VERSION:
            found = record.get("version") if isinstance(record, dict) else None
            raise RegistryError(f"{self.path} has version {found!r}; this release reads version {_VERSION}")
        try:
            nights = {night.number: night for night in map(Night.from_json, record["nights"])}
            aliases: dict[Alias, int] = dict(record["aliases"])
        except (KeyError, TypeError) as error:
            raise self._damaged(error) from error
        for number in aliases.values():
            _ancestry(nights, number)
        return nights, aliases

    def _write(self, nights: Mapping[int, Night], aliases: Mapping[Alias, int]) -> None:
        ordered = [asdict(nights[number]) for number in sorted(nights)]
        record = {"version": _VERSION, "aliases": dict(sorted(aliases.items())), "nights": ordered}
        write_atomically(self.path, json.dumps(record, indent=2, allow_nan=False) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Replace a file's content so that a crash leaves the old content or the new, whole and on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        # The rename itself is an entry of the directory.
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _name(number: int) -> str:
    return "the base model" if number == BASE else f"night {number}"


def _known(nights: Mapping[int, Night], number: int) -> Night:
    if number not in nights:
        listed = ", ".join(map(str, nights)) or "none"
        raise RegistryError(f"night {number} is not registered (registered: {listed})")
    return nights[number]


def _ancestry(nights: Mapping[int, Night], number: int) -> list[Night]:
    chain: list[Night] = []
    while number != BASE:
        chain.append(_known(nights, number))
        if chain[-1].parent >= number:
            raise RegistryError(f"night {number} names night {chain[-1].parent} as its parent, which came no earlier")
        number = chain[-1].parent
    return chain[::-1]


def roots_and_children(nights: Iterable[Night]) -> dict[int, list[Night]]:
    """Return the nights that grew from each night, ascending; those of the base model under `BASE`."""
    children: dict[int, list[Night]] = {}
    for night in sorted(nights, key=lambda night: night.number):
        children.setdefault(night.parent, []).append(night)
    return children
