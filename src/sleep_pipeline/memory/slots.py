"""The state machine of the expert slots: `free -> training -> active -> free`, one table for the whole model.

Pure Python, no tensors: a slot is in the same state in every decoder layer, so the table is kept once. It
changes only through the four transitions below, each of which either happens completely or raises and changes
nothing.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

CONTEXT = 0
"""Level 0 is the context window: the sender of the first consolidation, with no slots of its own."""


class SlotState(StrEnum):
    """Where a slot stands in its life."""

    FREE = "free"
    TRAINING = "training"
    ACTIVE = "active"


class SlotError(ValueError):
    """A transition that the state machine does not allow; nothing was changed."""


@dataclass(frozen=True)
class Slot:
    """One expert slot.

    Attributes:
        state: where it stands.
        night: the night in which it was unlocked, if the caller named one.
        origin: what it was filled from, for people ("context", "level 1", "merge of 0 and 3").
        unlocks: how often it has been unlocked, which also seeds its initial weights.
    """

    state: SlotState = SlotState.FREE
    night: int | None = None
    origin: str = ""
    unlocks: int = 0


@dataclass(frozen=True)
class Sleep:
    """A consolidation that has begun and is neither committed nor aborted.

    Attributes:
        sender: the level that hands on (`CONTEXT` for the prompt; equal to `receiver` when slots are merged).
        receiver: the level in which the new expert trains.
        slot: the slot of the new expert.
        senders: the sender's slots that the student does without and that the commit resets.
        night: the night it belongs to.
        plastic: whether the receiver's earlier experts are trained, too.
    """

    sender: int
    receiver: int
    slot: int
    senders: tuple[int, ...] = ()
    night: int | None = None
    plastic: bool = False


@dataclass
class SlotTable:
    """The slots of every level; levels are numbered from 1, the fastest, and 0 is the context.

    Attributes:
        levels: `levels[l - 1]` holds the slots of level `l`.
        sleep: the consolidation that is under way.
        events: what happened, oldest first, as `(night, level, slot, event)`; slot -1 is the whole level.
    """

    levels: list[list[Slot]]
    sleep: Sleep | None = None
    events: list[tuple[int | None, int, int, str]] = field(default_factory=list)

    @classmethod
    def of_sizes(cls, sizes: Sequence[int]) -> "SlotTable":
        """Return a table of free slots, `sizes[l - 1]` of them in level `l`."""
        return cls([[Slot() for _ in range(size)] for size in sizes])

    def slots(self, level: int) -> list[Slot]:
        """Return the slots of `level`.

        Raises:
            SlotError: there is no such level.
        """
        if not 1 <= level <= len(self.levels):
            raise SlotError(f"there is no level {level} with slots: levels run from 1 to {len(self.levels)}")
        return self.levels[level - 1]

    def in_state(self, level: int, state: SlotState) -> tuple[int, ...]:
        """Return the numbers of the slots of `level` that are in `state`, ascending."""
        return tuple(number for number, slot in enumerate(self.slots(level)) if slot.state is state)

    def active(self, level: int) -> tuple[int, ...]:
        """Return the active slots of `level`, ascending."""
        return self.in_state(level, SlotState.ACTIVE)

    def training(self) -> tuple[int, int] | None:
        """Return `(level, slot)` of the slot in training, or None."""
        for level in range(1, len(self.levels) + 1):
            for number in self.in_state(level, SlotState.TRAINING):
                return level, number
        return None

    def must_merge(self, level: int) -> bool:
        """Whether merging is due before the next unlock: merging itself needs the last free slot."""
        return len(self.in_state(level, SlotState.FREE)) <= 1 and len(self.active(level)) >= 2

    def unlock(self, level: int, night: int | None = None, origin: str = "") -> int:
        """Put the first free slot of `level` into training and return its number.

        Raises:
            SlotError: there is no such level or no free slot, or another slot is in training.
        """
        slots = self.slots(level)
        if (busy := self.training()) is not None:
            raise SlotError(
                f"slot {busy[1]} of level {busy[0]} is still in training: activate or reset it before unlocking another"
            )
        free = self.in_state(level, SlotState.FREE)
        if not free:
            raise SlotError(
                f"level {level} has no free slot ({len(slots)} of {len(slots)} in use): merge two of its experts "
                "while one slot is still free, reset one, or configure more num_slots"
            )
        number = free[0]
        slots[number] = Slot(SlotState.TRAINING, night, origin, slots[number].unlocks + 1)
        self.events.append((night, level, number, "unlock"))
        return number

    def activate(self, level: int) -> int:
        """Turn the slot in training in `level` into an active one and return its number.

        Raises:
            SlotError: no slot of this level is in training.
        """
        slots = self.slots(level)
        training = self.in_state(level, SlotState.TRAINING)
        if not training:
            raise SlotError(f"level {level} has no slot in training to activate: unlock one first")
        (number,) = training
        slots[number] = replace(slots[number], state=SlotState.ACTIVE)
        self.events.append((slots[number].night, level, number, "activate"))
        return number

    def reset(self, level: int, numbers: Iterable[int], night: int | None = None) -> tuple[int, ...]:
        """Free the given slots of `level`, whether active or in training, and return them.

        Raises:
            SlotError: a slot does not exist, or is free already.
        """
        slots = self.slots(level)
        numbers = tuple(sorted(set(numbers)))
        for number in numbers:
            if not 0 <= number < len(slots):
                raise SlotError(f"level {level} has no slot {number}: its slots run from 0 to {len(slots) - 1}")
            if slots[number].state is SlotState.FREE:
                raise SlotError(f"slot {number} of level {level} is free: only active or training slots can be reset")
        for number in numbers:
            slots[number] = Slot(unlocks=slots[number].unlocks)
            self.events.append((night, level, number, "reset"))
        return numbers

    def hand_on(self, level: int, night: int) -> None:
        """Note that all that `level` held has moved into the next slower level at `night`."""
        self.slots(level)
        self.events.append((night, level, -1, "hand on"))

    def handed_on(self, level: int) -> int:
        """The night at which `level` was last emptied into the next slower level; 0 if never."""
        nights = [night for night, of, _, event in self.events if of == level and event == "hand on"]
        return max((night for night in nights if night is not None), default=0)

    def copy(self) -> "SlotTable":
        """Return an independent copy, for taking a transition back."""
        return copy.deepcopy(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the table in JSON's types, lossless under `from_dict`."""
        return {
            "levels": [[{**asdict(slot), "state": slot.state.value} for slot in slots] for slots in self.levels],
            "sleep": None if self.sleep is None else {**asdict(self.sleep), "senders": list(self.sleep.senders)},
            "events": [list(event) for event in self.events],
        }

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "SlotTable":
        """Return the table that `to_dict` described.

        Raises:
            SlotError: the record breaks an invariant (an unknown state, two slots in training, an open sleep
                whose slot is not in training).
        """
        try:
            levels = [
                [Slot(**{**slot, "state": SlotState(slot["state"])}) for slot in slots] for slots in record["levels"]
            ]
            sleep = record.get("sleep")
            table = cls(
                levels,
                None if sleep is None else Sleep(**{**sleep, "senders": tuple(sleep["senders"])}),
                [(event[0], event[1], event[2], event[3]) for event in record.get("events", [])],
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise SlotError(f"this is not a saved slot table: {error}") from error
        table.check()
        return table

    def check(self) -> None:
        """Raise `SlotError` if an invariant is broken."""
        training = [
            (level, number)
            for level in range(1, len(self.levels) + 1)
            for number in self.in_state(level, SlotState.TRAINING)
        ]
        if len(training) > 1:
            raise SlotError(f"more than one slot is in training: {training}")
        if self.sleep is not None:
            if training != [(self.sleep.receiver, self.sleep.slot)]:
                raise SlotError(f"the open sleep {self.sleep} does not match the slots in training {training}")
            if self.sleep.sender != CONTEXT:
                missing = set(self.sleep.senders) - set(self.active(self.sleep.sender))
                if missing:
                    raise SlotError(f"the open sleep hands on slots {sorted(missing)}, which are not active")
