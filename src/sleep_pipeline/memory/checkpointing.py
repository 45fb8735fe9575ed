"""Keep views correct under gradient checkpointing.

A checkpointed layer is computed a second time in the backward pass, when the view it was first computed in
may have been left. Each decoder layer's checkpointing function is therefore wrapped, once it is in use, so
that the second computation runs under the switches of the first. Code that checkpoints by other means passes
`checkpoint_context(model)` to `torch.utils.checkpoint.checkpoint` as `context_fn`.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from sleep_pipeline.memory.layer import ContinuumLayer


def _under(layer: ContinuumLayer, switches: Any, function: Callable[..., Any], *args: Any) -> Any:
    with layer.switched(switches):
        return function(*args)


class KeepsView:
    """A checkpointing function that recomputes under the view of the first computation."""

    def __init__(self, checkpoint: Callable[..., Any], layer: ContinuumLayer):
        self.checkpoint = checkpoint
        self.layer = layer

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Checkpoint `function(*args)`."""
        if torch.compiler.is_compiling():
            # A compiled graph is traced under one view and recomputed as traced.
            return self.checkpoint(function, *args, **kwargs)
        return self.checkpoint(_Once(self.layer, function), *args, **kwargs)


class _Once:
    """Run plainly the first time, so that traces record; under the remembered switches after that."""

    def __init__(self, layer: ContinuumLayer, function: Callable[..., Any]):
        self.layer = layer
        self.function = function
        self.switches = layer.switches()
        self.done = False

    def __call__(self, *args: Any) -> Any:
        if not self.done:
            self.done = True
            return self.function(*args)
        return _under(self.layer, self.switches, self.function, *args)


def _wrap(decoder_layer: nn.Module, args: Any) -> None:
    if torch.compiler.is_compiling() or not getattr(decoder_layer, "gradient_checkpointing", False):
        return
    function = getattr(decoder_layer, "_gradient_checkpointing_func", None)
    if function is None or isinstance(function, KeepsView):
        return
    layer = next((module for module in decoder_layer.modules() if isinstance(module, ContinuumLayer)), None)
    if layer is not None:
        decoder_layer._gradient_checkpointing_func = KeepsView(function, layer)  # type: ignore[assignment]


def keep_views(decoder_layer: nn.Module) -> RemovableHandle:
    """Make a decoder layer that holds a memory recompute under the right view; the handle undoes it.

    The hook looks for the memory when checkpointing is first used, so a deep copy of the model finds its own.
    """
    return decoder_layer.register_forward_pre_hook(_wrap)


def checkpoint_context(
    model: nn.Module,
) -> Callable[[], tuple[AbstractContextManager[None], AbstractContextManager[None]]]:
    """Return a `context_fn` for `torch.utils.checkpoint.checkpoint`: recompute under the present view."""
    layers = [module for module in model.modules() if isinstance(module, ContinuumLayer)]

    @contextmanager
    def again(switches: list[Any]) -> Any:
        with ExitStack() as stack:
            for layer, entry in zip(layers, switches, strict=True):
                stack.enter_context(layer.switched(entry))
            yield

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), again([layer.switches() for layer in layers])

    return contexts


@contextmanager
def inputs_without_gradients(lm: nn.Module) -> Iterator[None]:
    """Let nobody make the embedding's output require gradients, as trainers do for reentrant checkpointing.

    Layers below the first one that trains would be run twice and back-propagated through, for nothing.
    """
    lm.__dict__["enable_input_require_grads"] = lambda: None
    try:
        yield
    finally:
        del lm.__dict__["enable_input_require_grads"]
