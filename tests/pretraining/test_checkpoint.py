from pathlib import Path
from typing import Any

import torch

from sleep_pipeline.pretraining.checkpoint import Progress, load_checkpoint, save_checkpoint
from sleep_pipeline.pretraining.optimizer import PretrainOptimizer
from sleep_pipeline.pretraining.settings import OptimizerSettings


def _stepped(model: Any) -> PretrainOptimizer:
    optimizer = PretrainOptimizer(model, OptimizerSettings(), 10)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step(0)
    return optimizer


def _save(folder: Path, model: Any, optimizer: PretrainOptimizer, step: int) -> None:
    save_checkpoint(folder, "run", Progress(step, 1.5, 100, [3.25] * step, {"torch": "2"}), model, optimizer)


def test_everything_comes_back_bit_for_bit(tiny_model: Any, tmp_path: Path) -> None:
    optimizer = _stepped(tiny_model)
    weights = {name: parameter.clone() for name, parameter in tiny_model.named_parameters()}
    _save(tmp_path, tiny_model, optimizer, 4)
    state = optimizer.state()
    other = _stepped(tiny_model)
    assert load_checkpoint(tmp_path, "run", tiny_model, other) == Progress(4, 1.5, 100, [3.25] * 4, {"torch": "2"})
    assert all(torch.equal(tiny_model.get_parameter(name), tensor) for name, tensor in weights.items())
    assert other.state().keys() == state.keys()
    assert all(torch.equal(other.state()[name], tensor) for name, tensor in state.items())


def test_a_half_written_checkpoint_is_never_taken_for_whole(tiny_model: Any, tmp_path: Path) -> None:
    optimizer = _stepped(tiny_model)
    _save(tmp_path, tiny_model, optimizer, 4)
    _save(tmp_path, tiny_model, optimizer, 6)
    (tmp_path / "step_0000008.partial").mkdir()
    (tmp_path / "step_0000008.partial" / "state.json").write_text("{")
    (tmp_path / "step_0000009").mkdir()
    progress = load_checkpoint(tmp_path, "run", tiny_model, optimizer)
    assert progress is not None and progress.step == 6


def test_old_checkpoints_make_room(tiny_model: Any, tmp_path: Path) -> None:
    optimizer = _stepped(tiny_model)
    for step in (2, 4, 6):
        _save(tmp_path, tiny_model, optimizer, step)
    assert [path.name for path in tmp_path.iterdir()] == ["step_0000006"]


def test_another_runs_checkpoint_is_left_alone(tiny_model: Any, tmp_path: Path) -> None:
    optimizer = _stepped(tiny_model)
    _save(tmp_path, tiny_model, optimizer, 4)
    assert load_checkpoint(tmp_path, "other", tiny_model, optimizer) is None
    assert (tmp_path / "step_0000004" / "state.json").exists()
