"""Plastic sleeps: earlier experts learn along, the teacher stands still, and what is not committed leaves no bit."""

from pathlib import Path

import peft
import pytest
import torch
from tiny_models import build, everything, fill, learn, lived, logits, snapshot, tokens, unchanged, with_memory
from torch import nn

from sleep_pipeline.memory import (
    CONTEXT,
    Consolidation,
    SlotError,
    consolidation,
    state_of,
    student_view,
    teacher_view,
)
from sleep_pipeline.memory.levels import SLOTS, WORKSPACE, Level
from sleep_pipeline.memory.operations import level_tensors, memory_layers, trained_slots


def stir(model: nn.Module, level: int = 1, size: float = 0.25) -> None:
    """Move what is stored in a level, as a plastic sleep's training does."""
    for tensors in level_tensors(state_of(model), level):
        for name in SLOTS:
            slots = tensors.get_parameter(name)
            assert slots.requires_grad
            slots.grad = torch.ones_like(slots)
            with torch.no_grad():
                slots[: len(state_of(model).table.active(level))] += size


def trainable(model: nn.Module) -> set[str]:
    return {name.split(".")[-1] for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_only_a_plastic_sleep_lets_earlier_experts_learn() -> None:
    model, _ = lived()
    with consolidation(model, CONTEXT, 1):
        assert trainable(model) == set(WORKSPACE)
    before = snapshot(model)
    with consolidation(model, CONTEXT, 1, plastic=True) as sleep:
        assert trainable(model) == {*WORKSPACE, *SLOTS}
        assert {name.split(".")[-3] for name, p in model.named_parameters() if p.requires_grad} == {"default"}
        stir(model)
        sleep.commit()
    changed = {name for name, value in snapshot(model).items() if not torch.equal(value, before[name])}
    assert {name.split(".")[-1] for name in changed} == set(SLOTS)
    assert {name.split(".")[-2] for name in changed} == {"0"}, "the other levels' experts stay"
    assert not trainable(model) and all(parameter.grad is None for parameter in model.parameters())
    up = level_tensors(state_of(model), 1)[0].up
    name = next(name for name, parameter in model.named_parameters() if parameter is up)
    torch.testing.assert_close(up[:2], before[name][:2] + 0.25)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_teacher_of_a_plastic_sleep_is_the_model_before_it(dtype: torch.dtype) -> None:
    model, _ = lived()
    model.to(dtype)
    teacher = logits(model)
    with consolidation(model, CONTEXT, 1, plastic=True) as sleep:
        fill(model, 1, seed=7)
        stir(model)
        student = logits(model)
        with teacher_view(model):
            torch.testing.assert_close(logits(model), teacher, rtol=2e-2, atol=2e-2)
            with student_view(model):
                assert torch.equal(logits(model), student)
        assert torch.equal(logits(model), student)
        ids = tokens()
        loss = model(input_ids=ids, labels=ids).loss
        with teacher_view(model), torch.no_grad():
            model(input_ids=ids)
        model.zero_grad()
        loss.backward()
        assert all(slots.grad is not None and slots.grad.any() for slots in trained_slots(model))
        sleep.commit()
    torch.testing.assert_close(logits(model), student, rtol=2e-2, atol=2e-2)
    assert not torch.allclose(student, teacher, rtol=2e-2, atol=2e-2)


def test_a_first_night_has_no_earlier_experts_to_loosen() -> None:
    model = with_memory()
    with consolidation(model, CONTEXT, 1, plastic=True):
        assert trainable(model) == set(WORKSPACE)
    learn(model)
    learn(model)
    with consolidation(model, 1, 1, slots=(0, 1), plastic=True):
        assert trainable(model) == set(WORKSPACE), "merged, all of them go"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_plastic_sleep_that_is_not_committed_leaves_no_bit_behind(dtype: torch.dtype) -> None:
    model, _ = lived()
    model.to(dtype)
    before = everything(model)
    with consolidation(model, CONTEXT, 1, plastic=True):
        fill(model, 1, seed=7)
        stir(model, size=1e-4)
        assert {p.dtype for p in model.parameters() if p.requires_grad and p.dim() == 3} == {torch.float32}
    assert unchanged(everything(model), before)
    with consolidation(model, CONTEXT, 1, plastic=True) as sleep:
        stir(model)
        sleep.commit()
    assert not unchanged(everything(model), before)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


def test_a_plastic_commit_that_fails_is_taken_back_and_can_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = lived()
    model.to(torch.bfloat16)
    sleep = Consolidation(model, CONTEXT, 1, plastic=True).begin()
    fill(model, 1, seed=7)
    stir(model, size=1e-4)
    before = everything(model)
    with monkeypatch.context() as patched:
        patched.setattr(Level, "store_workspace", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            sleep.commit()
    assert unchanged(everything(model), before)
    assert trainable(model) == {*WORKSPACE, *SLOTS}
    sleep.commit()
    assert state_of(model).table.active(1) == (0, 1, 2)


def test_a_saved_plastic_sleep_is_resumed_and_can_be_committed_but_not_aborted(tmp_path: Path) -> None:
    model, _ = lived()
    Consolidation(model, CONTEXT, 1, plastic=True).begin()
    fill(model, 1, seed=7)
    stir(model)
    saved = everything(model)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(build("llama"), tmp_path, is_trainable=True)
    sleep = Consolidation.resume(loaded)
    assert unchanged(everything(loaded), saved)
    assert trainable(loaded) == {*WORKSPACE, *SLOTS}
    with pytest.raises(SlotError, match="load the memory that was committed last"):
        sleep.abort()
    sleep.commit()
    torch.testing.assert_close(logits(loaded), saved[2])


def test_the_teacher_of_a_plastic_sleep_that_was_taken_up_again_stands_still(tmp_path: Path) -> None:
    model, _ = lived()
    Consolidation(model, CONTEXT, 1, plastic=True).begin()
    stir(model)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(build("llama"), tmp_path, is_trainable=True)
    sleep = Consolidation.resume(loaded)
    with teacher_view(loaded):
        before = logits(loaded)
    stir(loaded)
    student = logits(loaded)
    with teacher_view(loaded):
        assert torch.equal(logits(loaded), before)
        assert not torch.equal(before, student)
    with pytest.raises(SlotError, match="commit or abort it where it was begun or taken up"):
        Consolidation.resume(loaded)
    sleep.commit()
    torch.testing.assert_close(logits(loaded), student)


def test_a_commit_tells_that_earlier_experts_have_changed() -> None:
    model, _ = lived()
    with consolidation(model, CONTEXT, 1, night=5, plastic=True) as sleep:
        slot = sleep.commit()
    events = state_of(model).table.events
    assert events[-3:] == [(5, 1, slot, "unlock"), (5, 1, -1, "plastic"), (5, 1, slot, "activate")]


def test_what_was_learned_is_not_left_out_of_a_save(tmp_path: Path) -> None:
    model, _ = lived()
    Consolidation(model, CONTEXT, 1, plastic=True).begin()
    stir(model)
    with teacher_view(model), pytest.raises(SlotError, match="leave the view"):
        model.save_pretrained(tmp_path)
    with pytest.raises(SlotError, match="commit or abort it where it was begun or taken up"):
        Consolidation.resume(model)


def test_a_sleep_begun_without_gradients_trains_all_the_same() -> None:
    model, _ = lived()
    with torch.inference_mode():
        sleep = Consolidation(model, CONTEXT, 1, plastic=True).begin()
    ids = tokens()
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(slots.grad is not None for slots in trained_slots(model))
    with torch.inference_mode():
        sleep.commit()
    assert not any(parameter.is_inference() for parameter in model.parameters())


def test_layers_that_are_computed_again_show_the_experts_of_the_first_time() -> None:
    model, _ = lived()
    (layer, *_) = memory_layers(model)
    with consolidation(model, CONTEXT, 1, plastic=True):
        fill(model, 1, seed=7)
        stir(model)
        switches, up = layer.switches(), level_tensors(state_of(model), 1)[0].up
        now = up.clone()
        with teacher_view(model):
            assert not torch.equal(up, now)
            with layer.switched(switches):
                assert torch.equal(up, now)
            assert not torch.equal(up, now)
        assert torch.equal(up, now)
