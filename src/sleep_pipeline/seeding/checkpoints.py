"""What of a run's checkpoints is ours: the tensors that train, and of which run they are.

Everything else that a checkpoint needs, transformers' trainer writes beside them, its state last.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from sleep_pipeline.memory.operations import states_of
from sleep_pipeline.seeding.lessons import Lesson
from sleep_pipeline.seeding.settings import SeedingSettings

TRAINED = "trained.safetensors"
_STATE = "trainer_state.json"


def run_digest(
    seed: int, settings: SeedingSettings, pools: Mapping[str, Sequence[Lesson]], model: nn.Module | None = None
) -> str:
    """Names a run by all that decides it, so that no run goes on with another's checkpoint.

    Args:
        seed: of the run.
        settings: of the run.
        pools: its lessons, with the teachers' beliefs.
        model: the form of its memories, the digest of its base, and what trains; None leaves them out.
    """
    digest = hashlib.sha256(repr((seed, settings.model_dump_json())).encode())
    for pool, lessons in pools.items():
        digest.update(f"{pool} {len(lessons)}".encode())
        for lesson in lessons:
            digest.update(repr((lesson.ids, lesson.start, lesson.view)).encode())
            digest.update(lesson.teacher.log_probs_NK.contiguous().cpu().numpy().tobytes())
    if model is not None:
        for name, state in sorted(states_of(model).items()):
            form = {key: value for key, value in asdict(state.config).items() if key != "state"}
            digest.update(repr((name, sorted(form.items()))).encode())
        digest.update(repr([(name, tuple(tensor.shape)) for name, tensor in _trained(model).items()]).encode())
    return digest.hexdigest()


def last_checkpoint(folder: Path, run: str) -> Path | None:
    """The newest checkpoint of a run that was saved to its end."""
    complete = [state.parent for state in folder.glob(f"checkpoint-*/{_STATE}") if _can_be_read(state)]
    newest_first = sorted(complete, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    return next((path for path in newest_first if _run_of(path) == run), None)


def _can_be_read(state: Path) -> bool:
    """Whether the trainer's state is whole: a full disk or a power cut can leave an empty file behind."""
    try:
        json.loads(state.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def save_trained(model: nn.Module, folder: Path, run: str) -> None:
    """Save what trains, and nothing of the frozen rest."""
    folder.mkdir(parents=True, exist_ok=True)
    trained = {name: tensor.detach().cpu().contiguous() for name, tensor in _trained(model).items()}
    save_file(trained, folder / TRAINED, {"run": run})


def load_trained(model: nn.Module, folder: Path, run: str) -> None:
    """Put what `save_trained` saved into the model.

    Raises:
        ValueError: it is of another run or another model.
    """
    saved, trained = load_file(folder / TRAINED), _trained(model)
    shapes, wanted = ({name: tuple(tensor.shape) for name, tensor in part.items()} for part in (saved, trained))
    if shapes != wanted:
        raise ValueError(
            f"{folder} holds {len(saved)} trained tensors that are not the {len(trained)} of this model, or of other "
            "shapes: it is from another run; delete it"
        )
    if _run_of(folder) != run:
        raise ValueError(
            f"{folder} is of a run with another seed, other settings or other lessons: delete it, or name another"
        )
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(saved[name])


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _run_of(folder: Path) -> str | None:
    try:
        with safe_open(folder / TRAINED, "pt") as file:
            run: str | None = (file.metadata() or {}).get("run")
            return run
    except (OSError, SafetensorError):
        return None
