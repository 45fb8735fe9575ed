from typing import Any

import pytest
import torch
from made_up_streams import stream

from sleep_pipeline.baselines.hope import Awake, Hope
from sleep_pipeline.baselines.running import run_stream
from sleep_pipeline.baselines.tuning import labelled_lessons
from sleep_pipeline.memory import ContinuumMemoryConfig, LevelConfig, base_view, state_of


def memory(*periods: int) -> ContinuumMemoryConfig:
    fast = [LevelConfig(period=period, num_slots=4, rank=4, base_width=32) for period in periods]
    return ContinuumMemoryConfig(levels=[*fast, LevelConfig(num_slots=4, rank=4)])


def test_hope_learns_while_awake_with_the_base_frozen(tiny_model: Any, answering: Any) -> None:
    before = {name: p.detach().clone() for name, p in tiny_model.named_parameters()}
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        bare = tiny_model(ids).logits
    method = Hope(tiny_model, answering, memory(2), steps=4, rows=4)
    method.observe(stream().tasks[0])
    for name, parameter in before.items():
        inner = name.replace(".mlp.", ".mlp.base_layer.")
        assert torch.equal(method.model.get_base_model().get_parameter(inner), parameter)
    with torch.no_grad():
        assert not torch.equal(method.model(ids).logits, bare)
        with base_view(method.model):
            assert torch.equal(method.model(ids).logits, bare)


def test_hope_answers_with_the_labels_of_every_task(tiny_model: Any, answering: Any) -> None:
    result = run_stream(Hope(tiny_model, answering, memory(2), steps=2, rows=4), stream())
    assert result.retention is not None and len(result.retention) == 2
    assert result.tokens[0] > 0


def test_every_level_moves_in_its_own_period(tiny_model: Any, answering: Any) -> None:
    method = Hope(tiny_model, answering, memory(2, 4), steps=3, rows=4)
    method.observe(stream().tasks[0])
    assert state_of(method.model).pending == [1, 3, 0]
    assert [moves > 0 for moves in state_of(method.model).moved] == [True, False, False]
    method.observe(stream().tasks[1])
    assert state_of(method.model).pending == [0, 2, 0]


def test_the_loss_falls(tiny_model: Any, answering: Any) -> None:
    with torch.no_grad():
        # An expert is only as loud as the block beside it, and a random model's are almost silent.
        tiny_model.get_input_embeddings().weight.mul_(5)
    method = Hope(tiny_model, answering, memory(2))
    task = stream().tasks[0]
    lessons = labelled_lessons(answering, tiny_model, task.labels, task.train)
    losses = Awake(method.model, answering.tokenizer.pad_token_id, 3e-2).live(lessons, 60, 8, seed=0)
    assert losses[-1] < losses[0] - 1


def test_what_it_keeps_are_weights_and_the_optimizer(tiny_model: Any, answering: Any) -> None:
    method = Hope(tiny_model, answering, memory(2), steps=2, rows=4)
    weights = 2 * 2 * 32 * 32 * 4
    assert method.stored == weights
    method.observe(stream().tasks[0])
    assert method.stored == pytest.approx(3 * weights, rel=0.01)
