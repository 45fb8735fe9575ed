"""A LoRA adapter, or another PEFT method, on the same model as a memory.

PEFT 0.21 has no model for two methods of which one is not its own: `PeftMixedModel` takes a fixed list, and
tuners neither target modules inside another tuner's layer (the linear maps of a wrapped MLP) nor save only
what is theirs. Both work on a model without foreign layers, so the memory steps aside for a moment.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn

from sleep_pipeline.memory.layer import ContinuumLayer


def network_of(model: nn.Module) -> nn.Module:
    """Return the Hugging Face model inside (nested) PEFT models."""
    while isinstance(model, PeftModel):
        model = model.get_base_model()
    return model


@contextmanager
def memory_aside(model: nn.Module) -> Iterator[None]:
    """Take the memory's layers out of the network for the time of the block, and put the same ones back."""
    network = network_of(model)
    places = []
    for name, module in network.named_modules():
        if isinstance(module, ContinuumLayer):
            parent, _, child = name.rpartition(".")
            places.append((network.get_submodule(parent), child, module))
    configs = network.__dict__.pop("peft_config", None)
    try:
        for parent_module, child, layer in places:
            setattr(parent_module, child, layer.base_layer)
        yield
    finally:
        for parent_module, child, layer in places:
            # A tuner may have replaced the block itself meanwhile; wrap what is there now.
            layer.base_layer = getattr(parent_module, child)
            setattr(parent_module, child, layer)
        if configs is not None:
            network.__dict__["peft_config"] = configs


def add_beside(model: nn.Module, config: PeftConfig, adapter_name: str = "default") -> PeftModel:
    """Put another adapter on a network that has a memory and return it as a PEFT model of its own.

    Both PEFT models share the network: either one's forward pass runs both. `disable_adapter()` of each
    switches only its own layers, `unload()` of each removes only its own, and both train at once unless the other is
    frozen.
    """
    with memory_aside(model):
        return get_peft_model(network_of(model), config, adapter_name=adapter_name)


def load_beside(
    model: nn.Module, directory: str | Path, adapter_name: str = "default", trainable: bool = False
) -> PeftModel:
    """Load a saved adapter of another method onto a network that has a memory."""
    with memory_aside(model):
        return PeftModel.from_pretrained(
            network_of(model), directory, adapter_name=adapter_name, is_trainable=trainable
        )


def save_beside(adapter: PeftModel, directory: str | Path, embeddings: bool = False) -> None:
    """Save an adapter that lives beside a memory as a plain adapter of the bare base model.

    Args:
        adapter: see `add_beside`.
        directory: PEFT makes it, with a folder of the adapter's name in it where that is not `default`.
        embeddings: whether the embeddings are saved as well, which an adapter of a resized vocabulary needs. PEFT, left
            to itself, asks the hub whether it was.
    """
    with memory_aside(adapter):
        adapter.save_pretrained(str(directory), save_embedding_layers=embeddings)
