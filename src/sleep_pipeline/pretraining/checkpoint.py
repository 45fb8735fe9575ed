"""Checkpoints of a pretraining run: safetensors and JSON, the state file written last, the old one kept until then."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sleep_pipeline.pretraining.optimizer import PretrainOptimizer

_STATE = "state.json"


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        step: steps done.
        seconds: spent, over all sittings.
        tokens: seen.
        losses: of every step, in nats a token.
        machine: what the last sitting computed on and with (`trainer.machine`); empty before the first.
    """

    step: int
    seconds: float
    tokens: int
    losses: list[float]
    machine: dict[str, str]


def save_checkpoint(
    folder: Path, fingerprint: str, progress: Progress, model: nn.Module, optimizer: PretrainOptimizer
) -> None:
    """Write a checkpoint so that a kill at any moment leaves a complete one.

    Args:
        folder: holds one sub-folder a checkpoint.
        fingerprint: digest of all that the run depends on; a checkpoint with another one is not resumed.
    """
    target = folder / f"step_{progress.step:07d}"
    partial = folder / f"{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    weights = {name: parameter.detach().cpu().contiguous() for name, parameter in model.named_parameters()}
    save_file(weights, partial / "model.safetensors")
    save_file({k: v.cpu().contiguous() for k, v in optimizer.state().items()}, partial / "optimizer.safetensors")
    state = {
        "fingerprint": fingerprint,
        "step": progress.step,
        "seconds": progress.seconds,
        "tokens": progress.tokens,
        "losses": progress.losses,
        "machine": progress.machine,
    }
    with (partial / _STATE).open("w", encoding="utf-8") as file:
        json.dump(state, file)
        file.flush()
        os.fsync(file.fileno())
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    for other in folder.glob("step_*"):
        if other != target:
            shutil.rmtree(other)


def load_checkpoint(folder: Path, fingerprint: str, model: nn.Module, optimizer: PretrainOptimizer) -> Progress | None:
    """Resume from the newest complete checkpoint of the same run; None if there is none."""
    for path in sorted(folder.glob("step_*"), reverse=True):
        if path.suffix == ".partial" or not (path / _STATE).exists():
            continue
        state = json.loads((path / _STATE).read_text(encoding="utf-8"))
        if state.pop("fingerprint") == fingerprint:
            _restore(path, model, optimizer)
            return Progress(**state)
    return None


def _restore(path: Path, model: nn.Module, optimizer: PretrainOptimizer) -> None:
    weights = load_file(path / "model.safetensors")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    optimizer.load_state(load_file(path / "optimizer.safetensors"))
