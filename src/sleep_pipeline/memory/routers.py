"""Routers: how far each expert opens for each token.

A slot has a learned key `k` in R^d and a learned offset `b`. A router turns the keys' scores on the
RMS-normalised input, `s_j = k_j . x / rms(x)`, into gates in [0, 1]. Every design here can stay *shut*: an
expert whose gate is 0 for a token leaves that token alone, and naive designs forget because theirs cannot
(`softmax` without a null expert always hands out a total of 1). `benchmarks/LOG.md` records how the designs
compare in retention.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Router = Callable[[Tensor], Tensor]
"""Maps logits `[..., experts]` (score plus offset; -inf where an expert is off) to gates `[..., experts]`."""


def sigmoid(logits_NE: Tensor) -> Tensor:
    """Open each expert on its own account: `g_j = sigmoid(s_j + b_j)`.

    Nights do not compete, so a new expert cannot push an old one aside; with a negative initial offset it
    starts shut and must learn where to open.
    """
    return torch.sigmoid(logits_NE)


def null_softmax(logits_NE: Tensor) -> Tensor:
    """Let the experts compete with each other and with a null expert of logit 0, which does nothing."""
    null = logits_NE.new_zeros((*logits_NE.shape[:-1], 1))
    return torch.softmax(torch.cat([null, logits_NE], dim=-1), dim=-1)[..., 1:]


SHUT_BELOW = 0.05


def threshold(logits_NE: Tensor) -> Tensor:
    """Retrieve experts by key: `sigmoid` with a dead zone, so that a poor match is exactly 0.

    `g_j = relu(sigmoid(s_j + b_j) - t) / (1 - t)` with `t = SHUT_BELOW`. A token that no key matches passes
    bit for bit unchanged.
    """
    rest = 1 - SHUT_BELOW
    # (sigmoid - t) / (1 - t) in one operation.
    return torch.rsub(torch.sigmoid(logits_NE), -SHUT_BELOW / rest, alpha=-1 / rest).relu()


ROUTERS: dict[str, Router] = {"sigmoid": sigmoid, "null_softmax": null_softmax, "threshold": threshold}

INDEPENDENT: tuple[Router, ...] = (sigmoid, threshold)
"""Routers whose gate for one expert does not depend on the others."""


def keep_top_k(gates_NE: Tensor, top_k: int | None) -> Tensor:
    """Zero all but the `top_k` largest gates of each token; None keeps all."""
    if top_k is None or top_k >= gates_NE.shape[-1]:
        return gates_NE
    values, index = gates_NE.topk(top_k, dim=-1)
    return torch.zeros_like(gates_NE).scatter(-1, index, values)


def open_one_more(gates_NE: Tensor, choice_B: Tensor, gate: float) -> Tensor:
    """Open one given expert per sequence beside those that the router chose (paper.md section 4, step 1).

    Args:
        gates_NE: gates `[B, T, experts]`.
        choice_B: the extra expert of each sequence `[B]`.
        gate: how far it opens where the router has it less open.

    Raises:
        ValueError: the gates are not `[B, T, experts]` with the drawn number of sequences.
    """
    if gates_NE.dim() != 3 or gates_NE.shape[0] != choice_B.shape[0]:
        raise ValueError(
            f"random experts were drawn for {choice_B.shape[0]} sequences, but the input has shape "
            f"{tuple(gates_NE.shape[:-1])}: draw for as many sequences as the batch holds, and do not pack it"
        )
    chosen = torch.nn.functional.one_hot(choice_B, gates_NE.shape[-1]).to(gates_NE.dtype)[:, None]
    return torch.maximum(gates_NE, gate * chosen)
