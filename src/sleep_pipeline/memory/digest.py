"""A fingerprint of the base model's weights, so that a memory is never loaded onto another model."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

WORTH_THREADS = 2**24
"""Bytes from which starting threads costs less than it saves."""


def base_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters of the base model by the names they have without any adapter."""
    adapters = tuple(name + "." for name, module in model.named_modules() if isinstance(module, BaseTunerLayer))
    found: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if any(name.startswith(prefix) and not name.startswith(prefix + "base_layer.") for prefix in adapters):
            inner = [prefix for prefix in adapters if name.startswith(prefix)]
            if not name[len(max(inner, key=len)) :].startswith("base_layer."):
                continue
        found[name.replace(".base_layer.", ".")] = parameter
    return found


def _digest(tensor: Tensor) -> bytes:
    flat = tensor.detach().to("cpu").contiguous().view(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().data if flat.numel() else b"").digest()


class OtherBaseError(ValueError):
    """A memory was made for another base model."""


def base_digest(model: nn.Module) -> str:
    """Return the SHA-256 over the names, dtypes, shapes and bytes of the base model's parameters.

    Adapters on the model do not count. Tensors are hashed in parallel; hashing runs at about the speed at
    which weights are read from disk.

    Raises:
        ValueError: a weight lies on the meta device and has no bytes.
    """
    parameters = base_parameters(model)
    for name, parameter in parameters.items():
        if parameter.device.type == "meta":
            raise ValueError(f"the base weight {name} is on the meta device: load the base model's weights first")
    if sum(parameter.nbytes for parameter in parameters.values()) < WORTH_THREADS:
        digests = [_digest(parameter) for parameter in parameters.values()]
    else:
        with ThreadPoolExecutor() as pool:
            digests = list(pool.map(_digest, parameters.values()))
    total = hashlib.sha256()
    for (name, parameter), digest in sorted(zip(parameters.items(), digests, strict=True), key=lambda item: item[0][0]):
        total.update(f"{name} {parameter.dtype} {tuple(parameter.shape)} ".encode())
        total.update(digest)
    return total.hexdigest()
