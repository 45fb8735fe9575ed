"""Watch the routers: how far experts open, which tokens they take, and the gates for regularisers."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sleep_pipeline.memory.operations import state_of
from sleep_pipeline.memory.state import MemoryState

ROUTED = 0.5
"""A token counts as routed to an expert whose gate for it exceeds this."""


class RoutingTrace:
    """What the routers did while `trace_routing` was on.

    Attributes:
        gates: with `keep`, the gates of every call by `(level, layer)`, `[..., experts]`, the expert in
            training last, with their graph: sum, penalise and backpropagate them.
    """

    def __init__(self, state: MemoryState, keep: bool = False, weights: Tensor | None = None):
        self.state = state
        self.keep = keep
        self.weights = weights
        self.gates: dict[tuple[int, int], list[Tensor]] = {}
        self._open: dict[tuple[int, int], Tensor] = {}
        self._routed: dict[tuple[int, int], Tensor] = {}
        self._tokens: dict[tuple[int, int], Tensor] = {}

    def record(self, level: int, layer: int, gates: Tensor, count: int) -> None:
        """Take in one router call's gates: `count` slots, then the expert in training if it takes part."""
        key = (level, layer)
        if self.keep:
            self.gates.setdefault(key, []).append(gates)
        values = gates.detach().to(torch.float32)
        weights = values.new_ones(values.shape[:-1]) if self.weights is None else self.weights.to(values)
        if weights.shape != values.shape[:-1]:
            raise ValueError(
                f"the trace was given weights of shape {tuple(weights.shape)} for input of {tuple(values.shape[:-1])}"
            )
        training = self.state.table.training()
        slots = list(range(count)) + ([training[1]] if training is not None and values.shape[-1] > count else [])
        size = self.state.config.levels[level - 1].num_slots
        index = torch.tensor(slots, device=values.device)
        for totals, amount in ((self._open, values), (self._routed, (values > ROUTED).to(values.dtype))):
            total = totals.setdefault(key, values.new_zeros(size))
            total.index_add_(0, index, (amount * weights.unsqueeze(-1)).reshape(-1, len(slots)).sum(0))
        self._tokens[key] = self._tokens.get(key, values.new_zeros(())) + weights.sum()

    def _share(self, totals: dict[tuple[int, int], Tensor], level: int) -> Tensor:
        shares = [total / self._tokens[key].clamp(min=1) for key, total in totals.items() if key[0] == level]
        size = self.state.config.levels[level - 1].num_slots
        return torch.stack([share.cpu() for share in shares]).mean(0) if shares else torch.zeros(size)

    def openness(self, level: int) -> Tensor:
        """Return the mean gate of every slot of `level`, `[num_slots]`, over tokens and layers."""
        return self._share(self._open, level)

    def routed(self, level: int) -> Tensor:
        """Return the share of tokens routed to every slot of `level`, `[num_slots]`, over layers."""
        return self._share(self._routed, level)

    def least_used(self, level: int, number: int = 2) -> tuple[int, ...]:
        """Return the `number` active slots of `level` that opened least: the ones to merge.

        Raises:
            ValueError: the level has fewer active slots.
        """
        active = self.state.table.active(level)
        if len(active) < number:
            raise ValueError(
                f"level {level} has {len(active)} active slots, fewer than {number}: there is nothing to merge"
            )
        openness = self.openness(level)
        return tuple(sorted(sorted(active, key=lambda slot: (float(openness[slot]), slot))[:number]))


@contextmanager
def trace_routing(
    model: nn.Module, keep: bool = False, weights: Tensor | None = None, adapter_name: str | None = None
) -> Iterator[RoutingTrace]:
    """Record what the routers do in the block.

    Args:
        model: a model with a memory.
        keep: hold on to the gates with their graph, for regularisers (costs their memory).
        weights: `[B, T]`, how much each token counts, for instance the attention mask.
        adapter_name: which memory, if there are several.
    """
    state = state_of(model, adapter_name)
    before = state.trace
    trace = RoutingTrace(state, keep, weights)
    try:
        state.trace = trace
        state.refresh()
        yield trace
    finally:
        state.trace = before
        state.refresh()
