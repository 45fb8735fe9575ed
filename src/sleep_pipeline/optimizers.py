"""Muon for matrices and AdamW for everything else, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import nn


class StackedMuon(torch.optim.Optimizer):
    """`torch.optim.Muon` for stacks of matrices `[n, rows, columns]`, each of which steps as if it stood alone.

    A matrix whose gradient is zero throughout is left as it is: no momentum moves it, and it does not decay.

    Args:
        stacks: parameters of three dimensions.
        settings: arguments of `torch.optim.Muon`.
    """

    def __init__(self, stacks: Sequence[nn.Parameter], **settings: Any) -> None:
        super().__init__(stacks, settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all matrices that have gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            matrices, momenta = list[nn.Parameter](), list[torch.Tensor]()
            for stack in group["params"]:
                if stack.grad is None:
                    continue
                state = self.state[stack]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(stack.grad)
                for number in stack.grad.flatten(1).any(dim=1).nonzero()[:, 0].tolist():
                    # The same numbers in memory, so that what moves the matrix moves the stack.
                    matrices.append(nn.Parameter(stack.detach()[number]))
                    matrices[-1].grad = stack.grad[number]
                    momenta.append(state["momentum_buffer"][number])
            if matrices:
                muon = torch.optim.Muon(matrices, **{name: group[name] for name in self.defaults})
                for matrix, momentum in zip(matrices, momenta, strict=True):
                    muon.state[matrix]["momentum_buffer"] = momentum
                muon.step()
        return loss


class MuonAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` and `torch.optim.AdamW` with one state and one list of groups, matrices first.

    Args:
        matrices: parameters of two dimensions for Muon; may be empty.
        others: for AdamW, or groups of them with settings of their own; may be empty, but not everything.
        muon: arguments of `torch.optim.Muon`.
        adamw: arguments of `torch.optim.AdamW`.
        stacks: parameters of three dimensions for Muon; see `StackedMuon`.
        stacked: arguments that these have instead of Muon's.
    """

    def __init__(
        self,
        matrices: Sequence[nn.Parameter],
        others: Sequence[nn.Parameter | dict[str, Any]],
        muon: Mapping[str, Any],
        adamw: Mapping[str, Any],
        stacks: Sequence[nn.Parameter] = (),
        stacked: Mapping[str, Any] | None = None,
    ) -> None:
        parts: list[torch.optim.Optimizer] = []
        if matrices:
            parts.append(torch.optim.Muon(matrices, **muon))
        if stacks:
            parts.append(StackedMuon(stacks, **{**muon, **(stacked or {})}))
        if others:
            parts.append(torch.optim.AdamW(others, **adamw))  # type: ignore[arg-type]
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._parts = parts
        self._groups = [len(part.param_groups) for part in parts]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Anew every time: loading a state replaces groups and state.
        groups = iter(self.param_groups)
        for part, count in zip(self._parts, self._groups, strict=True):
            part.param_groups, part.state = list(islice(groups, count)), self.state
            part.step()
        return loss


def matrices_and_others(
    model: nn.Module, only_trained: bool = False
) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """Parameters that Muon may have, and all others, by name.

    Rows of an embedding are looked up one by one and map nothing, so Muon may not have them, nor an output layer that
    shares them.

    Args:
        model: any.
        only_trained: leave out what requires no gradient.
    """
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    matrices, others = dict[str, nn.Parameter](), dict[str, nn.Parameter]()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or not only_trained:
            is_matrix = parameter.ndim == 2 and id(parameter) not in embeddings
            (matrices if is_matrix else others)[name] = parameter
    return matrices, others
