"""Importance of dreams by their gradients, and the choice of those that are tried (paper.md section 4, step 2).

Deviation: the paper fixes no formula. `alignment` is the first-order change of the loss on held-out samples of the same
task, as in TracIn (Pruthi et al. 2020) and the first term of GREATS (Wang et al. 2024); `greats` adds its interaction
term with the identity for the Hessian; `influence` follows LESS (Xia et al. 2024) in comparing directions only.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sleep_pipeline.dreaming.gradients import (
    SampleGradients,
    expert_weights,
    inner_products,
    linear_weights,
    projections,
    sample_gradients,
    squared_norms,
)
from sleep_pipeline.dreaming.rows import Dream, Row
from sleep_pipeline.dreaming.settings import ScoreSettings


@dataclass(frozen=True)
class Scores:
    """Importance of dreams.

    Attributes:
        omega: of each dream, in their order; not a number where a gradient is not finite.
        order: indices of all dreams, the most important first.
    """

    omega: tuple[float, ...]
    order: tuple[int, ...]


@dataclass
class Evidence:
    """What a scorer may look at.

    Attributes:
        dreams: how many there are.
        gradients: of the dreams, some of one task at a time with their indices; going through it takes the backward
            passes.
        tasks: which task each dream belongs to.
        aim: takes the gradient of a task's held-out samples, as one sample.
        settings: see `ScoreSettings`.
    """

    dreams: int
    gradients: Iterator[tuple[list[int], SampleGradients]]
    tasks: Sequence[int]
    aim: Callable[[int], SampleGradients]
    settings: ScoreSettings

    def aims(self) -> Callable[[Sequence[int]], SampleGradients]:
        """The gradient of the held-out samples of some dreams' task; no more than one task's is kept."""
        last: tuple[int, SampleGradients] | None = None

        def aim(indices: Sequence[int]) -> SampleGradients:
            nonlocal last
            task = self.tasks[indices[0]]
            if last is None or last[0] != task:
                last = None
                last = task, self.aim(task)
            return last[1]

        return aim


Scorer = Callable[[Evidence], Scores]


def gradient_norm(evidence: Evidence) -> Scores:
    """Norm of the gradient: how much a dream would change."""
    return _by_value(evidence, lambda gradients, _: squared_norms(gradients).sqrt())


def alignment(evidence: Evidence) -> Scores:
    """Inner product with the gradient of the task's held-out samples: how much a small step lowers their loss."""
    aim = evidence.aims()
    return _by_value(evidence, lambda gradients, at: inner_products(gradients, aim(at))[:, 0])


def influence(evidence: Evidence) -> Scores:
    """Cosine between the projected gradients of a dream and of its task, so that long gradients have no advantage."""
    side = evidence.settings.projection

    def directions(gradients: SampleGradients) -> Tensor:
        return nn.functional.normalize(projections(gradients, side, seed=0), dim=1)

    aim = evidence.aims()
    return _by_value(evidence, lambda gradients, at: directions(gradients) @ directions(aim(at))[0])


def greats(evidence: Evidence) -> Scores:
    """Greedy choice by `<g_i, g_val> - interaction * sum_j <g_i, g_j>` over the dreams `j` chosen before.

    Each dream's score is what it brought when its turn came.
    """
    aim = evidence.aims()
    parts = list(evidence.gradients)
    gains = torch.zeros(evidence.dreams, dtype=torch.float64)
    gram = torch.zeros(evidence.dreams, evidence.dreams, dtype=torch.float64)
    for at, gradients in parts:
        gains[at] = inner_products(gradients, aim(at))[:, 0].double().cpu()
        for to, others in parts:
            gram[torch.tensor(at)[:, None], to] = inner_products(gradients, others).double().cpu()
    open_ones = torch.ones(evidence.dreams, dtype=torch.bool)
    omega, order = [math.nan] * evidence.dreams, []
    for _ in range(evidence.dreams):
        candidates = torch.where(open_ones, gains.nan_to_num(-math.inf, posinf=-math.inf), -math.inf)
        index = int(candidates.argmax()) if bool(candidates.isfinite().any()) else int(open_ones.nonzero()[0])
        omega[index] = float(gains[index])
        order.append(index)
        open_ones[index] = False
        if math.isfinite(omega[index]):
            gains = gains - evidence.settings.interaction * gram[index]
    return Scores(tuple(omega), tuple(order))


def _by_value(evidence: Evidence, value: Callable[[SampleGradients, Sequence[int]], Tensor]) -> Scores:
    omega = [math.nan] * evidence.dreams
    for indices, gradients in evidence.gradients:
        for index, found in zip(indices, value(gradients, indices).tolist(), strict=True):
            omega[index] = found
    order = sorted(range(len(omega)), key=lambda i: (-omega[i] if math.isfinite(omega[i]) else math.inf, i))
    return Scores(tuple(omega), tuple(order))


SCORERS: dict[str, Scorer] = {
    "gradient_norm": gradient_norm,
    "alignment": alignment,
    "influence": influence,
    "greats": greats,
}


def score(
    model: nn.Module,
    dreams: Sequence[Dream],
    settings: ScoreSettings,
    tasks: Sequence[int] | None = None,
    held_out: Sequence[Sequence[Row]] | None = None,
) -> Scores:
    """Score dreams by the gradients of their losses.

    Args:
        model: a causal LM, in the view that it is in; it is scored in eval mode.
        dreams: what trials would learn.
        settings: see `ScoreSettings`.
        tasks: the index in `held_out` of each dream's task; None if there is only one.
        held_out: samples of each task that no dream may see.

    Raises:
        ValueError: the settings name no scorer or no weights, or a score needs held-out samples that are not there.
    """
    if settings.kind not in SCORERS:
        raise ValueError(f"score {settings.kind!r} is unknown; choose one of {', '.join(sorted(SCORERS))}")
    tasks = [0] * len(dreams) if tasks is None else list(tasks)
    if held_out is not None and (missing := sorted({task for task in tasks if not held_out[task]})):
        raise ValueError(f"task {missing[0]} has dreams but no held-out sample; leave its dreams out or give one")
    if not dreams:
        return Scores((), ())
    weights = expert_weights(model) if settings.over == "memory" else linear_weights(model, settings.targets)
    was_training = model.training
    model.eval()
    try:

        def aim(task: int) -> SampleGradients:
            if held_out is None:
                raise ValueError(
                    f"the score {settings.kind!r} compares with held-out samples and there are none; pass held_out, or "
                    "score by gradient_norm"
                )
            return sample_gradients(model, [held_out[task]], weights)

        gradients = (
            (batch, sample_gradients(model, [dreams[index].rows for index in batch], weights))
            for batch in _batches(dreams, settings.tokens_at_once, tasks)
        )
        return SCORERS[settings.kind](Evidence(len(dreams), gradients, tasks, aim, settings))
    finally:
        model.train(was_training)


def _batches(dreams: Sequence[Dream], tokens: int, tasks: Sequence[int]) -> list[list[int]]:
    """Dreams of one task and of like shape together, each batch within a number of tokens with its padding."""
    order = sorted(range(len(dreams)), key=lambda i: (tasks[i], len(dreams[i].rows), dreams[i].longest))
    batches: list[list[int]] = [[]]
    for index in order:
        grown = [*batches[-1], index]
        depth, length = max(len(dreams[i].rows) for i in grown), max(dreams[i].longest for i in grown)
        if len(grown) > 1 and (len(grown) * depth * length > tokens or tasks[grown[0]] != tasks[index]):
            batches.append([index])
        else:
            batches[-1] = grown
    return batches


Kept = Literal["top", "random", ""]


@dataclass(frozen=True)
class Choice:
    """Whether a dream is tried.

    Attributes:
        index: of the dream.
        omega: its score.
        rank: 1 for the best of its group.
        kept: `top` by its score, `random` drawn from the others, empty if dropped.
        reason: the same in words.
    """

    index: int
    omega: float
    rank: int
    kept: Kept
    reason: str


def select(scores: Scores, top_k: int, random_b: int, seed: int, groups: Sequence[int] | None = None) -> list[Choice]:
    """Keep the best dreams and, for diversity, some drawn from the others.

    Args:
        scores: see `score`.
        top_k: how many of the best are kept.
        random_b: how many of the others.
        seed: of the draw.
        groups: of each dream; the numbers are then for each group.

    Returns:
        One choice a dream, in their order.
    """
    of = [0] * len(scores.omega) if groups is None else list(groups)
    choices: dict[int, Choice] = {}
    for group in sorted(set(of)):
        order = [index for index in scores.order if of[index] == group]
        rest = order[top_k:]
        drawn = set(random.Random(f"select/{seed}/{group}").sample(rest, min(random_b, len(rest))))
        for rank, index in enumerate(order, start=1):
            place = f"rank {rank} of {len(order)}"
            kept: Kept
            if rank <= top_k:
                kept, reason = "top", f"{place} is among the best {top_k}"
            elif index in drawn:
                kept, reason = "random", f"{place}, drawn at random among the {len(rest)} behind the best {top_k}"
            else:
                kept, reason = "", f"{place} is behind the best {top_k} and was not drawn"
            choices[index] = Choice(index, scores.omega[index], rank, kept, reason)
    return [choices[index] for index in range(len(of))]
