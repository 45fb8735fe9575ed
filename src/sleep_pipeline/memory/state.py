"""The host-side state of one memory: the slot table, what is switched on, and the plan of the layers.

Everything here is plain Python on the host. The layers read one attribute, `MemoryState.plan`, at every
forward pass; it is None while there is nothing to compute, and then a layer is its base layer and nothing
else. No tensor is read to decide, so an accelerator never waits and `torch.compile` guards on plain values.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from sleep_pipeline.memory.slots import SlotError, SlotState, SlotTable

if TYPE_CHECKING:
    from sleep_pipeline.memory.config import ContinuumMemoryConfig
    from sleep_pipeline.memory.layer import ContinuumLayer
    from sleep_pipeline.memory.tracing import RoutingTrace

Base = Literal["off", "current", "prospective"]


@dataclass(frozen=True)
class LevelView:
    """What is switched on in one level.

    Attributes:
        experts: the active slots that take part.
        training: whether the expert in training takes part.
        base: which weights the level's own MLP uses.
    """

    experts: tuple[int, ...] = ()
    training: bool = False
    base: Base = "current"


View = tuple[LevelView, ...]


@dataclass(frozen=True)
class RandomExperts:
    """One extra expert per router and sequence while dreaming.

    Attributes:
        choices: `choices[level - 1]` holds the drawn slots `[B]` by decoder layer, or is None for a level without
            experts.
        gate: how far the extra expert opens.
    """

    choices: tuple[dict[int, Tensor] | None, ...]
    gate: float

    def of(self, sequences: Sequence[int]) -> "RandomExperts":
        """Return the choices of some of the sequences, in that order."""
        rows = list(sequences)
        chosen = (
            None if level is None else {key: drawn[rows] for key, drawn in level.items()} for level in self.choices
        )
        return replace(self, choices=tuple(chosen))


@dataclass(frozen=True)
class LevelPlan:
    """What one level computes: some of its slots, and possibly its workspace and base.

    Attributes:
        count: length of the prefix of slots that is computed.
        off: slots of that prefix that are switched off.
        training: whether the workspace is computed.
        base: prefix of the base tensors' names, "base" or "next"; None leaves the level's own MLP out.
    """

    count: int
    off: tuple[int, ...]
    training: bool
    base: str | None
    masks: dict[torch.device, Tensor] = field(default_factory=dict, compare=False, repr=False)

    def mask(self, device: torch.device) -> Tensor | None:
        """Return a bool tensor `[count]`, True where a slot is off; None if none is."""
        if not self.off:
            return None
        if torch.compiler.is_compiling():
            return self._mask(device)
        if device not in self.masks:
            # Made while sampling, it is read while training as well.
            with torch.inference_mode(False):
                self.masks[device] = self._mask(device)
        return self.masks[device]

    def _mask(self, device: torch.device) -> Tensor:
        return torch.tensor([slot in self.off for slot in range(self.count)], device=device)


@dataclass(frozen=True)
class Plan:
    """What a memory computes, one entry a level, None where a level has nothing to do."""

    levels: tuple[LevelPlan | None, ...]
    random: RandomExperts | None = None
    trace: "RoutingTrace | None" = None


@dataclass
class MemoryState:
    """The state of one adapter's memory, shared by all its layers.

    Attributes:
        config: the adapter's configuration; its `state` is kept up to date for saving.
        table: the slots.
        moved: per level, how often its base weights have changed since they were made (a level whose base never
            moved is an exact no-op and is skipped); memories saved before this was counted hold whether they have.
        pending: per level, how many steps its accumulated gradient holds.
        awake: whether the base weights' gradients are being accumulated, so that they must be computed.
        trainable: whether what a sleep trains may receive gradients.
        owned: whether a tuner object switches this memory on and off (not so after bare injection).
        layers: the layers that share this state, in model order.
        hidden: while earlier experts are trained, their tensors with the values that are not shown: those of before the
            sleep, or with `past` those of now.
        past: whether the experts are shown as they were before the sleep.
    """

    config: "ContinuumMemoryConfig"
    table: SlotTable
    moved: list[int]
    pending: list[int]
    awake: bool = False
    trainable: bool = True
    owned: bool = False
    layers: list["ContinuumLayer"] = field(default_factory=list)
    hidden: list[tuple[nn.Parameter, Tensor]] = field(default_factory=list)
    past: bool = False
    view: View | None = None
    random: RandomExperts | None = None
    trace: "RoutingTrace | None" = None
    plan: Plan | None = None

    @classmethod
    def of(cls, config: "ContinuumMemoryConfig") -> "MemoryState":
        """Return the state that `config` describes: the saved one, or all slots free."""
        sizes = [level.num_slots for level in config.levels]
        state = cls(config, SlotTable.of_sizes(sizes), [0] * len(sizes), [0] * len(sizes))
        if config.state is not None:
            state.adopt(config.state)
        state.refresh()
        return state

    @property
    def depth(self) -> int:
        """The number of levels, the slowest included."""
        return len(self.config.levels)

    def student(self) -> View:
        """Return the default view: the live model, or the student of the sleep that is under way.

        The student has the new expert on, the sender's experts out, and the sender's prospective base weights
        in (paper.md section 3, step 2).
        """
        sleep = self.table.sleep
        training = self.table.training()
        views = []
        for level in range(1, self.depth + 1):
            handed_on = sleep.senders if sleep is not None and sleep.sender == level else ()
            experts = tuple(slot for slot in self.table.active(level) if slot not in handed_on)
            moving = sleep is not None and sleep.sender == level != sleep.receiver
            views.append(
                LevelView(
                    experts,
                    training is not None and training[0] == level,
                    "prospective" if moving else "current",
                )
            )
        return tuple(views)

    def teacher(self) -> View:
        """Return the state before the sleep: all active experts, current base weights, no new expert."""
        return tuple(LevelView(self.table.active(level)) for level in range(1, self.depth + 1))

    def bare(self) -> View:
        """Return the view in which the memory does nothing."""
        return tuple(LevelView(base="off") for _ in range(self.depth))

    def check(self, view: View) -> None:
        """Raise `SlotError` if `view` does not fit this memory's levels and slots."""
        if len(view) != self.depth:
            raise SlotError(f"the view has {len(view)} levels, but the memory has {self.depth}")
        for level, entry in enumerate(view, start=1):
            inactive = set(entry.experts) - set(self.table.active(level))
            if inactive:
                raise SlotError(
                    f"the view switches on slots {sorted(inactive)} of level {level}, which are not active (active: "
                    f"{list(self.table.active(level))})"
                )
            if entry.training and not self.table.in_state(level, SlotState.TRAINING):
                raise SlotError(f"the view switches on an expert in training in level {level}, which has none")
            if entry.base == "prospective" and (self.table.sleep is None or self.table.sleep.sender != level):
                raise SlotError(f"level {level} has no prospective base weights: it is not the sender of a sleep")

    def set_view(self, view: View | None) -> None:
        """Switch to `view`; None is the default (`student`). For use by `views.py`."""
        if view is not None:
            self.check(view)
        self.view = view
        self.refresh()

    def show(self, past: bool) -> None:
        """Show the experts as they were before a plastic sleep, or as they are. For use by `views.py`."""
        if past != self.past:
            shown = [(parameter, parameter.data) for parameter, _ in self.hidden]
            for parameter, other in self.hidden:
                parameter.data = other.to(parameter.device)
            self.hidden, self.past = shown, past

    def refresh(self) -> None:
        """Recompute the plan after any change of table, view or flags."""
        view = self.view if self.view is not None else self.student()
        levels = tuple(self._plan_level(level, entry) for level, entry in enumerate(view, start=1))
        idle = all(level is None for level in levels)
        self.plan = None if idle else Plan(levels, self.random, self.trace)

    def _plan_level(self, level: int, entry: LevelView) -> LevelPlan | None:
        base = None
        if level < self.depth:
            if entry.base == "prospective" and self.has_prospective(level):
                base = "next"
            elif entry.base == "current" and (self.moved[level - 1] or self.awake):
                base = "base"
        count = max(entry.experts, default=-1) + 1
        if not count and not entry.training and base is None:
            return None
        off = tuple(slot for slot in range(count) if slot not in entry.experts)
        return LevelPlan(count, off, entry.training, base)

    def changed(self) -> None:
        """Write the state back to the configuration, and bring plan and gradients in line with it."""
        self.config.state = self.to_dict()
        self.refresh()
        self.sync_gradients()

    def sync_gradients(self) -> None:
        """Let only the expert in training, and in a plastic sleep its level's others, require gradients, if any may."""
        training = self.table.training()
        level_in_training = training[0] if training is not None and self.trainable else None
        for layer in self.layers:
            for level, tensors in enumerate(layer.levels_of(self), start=1):
                new = level == level_in_training
                tensors.train_experts(new, new and self.plastic)
                tensors.train_base(self.awake)

    @property
    def plastic(self) -> bool:
        """Whether the sleep that is under way trains its receiver's earlier experts, too."""
        return self.table.sleep is not None and self.table.sleep.plastic

    def to_dict(self) -> dict[str, Any]:
        """Return what must survive a save, in JSON's types."""
        return {**self.table.to_dict(), "moved": list(self.moved), "pending": list(self.pending)}

    def adopt(self, record: dict[str, Any]) -> None:
        """Take over a saved state.

        Raises:
            SlotError: it belongs to a memory with other levels or slots.
        """
        table = SlotTable.from_dict(record)
        sizes = [len(slots) for slots in table.levels]
        expected = [level.num_slots for level in self.config.levels]
        if sizes != expected:
            raise SlotError(f"the saved memory has {sizes} slots a level, but this one is configured for {expected}")
        moved, pending = list(record["moved"]), list(record["pending"])
        self.table, self.moved, self.pending = table, moved, pending
        self.config.state = record

    def has_prospective(self, level: int) -> bool:
        """Whether `level` holds prospective base weights that differ from no base at all.

        Only the sender of an open sleep to a slower level does; a base that never moved and has no gradient
        to follow stays an exact no-op and is skipped.
        """
        sleep = self.table.sleep
        sending = sleep is not None and sleep.sender == level != sleep.receiver
        return sending and (self.moved[level - 1] > 0 or self.pending[level - 1] > 0)

    def with_view(self, level: int, **changes: Any) -> View:
        """Return the present view with `changes` to one level's entry."""
        view = self.view if self.view is not None else self.student()
        self.table.slots(level)
        return tuple(
            replace(entry, **changes) if number == level else entry for number, entry in enumerate(view, start=1)
        )
