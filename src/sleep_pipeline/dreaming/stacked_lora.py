"""K LoRA adapters on one model at the same time: rows `[K * B, T]` of a batch, and the k-th `B` see adapter k only.

The base product of a layer is one matrix product over all rows, as without adapters; only the two thin products are
done per adapter, by `bmm` over `[K, r, d]` factors (LoRA: Hu et al. 2022, arXiv 2106.09685). Adapters are put on by
forward hooks, so that no module and no weight of the model changes, and none has to be put back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sleep_pipeline.memory.blocks import decoder_layers


@dataclass(frozen=True)
class Factors:
    """The factors of one layer: `up @ down` is what they add to its weight, before scaling.

    Attributes:
        down: `[K, r, d_in]`, LoRA's A.
        up: `[K, d_out, r]`, LoRA's B.
    """

    down: Tensor
    up: Tensor


@dataclass(frozen=True)
class StackedLora:
    """K adapters of equal shape; a single adapter is a stack of one.

    Attributes:
        layers: full module name -> its factors.
        scale: `alpha / rank`.
    """

    layers: Mapping[str, Factors]
    scale: float

    def __len__(self) -> int:
        """How many adapters it holds."""
        return next(iter(self.layers.values())).down.shape[0]

    def select(self, which: Sequence[int]) -> StackedLora:
        """A copy of the adapters named, in that order."""
        rows = list(which)
        chosen = {name: Factors(f.down[rows], f.up[rows]) for name, f in self.layers.items()}
        return StackedLora(chosen, self.scale)

    def to(self, device: torch.device | str) -> StackedLora:
        """The same adapters on a device."""
        moved = {name: Factors(f.down.to(device), f.up.to(device)) for name, f in self.layers.items()}
        return StackedLora(moved, self.scale)


def stack(adapters: Sequence[StackedLora]) -> StackedLora:
    """Put stacks of adapters for the same layers one behind the other.

    Raises:
        ValueError: there are none, or their layers, ranks or scales differ.
    """
    if not adapters:
        raise ValueError("there is no adapter to stack; give at least one")
    first = adapters[0]
    for other in adapters[1:]:
        if other.scale != first.scale or _shapes(other) != _shapes(first):
            raise ValueError("adapters of one stack must have the same layers, ranks and scale; these differ")
    layers = {
        name: Factors(
            torch.cat([a.layers[name].down for a in adapters]), torch.cat([a.layers[name].up for a in adapters])
        )
        for name in first.layers
    }
    return StackedLora(layers, first.scale)


def _shapes(adapters: StackedLora) -> dict[str, tuple[torch.Size, torch.Size]]:
    return {name: (factors.down.shape[1:], factors.up.shape[1:]) for name, factors in adapters.layers.items()}


@dataclass(frozen=True)
class Layout:
    """Where the factors of every layer lie in one flat vector of `size` numbers an adapter.

    With all factors of an adapter in one row of a `[K, size]` matrix, its gradient norm is the norm of a row and one
    optimiser step serves all layers of all adapters.

    Attributes:
        shapes: full module name -> (d_in, d_out).
        rank: r.
        scale: `alpha / rank`.
    """

    shapes: Mapping[str, tuple[int, int]]
    rank: int
    scale: float

    @property
    def size(self) -> int:
        """Numbers in one adapter."""
        return self.rank * sum(d_in + d_out for d_in, d_out in self.shapes.values())

    def views(self, flat_KP: Tensor) -> StackedLora:
        """The factors in `[K, size]`, sharing its memory."""
        layers, start, r = {}, 0, self.rank
        for name, (d_in, d_out) in self.shapes.items():
            middle, end = start + r * d_in, start + r * (d_in + d_out)
            layers[name] = Factors(
                flat_KP[:, start:middle].unflatten(1, (r, d_in)), flat_KP[:, middle:end].unflatten(1, (d_out, r))
            )
            start = end
        return StackedLora(layers, self.scale)

    def tensors(self, adapters: StackedLora) -> list[Tensor]:
        """The factors in the order in which they lie in a row; flattened and joined they are `[K, size]` again."""
        return [tensor for name in self.shapes for tensor in (adapters.layers[name].down, adapters.layers[name].up)]

    def initial(self, seed: int) -> Tensor:
        """One new adapter `[size]`, float32: `down` uniform within `1 / sqrt(d_in)` as in peft, `up` zero.

        It is drawn on the CPU from its own generator, so it depends on the seed and the layers alone.
        """
        flat = torch.zeros(1, self.size)
        generator = torch.Generator().manual_seed(seed)
        for name, factors in self.views(flat).layers.items():
            bound = 1 / math.sqrt(self.shapes[name][0])
            factors.down.copy_(torch.empty(factors.down.shape).uniform_(-bound, bound, generator=generator))
        return flat[0]


def lay_out(model: nn.Module, rank: int, alpha: float, targets: Sequence[str] | None = None) -> Layout:
    """Find the linear layers inside the decoder layers that get an adapter.

    Both `nn.Linear` and the transposed `Conv1D` of GPT-2 count; the layers of peft's own adapters do not.

    Args:
        model: a Hugging Face causal LM, or one wrapped by peft.
        rank: of every adapter.
        alpha: the product is scaled by `alpha / rank`.
        targets: suffixes of module names; None for every linear layer.

    Raises:
        BlockError: the model has no decoder layers.
        ValueError: a suffix fits no linear layer.
    """
    shapes: dict[str, tuple[int, int]] = {}
    for prefix, layer in decoder_layers(model):
        foreign = _adapters_inside(layer)
        for name, module in layer.named_modules(prefix=prefix):
            if module in foreign:
                continue
            if isinstance(module, nn.Linear):
                shapes[name] = (module.in_features, module.out_features)
            elif isinstance(module, Conv1D):
                shapes[name] = (module.weight.shape[0], module.weight.shape[1])
    for suffix in targets or ():
        if not any(_ends_with(name, suffix) for name in shapes):
            known = sorted({name.rpartition(".")[2] for name in shapes})
            raise ValueError(
                f"target {suffix!r} fits no linear layer of {type(model).__name__}; its layers are {', '.join(known)}"
            )
    if targets is not None:
        shapes = {name: shape for name, shape in shapes.items() if any(_ends_with(name, s) for s in targets)}
    if not shapes:
        raise ValueError(f"the decoder layers of {type(model).__name__} hold no linear layer that could get an adapter")
    return Layout(shapes, rank, alpha / rank)


def _adapters_inside(layer: nn.Module) -> set[nn.Module]:
    """The modules that peft's adapters, such as the dreamer's, have put into a layer."""
    tuners = [module for module in layer.modules() if isinstance(module, BaseTunerLayer)]
    parts = [getattr(tuner, name, None) for tuner in tuners for name in tuner.adapter_layer_names]
    return {module for part in parts if isinstance(part, nn.Module) for module in part.modules()}


def _ends_with(name: str, suffix: str) -> bool:
    name = name.removesuffix(".base_layer")
    return name == suffix or name.endswith("." + suffix)


@contextmanager
def adapters_on(model: nn.Module, adapters: StackedLora) -> Iterator[None]:
    """Within this context, the k-th `B` rows of any batch `[K * B, ...]` go through adapter k.

    The model's modules and weights stay as they are, whatever happens inside. `generate` works too, as long as the
    rows keep their places (greedy and sampled decoding do, beam search does not).

    Args:
        model: the causal LM that the adapters were made for.
        adapters: K of them.

    Raises:
        ValueError: the model lacks a layer of the adapters; or, inside, a batch whose rows are no multiple of K, or a
            layer that sees tokens without their rows (as the routed experts of some mixtures do).
    """
    modules = dict(model.named_modules())
    missing = [name for name in adapters.layers if name not in modules]
    if missing:
        raise ValueError(
            f"{type(model).__name__} has no module {missing[0]!r}; put the adapters on the model they were made for"
        )
    with ExitStack() as hooks:
        for name, factors in adapters.layers.items():
            handle = modules[name].register_forward_hook(_hook(name, factors, adapters.scale))
            hooks.callback(handle.remove)
        yield


def _hook(name: str, factors: Factors, scale: float) -> Any:
    count = factors.down.shape[0]

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        (hidden,) = inputs
        if hidden.dim() < 3 or hidden.shape[0] % count:
            raise ValueError(
                f"{name} was given a tensor of shape {list(hidden.shape)}, which cannot be told apart into the rows of "
                f"{count} adapters; give a multiple of {count} rows, and leave layers that do not see whole rows out "
                "of the targets"
            )
        thin = torch.bmm(hidden.reshape(count, -1, hidden.shape[-1]), factors.down.to(hidden.dtype).mT)
        up = factors.up.to(thin.dtype).mT
        if output.dtype == thin.dtype:
            base = output.reshape(count, -1, output.shape[-1])
            return torch.baddbmm(base, thin, up, alpha=scale).reshape(output.shape)
        return output + scale * torch.bmm(thin, up).reshape(output.shape).to(output.dtype)

    return add
