"""Wake-time learning of the fast levels' base weights: paper.md eq. 2.

While awake, gradients of each level's own MLP are accumulated and the weights stay as they are. When the
level's chunk is over, the accumulated gradient becomes *one* update of prospective weights, which are held
aside until the sleep that the change calls for commits (`transaction.py`). With plain gradient descent that
is eq. 2 term by term; another optimiser treats the chunk's summed gradient as one gradient and keeps its
state from chunk to chunk.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer

from sleep_pipeline.memory.levels import ACCUMULATED, BASE, PROSPECTIVE
from sleep_pipeline.memory.operations import level_tensors, state_of

OptimizerFactory = Callable[[list[nn.Parameter]], Optimizer]


def gradient_descent(parameters: list[nn.Parameter]) -> Optimizer:
    """Return gradient descent with step size 1; the rates `eta_t` are the weights given to `observe`."""
    return SGD(parameters, lr=1.0)


class WakeUpdates:
    """Accumulates eq. 2's error terms for every level that has base weights of its own.

    Args:
        model: a model with a memory of at least two levels.
        optimizer: makes the optimiser of a level from its parameters.
        adapter_name: which memory, if there are several.

    Raises:
        ValueError: the memory has one level only, whose base is the frozen pretrained MLP.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerFactory = gradient_descent,
        adapter_name: str | None = None,
    ):
        self.state = state_of(model, adapter_name)
        if self.state.depth < 2:
            raise ValueError(
                "this memory has one level, the frozen MLP: there are no base weights to learn while awake"
            )
        self.optimizer = optimizer
        self._optimizers: dict[int, dict[str, Any]] = {}
        self._prospective: dict[int, dict[str, Any]] = {}

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Let the fast levels' base weights take gradients in the block."""
        before = self.state.awake
        try:
            self.state.awake = True
            self.state.changed()
            yield
        finally:
            self.state.awake = before
            self.state.changed()

    @torch.no_grad()
    def observe(self, weight: float = 1.0) -> None:
        """Add the gradients of the last backward pass, times `weight` (eq. 2's `eta_t`), and clear them.

        Raises:
            ValueError: no backward pass has left gradients; call it inside `awake()` after `loss.backward()`.
        """
        found = False
        for level in range(1, self.state.depth):
            for tensors in level_tensors(self.state, level):
                for base, total in zip(BASE, ACCUMULATED, strict=True):
                    parameter = tensors.get_parameter(base)
                    if parameter.grad is not None:
                        tensors.get_parameter(total).add_(parameter.grad, alpha=weight)
                        parameter.grad = None
                        found = True
        if not found:
            raise ValueError("no base weight has a gradient: run loss.backward() inside `with updates.awake():` first")
        for level in range(1, self.state.depth):
            self.state.pending[level - 1] += 1
        self.state.changed()

    @torch.no_grad()
    def compute(self, level: int) -> None:
        """Write the prospective weights of `level`: its base after one step on the accumulated gradient."""
        layers = level_tensors(self.state, level)
        parameters = []
        for tensors in layers:
            for base, total in zip(BASE, ACCUMULATED, strict=True):
                parameter = nn.Parameter(tensors.get_parameter(base).detach().clone())
                parameter.grad = tensors.get_parameter(total).detach().clone()
                parameters.append(parameter)
        optimizer = self.optimizer(parameters)
        if level in self._optimizers:
            optimizer.load_state_dict(copy.deepcopy(self._optimizers[level]))
        optimizer.step()
        stepped = iter(parameters)
        for tensors in layers:
            for name in PROSPECTIVE:
                tensors.get_parameter(name).copy_(next(stepped))
        self._prospective[level] = copy.deepcopy(optimizer.state_dict())

    @torch.no_grad()
    def apply(self, level: int) -> None:
        """Move `level` at once by what it has accumulated, without a sleep: nothing is distilled.

        For levels that are fast memory between two nights, and for the paper's baseline that never sleeps.

        Raises:
            ValueError: a sleep is under way, or nothing has been accumulated.
        """
        if self.state.table.sleep is not None:
            raise ValueError("a sleep is under way: commit or abort it before a level moves by itself")
        if not self.state.pending[level - 1]:
            raise ValueError(f"level {level} has accumulated nothing: call observe() first")
        self.compute(level)
        for tensors in level_tensors(self.state, level):
            for base, future, total in zip(BASE, PROSPECTIVE, ACCUMULATED, strict=True):
                tensors.get_parameter(base).copy_(tensors.get_parameter(future))
                tensors.get_parameter(future).zero_()
                tensors.get_parameter(total).zero_()
        self.committed(level)
        self.state.moved[level - 1] += 1
        self.state.pending[level - 1] = 0
        self.state.changed()

    def committed(self, level: int) -> None:
        """Keep the optimiser's state of the step that `compute` took; called by the transaction."""
        if level in self._prospective:
            self._optimizers[level] = self._prospective.pop(level)

    def aborted(self, level: int) -> None:
        """Forget the step that `compute` took; called by the transaction."""
        self._prospective.pop(level, None)

    def state_dict(self) -> dict[int, dict[str, Any]]:
        """Return the optimisers' states by level, for resuming in another process."""
        return copy.deepcopy(self._optimizers)

    def load_state_dict(self, states: dict[int, dict[str, Any]]) -> None:
        """Take over what `state_dict` returned."""
        self._optimizers = copy.deepcopy(states)
