"""Which optimizer trains what of a memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sleep_pipeline.memory.operations import trained_slots
from sleep_pipeline.optimizers import MuonAdamW, matrices_and_others
from sleep_pipeline.seeding.settings import OptimizerSettings


def apart(optimizer: torch.optim.Optimizer, model: nn.Module, settings: OptimizerSettings) -> None:
    """Give earlier nights' experts, if they train, their own rate in an optimizer that has not stepped yet.

    They do not decay: a slot that is switched off, or free, is left as it is.
    """
    earlier = trained_slots(model)
    if not earlier:
        return
    ours = {id(parameter) for parameter in earlier}
    for group in optimizer.param_groups:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in ours]
    optimizer.add_param_group(_group(earlier, settings))


def with_muon(model: nn.Module, settings: OptimizerSettings) -> MuonAdamW:
    """Muon for the new expert's matrices, or a rival's, and AdamW for all else that trains.

    Earlier nights' experts stand in stacks, which Muon has if `earlier_muon` says so, and AdamW otherwise.
    """
    earlier = trained_slots(model)
    stacks = [parameter for parameter in earlier if parameter.ndim == 3] if settings.earlier_muon else []
    by_muon = {id(parameter) for parameter in stacks}
    rest = [parameter for parameter in earlier if id(parameter) not in by_muon]
    ours = {id(parameter) for parameter in earlier}
    matrices, others = (
        [parameter for parameter in part.values() if id(parameter) not in ours]
        for part in matrices_and_others(model, only_trained=True)
    )
    decay, rate = settings.weight_decay, settings.muon_rate or 0.0
    groups = [{"params": others}, _group(rest, settings)]
    return MuonAdamW(
        matrices,
        [group for group in groups if group["params"]],
        muon={"lr": rate, "weight_decay": decay, "adjust_lr_fn": "match_rms_adamw"},
        adamw={"lr": settings.learning_rate, "betas": settings.betas, "weight_decay": decay},
        stacks=stacks,
        stacked={"lr": settings.earlier_rate * rate, "weight_decay": 0.0},
    )


def _group(earlier: list[nn.Parameter], settings: OptimizerSettings) -> dict[str, Any]:
    return {"params": earlier, "lr": settings.earlier_rate * settings.learning_rate, "weight_decay": 0.0}
