"""Random lives of a memory: unlock, train, activate, reset, sleep, merge, save, load, crash, in any order.

The oracle is simple: it remembers what every expert's tensors were when it was activated, and whole snapshots
of the moments that a view, an abort or a crash must lead back to.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from tiny_models import fill, live_a_day, logits, same, snapshot, tokens
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from sleep_pipeline.memory import (
    Consolidation,
    ContinuumMemoryConfig,
    Journal,
    LevelConfig,
    SlotError,
    SlotState,
    WakeUpdates,
    activate,
    recover,
    reset,
    state_of,
    teacher_view,
    unlock,
)
from sleep_pipeline.memory.levels import ACCUMULATED, PROSPECTIVE, SLOTS, WORKSPACE, Level
from sleep_pipeline.memory.operations import level_tensors

IDS = tokens(batch=1, length=4)
LEVELS = st.integers(1, 2)


def base() -> nn.Module:
    torch.manual_seed(1)
    config = LlamaConfig(vocab_size=48, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    return LlamaForCausalLM(config).eval()


def fresh() -> nn.Module:
    levels = [LevelConfig(period=2, num_slots=3, rank=2, base_width=2), LevelConfig(num_slots=3, rank=2, top_k=2)]
    return peft.get_peft_model(base(), ContinuumMemoryConfig(levels=levels))


class Life(RuleBasedStateMachine):
    steps = 0

    @initialize()
    def birth(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.adopt(fresh())
        self.shapes = {name: parameter.shape for name, parameter in self.model.named_parameters()}
        self.bare = logits(base(), IDS)
        self.experts: dict[tuple[int, int], list[Tensor]] = {}
        self.sleep: Consolidation | None = None
        self.before: tuple[Any, ...] | None = None
        self.on_disk: tuple[Any, ...] | None = None

    def teardown(self) -> None:
        if hasattr(self, "directory"):
            shutil.rmtree(self.directory)

    def adopt(self, model: nn.Module) -> None:
        self.model = model
        self.state = state_of(model)
        self.updates = WakeUpdates(model)

    def moment(self) -> tuple[Any, ...]:
        return snapshot(self.model), self.state.to_dict(), logits(self.model, IDS), dict(self.experts)

    def is_at(self, moment: tuple[Any, ...]) -> bool:
        now = self.moment()
        return same(now[0], moment[0]) and now[1] == moment[1] and torch.equal(now[2], moment[2])

    def tensors(self, level: int) -> Level:
        return level_tensors(self.state, level)[0]

    def expert(self, level: int, slot: int) -> list[Tensor]:
        return [self.tensors(level).get_parameter(name)[slot].detach().clone() for name in SLOTS]

    def training(self) -> tuple[int, int] | None:
        return self.state.table.training()

    @rule(level=LEVELS)
    def unlock(self, level: int) -> None:
        moment = self.moment()
        free = bool(self.state.table.in_state(level, SlotState.FREE))
        if self.training() is None and free:
            assert unlock(self.model, level) == self.training()[1]
        else:
            with pytest.raises(SlotError):
                unlock(self.model, level)
            assert self.is_at(moment)

    @precondition(lambda self: self.training() is not None)
    @rule(seed=st.integers(0, 1000))
    def train(self, seed: int) -> None:
        fill(self.model, self.training()[0], seed)

    @rule(level=LEVELS)
    def activate(self, level: int) -> None:
        moment = self.moment()
        if self.training() is not None and self.training()[0] == level and self.sleep is None:
            slot = activate(self.model, level)
            self.experts[level, slot] = self.expert(level, slot)
        else:
            with pytest.raises(SlotError):
                activate(self.model, level)
            assert self.is_at(moment)

    @rule(level=LEVELS, slot=st.integers(0, 3))
    def reset(self, level: int, slot: int) -> None:
        moment = self.moment()
        used = slot < 3 and self.state.table.slots(level)[slot].state is not SlotState.FREE
        sleep = self.state.table.sleep
        busy = sleep is not None and (
            (level, slot) == (sleep.receiver, sleep.slot) or (level == sleep.sender and slot in sleep.senders)
        )
        if used and not busy:
            reset(self.model, level, [slot])
            self.experts.pop((level, slot), None)
        else:
            with pytest.raises(SlotError):
                reset(self.model, level, [slot])
            assert self.is_at(moment)

    @precondition(lambda self: self.sleep is None)
    @rule(sender=st.integers(0, 2), merge=st.booleans())
    def fall_asleep(self, sender: int, merge: bool) -> None:
        receiver = sender if merge else sender + 1
        moment = self.moment()
        slots = None
        possible = self.training() is None and 1 <= receiver <= 2
        if possible:
            possible = bool(self.state.table.in_state(receiver, SlotState.FREE))
        if merge and receiver >= 1:
            slots = self.state.table.active(receiver)[:2]
            possible = possible and len(slots) == 2
        try:
            journal = Journal(self.directory)
            sleep = Consolidation(self.model, sender, receiver, slots, updates=self.updates, journal=journal).begin()
        except SlotError:
            assert not possible
            assert self.is_at(moment)
            return
        assert possible
        self.sleep, self.before = sleep, moment
        self.on_disk = moment

    @precondition(lambda self: self.sleep is not None)
    @rule(fails=st.booleans())
    def commit(self, fails: bool) -> None:
        sleep, during = self.sleep, self.moment()
        if fails:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Journal, "write_checkpoint", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
                with pytest.raises(OSError):
                    sleep.commit()
            assert self.is_at(during)
            return
        senders = [(sleep.sender, slot) for slot in sleep.senders]
        slot = sleep.commit()
        for gone in senders:
            self.experts.pop(gone)
        self.experts[sleep.receiver, slot] = self.expert(sleep.receiver, slot)
        self.sleep = self.before = None
        self.on_disk = self.moment()

    @precondition(lambda self: self.sleep is not None)
    @rule()
    def abort(self) -> None:
        self.sleep.abort()
        assert self.is_at(self.before)
        self.experts = dict(self.before[3])
        self.sleep = self.before = None

    @precondition(lambda self: self.sleep is None and self.training() is None)
    @rule(seed=st.integers(0, 1000))
    def live(self, seed: int) -> None:
        live_a_day(self.model, self.updates, seed)

    @rule(low_memory=st.booleans())
    def save_and_load(self, low_memory: bool) -> None:
        moment = self.moment()
        optimizers = self.updates.state_dict()
        with tempfile.TemporaryDirectory() as directory:
            self.model.save_pretrained(directory)
            self.adopt(
                peft.PeftModel.from_pretrained(base(), directory, is_trainable=True, low_cpu_mem_usage=low_memory)
            )
        self.updates.load_state_dict(optimizers)
        assert self.is_at(moment)
        if self.sleep is not None:
            self.sleep = Consolidation.resume(self.model, updates=self.updates, journal=Journal(self.directory))

    @rule()
    def crash(self) -> None:
        live = recover(self.directory)
        assert (live is None) == (self.on_disk is None)
        self.adopt(fresh() if live is None else peft.PeftModel.from_pretrained(base(), str(live), is_trainable=True))
        self.sleep = self.before = None
        self.experts = {} if self.on_disk is None else dict(self.on_disk[3])
        if self.on_disk is not None:
            assert self.is_at(self.on_disk)

    @invariant()
    def all_is_well(self) -> None:
        if not hasattr(self, "model"):
            return
        Life.steps += 1
        table = self.state.table
        table.check()
        assert {name: p.shape for name, p in self.model.named_parameters()} == self.shapes
        now = logits(self.model, IDS)
        if not self.experts and self.training() is None and not any(self.state.moved):
            assert torch.equal(now, self.bare)
        if self.before is not None:
            with teacher_view(self.model):
                assert torch.equal(logits(self.model, IDS), self.before[2])
        assert torch.equal(logits(self.model, IDS), now)
        for level in (1, 2):
            tensors = self.tensors(level)
            training = self.training() is not None and self.training()[0] == level
            for name in WORKSPACE:
                parameter = tensors.get_parameter(name)
                assert parameter.requires_grad == training
                assert training or not parameter.any()
            assert not any(tensors.get_parameter(name).requires_grad for name in SLOTS)
            for slot, entry in enumerate(table.slots(level)):
                if entry.state is SlotState.ACTIVE:
                    assert all(map(torch.equal, self.expert(level, slot), self.experts[level, slot]))
                else:
                    assert not any(value.any() for value in self.expert(level, slot))
            if level == 1:
                sending = table.sleep is not None and table.sleep.sender == 1 != table.sleep.receiver
                for name in () if sending else PROSPECTIVE:
                    assert not tensors.get_parameter(name).any()
                for name in () if self.state.pending[0] else ACCUMULATED:
                    assert not tensors.get_parameter(name).any()
        assert len(self.experts) == len(table.active(1)) + len(table.active(2))


@pytest.fixture(autouse=True)
def no_model_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT renders a README for every save, which would take a fifth of the time."""
    monkeypatch.setattr(peft.PeftModel, "create_or_update_model_card", lambda *_: None)


def run(examples: int, length: int) -> int:
    Life.steps = 0
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=examples,
            stateful_step_count=length,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
    return Life.steps


@pytest.mark.slow
def test_a_short_life_keeps_every_invariant() -> None:
    assert run(5, 20) > 50


@pytest.mark.slow
def test_long_lives_keep_every_invariant_over_thousands_of_steps() -> None:
    assert run(50, 60) >= 2000
