"""Compute, consolidate, update: all of it or none of it, in memory and on the disk."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from tiny_models import (
    build,
    everything,
    fill,
    learn,
    live_a_day,
    lived,
    logits,
    one_level,
    snapshot,
    unchanged,
    with_memory,
)
from torch import nn

from sleep_pipeline.memory import (
    CONTEXT,
    Consolidation,
    Journal,
    JournalError,
    SlotError,
    SlotState,
    activate,
    consolidation,
    recover,
    reset,
    state_of,
    teacher_view,
    unlock,
)
from sleep_pipeline.memory import journal as module
from sleep_pipeline.memory.levels import Level


def test_a_commit_applies_update_reset_and_activation_together() -> None:
    model, updates = lived()
    state = state_of(model)
    layer = model.get_submodule("base_model.model.model.layers.0.mlp").levels("default")
    with consolidation(model, sender=1, receiver=2, night=2, updates=updates) as sleep:
        fill(model, 2, seed=7)
        prospective = layer[0].get_parameter("next_up").clone()
        new_up = layer[1].new_up.detach().clone()
        slot = sleep.commit()
    assert slot == 1
    assert state.table.active(1) == () and state.table.active(2) == (0, 1)
    assert state.table.slots(2)[1].night == 2 and state.table.slots(2)[1].origin == "level 1"
    assert torch.equal(layer[0].get_parameter("base_up"), prospective)
    assert torch.equal(layer[1].up[1], new_up)
    assert not layer[0].up.any() and not layer[0].get_parameter("next_up").any()
    assert not layer[0].get_parameter("sum_up").any() and state.pending[0] == 0 and state.moved[0]
    assert not layer[1].new_up.any()


def test_the_context_sends_nothing_but_its_knowledge() -> None:
    model, _ = lived()
    before = snapshot(model)
    with consolidation(model, CONTEXT, 1) as sleep:
        fill(model, 1, seed=7)
        sleep.commit()
    changed = {name.split(".")[-1] for name, value in snapshot(model).items() if not torch.equal(value, before[name])}
    assert changed == {"keys", "offsets", "down", "up"}
    assert state_of(model).table.active(1) == (0, 1, 2)
    assert state_of(model).table.slots(1)[2].origin == "context"


@pytest.mark.parametrize("leave", ["exception", "no commit", "abort"])
def test_a_sleep_that_is_not_committed_leaves_no_bit_behind(leave: str) -> None:
    model, updates = lived()
    before = everything(model)
    try:
        with consolidation(model, 1, 2, updates=updates) as sleep:
            fill(model, 2, seed=7)
            if leave == "exception":
                raise FloatingPointError("the loss is NaN")
            if leave == "abort":
                sleep.abort()
    except FloatingPointError:
        pass
    assert unchanged(everything(model), before)
    with consolidation(model, 1, 2, updates=updates) as sleep:
        fill(model, 2, seed=7)
        sleep.commit()


def test_an_aborted_night_does_not_show_in_a_later_one() -> None:
    outcomes = []
    for interrupted in (False, True):
        model, updates = lived()
        if interrupted:
            with consolidation(model, 1, 2, updates=updates):
                fill(model, 2, seed=99)
        with consolidation(model, 1, 2, updates=updates) as sleep:
            fill(model, 2, seed=7)
            sleep.commit()
        outcomes.append(everything(model))
    assert unchanged(*outcomes)


def test_a_commit_that_fails_half_way_is_taken_back_and_can_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    model, updates = lived()
    sleep = Consolidation(model, 1, 2, updates=updates).begin()
    fill(model, 2, seed=7)
    before = everything(model)
    calls = 0
    original = Level.clear_slots

    def fail_second(self: Level, slots: tuple[int, ...]) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise MemoryError("no memory left")
        original(self, slots)

    monkeypatch.setattr(Level, "clear_slots", fail_second)
    with pytest.raises(MemoryError):
        sleep.commit()
    assert unchanged(everything(model), before)
    monkeypatch.setattr(Level, "clear_slots", original)
    assert sleep.commit() == 1


def test_merging_moves_two_experts_into_one() -> None:
    model = with_memory(one_level())
    for seed in range(3):
        learn(model, seed=seed)
    full = logits(model)
    assert state_of(model).table.must_merge(1)
    with consolidation(model, 1, 1, slots=[0, 2], night=4) as sleep:
        student = logits(model)
        assert not torch.equal(student, full), "the merged experts are out"
        with teacher_view(model):
            assert torch.equal(logits(model), full)
        fill(model, 1, seed=9)
        assert sleep.commit() == 3
    table = state_of(model).table
    assert table.active(1) == (1, 3)
    assert table.slots(1)[3].origin == "merge of 0 and 2"


def test_a_memory_with_few_slots_lives_for_ever() -> None:
    model = with_memory(one_level(num_slots=4))
    table = state_of(model).table
    for night in range(1, 25):
        if state_of(model).table.must_merge(1):
            oldest = state_of(model).table.active(1)[:2]
            with consolidation(model, 1, 1, slots=oldest, night=night) as sleep:
                fill(model, 1, seed=night)
                sleep.commit()
        with consolidation(model, CONTEXT, 1, night=night) as sleep:
            fill(model, 1, seed=night)
            sleep.commit()
        table = state_of(model).table
        assert len(table.active(1)) <= 3 and table.in_state(1, SlotState.FREE)
    assert sum(event == "unlock" for *_, event in table.events) > 30


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sender": 1, "receiver": 3}, "level 1 hands on to level 2, not to level 3"),
        ({"sender": 3, "receiver": 4}, "levels run from 1 to 3"),
        ({"sender": 2, "receiver": 1}, "level 2 hands on to level 3"),
        ({"sender": 1, "receiver": 1}, "at least two active slots"),
        ({"sender": 1, "receiver": 1, "slots": [0, 2]}, "at least two active slots"),
        ({"sender": 0, "receiver": 1, "slots": [0]}, "slots are for merges"),
        ({"sender": 1, "receiver": 2}, "accumulated 1 steps while awake"),
    ],
)
def test_a_sleep_that_makes_no_sense_is_refused_and_changes_nothing(arguments: dict[str, Any], message: str) -> None:
    model, _ = lived()
    before = everything(model)
    with pytest.raises(SlotError, match=message):
        Consolidation(model, **arguments).begin()
    assert unchanged(everything(model), before)


def test_a_full_receiver_refuses_before_anything_has_changed(tmp_path: Path) -> None:
    model = with_memory(one_level(num_slots=2))
    learn(model)
    learn(model, seed=1)
    before = everything(model)
    journal = Journal(tmp_path)
    with pytest.raises(SlotError, match="no free slot"):
        Consolidation(model, CONTEXT, 1, journal=journal).begin()
    assert unchanged(everything(model), before)
    assert journal.records() == []


def test_one_sleep_at_a_time_and_no_single_steps_inside_it() -> None:
    model, updates = lived()
    sleep = Consolidation(model, 1, 2, updates=updates).begin()
    fill(model, 2, seed=1)
    before = everything(model)
    for act, message in (
        (lambda: Consolidation(model, CONTEXT, 1).begin(), "under way already"),
        (lambda: unlock(model, 3), "still in training"),
        (lambda: activate(model, 2), "belongs to a sleep"),
        (lambda: reset(model, 1, [0]), "take part in a sleep"),
        (lambda: reset(model, 2, [1]), "take part in a sleep"),
    ):
        with pytest.raises(SlotError, match=message):
            act()
        assert unchanged(everything(model), before)
    sleep.commit()
    with pytest.raises(SlotError, match="not open"):
        sleep.commit()


def test_a_saved_sleep_is_resumed_and_aborts_to_the_state_before_it(tmp_path: Path) -> None:
    model, updates = lived()
    before = everything(model)
    Consolidation(model, 1, 2, night=2, updates=updates).begin()
    fill(model, 2, seed=7)
    model.save_pretrained(str(tmp_path))
    loaded = peft.PeftModel.from_pretrained(build(), str(tmp_path), is_trainable=True)
    assert torch.equal(logits(loaded), logits(model))
    Consolidation.resume(loaded).abort()
    assert unchanged(everything(loaded), before)
    with pytest.raises(SlotError, match="no sleep is under way"):
        Consolidation.resume(loaded)


class Crash(BaseException):
    """The process dies: nothing that handles exceptions may take part."""


def night_on_disk(directory: Path, at: int | None) -> tuple[int, list[tuple[Any, ...]]]:
    """Run two nights with a journal and die at the `at`-th point where the world outside could see a change.

    Returns how many such points there were, and the states before, between and after the nights.
    """
    passed = 0

    def point() -> None:
        nonlocal passed
        passed += 1
        if at is not None and passed >= at:
            raise Crash

    def append(self: Journal, event: str, **fields: Any) -> None:
        if at is not None and passed >= at:
            raise Crash("the dead write nothing")
        appended(self, event, **fields)

    patch = pytest.MonkeyPatch()
    appended = Journal.append
    patch.setattr(Journal, "append", append)
    for name in ("fsync", "replace"):
        original = getattr(module.os, name)

        def guarded(*arguments: Any, original: Callable[..., Any] = original) -> Any:
            point()
            result = original(*arguments)
            point()
            return result

        patch.setattr(module.os, name, guarded)
    removed = shutil.rmtree
    patch.setattr(module.shutil, "rmtree", lambda *args: (point(), removed(*args), point()))
    states = []
    try:
        model, updates = lived()
        journal = Journal(directory)
        states.append(everything(model))
        for sender, receiver, seed in ((0, 1, 11), (1, 2, 12)):
            sleep = Consolidation(model, sender, receiver, night=seed, updates=updates, journal=journal).begin()
            point()
            fill(model, receiver, seed=seed)
            sleep.commit()
            point()
            states.append(everything(model))
    except Crash:
        pass
    finally:
        patch.undo()
    return passed, states


def load(directory: Path) -> tuple[nn.Module, tuple[Any, ...]]:
    live = recover(directory)
    assert live is not None
    model = peft.PeftModel.from_pretrained(build(), str(live), is_trainable=True)
    return model, everything(model)


@pytest.mark.parametrize("stride", [pytest.param(1, marks=pytest.mark.slow), 9])
def test_after_a_crash_at_any_point_the_disk_holds_a_state_between_nights(tmp_path: Path, stride: int) -> None:
    points, states = night_on_disk(tmp_path / "whole", at=None)
    assert len(states) == 3 and points > 60
    assert unchanged(load(tmp_path / "whole")[1], states[2])
    reached = []
    for at in range(1, points + 1, stride):
        directory = tmp_path / str(at)
        night_on_disk(directory, at)
        if Journal(directory).live() is None:
            assert recover(directory) is None, "died before the first checkpoint"
            reached.append(0)
            continue
        model, found = load(directory)
        (which,) = [index for index, state in enumerate(states) if unchanged(found, state)]
        reached.append(which)
        assert sorted(path.name for path in directory.iterdir() if path.is_dir()) == [recover(directory).name]
        night = Consolidation(model, CONTEXT, 1, journal=Journal(directory)).begin()
        fill(model, 1, seed=33)
        night.commit()
        assert unchanged(load(directory)[1], everything(model)), "life goes on after the recovery"
        shutil.rmtree(directory)
    assert reached == sorted(reached), "later crashes lose no more than earlier ones"
    assert set(reached) == {0, 1, 2}


def test_an_error_while_writing_takes_memory_and_disk_back_together(tmp_path: Path) -> None:
    model, updates = lived()
    journal = Journal(tmp_path)
    sleep = Consolidation(model, 1, 2, updates=updates, journal=journal).begin()
    fill(model, 2, seed=7)
    before = everything(model)
    patch = pytest.MonkeyPatch()
    appended = Journal.append

    def fails_after_writing(self: Journal, event: str, **fields: Any) -> None:
        appended(self, event, **fields)
        if event == "committed":
            raise OSError("the disk is full")

    patch.setattr(module.Journal, "append", fails_after_writing)
    with pytest.raises(OSError):
        sleep.commit()
    patch.undo()
    assert unchanged(everything(model), before)
    sleep.abort()
    _, found = load(tmp_path)
    assert unchanged(found, everything(model))


def test_a_journal_keeps_one_checkpoint_and_notices_tampering(tmp_path: Path) -> None:
    model = with_memory(one_level())
    journal = Journal(tmp_path)
    for night in range(3):
        with consolidation(model, CONTEXT, 1, night=night, journal=journal) as sleep:
            fill(model, 1, seed=night)
            sleep.commit()
        assert len([path for path in tmp_path.iterdir() if path.is_dir()]) <= 2
    recovery = journal.recover()
    assert recovery.interrupted is None and recovery.live is not None
    weights = recovery.live / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(JournalError, match="has changed since it was committed"):
        journal.recover()
    shutil.rmtree(recovery.live)
    with pytest.raises(JournalError, match="does not exist"):
        journal.recover()


def test_a_memory_of_another_name_is_recovered_too(tmp_path: Path) -> None:
    model = with_memory(one_level(), adapter_name="hippocampus")
    with consolidation(model, CONTEXT, 1, journal=Journal(tmp_path)) as sleep:
        fill(model, 1, seed=1)
        sleep.commit()
    live = recover(tmp_path)
    assert live is not None
    loaded = peft.PeftModel.from_pretrained(build(), str(live))
    assert torch.equal(logits(loaded), logits(model))


def test_keeping_a_journal_asks_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", lambda name, _: asked.append(name))
    base = build()
    base.name_or_path = "somebody/some-model"
    model = peft.get_peft_model(base, one_level())
    with consolidation(model, CONTEXT, 1, journal=Journal(tmp_path)) as sleep:
        fill(model, 1, seed=1)
        sleep.commit()
    assert recover(tmp_path) is not None and asked == []


def test_what_changed_between_sleeps_is_not_lost_in_a_crash(tmp_path: Path) -> None:
    model = with_memory(one_level())
    journal = Journal(tmp_path)
    with consolidation(model, CONTEXT, 1, journal=journal) as sleep:
        fill(model, 1, seed=1)
        sleep.commit()
    learn(model, seed=5)
    by_hand = everything(model)
    Consolidation(model, CONTEXT, 1, journal=journal).begin()
    _, found = load(tmp_path)
    assert unchanged(found, by_hand)
    assert Journal(tmp_path).recover().interrupted is None, "the first recovery closed the record"


def test_a_level_that_moved_without_a_sleep_is_not_lost_in_a_crash(tmp_path: Path) -> None:
    model, updates = lived()
    journal = Journal(tmp_path)
    with consolidation(model, 1, 2, updates=updates, journal=journal) as sleep:
        sleep.commit()
    live_a_day(model, updates, seed=1)
    updates.apply(1)
    updates.apply(2)
    with consolidation(model, CONTEXT, 1, journal=journal) as sleep:
        sleep.commit()
    for seed in (2, 3):
        live_a_day(model, updates, seed=seed)
        updates.apply(1)
        updates.apply(2)
    by_day = everything(model)
    Consolidation(model, CONTEXT, 1, journal=journal).begin()
    _, found = load(tmp_path)
    assert unchanged(found, by_day)


def test_a_damaged_log_is_reported_and_a_torn_last_line_is_not(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append("begin", night=1)
    with journal.path.open("a") as log:
        log.write('{"event": "comm')
    assert [record["event"] for record in journal.records()] == ["begin"]
    journal.append("aborted")
    assert [record["event"] for record in journal.records()] == ["begin", "aborted"]
    journal.path.write_text('{"event": \n{"event": "begin"}\n')
    with pytest.raises(JournalError, match=r"journal.jsonl:1: damaged"):
        journal.records()
