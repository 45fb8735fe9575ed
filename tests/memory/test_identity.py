"""The memory costs nothing and changes nothing while nothing is unlocked, and a save changes nothing ever."""

from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from tiny_models import (
    build,
    fill,
    learn,
    live_a_day,
    logits,
    one_level,
    same,
    snapshot,
    three_levels,
    tokens,
    with_memory,
)
from torch import nn

from sleep_pipeline.memory import Consolidation, WakeUpdates, activate, reset, unlock
from sleep_pipeline.memory.layer import ContinuumLayer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_bitwise_those_of_the_bare_model(architecture: str, dtype: torch.dtype) -> None:
    expected = logits(build(architecture, dtype))
    model = peft.get_peft_model(build(architecture, dtype), three_levels())
    assert torch.equal(logits(model), expected)
    unlock(model, 3)
    assert torch.equal(logits(model), expected)
    fill(model, 3, seed=1)
    assert not torch.equal(logits(model), expected)
    reset(model, 3, [0])
    assert torch.equal(logits(model), expected)


def test_nothing_but_the_base_layer_runs_while_nothing_is_unlocked() -> None:
    model = with_memory(three_levels())
    for module in model.modules():
        if isinstance(module, ContinuumLayer):
            for parameter in module.continuum_levels.parameters():
                parameter.data.fill_(torch.nan)
    assert torch.isfinite(logits(model)).all()


@pytest.mark.parametrize("router", ["sigmoid", "threshold"])
def test_unlocking_beside_other_experts_changes_no_bit(router: str) -> None:
    model = with_memory(three_levels(router=router))
    for level in (1, 3, 3, 3):
        learn(model, level, seed=level)
    expected = logits(model)
    unlock(model, 3)
    assert torch.equal(logits(model), expected)


def test_gradients_are_bitwise_those_of_the_bare_model() -> None:
    bare, model = build(), with_memory(three_levels())
    ids = tokens()
    grads = []
    for network in (bare, model.get_base_model()):
        embedding = network.get_input_embeddings().weight.requires_grad_(True)
        network(input_ids=ids, labels=ids).loss.backward()
        grads.append(embedding.grad)
    assert torch.equal(*grads)


def open_sleep(model: nn.Module) -> None:
    learn(model, 1)
    learn(model, 1, seed=4)
    updates = WakeUpdates(model)
    live_a_day(model, updates)
    Consolidation(model, 1, 2, night=4, updates=updates).begin()
    fill(model, 2, seed=9)


def merged(model: nn.Module) -> None:
    learn(model, 3)
    learn(model, 3, seed=1)
    sleep = Consolidation(model, 3, 3, slots=[0, 1]).begin()
    fill(model, 3, seed=2)
    sleep.commit()


def in_training(model: nn.Module) -> None:
    learn(model, 3)
    unlock(model, 3)
    fill(model, 3, seed=5)


def holes(model: nn.Module) -> None:
    for seed in range(3):
        learn(model, 3, seed=seed)
    reset(model, 3, [1])


@pytest.mark.parametrize(
    "live",
    [
        lambda model: unlock(model, 3),
        in_training,
        lambda model: learn(model, 3),
        lambda model: learn(model, 1),
        lambda model: live_a_day(model, WakeUpdates(model)),
        open_sleep,
        merged,
        holes,
    ],
    ids=["unlocked", "trained", "activated", "fast_level", "awake", "mid_sleep", "merged", "reset"],
)
@pytest.mark.parametrize("low_memory", [False, True])
def test_a_saved_memory_is_the_same_memory(
    live: Callable[[nn.Module], object], low_memory: bool, tmp_path: Path
) -> None:
    model = with_memory(three_levels())
    live(model)
    model.save_pretrained(str(tmp_path))
    loaded = peft.PeftModel.from_pretrained(build(), str(tmp_path), low_cpu_mem_usage=low_memory)
    assert torch.equal(logits(loaded), logits(model))
    assert same(snapshot(loaded), snapshot(model))
    assert loaded.peft_config["default"].state == model.peft_config["default"].state


def test_a_saved_memory_is_the_same_on_every_architecture(architecture: str, tmp_path: Path) -> None:
    model = with_memory(one_level(), architecture)
    learn(model)
    model.save_pretrained(str(tmp_path))
    loaded = peft.PeftModel.from_pretrained(build(architecture), str(tmp_path))
    assert torch.equal(logits(loaded), logits(model))
    assert (tmp_path / "adapter_model.safetensors").exists()


def test_free_slots_take_no_room_on_disk(tmp_path: Path) -> None:
    sizes = []
    for slots in (4, 40):
        model = with_memory(one_level(num_slots=slots))
        learn(model)
        model.save_pretrained(str(tmp_path / str(slots)))
        sizes.append((tmp_path / str(slots) / "adapter_model.safetensors").stat().st_size)
    per_free_slot = (sizes[1] - sizes[0]) / 36
    assert per_free_slot < 150, "a free slot should cost its line in the slot table, not its tensors"


def test_half_precision_models_store_experts_in_their_own_dtype(tmp_path: Path) -> None:
    model = peft.get_peft_model(build("llama", torch.bfloat16), one_level())
    unlock(model, 1)
    fill(model, 1, seed=3)
    trained = {name: p.dtype for name, p in model.named_parameters() if p.requires_grad}
    assert set(trained.values()) == {torch.float32}
    activate(model, 1)
    layer = next(module for module in model.modules() if isinstance(module, ContinuumLayer))
    assert layer.levels("default")[0].down.dtype is torch.bfloat16
    model.save_pretrained(str(tmp_path))
    loaded = peft.PeftModel.from_pretrained(build("llama", torch.bfloat16), str(tmp_path))
    assert torch.equal(logits(loaded), logits(model))
