"""Transitions of the slots, carried out on the table and on every layer's tensors together.

These are the single steps. A night uses `transaction.py`, which makes one sleep's steps happen all or not at
all.
"""

from collections.abc import Iterable

from torch import nn

from sleep_pipeline.memory.layer import ContinuumLayer
from sleep_pipeline.memory.levels import SLOTS, Level
from sleep_pipeline.memory.slots import SlotError
from sleep_pipeline.memory.state import MemoryState


def memory_layers(model: nn.Module) -> list[ContinuumLayer]:
    """Return the layers of `model` that carry a memory, in model order."""
    return [module for module in model.modules() if isinstance(module, ContinuumLayer)]


def states_of(model: nn.Module) -> dict[str, MemoryState]:
    """Return the memories on `model` by adapter name."""
    return {name: state for layer in memory_layers(model) for name, state in layer.states.items()}


def state_of(model: nn.Module, adapter_name: str | None = None) -> MemoryState:
    """Return one memory of `model`: the named one, or the only active one.

    Raises:
        ValueError: there is no such memory, or several are active and none was named.
    """
    states = states_of(model)
    if adapter_name is not None:
        if adapter_name not in states:
            raise ValueError(
                f"there is no continuum memory named {adapter_name!r}; there is {sorted(states) or 'none'}"
            )
        return states[adapter_name]
    active = list(
        dict.fromkeys(name for layer in memory_layers(model) for name in layer._active_adapter if name in states)
    )
    if len(active) != 1:
        raise ValueError(
            f"name the memory with adapter_name: {sorted(states) or 'none'} on this model, {active or 'none'} active"
        )
    return states[active[0]]


def level_tensors(state: MemoryState, level: int) -> list[Level]:
    """Return the tensors of one level in every layer, in model order."""
    state.table.slots(level)
    return [layer.levels_of(state)[level - 1] for layer in state.layers]


def trained_slots(model: nn.Module) -> list[nn.Parameter]:
    """Return the tensors of stored experts that a plastic sleep trains; none outside of one."""
    slots = (tensors.get_parameter(name) for tensors in model.modules() if isinstance(tensors, Level) for name in SLOTS)
    return [parameter for parameter in slots if parameter.requires_grad]


def outside_views(state: MemoryState) -> None:
    """Raise `SlotError` while a view is on: changing the slots would pull the ground from under it."""
    if state.view is not None:
        raise SlotError("the slots cannot change inside a view: leave the `with` block of the view first")


def unlock(
    model: nn.Module, level: int, night: int | None = None, origin: str = "", adapter_name: str | None = None
) -> int:
    """Put a fresh expert of `level` into training and return its slot.

    It adds nothing until it is trained, and where each expert opens on its own account not a bit of the model changes.
    Where they compete, by `top_k` or a router such as `null_softmax`, its gate takes from the others' at once.

    Raises:
        SlotError: no such level, no free slot, or another slot is in training.
    """
    state = state_of(model, adapter_name)
    outside_views(state)
    table = state.table.copy()
    slot = table.unlock(level, night, origin)
    for tensors in level_tensors(state, level):
        tensors.open_workspace(slot, table.slots(level)[slot].unlocks)
    state.table = table
    state.trainable = True
    state.changed()
    return slot


def activate(model: nn.Module, level: int, adapter_name: str | None = None) -> int:
    """Freeze the expert in training of `level` into its slot and return that.

    Raises:
        SlotError: no slot of the level is in training, or it belongs to a sleep (commit that instead).
    """
    state = state_of(model, adapter_name)
    outside_views(state)
    if state.table.sleep is not None:
        raise SlotError("the expert in training belongs to a sleep that is under way: commit or abort the sleep")
    table = state.table.copy()
    slot = table.activate(level)
    for tensors in level_tensors(state, level):
        tensors.store_workspace(slot)
    state.table = table
    state.changed()
    return slot


def reset(
    model: nn.Module,
    level: int,
    slots: Iterable[int],
    night: int | None = None,
    adapter_name: str | None = None,
) -> None:
    """Free slots of `level`, active or in training, and zero their tensors (synaptic pruning).

    Raises:
        SlotError: a slot does not exist, is free, or takes part in a sleep that is under way.
    """
    state = state_of(model, adapter_name)
    outside_views(state)
    slots = tuple(slots)
    sleep = state.table.sleep
    if sleep is not None:
        busy = {(sleep.receiver, sleep.slot), *((sleep.sender, slot) for slot in sleep.senders)}
        if busy & {(level, slot) for slot in slots}:
            raise SlotError(f"slots {list(slots)} of level {level} take part in a sleep: commit or abort it first")
    training = state.table.training()
    table = state.table.copy()
    table.reset(level, slots, night)
    for tensors in level_tensors(state, level):
        if training is not None and training[0] == level and training[1] in slots:
            tensors.clear_workspace()
        tensors.clear_slots(slots)
    state.table = table
    state.changed()
