"""Greedy replies to many conversations at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sleep_pipeline.generation.modes import plain_generation
from sleep_pipeline.generation.sampler import check_window, encode_prompts, end_marks
from sleep_pipeline.progress import bar

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def greedy_replies(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[dict[str, str]]],
    max_new_tokens: int = 64,
    batch_size: int = 64,
    progress: str | None = None,
) -> list[str]:
    """What the model answers to each conversation, special tokens left out, in the order of the prompts.

    Conversations of like length share a batch, so that little is padded.

    Args:
        model: a causal LM.
        tokenizer: with a chat template and padding on the left.
        prompts: conversations that end with a user turn.
        max_new_tokens: where a reply is cut, in tokens.
        batch_size: conversations at a time.
        progress: title of a progress bar; none is shown without one.

    Raises:
        ValueError: a conversation and its reply do not fit into the model's window.
    """
    import torch

    encoded = encode_prompts(tokenizer, prompts)
    check_window(model, encoded, max_new_tokens)
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
    replies = [""] * len(encoded)
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    ends = end_marks(model, tokenizer) or None
    for batch in bar(batches, progress, unit="batch"):
        padded = tokenizer.pad({"input_ids": [encoded[index] for index in batch]}, return_tensors="pt").to(model.device)
        with torch.inference_mode(), plain_generation(model):
            output = model.generate(
                **padded,
                do_sample=False,
                max_new_tokens=max_new_tokens,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=ends,
            )
        texts = tokenizer.batch_decode(output[:, padded["input_ids"].shape[1] :], skip_special_tokens=True)
        for index, text in zip(batch, texts, strict=True):
            replies[index] = text
    return replies
