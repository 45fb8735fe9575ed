"""Views: which experts and base weights of one network take part, for the time of a `with` block.

Teacher and student of a sleep are one network under two views (architecture.md). The student is the default
state, so code that forgets a view, or recomputes outside of one, works on the student. Views nest and survive
exceptions. They are state of the model, not of the thread: one model, one thread. `torch.compile` compiles once
for each view and set of active experts and then switches without compiling; call `torch.compiler.reset()` after
a commit, or its limit of graphs per function is reached after a few nights.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sleep_pipeline.memory.operations import memory_layers, state_of, states_of
from sleep_pipeline.memory.state import MemoryState, RandomExperts, View


@contextmanager
def _viewed(
    states: list[MemoryState], choose: Callable[[MemoryState], View | None], past: bool | None = None
) -> Iterator[None]:
    chosen = [choose(state) for state in states]
    for state, view in zip(states, chosen, strict=True):
        if view is not None:
            state.check(view)
    before = [(state.view, state.past, state.random) for state in states]
    try:
        for state, view in zip(states, chosen, strict=True):
            # Random experts were drawn among those that were on outside of the view.
            state.random = None
            state.set_view(view)
            state.show(state.past if past is None else past)
        yield
    finally:
        for state, (view, shown, random) in zip(states, before, strict=True):
            state.view, state.random = view, random
            state.refresh()
            state.show(shown)


def _chosen(model: nn.Module, adapter_name: str | None) -> list[MemoryState]:
    return list(states_of(model).values()) if adapter_name is None else [state_of(model, adapter_name)]


@contextmanager
def teacher_view(model: nn.Module, adapter_name: str | None = None) -> Iterator[None]:
    """Compute as before the sleep: all active experts, current base weights, without the new expert.

    In a plastic sleep that was taken up again, the experts are as they were when it was.
    """
    with _viewed(_chosen(model, adapter_name), MemoryState.teacher, past=True):
        yield


@contextmanager
def student_view(model: nn.Module, adapter_name: str | None = None) -> Iterator[None]:
    """Compute as the student, the default state; of use inside another view."""
    with _viewed(_chosen(model, adapter_name), MemoryState.student, past=False):
        yield


@contextmanager
def base_view(model: nn.Module, adapter_name: str | None = None) -> Iterator[None]:
    """Compute as the bare base model."""
    with _viewed(_chosen(model, adapter_name), MemoryState.bare):
        yield


@contextmanager
def experts_view(
    model: nn.Module,
    level: int,
    slots: Iterable[int],
    training: bool = False,
    adapter_name: str | None = None,
) -> Iterator[None]:
    """Compute with exactly the given active experts of `level` on; other levels stay as they are.

    Raises:
        SlotError: a slot is not active, or `training` is asked of a level that has no expert in training.
    """
    experts = tuple(sorted(set(slots)))
    with _viewed(
        [state_of(model, adapter_name)],
        lambda state: state.with_view(level, experts=experts, training=training),
    ):
        yield


@contextmanager
def adapters_view(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Compute with exactly the named memories on, without touching what is trainable, as `set_adapter` would.

    For several teachers on one network: each night's memory is an adapter, and the student's is another.

    Raises:
        ValueError: a name is unknown.
    """
    names = list(names)
    unknown = set(names) - states_of(model).keys()
    if unknown:
        raise ValueError(f"there is no continuum memory named {sorted(unknown)}; there is {sorted(states_of(model))}")
    layers = memory_layers(model)
    before = [layer._active_adapter for layer in layers]
    try:
        for layer in layers:
            layer._active_adapter = names
        yield
    finally:
        for layer, active in zip(layers, before, strict=True):
            layer._active_adapter = active


@contextmanager
def random_experts(
    model: nn.Module,
    generator: torch.Generator,
    num_sequences: int,
    gate: float = 1.0,
    adapter_name: str | None = None,
) -> Iterator[Callable[[Sequence[int]], None]]:
    """Open one extra random expert per router and sequence while dreaming (paper.md section 4, step 1).

    Drawn when the block is entered, uniformly over the experts that are on, and held until it is left, so a
    sequence keeps its experts through all its tokens. A view inside the block does without them. The block's value is a
    function that says which of the sequences, and in which order, the batches hold from now on; until it is called they
    hold all of them.

    Args:
        model: a model with a memory.
        generator: a CPU generator; the same seed draws the same experts.
        num_sequences: for how many to draw: the batch size that the model will see (prompts times samples per
            prompt), or the number of all sequences where batches hold some of them.
        gate: how far the extra expert opens where the router has it less open.
        adapter_name: which memory, if there are several.
    """
    state = state_of(model, adapter_name)
    view = state.view if state.view is not None else state.student()
    choices: list[dict[int, Tensor] | None] = []
    for entry in view:
        if not entry.experts:
            choices.append(None)
            continue
        experts = torch.tensor(entry.experts)
        drawn = {}
        for layer in state.layers:
            picked = torch.randint(len(experts), (num_sequences,), generator=generator)
            drawn[layer.index] = experts[picked].to(next(layer.parameters()).device)
        choices.append(drawn)
    before, drawn_for_all = state.random, RandomExperts(tuple(choices), gate)

    def hold(sequences: Sequence[int]) -> None:
        state.random = drawn_for_all.of(sequences)
        state.refresh()

    try:
        state.random = drawn_for_all
        state.refresh()
        yield hold
    finally:
        state.random = before
        state.refresh()
