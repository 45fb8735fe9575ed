"""Wake-time updates of the fast levels: paper.md eq. 2 against a step-by-step computation."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from tiny_models import fill, live_a_day, logits, one_level, three_levels, tokens, with_memory
from torch import Tensor, nn

from sleep_pipeline.memory import WakeUpdates, consolidation, state_of
from sleep_pipeline.memory.levels import ACCUMULATED, BASE


def bases(model: nn.Module, level: int) -> list[Tensor]:
    layers = [model.get_submodule(f"base_model.model.model.layers.{i}.mlp") for i in range(2)]
    return [layer.levels("default")[level - 1].get_parameter(name) for layer in layers for name in BASE]


def gradient(model: nn.Module, parameters: list[Tensor], seed: int) -> list[Tensor]:
    ids = tokens(seed=seed)
    return list(torch.autograd.grad(model(input_ids=ids, labels=ids).loss, parameters))


def test_a_chunk_moves_the_weights_by_the_sum_of_its_terms() -> None:
    model = with_memory(three_levels()).double()
    updates = WakeUpdates(model)
    parameters = bases(model, 1)
    for chunk in range(2):
        theta = [p.detach().clone() for p in parameters]
        expected = [p.clone() for p in theta]
        etas = [0.3, 0.2, 0.1]
        with updates.awake():
            for step, eta in enumerate(etas):
                terms = gradient(model, parameters, seed=10 * chunk + step)
                expected = [e - eta * g for e, g in zip(expected, terms, strict=True)]
                ids = tokens(seed=10 * chunk + step)
                model(input_ids=ids, labels=ids).loss.backward()
                updates.observe(eta)
                assert all(torch.equal(p, t) for p, t in zip(parameters, theta, strict=True)), (
                    "not before the chunk ends"
                )
        with consolidation(model, 1, 2, night=chunk, updates=updates) as sleep:
            sleep.commit()
        for found, wanted in zip(parameters, expected, strict=True):
            torch.testing.assert_close(found.detach(), wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "optimizer", [partial(torch.optim.AdamW, lr=1e-2), partial(torch.optim.SGD, lr=0.1, momentum=0.9)]
)
def test_another_optimizer_keeps_its_state_from_chunk_to_chunk(optimizer: Callable[..., torch.optim.Optimizer]) -> None:
    model = with_memory(three_levels())
    updates = WakeUpdates(model, optimizer)
    parameters = bases(model, 1)
    copies = [nn.Parameter(p.detach().clone()) for p in parameters]
    reference = optimizer(copies)
    for chunk in range(3):
        with updates.awake():
            ids = tokens(seed=chunk)
            model(input_ids=ids, labels=ids).loss.backward()
            for copy, parameter in zip(copies, parameters, strict=True):
                copy.grad = parameter.grad.clone()
            updates.observe()
        with consolidation(model, 1, 2, updates=updates):
            pass
        with consolidation(model, 1, 2, updates=updates) as sleep:
            sleep.commit()
        if chunk == 1:
            resumed = WakeUpdates(model, optimizer)
            resumed.load_state_dict(updates.state_dict())
            updates = resumed
        reference.step()
        for found, wanted in zip(parameters, copies, strict=True):
            torch.testing.assert_close(found.detach(), wanted.detach(), rtol=1e-6, atol=1e-8)


def test_each_level_moves_only_at_the_end_of_its_own_chunk() -> None:
    model = with_memory(three_levels())
    updates = WakeUpdates(model)
    schedule = model.peft_config["default"].schedule()
    moves: dict[int, list[int]] = {1: [], 2: []}
    for night in range(1, 9):
        live_a_day(model, updates, seed=night)
        for pair in schedule.due(night):
            before = {level: [p.detach().clone() for p in bases(model, level)] for level in moves}
            with consolidation(model, *pair, night=night, updates=updates) as sleep:
                fill(model, pair.receiver, seed=night)
                sleep.commit()
            for level, old in before.items():
                if any(not torch.equal(p, o) for p, o in zip(bases(model, level), old, strict=True)):
                    moves[level].append(night)
    assert moves == {1: [2, 4, 6, 8], 2: [4, 8]}


def test_gradients_flow_to_the_base_weights_only_while_awake() -> None:
    model = with_memory(three_levels())
    updates = WakeUpdates(model)
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    with updates.awake():
        awake = {name.split(".")[-1] for name, p in model.named_parameters() if p.requires_grad}
    assert names == set() and awake == set(BASE)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set()


def test_learning_while_awake_does_not_change_the_model_until_the_sleep() -> None:
    model = with_memory(three_levels())
    expected = logits(model)
    updates = WakeUpdates(model)
    live_a_day(model, updates)
    assert torch.equal(logits(model), expected)
    assert state_of(model).pending == [1, 1, 0]
    layer = model.get_submodule("base_model.model.model.layers.1.mlp")
    assert float(layer.levels("default")[1].get_parameter(ACCUMULATED[1]).abs().sum()) > 0


def test_what_cannot_be_learned_while_awake_is_refused() -> None:
    with pytest.raises(ValueError, match="one level, the frozen MLP"):
        WakeUpdates(with_memory(one_level()))
    with pytest.raises(ValueError, match=r"run loss.backward\(\)"):
        WakeUpdates(with_memory(three_levels())).observe()


def test_a_level_moves_without_a_sleep_as_it_does_in_one() -> None:
    asleep, awake = with_memory(three_levels()).double(), with_memory(three_levels()).double()
    optimizer = partial(torch.optim.AdamW, lr=1e-2)
    sleeping, moving = WakeUpdates(asleep, optimizer), WakeUpdates(awake, optimizer)
    for chunk in range(2):
        live_a_day(asleep, sleeping, seed=chunk)
        live_a_day(awake, moving, seed=chunk)
        with consolidation(asleep, 1, 2, updates=sleeping) as sleep:
            sleep.commit()
        moving.apply(1)
        for one, other in zip(bases(asleep, 1), bases(awake, 1), strict=True):
            assert torch.equal(one, other)
    assert state_of(awake).pending == [0, 2, 0] and state_of(awake).moved == [2, 0, 0] == state_of(asleep).moved
    assert state_of(awake).table.active(2) == ()


def test_what_cannot_move_by_itself_is_refused() -> None:
    model = with_memory(three_levels())
    updates = WakeUpdates(model)
    with pytest.raises(ValueError, match="level 1 has accumulated nothing"):
        updates.apply(1)
    live_a_day(model, updates)
    with consolidation(model, 1, 2, updates=updates), pytest.raises(ValueError, match="a sleep is under way"):
        updates.apply(1)
