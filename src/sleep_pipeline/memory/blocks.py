"""Find the MLP block of every decoder layer by what it does, not by its name.

A decoder layer mixes positions in one place (attention, or another mixer) and transforms each position by
itself in another. The MLP block is the child module that holds weight matrices and maps hidden states to
hidden states *position by position*: called with hidden states alone it returns the same shape, and changing
one position changes no other. That is tried out on random input, which tells attention, recurrences, norms
and projections from MLPs and mixtures of experts whatever they are called.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

COMPUTING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Dtypes of weights that are not quantised."""


class BlockError(ValueError):
    """The model has no MLP block that the memory could wrap."""


@dataclass(frozen=True)
class Block:
    """An MLP block.

    Attributes:
        name: its full module name.
        layer: the full module name of its decoder layer.
    """

    name: str
    layer: str


def text_config(model: nn.Module) -> Any:
    """Return the model's text configuration.

    Raises:
        BlockError: the model has none, so it is no Hugging Face language model.
    """
    config = getattr(model, "config", None)
    if config is not None and hasattr(config, "get_text_config"):
        config = config.get_text_config()
    if not hasattr(config, "hidden_size") or not hasattr(config, "num_hidden_layers"):
        raise BlockError(
            f"{type(model).__name__} has no configuration with hidden_size and num_hidden_layers: the memory needs a "
            "Hugging Face causal language model"
        )
    return config


def decoder_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the decoder layers with their names, in order.

    They are the modules of the outermost `ModuleList` that has as many entries as the configuration has
    layers.

    Raises:
        BlockError: there is none, or more than one.
    """
    count = text_config(model).num_hidden_layers
    found: list[str] = []
    for name, module in model.named_modules():
        nested = any(name.startswith(outer + ".") for outer in found)
        if isinstance(module, nn.ModuleList) and len(module) == count and not nested:
            if all(sum(1 for _ in layer.children()) >= 2 for layer in module):
                found.append(name)
    # PEFT's wrappers hand the question on to the model in them.
    if len(found) > 1 and hasattr(model, "get_decoder"):
        inside = {id(module) for module in model.get_decoder().modules()}  # type: ignore[operator]
        found = [name for name in found if id(model.get_submodule(name)) in inside]
    if len(found) != 1:
        raise BlockError(
            f"{type(model).__name__} should have one list of its {count} decoder layers, but {found or 'none'} was "
            "found: name the MLP blocks in target_modules"
        )
    layers = model.get_submodule(found[0])
    return [(f"{found[0]}.{index}", layer) for index, layer in enumerate(layers.children())]


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for child, mode in modes:
            child.training = mode


def _matrices(module: nn.Module) -> int:
    return sum(parameter.dim() >= 2 for parameter in module.parameters())


def _output(module: nn.Module, x: Tensor) -> Tensor | None:
    """Return what `module` makes of `x` alone, or None if that is not hidden states."""
    try:
        result = module(x)
    except Exception:  # an attention layer may raise anything when its mask or positions are missing
        return None
    if isinstance(result, tuple) and result:
        result = result[0]
    return result if isinstance(result, Tensor) and result.shape == x.shape else None


def device_and_dtype(block: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Return where `block` computes, and a dtype that hidden states and new weights beside it can have.

    Quantised weights (float8, or integers with their scales) tell the device alone.
    """
    weights = list(block.parameters())
    dtypes = [weight.dtype for weight in weights if weight.dtype in COMPUTING]
    device = weights[0].device if weights else torch.device("cpu")
    return device, dtypes[0] if dtypes else torch.get_default_dtype()


def works_by_position(module: nn.Module, hidden_size: int) -> bool:
    """Whether `module` maps hidden states to hidden states, each position by itself.

    Raises:
        BlockError: its weights are on the meta device, so it cannot be tried out.
    """
    device, dtype = device_and_dtype(module)
    if device.type == "meta":
        raise BlockError(
            "the base model's weights are on the meta device, so its layers cannot be told apart: load the weights "
            "first, or name the MLP blocks in target_modules"
        )
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((2, 4, hidden_size), generator=generator)
    first = noise[:1].to(device, dtype)
    second = first.clone()
    second[:, 1] = 4 * noise[1:, 1].to(device, dtype)
    with _evaluating(module):
        before, after = _output(module, first), _output(module, second)
    if before is None or after is None:
        return False
    others = [0, 2, 3]
    difference = (before[:, others] - after[:, others]).abs().max()
    allowed = 16 * torch.finfo(before.dtype).eps * before[:, others].abs().max()
    return bool(difference <= allowed)


def _signature(layer: nn.Module) -> tuple[Any, ...]:
    """Return what makes two decoder layers the same for the search."""
    return tuple(
        (name, type(child), tuple(tuple(p.shape) for p in child.parameters())) for name, child in layer.named_children()
    )


def _mlp_child(layer_name: str, layer: nn.Module, hidden_size: int) -> str:
    from sleep_pipeline.memory.layer import ContinuumLayer

    kinds: dict[str, str] = {}
    for name, child in layer.named_children():
        block = child.base_layer if isinstance(child, ContinuumLayer) else child
        if _matrices(block) < 2:
            kinds[name] = "too few weight matrices"
        elif works_by_position(block, hidden_size):
            kinds[name] = "position by position"
        else:
            kinds[name] = "mixes positions or needs more than hidden states"
    found = [name for name, kind in kinds.items() if kind == "position by position"]
    mixing = [name for name, kind in kinds.items() if kind.startswith("mixes")]
    if len(found) == 1 and mixing:
        return found[0]
    children = "; ".join(f"{name} ({type(getattr(layer, name)).__name__}): {kind}" for name, kind in kinds.items())
    problem = "no child that maps hidden states position by position" if not found else f"no single one: {found}"
    if len(found) == 1:
        problem = "no child that mixes positions, so it is no decoder layer"
    raise BlockError(
        f"no MLP block was found in decoder layer {layer_name} ({type(layer).__name__}): it has {problem}. Its "
        f"children are {children}. Name the blocks in target_modules if there are any"
    )


def find_mlp_blocks(model: nn.Module) -> list[Block]:
    """Return the MLP block of every decoder layer, in order.

    Args:
        model: a Hugging Face causal language model with its weights loaded; adapters may be on it.

    Raises:
        BlockError: a layer has no such block, or several; the error names the layer's children.
    """
    hidden_size = text_config(model).hidden_size
    known: dict[tuple[Any, ...], str] = {}
    blocks = []
    for layer_name, layer in decoder_layers(model):
        signature = _signature(layer)
        if signature not in known:
            known[signature] = _mlp_child(layer_name, layer, hidden_size)
        blocks.append(Block(f"{layer_name}.{known[signature]}", layer_name))
    return blocks
