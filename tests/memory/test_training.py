"""What trains: the expert in training, alone, and nothing is kept for the slots that do not."""

from typing import Any

import pytest
import torch
from tiny_models import fill, learn, logits, one_level, same, snapshot, three_levels, tokens, with_memory
from torch import nn

from sleep_pipeline.memory import (
    Consolidation,
    SlotError,
    activate,
    base_view,
    experts_view,
    random_experts,
    reset,
    trace_routing,
    unlock,
)
from sleep_pipeline.memory.levels import WORKSPACE


def trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def workspace(level: int) -> set[str]:
    prefix = "base_model.model.model.layers.{}.mlp.continuum_levels.default.{}.{}"
    return {prefix.format(layer, level - 1, name) for layer in range(2) for name in WORKSPACE}


def train(model: nn.Module, steps: int = 3) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-2)
    ids = tokens()
    for _ in range(steps):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def test_nothing_trains_until_a_slot_is_unlocked_and_after_it_is_activated() -> None:
    model = with_memory(three_levels())
    assert trainable(model) == set()
    unlock(model, 2)
    assert trainable(model) == workspace(2)
    activate(model, 2)
    assert trainable(model) == set()


def test_the_optimizer_touches_only_the_slot_in_training() -> None:
    model = with_memory(three_levels())
    for level in (1, 2, 3):
        learn(model, level, seed=level)
    unlock(model, 3)
    before = snapshot(model)
    optimizer = train(model)
    changed = {name for name, value in snapshot(model).items() if not torch.equal(value, before[name])}
    assert changed == workspace(3)
    held = {name for name, parameter in model.named_parameters() if parameter in optimizer.state}
    assert held == workspace(3)


def test_training_lowers_the_loss_and_activation_keeps_it() -> None:
    model = with_memory(one_level(rank=4))
    with torch.no_grad():
        # A random model's blocks are almost silent, and an expert is as loud as the block beside it.
        for name, parameter in model.named_parameters():
            if name.endswith("down_proj.weight"):
                parameter.mul_(100)
    ids = tokens()
    unlock(model, 1)
    first = float(model(input_ids=ids, labels=ids).loss)
    train(model, steps=60)
    trained = float(model(input_ids=ids, labels=ids).loss)
    assert trained < 0.95 * first
    activate(model, 1)
    assert float(model(input_ids=ids, labels=ids).loss) == pytest.approx(trained, rel=1e-5)


def saved_bytes(model: nn.Module) -> int:
    """Return the bytes that autograd keeps for the backward pass, parameters not counted."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    total = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal total
        if tensor.untyped_storage().data_ptr() not in parameters:
            total += tensor.numel() * tensor.element_size()
        return tensor

    ids = tokens()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return total


def test_masked_slots_keep_no_activations_no_gradients_and_no_optimizer_state() -> None:
    kept, held = [], []
    for slots in (3, 30):
        model = with_memory(one_level(num_slots=slots))
        learn(model)
        unlock(model, 1)
        fill(model, 1, seed=1)
        kept.append(saved_bytes(model))
        optimizer = train(model, steps=1)
        held.append(sum(t.numel() for state in optimizer.state.values() for t in state.values()))
        assert all(p.grad is None for name, p in model.named_parameters() if not p.requires_grad)
    assert kept[0] == kept[1]
    assert held[0] == held[1]


def test_no_tensor_ever_changes_its_shape() -> None:
    model = with_memory(three_levels())
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    storage = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    learn(model, 1)
    learn(model, 3)
    sleep = Consolidation(model, 1, 2).begin()
    fill(model, 2, seed=2)
    sleep.commit()
    reset(model, 3, [0])
    assert {name: parameter.shape for name, parameter in model.named_parameters()} == shapes
    assert {name: parameter.data_ptr() for name, parameter in model.named_parameters()} == storage


def test_an_expert_starts_the_same_everywhere_and_differently_every_night() -> None:
    starts = []
    for _ in range(2):
        model = with_memory(one_level())
        unlock(model, 1)
        starts.append(snapshot(model))
    assert same(*starts)
    reset(model, 1, [0])
    unlock(model, 1)
    name = "base_model.model.model.layers.0.mlp.continuum_levels.default.0.new_down"
    assert not torch.equal(snapshot(model)[name], starts[0][name])
    other = name.replace("layers.0", "layers.1")
    assert not torch.equal(starts[0][other], starts[0][name])


def test_a_reset_slot_is_as_if_it_had_never_been_used() -> None:
    model = with_memory(one_level())
    fresh = snapshot(model)
    expected = logits(model)
    learn(model)
    reset(model, 1, [0])
    assert same(snapshot(model), fresh)
    assert torch.equal(logits(model), expected)


def test_more_unlocks_than_slots_are_refused_and_change_nothing() -> None:
    model = with_memory(one_level(num_slots=2))
    learn(model)
    learn(model, seed=1)
    before = snapshot(model)
    with pytest.raises(SlotError, match="no free slot"):
        unlock(model, 1)
    assert same(snapshot(model), before)
    assert trainable(model) == set()


def test_slots_cannot_change_inside_a_view() -> None:
    model = with_memory(one_level())
    learn(model)
    with experts_view(model, 1, []):
        for act in (lambda: unlock(model, 1), lambda: reset(model, 1, [0])):
            with pytest.raises(SlotError, match="inside a view"):
                act()


def test_traced_gates_can_be_penalised() -> None:
    model = with_memory(one_level())
    learn(model)
    unlock(model, 1)
    fill(model, 1, seed=1)
    with trace_routing(model, keep=True) as trace:
        model(input_ids=tokens())
    gates = trace.gates[1, 0][0]
    assert gates.shape == (2, 9, 2)
    sum(gates[..., -1].mean() for (gates,) in trace.gates.values()).backward()
    parameters = dict(model.named_parameters())
    key = "base_model.model.model.layers.1.mlp.continuum_levels.default.0.new_key"
    assert float(parameters[key].grad.abs().sum()) > 0
    with trace_routing(model) as trace:
        model(input_ids=tokens())
    assert trace.gates == {}


def test_the_trace_counts_tokens_by_weight() -> None:
    model = with_memory(one_level())
    learn(model)
    ids = tokens()
    weights = torch.zeros(ids.shape)
    weights[0, 3] = 1
    with trace_routing(model, weights=weights) as trace:
        model(input_ids=ids)
    with trace_routing(model, keep=True) as whole:
        model(input_ids=ids)
    expected = torch.stack([whole.gates[1, layer][0][0, 3, 0] for layer in range(2)]).mean()
    torch.testing.assert_close(trace.openness(1)[0], expected)
    assert float(trace.openness(1)[1:].sum()) == 0
    with pytest.raises(ValueError, match="weights of shape"):
        with trace_routing(model, weights=weights[:1]):
            model(input_ids=ids)
    assert torch.isfinite(logits(model)).all(), "a refused trace must not stay on"


def test_the_least_used_experts_are_those_that_opened_least() -> None:
    model = with_memory(one_level())
    for seed in range(3):
        learn(model, seed=seed)
    with trace_routing(model) as trace:
        model(input_ids=tokens())
    openness = trace.openness(1)[:3]
    assert trace.least_used(1) == tuple(sorted(openness.argsort()[:2].tolist()))
    reset(model, 1, [0, 1])
    with pytest.raises(ValueError, match="1 active slots, fewer than 2"):
        trace.least_used(1)


class TestRandomExperts:
    def model(self, **changes: Any) -> nn.Module:
        model = with_memory(one_level(router_bias=-30.0, **changes))
        for seed in range(4):
            learn(model, seed=seed)
        for layer in range(2):
            level = model.get_submodule(f"base_model.model.model.layers.{layer}.mlp").levels("default")[0]
            level.keys.data.zero_()
            level.offsets.data.fill_(-30.0)
        return model

    def test_each_sequence_gets_one_more_expert_per_router(self) -> None:
        model = self.model()
        generator = torch.Generator().manual_seed(3)
        with random_experts(model, generator, 6), trace_routing(model, keep=True) as trace:
            model(input_ids=tokens(batch=6))
        drawn = []
        for layer in range(2):
            opened = trace.gates[1, layer][0] > 0.99
            assert torch.equal(opened.sum(-1), torch.ones(6, 9, dtype=torch.long)), "one expert for every token"
            assert torch.equal(opened, opened[:, :1].expand_as(opened)), "the same for all tokens of a sequence"
            drawn.append(opened[:, 0].int().argmax(-1))
        assert len(set(torch.stack(drawn).flatten().tolist())) > 1
        assert not torch.equal(*drawn), "each router draws for itself"

    def test_the_same_generator_draws_the_same_experts(self) -> None:
        model = self.model()
        outs = []
        for _ in range(2):
            with random_experts(model, torch.Generator().manual_seed(5), 2):
                outs.append(logits(model))
        assert torch.equal(*outs)
        assert not torch.equal(outs[0], logits(model))

    def test_generation_keeps_a_sequences_expert(self) -> None:
        model = self.model()
        with random_experts(model, torch.Generator().manual_seed(5), 2):
            cached = model.generate(input_ids=tokens(), max_new_tokens=5, do_sample=False, pad_token_id=0)
            again = model.generate(
                input_ids=tokens(), max_new_tokens=5, do_sample=False, pad_token_id=0, use_cache=False
            )
        assert torch.equal(cached, again)

    def test_it_comes_on_top_of_the_top_k(self) -> None:
        model = self.model(top_k=1, rank=4, num_slots=6, router="sigmoid")
        with random_experts(model, torch.Generator().manual_seed(5), 2), trace_routing(model, keep=True) as trace:
            model(input_ids=tokens())
        opened = trace.gates[1, 0][0] > 0
        assert int(opened.sum(-1).max()) == 2

    def test_adapters_in_different_layers_draw_for_their_own(self) -> None:
        model = with_memory(one_level(layers_to_transform=[1]))
        model.add_adapter("all", one_level())
        for name in ("default", "all"):
            model.set_adapter(name)
            learn(model)
            with random_experts(model, torch.Generator().manual_seed(5), 2), trace_routing(model, keep=True) as trace:
                logits(model)
            assert sorted(trace.gates) == ([(1, 1)] if name == "default" else [(1, 0), (1, 1)])
            assert all(float(gates.detach().min()) == 1 for (gates,) in trace.gates.values())

    def test_another_batch_size_is_refused(self) -> None:
        model = self.model()
        with random_experts(model, torch.Generator(), 3):
            with pytest.raises(ValueError, match="drawn for 3 sequences"):
                model(input_ids=tokens())
        assert torch.isfinite(logits(model)).all()

    def test_some_of_the_sequences_keep_the_experts_that_were_drawn_for_them(self) -> None:
        model = self.model()
        ids = tokens(batch=5)
        with random_experts(model, torch.Generator().manual_seed(5), 5) as hold:
            whole = logits(model, ids)
            for rows in ([3, 0], [4], [0, 1, 2, 3, 4]):
                hold(rows)
                torch.testing.assert_close(logits(model, ids[rows]), whole[rows])
        assert not torch.allclose(logits(model, ids), whole)

    def test_a_view_does_without_them(self) -> None:
        model = self.model()
        views = [lambda: base_view(model), lambda: experts_view(model, 1, [2])]
        expected = []
        for view in views:
            with view():
                expected.append(logits(model))
        with random_experts(model, torch.Generator().manual_seed(5), 2):
            dreaming = logits(model)
            for view, wanted in zip(views, expected, strict=True):
                with view():
                    assert torch.equal(logits(model), wanted)
            assert torch.equal(logits(model), dreaming)
        assert not torch.equal(logits(model), dreaming)

    def test_without_experts_there_is_nothing_to_draw(self) -> None:
        model = with_memory(one_level())
        expected = logits(model)
        with random_experts(model, torch.Generator(), 2):
            assert torch.equal(logits(model), expected)


def first_weights(seed: int, nights: int) -> list[torch.Tensor]:
    """The first `A` of each night's expert, of all layers."""
    config = three_levels()
    config.seed = seed
    model = with_memory(config)
    drawn = []
    for _ in range(nights):
        unlock(model, 3)
        drawn.append(torch.stack([v for name, v in model.named_parameters() if name.endswith("2.new_down")]).clone())
        activate(model, 3)
    return drawn


def test_every_expert_begins_with_weights_of_its_own_and_of_the_seed() -> None:
    drawn = torch.cat([*first_weights(0, 3), *first_weights(1, 3)])
    flat = nn.functional.normalize(drawn.flatten(1), dim=1)
    similarity = flat @ flat.T - torch.eye(len(flat))
    assert similarity.abs().max() < 0.5


def test_the_same_seed_begins_alike() -> None:
    assert torch.equal(torch.cat(first_weights(3, 2)), torch.cat(first_weights(3, 2)))
