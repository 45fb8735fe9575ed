"""Gradients in factors against one backward pass a dream, in float64."""

from collections.abc import Mapping

import pytest
import tiny_models
import torch
from torch import Tensor, nn

from sleep_pipeline.dreaming import gradients
from sleep_pipeline.dreaming.gradients import (
    Factors,
    expert_weights,
    inner_products,
    linear_weights,
    projections,
    sample_gradients,
    squared_norms,
)
from sleep_pipeline.dreaming.rows import Row, losses, side_by_side
from sleep_pipeline.memory import teacher_view, unlock


def row(length: int, seed: int, start: int = 0) -> Row:
    return Row(tuple(tiny_models.tokens(1, length, seed)[0].tolist()), start)


DREAMS = [
    (row(9, 1),),
    (row(30, 2, 11),),
    (row(14, 3, 5), row(6, 4)),
    (row(4, 5, 2), row(7, 6, 6), row(12, 7)),
    (row(17, 8, 16),),
]
HELD_OUT = [(row(8, 20, 3), row(11, 21, 4)), (row(9, 22, 2),)]


def one_by_one(model: nn.Module, samples: list[tuple[Row, ...]], weights: Mapping[str, Tensor]) -> Tensor:
    """Gradients `[K, size]`, each of a backward pass of its own, every row alone and unpadded."""
    wanted = [weight.requires_grad for weight in weights.values()]
    for weight in weights.values():
        weight.requires_grad_()
    found = []
    for rows in samples:
        total = torch.zeros((), dtype=torch.float64)
        for text in rows:
            total = total + losses(model, side_by_side([[text]]))[0] * text.learned
        mean = total / sum(text.learned for text in rows)
        parts = torch.autograd.grad(mean, list(weights.values()), materialize_grads=True)
        found.append(torch.cat([part.flatten() for part in parts]))
    for weight, flag in zip(weights.values(), wanted, strict=True):
        weight.requires_grad_(flag)
    return torch.stack(found)


def same(found: Tensor, wanted: Tensor) -> bool:
    return float((found - wanted).norm() / wanted.norm()) < 1e-9


def agrees(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    wanted, held = one_by_one(model, DREAMS, weights), one_by_one(model, HELD_OUT, weights)
    found, held_out = sample_gradients(model, DREAMS, weights), sample_gradients(model, HELD_OUT, weights)
    assert same(squared_norms(found), wanted.square().sum(1))
    assert same(inner_products(found, held_out), wanted @ held.T)
    assert same(inner_products(found, found), wanted @ wanted.T)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "qwen3"])
def test_one_pass_gives_what_a_backward_pass_a_dream_gives(architecture: str) -> None:
    model = tiny_models.build(architecture, torch.float64)
    agrees(model, linear_weights(model))


@pytest.mark.parametrize("width", [1, 10**9])
def test_gram_matrices_of_tokens_and_gradients_layer_by_layer_agree(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways, whichever would be cheaper."""
    monkeypatch.setattr(Factors, "size", property(lambda self: width))
    monkeypatch.setattr(gradients, "_CHUNK", 500)
    model = tiny_models.build("llama", torch.float64)
    agrees(model, linear_weights(model, ["down_proj", "q_proj"]))


def test_an_expert_in_training_has_gradients_too() -> None:
    model = tiny_models.with_memory().double()
    tiny_models.learn(model, seed=1)
    unlock(model, 1)
    tiny_models.fill(model, 1, seed=2)
    weights = expert_weights(model)
    assert len(weights) == 4 and all("new_" in name for name in weights)
    agrees(model, weights)
    with teacher_view(model), pytest.raises(ValueError, match="there is no expert"):
        expert_weights(model)


def test_outside_of_a_sleep_the_active_experts_have_them() -> None:
    model = tiny_models.with_memory().double()
    for seed in (1, 2):
        tiny_models.learn(model, seed=seed)
    weights = expert_weights(model)
    assert len(weights) == 4 and not any("new_" in name for name in weights)
    agrees(model, weights)


def test_a_model_without_experts_has_no_weights_to_offer() -> None:
    with pytest.raises(ValueError, match="there is no expert of a memory"):
        expert_weights(tiny_models.with_memory())


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_models.build("llama")
    model.requires_grad_(False)
    before = tiny_models.snapshot(model)
    sample_gradients(model, DREAMS, linear_weights(model))
    assert tiny_models.same(before, tiny_models.snapshot(model))
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_projections_keep_inner_products_on_average() -> None:
    model = tiny_models.build("llama", torch.float64)
    weights = linear_weights(model, ["up_proj"])
    found, held_out = sample_gradients(model, DREAMS, weights), sample_gradients(model, HELD_OUT, weights)
    both = inner_products(found, found), inner_products(found, held_out)
    drawn = [projections(found, 64, seed) for seed in range(10)]
    others = [projections(held_out, 64, seed) for seed in range(10)]
    mean = sum(one @ one.T for one in drawn) / 10, sum(o @ h.T for o, h in zip(drawn, others, strict=True)) / 10
    scale = squared_norms(found).sqrt()[:, None]
    assert float(((mean[0] - both[0]) / (scale * scale.T)).abs().max()) < 0.1
    assert float(((mean[1] - both[1]) / (scale * squared_norms(held_out).sqrt())).abs().max()) < 0.1
    assert projections(found, 4, 0).shape == (len(DREAMS), len(weights) * 16)


def test_layers_that_do_not_see_whole_rows_are_named() -> None:
    model = tiny_models.build("llama", torch.float64)
    layer = model.get_submodule("model.layers.0.mlp.up_proj")
    forward = layer.forward
    layer.forward = lambda x: torch.cat([forward(x[:, :2]), forward(x[:, 2:])], 1)  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.up_proj was given .* cannot be told apart"):
        sample_gradients(model, DREAMS, linear_weights(model))


def test_gradients_for_different_weights_are_not_compared() -> None:
    model = tiny_models.build("llama", torch.float64)
    left = sample_gradients(model, DREAMS, linear_weights(model, ["up_proj"]))
    right = sample_gradients(model, DREAMS, linear_weights(model, ["down_proj"]))
    with pytest.raises(ValueError, match="different weights"):
        inner_products(left, right)
