"""Show what a memory holds: a table for people, a dict for logs, and a plot of the slots over the nights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sleep_pipeline.memory.levels import Level
from sleep_pipeline.memory.operations import level_tensors, state_of
from sleep_pipeline.memory.slots import SlotState
from sleep_pipeline.memory.tracing import RoutingTrace

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class SlotSummary:
    """One slot that is not free.

    Attributes:
        level: its level.
        slot: its number.
        state: `training` or `active`.
        night: when it was unlocked.
        origin: what filled it.
        norm: mean over layers of the Frobenius norm of `A B`, the expert without gate and nonlinearity.
        openness: mean gate over the traced tokens; None without a trace.
        routed: share of traced tokens with a gate above one half; None without a trace.
    """

    level: int
    slot: int
    state: str
    night: int | None
    origin: str
    norm: float
    openness: float | None
    routed: float | None


@dataclass(frozen=True)
class MemorySummary:
    """A memory at one moment; `str()` is the table, `to_dict()` flat numbers for a logger.

    Attributes:
        levels: per level: period, base weights moved or not, steps pending, and the number of slots by state.
        slots: every slot that is not free.
        sleep: the sleep under way, in words.
    """

    levels: list[dict[str, Any]]
    slots: list[SlotSummary]
    sleep: str | None

    def to_dict(self) -> dict[str, float]:
        """Return numbers by name, `level_1/active` or `level_1/slot_3/norm`."""
        flat: dict[str, float] = {}
        for number, level in enumerate(self.levels, start=1):
            for name in ("free", "training", "active", "pending", "moved"):
                flat[f"level_{number}/{name}"] = float(level[name])
        for slot in self.slots:
            for name in ("norm", "openness", "routed"):
                value = getattr(slot, name)
                if value is not None:
                    flat[f"level_{slot.level}/slot_{slot.slot}/{name}"] = value
        return flat

    def __str__(self) -> str:
        """Return the table."""
        lines = []
        for number, level in enumerate(self.levels, start=1):
            base = (
                "pretrained MLP"
                if number == len(self.levels)
                else f"own MLP, {'moved' if level['moved'] else 'unmoved'}"
            )
            period = "never changes" if number == len(self.levels) else f"period {level['period']}"
            lines.append(
                f"level {number} ({period}; {base}): {level['active']} active, {level['training']} training, "
                f"{level['free']} free slots of rank {level['rank']}"
            )
            rows = [slot for slot in self.slots if slot.level == number]
            if rows:
                lines.append("  slot  state     night  norm      open   routed  from")
            for slot in rows:
                night = "-" if slot.night is None else str(slot.night)
                opened = "-" if slot.openness is None else f"{slot.openness:.3f}"
                routed = "-" if slot.routed is None else f"{slot.routed:.1%}"
                lines.append(
                    f"  {slot.slot:>4}  {slot.state:<8}  {night:>5}  {slot.norm:<8.3g}  {opened:>5}  {routed:>6}  "
                    f"{slot.origin}"
                )
        if self.sleep is not None:
            lines.append(f"under way: {self.sleep}")
        return "\n".join(lines)


def expert_norm(level: Level, slot: int | None) -> float:
    """Return the Frobenius norm of `A B` of a slot, or of the workspace for None."""
    down, up = (level.new_down, level.new_up) if slot is None else (level.down[slot], level.up[slot])
    down, up = down.detach().double(), up.detach().double()
    return float(((down @ down.T) * (up @ up.T)).sum().clamp(min=0).sqrt())


def describe(model: nn.Module, trace: RoutingTrace | None = None, adapter_name: str | None = None) -> MemorySummary:
    """Summarise the memory of `model`.

    Args:
        model: a model with a memory.
        trace: what `trace_routing` recorded, for how far the experts open and what share of tokens they take.
        adapter_name: which memory, if there are several.
    """
    state = state_of(model, adapter_name)
    levels, slots = [], []
    for number, config in enumerate(state.config.levels, start=1):
        counts = {kind.value: len(state.table.in_state(number, kind)) for kind in SlotState}
        levels.append(
            {
                **counts,
                "period": config.period,
                "rank": config.rank,
                "moved": state.moved[number - 1] > 0,
                "pending": state.pending[number - 1],
            }
        )
        openness = None if trace is None else trace.openness(number)
        routed = None if trace is None else trace.routed(number)
        tensors = level_tensors(state, number)
        for index, slot in enumerate(state.table.slots(number)):
            if slot.state is SlotState.FREE:
                continue
            where = None if slot.state is SlotState.TRAINING else index
            slots.append(
                SlotSummary(
                    number,
                    index,
                    slot.state.value,
                    slot.night,
                    slot.origin,
                    sum(expert_norm(level, where) for level in tensors) / len(tensors),
                    None if openness is None else float(openness[index]),
                    None if routed is None else float(routed[index]),
                )
            )
    sleep = state.table.sleep
    words = None
    if sleep is not None:
        words = f"level {sleep.sender} -> level {sleep.receiver}, slot {sleep.slot}, night {sleep.night}"
    return MemorySummary(levels, slots, words)


def slots_over_nights(events: Sequence[tuple[int | None, int, int, str]], level: int, num_slots: int) -> torch.Tensor:
    """Return what each slot of `level` held at the end of each night, `[num_slots, nights]`.

    The value is the night in which the slot's expert was unlocked; NaN where the slot was free. Nights are
    those that the events name, in order of first appearance; an event without one counts to the last that was named.
    """
    nights = list(dict.fromkeys(night for night, *_ in events if night is not None))
    held = torch.full((num_slots, len(nights)), torch.nan)
    present: dict[int, float] = {}
    for column, now in enumerate(nights):
        latest = nights[0]
        for night, of_level, slot, event in events:
            latest = latest if night is None else night
            if latest != now or of_level != level:
                continue
            if event == "reset":
                present.pop(slot, None)
            elif event == "activate":
                present[slot] = float(now)
        for slot, unlocked in present.items():
            held[slot, column] = unlocked
    return held


def plot_slots(model: nn.Module, adapter_name: str | None = None) -> "Figure":
    """Plot each level's slots over the nights, coloured by the night that filled them, blank where free."""
    from matplotlib.figure import Figure

    state = state_of(model, adapter_name)
    events = state.table.events
    nights = list(dict.fromkeys(night for night, *_ in events if night is not None))
    figure = Figure(figsize=(8, 1.2 + 1.8 * state.depth), layout="constrained")
    axes = figure.subplots(state.depth, 1, squeeze=False)[:, 0]
    for number, axis in enumerate(axes, start=1):
        num_slots = state.config.levels[number - 1].num_slots
        held = slots_over_nights(events, number, num_slots)
        if nights:
            image = axis.imshow(
                held.numpy(),
                aspect="auto",
                interpolation="nearest",
                origin="lower",
                vmin=min(nights),
                vmax=max(nights),
            )
            axis.set_xticks(range(0, len(nights), max(1, len(nights) // 10)))
            axis.set_xticklabels([str(nights[tick]) for tick in range(0, len(nights), max(1, len(nights) // 10))])
            figure.colorbar(image, ax=axis, label="unlocked in night")
        axis.set_ylabel("slot")
        axis.set_title(f"level {number}")
    axes[-1].set_xlabel("night")
    return figure
