from typing import Any

import pytest
import torch
from made_up_streams import stream

from sleep_pipeline.baselines.hope import Awake, Hope
from sleep_pipeline.baselines.running import run_stream
from sleep_pipeline.baselines.tuning import labelled_lessons
from sleep_pipeline.evaluation.tasks import Example
from sleep_pipeline.memory import ContinuumMemoryConfig, LevelConfig, base_view, state_of
from sleep_pipeline.memory.levels import ACCUMULATED
from sleep_pipeline.memory.operations import level_tensors
from sleep_pipeline.seeding.batches import PASS_TOKENS, Batch, pad
from sleep_pipeline.seeding.hidden import hidden_states


def memory(*periods: int) -> ContinuumMemoryConfig:
    fast = [LevelConfig(period=period, num_slots=4, rank=4, base_width=32) for period in periods]
    return ContinuumMemoryConfig(levels=[*fast, LevelConfig(num_slots=4, rank=4)])


def accumulated(method: Hope) -> list[torch.Tensor]:
    """The gradients that the fast level has gathered."""
    layers = level_tensors(state_of(method.model), 1)
    return [tensors.get_parameter(name) for tensors in layers for name in ACCUMULATED]


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


def test_a_long_text_lengthens_no_other_row(tiny_model: Any, answering: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    method = Hope(tiny_model, answering, memory(2))
    examples = [*(Example(f"apple {n}", "the apple") for n in range(7)), Example("river " * 60, "the apple")]
    lessons = labelled_lessons(answering, tiny_model, ["the apple"], examples)
    longest = max(len(lesson.ids) for lesson in lessons)
    assert 7 * longest > PASS_TOKENS["cpu"] + sum(len(lesson.ids) for lesson in lessons)
    shapes: list[torch.Size] = []

    def spied(model: Any, ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        shapes.append(ids.shape)
        return hidden_states(model, ids, *rest)

    monkeypatch.setattr("sleep_pipeline.baselines.hope.hidden_states", spied)
    (apart,) = Awake(method.model, answering.tokenizer.pad_token_id).live(lessons, 1, 8, seed=0)
    assert sorted(rows for rows, _ in shapes) == [1, 7]
    moved = [p.detach().clone() for p in accumulated(method)]
    for p in accumulated(method):
        p.data.zero_()
    device = torch.device("cpu")
    whole = [Batch(list(range(8)), *pad([one.ids for one in lessons], answering.tokenizer.pad_token_id, device))]
    monkeypatch.setattr("sleep_pipeline.baselines.hope.batches", lambda *rest: whole)
    monkeypatch.setattr("random.Random.sample", lambda self, rows, count: rows)
    (together,) = Awake(method.model, answering.tokenizer.pad_token_id).live(lessons, 1, 8, seed=0)
    assert together == pytest.approx(apart, rel=1e-5)
    gained, wanted = (torch.cat([part.flatten() for part in parts]) for parts in (moved, accumulated(method)))
    assert 0 < wanted.norm() and (gained - wanted).norm() < 1e-4 * wanted.norm()
