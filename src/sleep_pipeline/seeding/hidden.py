"""Last hidden states of a causal LM and the head that turns them into logits, for any architecture of transformers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from sleep_pipeline.generation.modes import evaluating
from sleep_pipeline.memory.blocks import BlockError, find_mlp_blocks
from sleep_pipeline.seeding.divergences import Head


def causal_lm(model: nn.Module) -> Any:
    """The transformers model inside wrappers of PEFT and accelerate."""
    inner: Any = getattr(model, "module", model)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def hidden_states(
    model: nn.Module,
    ids_BT: Tensor,
    mask_BT: Tensor,
    needed: tuple[Tensor, Tensor] | None = None,
    last_block: nn.Module | None = None,
    more: Mapping[str, Any] | None = None,
) -> Tensor:
    """Last hidden states `[B, T, d]`, as the head gets them.

    The whole model is called, so that wrappers such as DDP see the pass; its own logits are made at one position only.

    Args:
        model: a causal LM, in wrappers or not.
        ids_BT: tokens.
        mask_BT: 0 where they are padding.
        needed: rows and positions whose states are used, if not all; what stands elsewhere is undefined.
        last_block: see `last_block_of`, which then works for the needed positions alone: of a conversation, mostly the
            answer. Gradients do not tell the difference, unless its pass is run a second time (gradient checkpointing).
        more: further arguments of the model, such as a cache of what was read before.
    """
    lm = causal_lm(model)
    caught: list[Any] = []
    hook = lm.base_model.register_forward_hook(lambda module, args, output: caught.append(output))
    sparing = nullcontext() if last_block is None or needed is None else _working_at(last_block, needed)
    try:
        with sparing:
            model(input_ids=ids_BT, attention_mask=mask_BT, logits_to_keep=1, **(more or {"use_cache": False}))
    finally:
        hook.remove()
    states: Tensor = caught[-1][0]
    return states


@contextmanager
def _working_at(block: nn.Module, places: tuple[Tensor, Tensor]) -> Iterator[None]:
    """The block gets the hidden states of these rows and positions as one row, and adds nothing elsewhere."""
    shapes: list[torch.Size] = []

    def gather(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        shapes.append(args[0].shape)
        return (args[0][places].unsqueeze(0), *args[1:])

    def scatter(module: nn.Module, args: tuple[Any, ...], result: Any) -> Any:
        output = result[0] if isinstance(result, tuple) else result
        whole = output.new_zeros(shapes.pop()).index_put(places, output.squeeze(0))
        return (whole, *result[1:]) if isinstance(result, tuple) else whole

    hooks = [block.register_forward_pre_hook(gather), block.register_forward_hook(scatter)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def last_block_of(model: nn.Module) -> nn.Module | None:
    """The MLP block of the last decoder layer, after which no position reads another one, tried out on a few tokens.

    None where there is none such: then all positions have to be computed.
    """
    lm = causal_lm(model)
    try:
        block: nn.Module = lm.get_submodule(find_mlp_blocks(lm)[-1].name)
    except BlockError:
        return None
    device = next(lm.parameters()).device
    size = lm.config.get_text_config().vocab_size
    ids = torch.randint(0, size, (2, 4), generator=torch.Generator().manual_seed(0)).to(device)
    places = (torch.tensor([0, 1, 1], device=device), torch.tensor([2, 1, 3], device=device))
    with evaluating(model), torch.no_grad():
        try:
            expected, found = (
                hidden_states(lm, ids, torch.ones_like(ids), places, used)[places] for used in (None, block)
            )
        except Exception:  # blocks may want more than hidden states, or hidden states of the model's own shape
            return None
    close = torch.allclose(found.float(), expected.float(), rtol=1e-2, atol=1e-2 * float(expected.abs().max()))
    return block if close else None


def answer_head(model: nn.Module) -> Head:
    """The map from last hidden states to logits, found out and checked on a few random tokens.

    Raises:
        ValueError: the model does more to its logits than its output embedding and the known scalings.
    """
    lm = causal_lm(model)
    linear = lm.get_output_embeddings()
    config = lm.config.get_text_config()
    cap = getattr(config, "final_logit_softcapping", None)
    times = getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None)
    by = getattr(config, "logits_scaling", None)

    def head(hidden_ND: Tensor) -> Tensor:
        # Autocast ends before the head, and may leave hidden states in another dtype than the head's weights.
        weight = linear.weight.dtype
        logits: Tensor = linear(hidden_ND.to(weight) if weight.is_floating_point else hidden_ND)
        if times is not None:
            logits = logits * times
        if by is not None:
            logits = logits / by
        return cap * torch.tanh(logits / cap) if cap is not None else logits

    device = next(lm.parameters()).device
    ids = torch.randint(0, config.vocab_size, (1, 4), generator=torch.Generator().manual_seed(0)).to(device)
    with evaluating(model), torch.no_grad():
        hidden = hidden_states(lm, ids, torch.ones_like(ids))
        expected = lm(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        found = head(hidden)
    if found.shape != expected.shape or not torch.allclose(found.float(), expected.float(), rtol=1e-2, atol=1e-2):
        raise ValueError(
            f"the logits of {type(lm).__name__} are not its output embedding of its last hidden states, not even with "
            "the scalings of its configuration; knowledge seeding cannot compare teacher and student on it: take "
            "another base model"
        )
    return head
