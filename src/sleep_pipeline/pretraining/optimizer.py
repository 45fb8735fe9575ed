"""Muon for the matrices of the layers, AdamW for embeddings and norms, one learning-rate schedule for both."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from sleep_pipeline.pretraining.settings import OptimizerSettings


def schedule(step: int, steps: int, settings: OptimizerSettings) -> float:
    """Factor on the learning rates at a step: linear warm-up, plateau, linear decay that ends just above zero."""
    warmup = max(1, round(settings.warmup_share * steps))
    decay = max(1, round(settings.decay_share * steps))
    return min(1.0, (step + 1) / warmup, (steps - step) / decay)


class MuonAdamW:
    """The two optimizers as one, with a state that is tensors only.

    Args:
        model: a causal LM whose embeddings are its only matrices that do not map hidden states.
        settings: learning rates, weight decay, schedule, clipping.
        steps: length of the schedule.
    """

    def __init__(self, model: nn.Module, settings: OptimizerSettings, steps: int) -> None:
        embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
        named = list(model.named_parameters())
        matrices = [(n, p) for n, p in named if p.ndim == 2 and id(p) not in embeddings]
        others = [(n, p) for n, p in named if p.ndim != 2 or id(p) in embeddings]
        self._parameters = dict(matrices + others)
        self._settings, self._steps = settings, steps
        self._muon = torch.optim.Muon([p for _, p in matrices], lr=settings.muon_lr, weight_decay=settings.weight_decay)
        self._adamw = torch.optim.AdamW(
            [p for _, p in others], lr=settings.adamw_lr, betas=(0.9, 0.95), weight_decay=0.0
        )

    def _optimizers(self) -> Iterator[tuple[torch.optim.Optimizer, float]]:
        yield self._muon, self._settings.muon_lr
        yield self._adamw, self._settings.adamw_lr

    def step(self, step: int) -> torch.Tensor:
        """Clip, update, clear the gradients; returns the gradient's norm before clipping, a scalar on the device."""
        norm = nn.utils.clip_grad_norm_(self._parameters.values(), self._settings.clip_norm)
        factor = schedule(step, self._steps, self._settings)
        for optimizer, lr in self._optimizers():
            for group in optimizer.param_groups:
                group["lr"] = lr * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return norm

    def state(self) -> dict[str, torch.Tensor]:
        """Every tensor of both states under `<parameter>/<name>`."""
        tensors = {}
        for optimizer, _ in self._optimizers():
            for name, parameter in self._parameters.items():
                for key, value in optimizer.state.get(parameter, {}).items():
                    tensors[f"{name}/{key}"] = torch.as_tensor(value).clone()
        return tensors

    def load_state(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take over what `state` gave."""
        for optimizer, _ in self._optimizers():
            owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
            for name, parameter in self._parameters.items():
                if id(parameter) in owned:
                    prefix = f"{name}/"
                    optimizer.state[parameter] = {
                        key.removeprefix(prefix): value.to(parameter.device) if value.ndim else value
                        for key, value in tensors.items()
                        if key.startswith(prefix)
                    }
