"""Muon for the matrices of the layers, AdamW for embeddings and norms, one learning-rate schedule for both."""

from __future__ import annotations

import torch
from torch import nn

from sleep_pipeline.optimizers import MuonAdamW, matrices_and_others
from sleep_pipeline.pretraining.settings import OptimizerSettings


def schedule(step: int, steps: int, settings: OptimizerSettings) -> float:
    """Factor on the learning rates at a step: linear warm-up, plateau, linear decay that ends just above zero."""
    warmup = max(1, round(settings.warmup_share * steps))
    decay = max(1, round(settings.decay_share * steps))
    return min(1.0, (step + 1) / warmup, (steps - step) / decay)


class PretrainOptimizer:
    """Both optimizers with their schedule and clipping, and a state that is tensors only.

    Args:
        model: a causal LM whose embeddings are its only matrices that do not map hidden states.
        settings: learning rates, weight decay, schedule, clipping.
        steps: length of the schedule.
    """

    def __init__(self, model: nn.Module, settings: OptimizerSettings, steps: int) -> None:
        matrices, others = matrices_and_others(model)
        self._parameters = {**matrices, **others}
        self._settings, self._steps = settings, steps
        self._optimizer = MuonAdamW(
            list(matrices.values()),
            list(others.values()),
            muon={"lr": settings.muon_lr, "weight_decay": settings.weight_decay},
            adamw={"lr": settings.adamw_lr, "betas": (0.9, 0.95), "weight_decay": 0.0},
        )
        self._rates = [group["lr"] for group in self._optimizer.param_groups]

    def step(self, step: int) -> torch.Tensor:
        """Clip, update, clear the gradients; returns the gradient's norm before clipping, a scalar on the device."""
        norm = nn.utils.clip_grad_norm_(self._parameters.values(), self._settings.clip_norm)
        factor = schedule(step, self._steps, self._settings)
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return norm

    def state(self) -> dict[str, torch.Tensor]:
        """Every tensor of both states under `<parameter>/<name>`."""
        return {
            f"{name}/{key}": torch.as_tensor(value).clone()
            for name, parameter in self._parameters.items()
            for key, value in self._optimizer.state.get(parameter, {}).items()
        }

    def load_state(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take over what `state` gave."""
        for name, parameter in self._parameters.items():
            prefix = f"{name}/"
            self._optimizer.state[parameter] = {
                key.removeprefix(prefix): value.to(parameter.device) if value.ndim else value
                for key, value in tensors.items()
                if key.startswith(prefix)
            }
