"""Batched low-rank experts: the gated sum over all experts in one pair of products.

An expert maps `x -> act(A x / rms(x)) B` with `A` in R^{d_low x d} and `B` in R^{d_low x d} (paper.md section
2 writes `A` transposed). A nonlinearity between them makes each of the `d_low` units a key-value pair that
fires only for inputs on its side, which disturbs other inputs less than a linear map would; `identity` keeps
the linear expert. The input is normalised so that one learning rate serves every layer of a model;
a wider model wants a smaller one, since a step of AdamW moves a product by the rate times the width.

Two ways to sum over experts, numerically the same:

- `dense`: experts side by side are one wide expert, `[N, d] @ [d, E r]`, with the gates applied in the
  middle. One pair of large products; every expert costs time, chosen or not.
- `grouped`: tokens sorted by expert, one grouped product over the chosen (token, expert) pairs. Costs `top_k`
  experts a token, however many there are.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATE: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "relu": F.relu,
    "identity": lambda hidden: hidden,
}

EPS = 1e-6
GROUPED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
GROUPED_ALIGNMENT = 16
"""Bytes that every row of a grouped product's operands must be a multiple of."""

SORTING = 1_500_000
"""Multiplications that take about as long as sorting a few tokens by expert."""


def compute_dtype(weight: Tensor) -> torch.dtype:
    """Return the dtype in which a product with `weight` runs here: autocast's, or the weight's own."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def inverse_rms(x: Tensor) -> Tensor:
    """Return `1 / rms(x)` over the last dimension, `[..., 1]`, in at least float32."""
    root = x.shape[-1] ** 0.5
    dtype = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype)
    # (norm + EPS) / root in one operation: while one token is decoded, their number is what a memory costs.
    return torch.rsub(norm, EPS / root, alpha=-1 / root).reciprocal()


def add_as_loud(output: Tensor, added: Tensor, block: Tensor) -> Tensor:
    """Return `output + rms(block) added` in the dtype of `output`; all `[..., d]`."""
    # Norms are accumulated in at least float32 in any case; float16 alone could not hold one.
    dtype = torch.float32 if block.dtype == torch.float16 else block.dtype
    norm = torch.linalg.vector_norm(block, dim=-1, keepdim=True, dtype=dtype)
    return torch.addcmul(output, added, norm, value=output.shape[-1] ** -0.5).to(output.dtype)


def hidden_units(x: Tensor, scale: Tensor, a_HD: Tensor, activation: str) -> Tensor:
    """Return `act(A x / rms(x))`, `[..., H]`, for `H` stacked rows of one or more experts' `A`.

    Scaling the narrow result instead of the wide input reads `x` once and writes no copy of it.
    """
    hidden = F.linear(x, a_HD)
    return ACTIVATE[activation](hidden * scale.to(hidden.dtype))


def dense(x: Tensor, scale: Tensor, gates: Tensor, a_ERD: Tensor, b_ERD: Tensor, activation: str) -> Tensor:
    """Sum all experts, weighted by their gates, in one pair of products.

    Args:
        x: input `[..., d]`.
        scale: `inverse_rms(x)`.
        gates: `[..., E]`.
        a_ERD: down-projections `[E, r, d]`.
        b_ERD: up-projections `[E, r, d]`.
        activation: key of `ACTIVATE`.

    Returns:
        `[..., d]`.
    """
    rank = a_ERD.shape[1]
    hidden = hidden_units(x, scale, a_ERD.flatten(0, 1), activation)
    weighted = hidden.view(*gates.shape, rank) * gates.to(hidden.dtype).unsqueeze(-1)
    return weighted.flatten(-2) @ b_ERD.flatten(0, 1)


def grouped(
    x: Tensor, scale: Tensor, gates: Tensor, a_ERD: Tensor, b_ERD: Tensor, activation: str, chosen: int
) -> Tensor:
    """Sum the `chosen` experts with the largest gates of each token; arguments as in `dense`.

    Exact if no token has more than `chosen` gates above 0.
    """
    experts = a_ERD.shape[0]
    dtype = compute_dtype(a_ERD)
    tokens = x.reshape(-1, x.shape[-1]).to(dtype)
    values, index = gates.reshape(-1, experts).topk(chosen, dim=-1)
    expert, order = index.flatten().sort(stable=True)
    row = order // chosen
    ends = torch.searchsorted(expert, torch.arange(experts, device=x.device), right=True).to(torch.int32)
    hidden = F.grouped_mm(tokens[row], a_ERD.to(dtype).transpose(1, 2), offs=ends)
    hidden = ACTIVATE[activation](hidden * scale.reshape(-1, 1)[row].to(dtype))
    weighted = hidden * values.flatten()[order].to(dtype).unsqueeze(-1)
    out = torch.zeros_like(tokens).index_add(0, row, F.grouped_mm(weighted, b_ERD.to(dtype), offs=ends))
    return out.view(x.shape)


@lru_cache
def _groups_on_device(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch has a grouped product for this dtype on this device."""
    if device.type == "cuda":
        return dtype is torch.bfloat16 and torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and dtype in GROUPED_DTYPES


def grouped_pays(a_ERD: Tensor, chosen: int, tokens: int) -> bool:
    """Whether `grouped` is faster than `dense` for so many tokens, and possible.

    Gathering costs about as much as the products of two experts, and sorting as much as `SORTING` multiplications
    (`benchmarks/memory_latency.py` measures both).
    """
    experts, rank, width = a_ERD.shape
    dtype = compute_dtype(a_ERD)
    aligned = not (rank * dtype.itemsize % GROUPED_ALIGNMENT or width * dtype.itemsize % GROUPED_ALIGNMENT)
    saved = 2 * tokens * (experts - chosen) * rank * width
    return chosen + 2 <= experts and saved >= SORTING and aligned and _groups_on_device(a_ERD.device, dtype)
