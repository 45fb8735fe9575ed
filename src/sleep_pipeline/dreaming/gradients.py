"""Per-sample gradients of a batch without one backward pass a sample.

For a product `y = x W^T` the gradient of sample i's loss for `W` is `g_i^T x_i`, summed over the sample's tokens, with
`g` the gradient for `y`. One backward pass to all `y` at once therefore holds every sample's gradient in factors, and
what scores need of them comes from the factors: inner products either by Gram matrices of tokens,
`<g_i^T x_i, g_j^T x_j> = sum((x_i x_j^T) * (g_i g_j^T))` (ghost products: Goodfellow 2015, arXiv 1510.01799; GREATS),
or, where that is cheaper (many tokens, narrow layers: Bu et al. 2022, arXiv 2205.10683), by making the gradients of one
layer at a time. No weight needs `requires_grad`, none gets a gradient, and no gradient of a weight is ever kept.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sleep_pipeline.dreaming.rows import Row, losses, side_by_side
from sleep_pipeline.dreaming.stacked_lora import lay_out
from sleep_pipeline.memory.operations import memory_layers

_CHUNK = 2**25
"""Numbers of the largest intermediate tensor."""


@dataclass(frozen=True)
class Factors:
    """The gradients of K samples for one weight, `sum_t g_t x_t^T` each.

    Attributes:
        inputs_KLI: what the product read.
        outputs_KLO: the gradient for what it gave.
    """

    inputs_KLI: Tensor
    outputs_KLO: Tensor

    @property
    def size(self) -> int:
        """Numbers in one gradient."""
        return self.inputs_KLI.shape[-1] * self.outputs_KLO.shape[-1]

    def gradients(self) -> Tensor:
        """The gradients themselves, `[K, O * I]`."""
        return torch.bmm(self.outputs_KLO.mT, self.inputs_KLI).flatten(1)

    def some(self, which: slice) -> Factors:
        """Those of some of the samples."""
        return Factors(self.inputs_KLI[which], self.outputs_KLO[which])

    def chunks(self, numbers: int) -> Iterator[tuple[slice, Factors]]:
        """A few samples at a time, each of which takes so many numbers."""
        step, count = max(1, _CHUNK // max(1, numbers)), self.inputs_KLI.shape[0]
        for start in range(0, count, step):
            which = slice(start, min(count, start + step))
            yield which, self.some(which)


SampleGradients = Mapping[str, Factors]
"""Name of a weight -> factors of K samples; the samples are the same for every weight."""


def squared_norms(gradients: SampleGradients) -> Tensor:
    """Squared norm of each sample's whole gradient, `[K]`."""
    total: Tensor | None = None
    for factors in gradients.values():
        length = factors.inputs_KLI.shape[1]
        by_tokens = 2 * length**2 < factors.size
        found = factors.inputs_KLI.new_empty(factors.inputs_KLI.shape[0])
        for which, some in factors.chunks(length**2 if by_tokens else factors.size):
            if by_tokens:
                reads, says = some.inputs_KLI, some.outputs_KLO
                found[which] = (torch.bmm(reads, reads.mT) * torch.bmm(says, says.mT)).sum((1, 2))
            else:
                found[which] = some.gradients().square().sum(1)
        total = found if total is None else total + found
    return cast(Tensor, total)


def inner_products(left: SampleGradients, right: SampleGradients) -> Tensor:
    """Inner products of every gradient on the left with every one on the right, `[K, J]`.

    Raises:
        ValueError: they are not gradients for the same weights.
    """
    if left.keys() != right.keys():
        differing = sorted(left.keys() ^ right.keys())
        raise ValueError(f"gradients for different weights cannot be compared; only one side has {differing[:3]}")
    return cast(Tensor, sum(_inner(factors, right[name]) for name, factors in left.items()))


def _inner(left: Factors, right: Factors) -> Tensor:
    (k, l_left, _), (j, l_right, _) = left.inputs_KLI.shape, right.inputs_KLI.shape
    width = left.inputs_KLI.shape[-1] + left.outputs_KLO.shape[-1]
    by_tokens = k * l_left * j * l_right * width < left.size * (k * l_left + j * l_right + k * j)
    found = left.inputs_KLI.new_empty(k, j)
    for at, one in left.chunks(l_left * j * l_right if by_tokens else left.size):
        made = None if by_tokens else one.gradients()
        for to, other in right.chunks(one.inputs_KLI.shape[0] * l_left * l_right if by_tokens else left.size):
            if made is not None:
                found[at, to] = made @ other.gradients().T
            else:
                reads = one.inputs_KLI.flatten(0, 1) @ other.inputs_KLI.flatten(0, 1).T
                says = one.outputs_KLO.flatten(0, 1) @ other.outputs_KLO.flatten(0, 1).T
                both = (reads * says).unflatten(1, (-1, l_right)).unflatten(0, (-1, l_left))
                found[at, to] = both.sum((1, 3))
    return found


def projections(gradients: SampleGradients, side: int, seed: int) -> Tensor:
    """Random projections of each sample's gradient, `[K, weights * side^2]`, whose inner products are unbiased.

    Each weight's gradient is projected from both sides by matrices of signs, which are drawn from the seed and the
    weight's name and shape, so that samples of different calls can be compared (LoGra: Choe et al. 2024, arXiv
    2405.13954; LESS, Xia et al. 2024, projects LoRA gradients in the same spirit).
    """
    parts = []
    for name, factors in gradients.items():
        reads = factors.inputs_KLI @ _signs(factors.inputs_KLI, side, f"{seed}/{name}/in")
        says = factors.outputs_KLO @ _signs(factors.outputs_KLO, side, f"{seed}/{name}/out")
        parts.append(torch.bmm(says.mT, reads).flatten(1))
    return torch.cat(parts, dim=1)


def _signs(like: Tensor, side: int, key: str) -> Tensor:
    generator = torch.Generator().manual_seed(random.Random(key).getrandbits(63))
    signs = torch.randint(2, (like.shape[-1], side), generator=generator) * 2 - 1
    return signs.to(like) / math.sqrt(side)


def linear_weights(model: nn.Module, targets: Sequence[str] | None = None) -> dict[str, Tensor]:
    """The weights of the linear layers inside the decoder layers, by module name.

    Args:
        model: a Hugging Face causal LM, or one wrapped by peft.
        targets: suffixes of module names; None for every linear layer.

    Raises:
        BlockError: the model has no decoder layers.
        ValueError: a suffix fits no linear layer.
    """
    return {name: model.get_submodule(name).get_parameter("weight") for name in lay_out(model, 1, 1.0, targets).shapes}


def expert_weights(model: nn.Module) -> dict[str, Tensor]:
    """The matrices of a memory's expert in training or, outside of a sleep, of its active experts.

    Routers' keys and offsets are left out.

    Raises:
        ValueError: the model has no memory, or one without any expert.
    """
    found: dict[str, Tensor] = {}
    for layer in memory_layers(model):
        for name, state in layer.states.items():
            training = state.table.training()
            for number, (level, entry) in enumerate(
                zip(layer.levels(name), state.view or state.student(), strict=True), start=1
            ):
                prefix = "new_" if training is not None and training[0] == number and entry.training else ""
                if prefix or (training is None and entry.experts):
                    for part in ("down", "up"):
                        key = f"layer {layer.index}, {name}, level {number}, {prefix}{part}"
                        found[key] = level.get_parameter(f"{prefix}{part}")
    if not found:
        raise ValueError(
            "there is no expert of a memory to take gradients for: score over the linear layers, or dream after a "
            "night has been seeded"
        )
    return found


def sample_gradients(
    model: nn.Module, samples: Sequence[Sequence[Row]], weights: Mapping[str, Tensor]
) -> SampleGradients:
    """Gradients of every sample's loss, the mean over all its learned tokens, in one backward pass.

    Args:
        model: a causal LM in eval mode; its flags stay as they are.
        samples: each the rows of one dream.
        weights: for which to take them; each must be used in products with whole rows, `x W^T` or `x W`.

    Returns:
        Factors in float32 or better, for the weights that were used.

    Raises:
        ValueError: no weight was used, or one by a layer that sees tokens without their rows (as the routed experts of
            some mixtures do).
    """
    device = next(model.parameters()).device
    batch = side_by_side(samples, device)
    watch = _Products(weights, batch.ids_NT.shape)
    with torch.enable_grad(), _graph(model), watch:
        total = losses(model, batch).sum()
    if not watch.seen:
        raise ValueError(f"none of the {len(weights)} weights took part in the forward pass; switch their part on")
    outputs = [output for _, _, output in watch.seen]
    reached = torch.autograd.grad(total, outputs, materialize_grads=True)
    kept: dict[str, list[Factors]] = {}
    for (name, read, _), gradient in zip(watch.seen, reached, strict=True):
        kept.setdefault(name, []).append(Factors(_by_sample(read, len(samples)), _by_sample(gradient, len(samples))))
    return {name: _joined(parts) for name, parts in kept.items()}


def _by_sample(tensor: Tensor, samples: int) -> Tensor:
    tensor = tensor.detach().reshape(samples, -1, tensor.shape[-1])
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _joined(parts: Sequence[Factors]) -> Factors:
    """A weight that is used twice has the tokens of both."""
    if len(parts) == 1:
        return parts[0]
    return Factors(torch.cat([p.inputs_KLI for p in parts], 1), torch.cat([p.outputs_KLO for p in parts], 1))


@contextmanager
def _graph(model: nn.Module) -> Iterator[None]:
    """Let every activation behind the embedding have a gradient, though no weight may have one."""
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    handle = embedding.register_forward_hook(lambda module, inputs, output: output.detach().requires_grad_())
    try:
        yield
    finally:
        handle.remove()


@dataclass
class _Products(TorchFunctionMode):
    """Sees the products with given weights, or with views that begin where they do: name, input and output of each."""

    weights: Mapping[str, Tensor]
    shape: torch.Size
    seen: list[tuple[str, Tensor, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._names = {weight.data_ptr(): name for name, weight in self.weights.items()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do what is asked, and keep it if it is such a product."""
        result = func(*args, **(kwargs or {}))
        at = _OPERANDS.get(func)
        if at is not None:
            name = self._names.get(args[at[1]].data_ptr())
            if name is not None:
                read = args[at[0]]
                if read.shape[:-1].numel() != self.shape.numel():
                    raise ValueError(
                        f"{name} was given a tensor of shape {list(read.shape)} for {self.shape.numel()} tokens, which "
                        "cannot be told apart into samples; leave layers that do not see whole rows out of the targets"
                    )
                self.seen.append((name, read, result))
        return result


_OPERANDS: dict[Any, tuple[int, int]] = {
    F.linear: (0, 1),
    torch.matmul: (0, 1),
    Tensor.matmul: (0, 1),
    Tensor.__matmul__: (0, 1),
    torch.addmm: (1, 2),
}
"""Products that layers are made of: where their input and their weight stand among the arguments."""
