"""The batched computation against a slow, obvious reference: one token and one expert at a time, in float64."""

import math

import pytest
import torch
from tiny_models import build, fill, learn, one_level, three_levels, with_memory
from torch import Tensor

from sleep_pipeline.memory import LevelConfig, experts, experts_view, state_of, unlock
from sleep_pipeline.memory.experts import dense, grouped, grouped_pays, inverse_rms
from sleep_pipeline.memory.layer import ContinuumLayer
from sleep_pipeline.memory.levels import Level
from sleep_pipeline.memory.routers import ROUTERS, SHUT_BELOW, keep_top_k
from sleep_pipeline.memory.state import LevelPlan, Plan

WIDTH, RANK = 16, 3


def activation(value: Tensor, name: str) -> Tensor:
    if name == "silu":
        return value / (1 + torch.exp(-value))
    return torch.clamp(value, min=0) if name == "relu" else value


def reference_gates(logits: list[Tensor], router: str, top_k: int | None) -> list[Tensor]:
    if router == "null_softmax":
        total = 1 + sum(torch.exp(logit) for logit in logits)
        gates = [torch.exp(logit) / total for logit in logits]
    else:
        gates = [1 / (1 + torch.exp(-logit)) for logit in logits]
        if router == "threshold":
            gates = [torch.clamp(gate - SHUT_BELOW, min=0) / (1 - SHUT_BELOW) for gate in gates]
    if top_k is not None:
        best = sorted(range(len(gates)), key=lambda index: -float(gates[index]))[:top_k]
        gates = [gate if index in best else gate * 0 for index, gate in enumerate(gates)]
    return gates


def reference(level: Level, x: Tensor, on: list[int], training: bool) -> Tensor:
    """Row by row: every token by itself, every expert by itself."""
    config = level.config
    rows = []
    for token in x.reshape(-1, WIDTH):
        normed = token * math.sqrt(WIDTH) / (torch.sqrt((token * token).sum()) + 1e-6)
        parts = [(level.keys[s], level.offsets[s], level.down[s], level.up[s]) for s in on]
        if training:
            key = level.new_key * config.router_gain
            parts.append((key, level.new_offset[0], level.new_down, level.new_up))
        logits = [(key * normed).sum() + offset for key, offset, _, _ in parts]
        out = torch.zeros(WIDTH, dtype=torch.float64)
        for gate, (_, _, down, up) in zip(reference_gates(logits, config.router, config.top_k), parts, strict=True):
            hidden = [activation((down[unit] * normed).sum(), level.activation) for unit in range(RANK)]
            out = out + gate * sum(hidden[unit] * up[unit] for unit in range(RANK))
        rows.append(out)
    return torch.stack(rows).view(x.shape)


def random_level(num_slots: int, seed: int = 0, act: str = "silu", **changes: object) -> Level:
    config = LevelConfig(**{"num_slots": num_slots, "rank": RANK, "router_bias": -1.0, **changes})
    level = Level(config, WIDTH, act, False, 0, torch.float64, torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in level.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    level.train_experts(True)
    return level


def relative(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach(), expected.detach()
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("act", ["silu", "relu", "identity"])
@pytest.mark.parametrize("router", sorted(ROUTERS))
@pytest.mark.parametrize("top_k", [None, 2])
@pytest.mark.parametrize("count", [1, 5, 20])
def test_forward_and_backward_agree_with_the_reference(count: int, top_k: int | None, router: str, act: str) -> None:
    level = random_level(count + 2, act=act, router=router, top_k=top_k)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((2, 3, WIDTH), generator=generator, dtype=torch.float64, requires_grad=True)
    weights = torch.randn((2, 3, WIDTH), generator=generator, dtype=torch.float64)
    off = (0,) if count == 5 else ()
    plan = LevelPlan(count, off, True, None)
    found = level(x, plan, Plan((plan,)), 1, 0)
    expected = reference(level, x, [slot for slot in range(count) if slot not in off], True)
    assert relative(found, expected) < 1e-12
    wanted = [x, level.new_key, level.new_offset, level.new_down, level.new_up]
    found_grads = torch.autograd.grad((found * weights).sum(), wanted)
    expected_grads = torch.autograd.grad((expected * weights).sum(), wanted)
    for found_grad, expected_grad in zip(found_grads, expected_grads, strict=True):
        assert relative(found_grad, expected_grad) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count, chosen", [(5, 2), (20, 3)])
def test_the_grouped_products_agree_with_the_dense_ones(count: int, chosen: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((3, 7, 16), generator=generator).requires_grad_(True)
    down, up = (torch.randn((count, 8, 16), generator=generator) * 0.3 for _ in range(2))
    gates = keep_top_k(torch.rand((3, 7, count), generator=generator), chosen).requires_grad_(True)
    weights = torch.randn((3, 7, 16), generator=generator)
    exact = dense(x.double(), inverse_rms(x.double()), gates.double(), down.double(), up.double(), "silu")
    found = grouped(x.to(dtype), inverse_rms(x), gates, down.to(dtype), up.to(dtype), "silu", chosen)
    tolerance = 64 * torch.finfo(dtype).eps
    assert found.dtype == dtype
    assert relative(found.double(), exact) < tolerance
    exact_grads = torch.autograd.grad((exact * weights).sum(), (x, gates))
    found_grads = torch.autograd.grad((found * weights).sum(), (x, gates))
    assert relative(found_grads[0], exact_grads[0]) < tolerance
    # `grouped` gives no gradient to gates that are not chosen; in a router those are constant zeros.
    assert relative(found_grads[1], exact_grads[1] * (gates > 0)) < tolerance


@pytest.mark.parametrize("rank", [RANK, 4], ids=["rows_not_aligned", "grouped"])
def test_a_router_with_top_k_learns_the_same_in_both_kinds_of_product(
    rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experts, "SORTING", 0)
    results = []
    for dtype in (torch.float64, torch.float32):
        level = random_level(8, top_k=2, rank=rank).to(dtype)
        assert grouped_pays(level.down[:7], 2, tokens=10**6) == (dtype is torch.float32 and rank == 4)
        x = torch.randn((2, 5, WIDTH), generator=torch.Generator().manual_seed(2)).to(dtype).requires_grad_(True)
        plan = LevelPlan(7, (), True, None)
        out = level(x, plan, Plan((plan,)), 1, 0)
        grads = torch.autograd.grad(out.square().sum(), (x, level.new_key, level.new_down))
        results.append([tensor.double() for tensor in (out, *grads)])
    for exact, found in zip(*results, strict=True):
        assert relative(found, exact) < 1e-5


def test_autocast_works_for_both_kinds_of_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experts, "SORTING", 0)
    for top_k in (None, 2):
        level = random_level(8, top_k=top_k, rank=8).float()
        x = torch.randn((2, 5, WIDTH), generator=torch.Generator().manual_seed(2))
        plan = LevelPlan(7, (), True, None)
        exact = level(x, plan, Plan((plan,)), 1, 0)
        with torch.autocast("cpu", torch.bfloat16):
            found = level(x, plan, Plan((plan,)), 1, 0)
        assert found.dtype is torch.bfloat16
        assert relative(found.float(), exact) < 0.05


@pytest.mark.parametrize("router", sorted(ROUTERS))
def test_every_router_can_stay_shut(router: str) -> None:
    gates = ROUTERS[router](torch.full((2, 3), -40.0))
    assert float(gates.max()) < 1e-6
    opened = ROUTERS[router](torch.tensor([[40.0, -40.0]]))
    torch.testing.assert_close(opened, torch.tensor([[1.0, 0.0]]))


def test_a_token_that_no_key_matches_passes_the_threshold_router_bit_for_bit() -> None:
    assert float(ROUTERS["threshold"](torch.tensor([[-3.0]]))) == 0.0
    assert float(ROUTERS["threshold"](torch.tensor([[-2.0]]))) > 0.0, "a fresh expert must be able to learn"


def test_as_many_experts_as_top_k_take_part_for_each_token() -> None:
    gates = keep_top_k(torch.rand((4, 5, 20), generator=torch.Generator().manual_seed(0)) + 0.1, 2)
    assert torch.equal((gates > 0).sum(-1), torch.full((4, 5), 2))


def test_the_chain_is_that_of_equation_1() -> None:
    model = with_memory(three_levels())
    for level in (1, 2, 3):
        learn(model, level, seed=level)
    state = state_of(model)
    state.moved[:2] = [True, True]
    state.refresh()
    layer = next(module for module in model.modules() if isinstance(module, ContinuumLayer))
    first, second, slowest = layer.levels("default")
    with torch.no_grad():
        for level in (first, second):
            level.get_parameter("base_up").copy_(torch.randn(5, 16, generator=torch.Generator().manual_seed(3)))
    x = torch.randn((1, 4, 16), generator=torch.Generator().manual_seed(1))

    def alone(level: Level, value: Tensor) -> Tensor:
        plan = LevelPlan(1, (), False, "base" if level is not slowest else None)
        return level(value, plan, Plan((plan,)), 1, 0)

    inner = x + alone(first, x)
    inner = inner + alone(second, inner)
    block = layer.base_layer(inner)
    loudness = block.square().mean(-1, keepdim=True).sqrt()
    expected = block + loudness * alone(slowest, inner)
    torch.testing.assert_close(layer(x), expected, rtol=1e-6, atol=1e-6)


def test_what_an_expert_adds_is_relative_to_the_block_beside_it() -> None:
    model = with_memory()
    learn(model, 1)
    layer = next(module for module in model.modules() if isinstance(module, ContinuumLayer))
    x = torch.randn((1, 4, 16), generator=torch.Generator().manual_seed(1))
    before = layer(x) / layer.base_layer(x)
    with torch.no_grad():
        layer.base_layer.get_parameter("down_proj.weight").mul_(1000)
    torch.testing.assert_close(layer(x) / layer.base_layer(x), before, rtol=1e-4, atol=1e-4)


def test_a_block_that_returns_a_tuple_keeps_its_extra_outputs() -> None:
    class Router(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> tuple[Tensor, str]:
            return self.inner(x), "router logits"

    model = with_memory(one_level())
    learn(model)
    layer = next(module for module in model.modules() if isinstance(module, ContinuumLayer))
    x = torch.randn((1, 4, 16), generator=torch.Generator().manual_seed(1))
    expected = layer(x)
    layer.base_layer = Router(layer.base_layer)
    found, extra = layer(x)
    assert torch.equal(found, expected)
    assert extra == "router logits"


def test_experts_that_are_switched_off_leave_no_trace() -> None:
    model = with_memory(one_level())
    learn(model, seed=1)
    ids = torch.tensor([[5, 6, 7]])
    alone = model(input_ids=ids).logits
    learn(model, seed=2)
    learn(model, seed=3)
    with experts_view(model, 1, [0]):
        assert torch.equal(model(input_ids=ids).logits, alone)
    with experts_view(model, 1, []):
        assert torch.equal(model(input_ids=ids).logits, build()(ids).logits)


def test_activation_does_not_change_what_an_expert_does() -> None:
    from sleep_pipeline.memory import activate

    for changes in ({}, {"top_k": 1}, {"router": "null_softmax"}):
        model = with_memory(one_level(**changes)).double()
        learn(model, seed=1)
        unlock(model, 1)
        fill(model, 1, seed=2)
        ids = torch.tensor([[5, 6, 7, 8, 9]])
        before = model(input_ids=ids).logits
        activate(model, 1)
        torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=1e-12, atol=1e-12)
