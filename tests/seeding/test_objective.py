"""The trainer's loss and its gradient against eq. 5 written out row by row, unpadded, in float64."""

import math
from typing import Any

import pytest
import torch
from made_up import asleep, lessons, settings, trainer_of, without_context
from tiny_models import VOCAB
from torch import Tensor, nn

from sleep_pipeline.memory import teacher_view
from sleep_pipeline.seeding.divergences import KINDS, CachedTeacher, Kind
from sleep_pipeline.seeding.lessons import Lesson
from sleep_pipeline.seeding.rewards import imitation_reward

Loss = tuple[Tensor, dict[str, Tensor]]


def read(model: nn.Module, ids: tuple[int, ...]) -> Tensor:
    """Probabilities `[T, V]` of one unpadded conversation."""
    return model(input_ids=torch.tensor([ids])).logits[0].double().softmax(-1)


def kl(p: Tensor, q: Tensor) -> Tensor:
    return sum((a * (a / b).log() for a, b in zip(p, q, strict=True) if a.item() > 0), torch.zeros(()).double())


def distance(teacher: Tensor, student: Tensor, kind: Kind, beta: float) -> Tensor:
    if kind == "forward_kl":
        return kl(teacher, student)
    if kind == "reverse_kl":
        return kl(student, teacher)
    mixed = beta * teacher + (1 - beta) * student
    return beta * kl(teacher, mixed) + (1 - beta) * kl(student, mixed)


def lumped(student: Tensor, cached: CachedTeacher, position: int) -> tuple[Tensor, Tensor]:
    """The cached tokens and, if there are any, all others as one."""
    top = cached.tokens_NK[position].tolist()
    taught = [*cached.log_probs_NK[position].exp().tolist(), math.exp(float(cached.tail_N[position]))]
    said = [student[token] for token in top]
    if len(top) == VOCAB:
        return torch.tensor(taught[:-1], dtype=torch.float64), torch.stack(said)
    others = torch.stack([student[token] for token in range(VOCAB) if token not in top]).sum()
    return torch.tensor(taught, dtype=torch.float64), torch.stack([*said, others])


def slow_loss(model: nn.Module, off: list[Lesson], spoken: list[tuple[Lesson, int, list[int], float]], s: Any) -> Loss:
    """Eq. 5 as it stands in the trainer's docstring: mean over tokens of F, mean over rows of the policy term."""
    distances, policies = [], []
    for one in off:
        student = read(model, one.ids)
        for position in range(len(one.ids) - one.start):
            taught, said = lumped(student[one.start - 1 + position], one.teacher, position)
            distances.append(distance(taught, said, s.divergence, s.beta))
    for one, cut, completion, advantage in spoken:
        begin, answer = one.ids[: one.start + cut], tuple(completion)
        before = one.teacher_prompt + one.ids[one.start : one.start + cut]
        with teacher_view(model), torch.no_grad():
            taught = read(model, before + answer)
        student = read(model, begin + answer)
        log_probs = []
        for position, token in enumerate(answer):
            row = student[len(begin) - 1 + position]
            distances.append(distance(taught[len(before) - 1 + position], row, s.divergence, s.beta))
            log_probs.append(row[token].log())
        policies.append(-advantage * torch.stack(log_probs).sum())
    loss = s.alpha * torch.stack(distances).mean()
    if policies:
        loss = loss + (1 - s.alpha) * torch.stack(policies).mean()
    return loss, gradient(model, loss)


def gradient(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))


def agree(found: Loss, wanted: Loss) -> None:
    assert found[0].item() == pytest.approx(wanted[0].item(), rel=1e-9)
    assert found[1].keys() == wanted[1].keys()
    for name, value in wanted[1].items():
        assert float(value.norm()) > 0
        assert float((found[1][name] - value).norm() / value.norm()) < 1e-9, name


SPOKEN: list[tuple[int, int, list[int], float]] = [
    (0, 0, [9, 2], 0.7),
    (0, 0, [11, 12, 13, 14], -0.7),
    (3, 5, [2], 0.25),
    (3, 5, [7, 7, 7], 0.0),
]
"""Lesson, cut, completion and advantage; one completion is an end mark alone, one has nothing to gain."""


def as_inputs(spoken: list[tuple[int, int, list[int], float]]) -> dict[str, Tensor]:
    width = max(len(said) for _, _, said, _ in spoken)
    return {
        "lesson": torch.tensor([index for index, *_ in spoken]),
        "cut": torch.tensor([cut for _, cut, *_ in spoken]),
        "completion": torch.tensor([said + [-1] * (width - len(said)) for _, _, said, _ in spoken]),
        "advantage": torch.tensor([advantage for *_, advantage in spoken], dtype=torch.float64),
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [5, VOCAB])
def test_loss_and_gradient_are_those_written_out_row_by_row(kind: Kind, k: int, tiny_tokenizer: Any) -> None:
    model = asleep(torch.float64)
    given = settings(divergence=kind, beta=0.3, alpha=0.6)
    taught = lessons(k=k)
    trainer = trainer_of(
        model,
        tiny_tokenizer,
        taught,
        imitation_reward(0.0, 6, None),
        settings=given,
        replayed=without_context(lessons(3, k, first=20)),
        open_book=lessons(2, k, first=30),
    )
    off = [one for chosen in trainer._off_policy().values() for one in chosen]
    assert len(off) == 4 + 2 + 1
    loss = trainer._compute_loss(model, as_inputs(SPOKEN))
    spoken = [(taught[index], cut, said, advantage) for index, cut, said, advantage in SPOKEN]
    agree((loss, gradient(model, loss)), slow_loss(model, off, spoken, given))


def test_rows_of_different_length_are_worth_several_forward_passes(tiny_tokenizer: Any) -> None:
    model = asleep()
    trainer = trainer_of(model, tiny_tokenizer)
    passes = []
    model.register_forward_hook(lambda *_: passes.append(1))
    trainer._compute_loss(model, as_inputs(SPOKEN))
    assert len(passes) > 1 + 1, "the student in several batches, the teacher"


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        (None, 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)),
        ("reverse_kl", 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)),
    ],
)
def test_the_default_divergence_runs_from_the_teacher_to_the_student(
    kind: Kind | None, wanted: float, tiny_tokenizer: Any
) -> None:
    two = CachedTeacher(torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.5]]).log(), torch.full((1,), -1e4))
    changes = {} if kind is None else {"divergence": kind}
    trainer = trainer_of(
        asleep(),
        tiny_tokenizer,
        [Lesson((7, 8), 1, two)],
        settings=settings(rows=1, on_policy=0.0, alpha=1.0, **changes),
    )
    trainer.head = lambda hidden: torch.tensor([[0.9, 0.1]]).log().expand(len(hidden), 2)
    assert trainer._compute_loss(trainer.model, {}).item() == pytest.approx(wanted, rel=1e-6)


def test_a_penalty_is_added_to_the_loss(tiny_tokenizer: Any) -> None:
    model = asleep()
    plain, held = (
        trainer_of(model, tiny_tokenizer, penalty=penalty)._compute_loss(model, as_inputs(SPOKEN)).item()
        for penalty in (None, lambda: torch.tensor(0.25))
    )
    assert held - plain == pytest.approx(0.25, rel=1e-4)
