"""Token-level divergences between a teacher and a student (paper.md eq. 3), without whole `[N, V]` distributions.

A teacher is either *live*, hidden states and the head that turns them into logits, or *cached*, its `k` likeliest
tokens and the mass of all others. Either way the student's logits are made a few rows at a time and made again in the
backward pass, so memory is bounded by `rows at a time * V` whatever the number of tokens.

A cached teacher is compared over `k + 1` outcomes: its `k` tokens, and "any other". By the data-processing inequality
that is never more than the divergence over the whole vocabulary, and equal to it for `k = V`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sleep_pipeline.seeding.settings import Kind

KINDS: tuple[Kind, ...] = get_args(Kind)
Head = Callable[[Tensor], Tensor]
"""Maps hidden states `[N, d]` to logits `[N, V]`."""

_LEAST = -1e4
"""Stands for log 0: far below any probability in use, and finite, so that 0 * log 0 and its gradient are 0."""


@dataclass(frozen=True)
class CachedTeacher:
    """What is kept of a teacher's distributions.

    Attributes:
        tokens_NK: its `k` likeliest tokens, int64 `[N, k]`.
        log_probs_NK: their log-probabilities, nats `[N, k]`.
        tail_N: log of the mass of all other tokens `[N]`; very low where `k = V`.
    """

    tokens_NK: Tensor
    log_probs_NK: Tensor
    tail_N: Tensor

    def __getitem__(self, rows: slice) -> CachedTeacher:
        return CachedTeacher(self.tokens_NK[rows], self.log_probs_NK[rows], self.tail_N[rows])


@dataclass(frozen=True)
class LiveTeacher:
    """A teacher's last hidden states `[N, d]` and its head; nothing of it gets a gradient."""

    hidden_ND: Tensor
    head: Head

    def __getitem__(self, rows: slice) -> LiveTeacher:
        return LiveTeacher(self.hidden_ND[rows], self.head)


def cache_teacher(logits_NV: Tensor, k: int) -> CachedTeacher:
    """Keep the `k` likeliest tokens of each row, and the exact mass of the others.

    Raises:
        ValueError: `k` is below 1 or above the vocabulary.
    """
    vocabulary = logits_NV.shape[-1]
    if not 1 <= k <= vocabulary:
        raise ValueError(f"top_k of the teacher cache is {k}; give 1 to {vocabulary}, the size of the vocabulary")
    logits_NV = _exact(logits_NV)
    order = logits_NV.topk(k, dim=-1).indices
    total_N = torch.logsumexp(logits_NV, dim=-1)
    log_probs = logits_NV.gather(-1, order) - total_N[:, None]
    # The tail is summed over the other tokens themselves: 1 - sum would cancel where it is small.
    others = logits_NV.scatter(-1, order, -torch.inf)
    tail = (torch.logsumexp(others, dim=-1) - total_N).clamp(min=_LEAST)
    return CachedTeacher(order, log_probs, tail)


def join(teachers: Sequence[CachedTeacher]) -> CachedTeacher:
    """The positions of several caches one after another, over as many tokens as all of them keep.

    What a wider cache keeps beyond that joins its other tokens, so that its divergences stay those of a narrower cache
    of the same teacher.
    """
    k = min(teacher.tokens_NK.shape[-1] for teacher in teachers)
    tails = [
        torch.logsumexp(torch.cat([teacher.tail_N[:, None], teacher.log_probs_NK[:, k:]], dim=-1), dim=-1)
        if teacher.tokens_NK.shape[-1] > k
        else teacher.tail_N
        for teacher in teachers
    ]
    return CachedTeacher(
        torch.cat([teacher.tokens_NK[:, :k] for teacher in teachers]),
        torch.cat([teacher.log_probs_NK[:, :k] for teacher in teachers]),
        torch.cat(tails),
    )


def outcomes(logits_NV: Tensor, teacher: CachedTeacher) -> tuple[Tensor, Tensor]:
    """Teacher's and student's log-probabilities `[N, k + 1]` of the cached tokens and of any other token."""
    logits_NV = _exact(logits_NV)
    kept_NK = logits_NV.gather(-1, teacher.tokens_NK)
    total_N = torch.logsumexp(kept_NK, dim=-1)
    if teacher.tokens_NK.shape[-1] == logits_NV.shape[-1]:
        rest = torch.full_like(total_N, _LEAST)
    else:
        # The whole vocabulary is summed once, and the total is made of both parts.
        others_N = torch.logsumexp(logits_NV.scatter(-1, teacher.tokens_NK, -torch.inf), dim=-1)
        total_N = torch.logaddexp(total_N, others_N)
        rest = (others_N - total_N).clamp(min=_LEAST)
    student = kept_NK - total_N[:, None]
    cached = torch.cat([teacher.log_probs_NK, teacher.tail_N[:, None]], dim=-1).to(student)
    return cached, torch.cat([student, rest[:, None]], dim=-1)


def divergence(teacher_NM: Tensor, student_NM: Tensor, kind: Kind, beta: float = 0.5) -> Tensor:
    """Divergence of each row of log-probabilities, nats `[N]`.

    - `forward_kl`: `KL(teacher || student)`, covers all that the teacher says.
    - `reverse_kl`: `KL(student || teacher)`, says nothing that the teacher would not.
    - `jsd`: `beta KL(teacher || m) + (1 - beta) KL(student || m)` with `m = beta teacher + (1 - beta) student`, the
      generalised Jensen-Shannon divergence of GKD (Agarwal et al. 2024).

    Raises:
        ValueError: an unknown kind, or a beta outside (0, 1).
    """
    if kind == "forward_kl":
        return _kl(teacher_NM, student_NM)
    if kind == "reverse_kl":
        return _kl(student_NM, teacher_NM)
    if kind != "jsd":
        raise ValueError(f"divergence {kind!r} is unknown; choose one of {', '.join(KINDS)}")
    if not 0 < beta < 1:
        raise ValueError(f"beta of jsd is {beta}; give a number between 0 and 1, or name forward_kl or reverse_kl")
    log_beta = torch.tensor([beta, 1 - beta], dtype=student_NM.dtype, device=student_NM.device).log()
    mixed = torch.logaddexp(teacher_NM + log_beta[0], student_NM + log_beta[1])
    return beta * _kl(teacher_NM, mixed) + (1 - beta) * _kl(student_NM, mixed)


def logits_at_a_time(device: torch.device) -> int:
    """Logits that exist together, by default: 32 MiB in float32, and 256 on a GPU, where small products waste it."""
    return 2**23 if device.type == "cpu" else 2**26


def token_divergences(
    student_ND: Tensor,
    head: Head,
    teacher: CachedTeacher | LiveTeacher,
    kind: Kind,
    beta: float = 0.5,
    rows_at_a_time: int | None = None,
) -> Tensor:
    """Divergence of every token, nats `[N]`, with a gradient to the student's hidden states and head.

    Args:
        student_ND: the student's last hidden states at the positions that predict the tokens, `[N, d]`.
        head: of the student.
        teacher: for the same `N` positions.
        kind: see `divergence`.
        beta: of `jsd`.
        rows_at_a_time: positions whose logits exist together; None for as many as `logits_at_a_time` allows.

    Raises:
        ValueError: teacher and student differ in positions or vocabulary.
    """
    return compare_tokens(student_ND, head, teacher, kind, beta, rows_at_a_time=rows_at_a_time)[0]


def compare_tokens(
    student_ND: Tensor,
    head: Head,
    teacher: CachedTeacher | LiveTeacher,
    kind: Kind,
    beta: float = 0.5,
    tokens_N: Tensor | None = None,
    rows_at_a_time: int | None = None,
) -> tuple[Tensor, Tensor]:
    """As `token_divergences`, with the student's log-probability of given tokens, from the same logits.

    Args:
        student_ND: as there.
        head: as there.
        teacher: as there.
        kind: as there.
        beta: as there.
        tokens_N: the tokens that were said, int64 `[N]`; without them the second result is empty.
        rows_at_a_time: as there.

    Returns:
        Divergences `[N]` and log-probabilities `[N]` (or `[0]`), both in nats.

    Raises:
        ValueError: teacher and student differ in positions or vocabulary.
    """
    count = student_ND.shape[0]
    given = teacher.tokens_NK.shape[0] if isinstance(teacher, CachedTeacher) else teacher.hidden_ND.shape[0]
    if given != count:
        raise ValueError(f"the teacher has {given} positions and the student {count}; they must be the same ones")
    if not count:
        empty = student_ND.new_zeros(0, dtype=torch.float32)
        return empty, empty

    def part(hidden: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        logits = head(hidden)
        chunk = teacher[rows]
        said = logits.new_zeros(0) if tokens_N is None else _log_probs(logits, tokens_N[rows])
        if isinstance(chunk, CachedTeacher):
            return divergence(*_both(logits, chunk), kind, beta), said
        with torch.no_grad():
            taught = chunk.head(chunk.hidden_ND)
        if taught.shape != logits.shape:
            raise ValueError(
                f"the teacher's vocabulary has {taught.shape[-1]} tokens, the student's {logits.shape[-1]}: both must "
                "have the same tokenizer"
            )
        distances = divergence(
            torch.log_softmax(_exact(taught), dim=-1), torch.log_softmax(_exact(logits), dim=-1), kind, beta
        )
        return distances, said

    if rows_at_a_time is None:
        with torch.no_grad():
            rows_at_a_time = max(1, logits_at_a_time(student_ND.device) // head(student_ND[:1]).shape[-1])
    if count <= rows_at_a_time:
        return part(student_ND, slice(0, count))
    parts = [
        checkpoint(part, student_ND[rows], rows, use_reentrant=False, preserve_rng_state=False)
        for rows in (slice(start, start + rows_at_a_time) for start in range(0, count, rows_at_a_time))
    ]
    return torch.cat([distances for distances, _ in parts]), torch.cat([said for _, said in parts])


def _both(logits_NV: Tensor, teacher: CachedTeacher) -> tuple[Tensor, Tensor]:
    top = int(teacher.tokens_NK.max())
    if top >= logits_NV.shape[-1]:
        raise ValueError(
            f"the cached teacher has token {top}, the student a vocabulary of {logits_NV.shape[-1]}: both must have "
            "the same tokenizer"
        )
    return outcomes(logits_NV, teacher)


def _log_probs(logits_NV: Tensor, tokens_N: Tensor) -> Tensor:
    logits_NV = _exact(logits_NV)
    return logits_NV.gather(-1, tokens_N[:, None])[:, 0] - torch.logsumexp(logits_NV, dim=-1)


def _kl(p_NM: Tensor, q_NM: Tensor) -> Tensor:
    return (p_NM.exp() * (p_NM - q_NM)).sum(-1)


def _exact(logits: Tensor) -> Tensor:
    """At least float32: sums over a vocabulary in bf16 lose the tail."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
