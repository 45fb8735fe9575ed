"""Muon and AdamW as one optimizer: each does to its own parameters what it does alone."""

import pytest
import torch
from torch import nn

from sleep_pipeline.optimizers import MuonAdamW, matrices_and_others

MUON = {"lr": 0.02, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
ADAMW = {"lr": 0.01, "betas": (0.9, 0.98), "weight_decay": 0.2}


class Small(nn.Module):
    """An embedding that the output shares, a matrix, a vector, and a matrix that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(5, 4)
        self.middle = nn.Linear(4, 4)
        self.frozen = nn.Linear(4, 4, bias=False).requires_grad_(False)
        self.out = nn.Linear(4, 5, bias=False)
        self.out.weight = self.embed.weight

    def loss(self) -> torch.Tensor:
        hidden = self.frozen(self.middle(self.embed(torch.arange(5))))
        return nn.functional.cross_entropy(self.out(hidden), torch.arange(5).roll(1))


def both(model: Small) -> MuonAdamW:
    matrices, others = (list(part.values()) for part in matrices_and_others(model, only_trained=True))
    return MuonAdamW(matrices, others, MUON, ADAMW)


def step(model: Small, *optimizers: torch.optim.Optimizer) -> None:
    for optimizer in optimizers:
        optimizer.zero_grad()
    model.loss().backward()
    for optimizer in optimizers:
        optimizer.step()


def weights(model: Small) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_embeddings_and_what_shares_them_are_no_matrices_for_muon() -> None:
    model = Small()
    every = matrices_and_others(model)
    assert [sorted(part) for part in every] == [["frozen.weight", "middle.weight"], ["embed.weight", "middle.bias"]]
    trained = matrices_and_others(model, only_trained=True)
    assert [sorted(part) for part in trained] == [["middle.weight"], ["embed.weight", "middle.bias"]]


def test_each_does_what_it_does_alone() -> None:
    together, apart = Small(), Small()
    one = both(together)
    muon = torch.optim.Muon([apart.middle.weight], **MUON)  # type: ignore[arg-type]
    adamw = torch.optim.AdamW([apart.embed.weight, apart.middle.bias], **ADAMW)  # type: ignore[arg-type]
    for _ in range(3):
        step(together, one)
        step(apart, muon, adamw)
    assert all(torch.equal(weights(together)[name], weight) for name, weight in weights(apart).items())


def test_a_schedule_moves_both() -> None:
    model = Small()
    optimizer = both(model)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 0.0)
    before = weights(model)
    step(model, optimizer)
    assert all(torch.equal(weights(model)[name], weight) for name, weight in before.items())


def test_a_saved_state_goes_on_bit_for_bit() -> None:
    whole, broken = Small(), Small()
    first, second = both(whole), both(broken)
    for _ in range(2):
        step(whole, first)
        step(broken, second)
    resumed = both(broken)
    resumed.load_state_dict(second.state_dict())
    for _ in range(2):
        step(whole, first)
        step(broken, resumed)
    assert all(torch.equal(weights(whole)[name], weight) for name, weight in weights(broken).items())


@pytest.mark.parametrize("name", ["middle.weight", "middle.bias"])
def test_one_kind_alone_will_do(name: str) -> None:
    model = Small()
    parameter = model.get_parameter(name)
    optimizer = MuonAdamW(*(([parameter], []) if parameter.ndim == 2 else ([], [parameter])), MUON, ADAMW)
    before = weights(model)
    step(model, optimizer)
    assert [key for key, weight in weights(model).items() if not torch.equal(weight, before[key])] == [name]


def test_groups_of_others_keep_their_own_rates() -> None:
    model = Small()
    groups = [{"params": [model.embed.weight]}, {"params": [model.middle.bias], "lr": 0.0, "weight_decay": 0.0}]
    optimizer = MuonAdamW([model.middle.weight], groups, MUON, ADAMW)
    before = weights(model)
    step(model, optimizer)
    resumed = MuonAdamW([model.middle.weight], groups, MUON, ADAMW)
    resumed.load_state_dict(optimizer.state_dict())
    step(model, resumed)
    changed = [name for name, weight in weights(model).items() if not torch.equal(weight, before[name])]
    assert changed == ["embed.weight", "middle.weight"]


class Stacks(nn.Module):
    """Three matrices in one stack, of which the last is not asked, and a vector."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.stack: nn.Parameter = nn.Parameter(torch.randn(3, 4, 6))
        self.bias: nn.Parameter = nn.Parameter(torch.zeros(6))

    def loss(self, number: int) -> torch.Tensor:
        x = torch.randn(5, 4, generator=torch.Generator().manual_seed(number))
        return ((x @ self.stack[0]).tanh() @ (x @ self.stack[1]).T).sum() + (
            x @ self.stack[0] + self.bias
        ).square().sum()


def test_each_matrix_of_a_stack_steps_as_if_it_stood_alone() -> None:
    model = Stacks()
    optimizer = MuonAdamW([], [model.bias], MUON, ADAMW, stacks=[model.stack], stacked={"lr": 0.05})
    matrices = [nn.Parameter(matrix.detach().clone()) for matrix in model.stack]
    alone = torch.optim.Muon(matrices, **{**MUON, "lr": 0.05})  # type: ignore[arg-type]
    for number in range(4):
        optimizer.zero_grad()
        model.loss(number).backward()
        assert model.stack.grad is not None
        for matrix, gradient in zip(matrices[:2], model.stack.grad, strict=False):
            matrix.grad = gradient.clone()
        optimizer.step()
        alone.step()
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(model.stack, matrices, strict=True))
    first = Stacks().stack
    assert torch.equal(model.stack[2], first[2]) and not torch.equal(model.stack[0], first[0])


def test_a_saved_state_of_stacks_goes_on_bit_for_bit() -> None:
    def made(model: Stacks) -> MuonAdamW:
        return MuonAdamW([], [model.bias], MUON, ADAMW, stacks=[model.stack])

    def stepped(model: Stacks, optimizer: MuonAdamW, number: int) -> None:
        optimizer.zero_grad()
        model.loss(number).backward()
        optimizer.step()

    whole, broken = Stacks(), Stacks()
    first, second = made(whole), made(broken)
    for number in range(2):
        stepped(whole, first, number)
        stepped(broken, second, number)
    again = Stacks()
    again.load_state_dict(broken.state_dict())
    third = made(again)
    third.load_state_dict(second.state_dict())
    stepped(whole, first, 2)
    stepped(again, third, 2)
    assert torch.equal(whole.stack, again.stack) and torch.equal(whole.bias, again.bias)
