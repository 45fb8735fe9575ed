"""Last hidden states of a causal LM and the head that turns them into logits, for any architecture of transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sleep_pipeline.generation.modes import evaluating
from sleep_pipeline.seeding.divergences import Head


def causal_lm(model: nn.Module) -> Any:
    """The transformers model inside wrappers of PEFT and accelerate."""
    inner: Any = getattr(model, "module", model)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def hidden_states(model: nn.Module, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Last hidden states `[B, T, d]`, as the head gets them.

    The whole model is called, so that wrappers such as DDP see the pass; its own logits are made at one position only.
    """
    lm = causal_lm(model)
    caught: list[Any] = []
    hook = lm.base_model.register_forward_hook(lambda module, args, output: caught.append(output))
    try:
        model(input_ids=ids_BT, attention_mask=mask_BT, logits_to_keep=1, use_cache=False)
    finally:
        hook.remove()
    states: Tensor = caught[-1][0]
    return states


def answer_head(model: nn.Module) -> Head:
    """The map from last hidden states to logits, found out and checked on a few random tokens.

    Raises:
        ValueError: the model does more to its logits than its output embedding and the known scalings.
    """
    lm = causal_lm(model)
    linear = lm.get_output_embeddings()
    config = lm.config.get_text_config()
    cap = getattr(config, "final_logit_softcapping", None)
    times = getattr(config, "logit_scale", None)
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
            "the scalings of its configuration; knowledge seeding cannot compare teacher and student on it"
        )
    return head
