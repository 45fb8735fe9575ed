"""How well a model predicts ordinary text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class LanguageFit:
    """Perplexity a token, and bits a byte (UTF-8), which is comparable between vocabularies."""

    perplexity: float
    bits_per_byte: float
    tokens: int
    bytes: int


def language_fit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    window: int = 512,
) -> LanguageFit:
    """Fit of a model to texts, each cut into windows of `window` tokens that do not overlap.

    A window begins with the beginning-of-sequence token, where the tokenizer has one, and its first token of text is
    predicted from that; without one the first token of each window goes unpredicted and uncounted.

    Args:
        model: a causal LM.
        tokenizer: its tokenizer.
        texts: at least one text of two tokens.
        window: tokens a forward pass, at most those of the model's own window.

    Raises:
        ValueError: there is nothing to predict.
    """
    import torch

    start = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    window = window if limit is None else min(window, limit - len(start))
    nats, tokens, size = 0.0, 0, 0
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        for at in range(0, len(ids), window):
            piece = start + ids[at : at + window]
            if len(piece) < 2:
                continue
            batch = torch.tensor([piece], device=model.device)
            with torch.inference_mode():
                logits = model(input_ids=batch).logits[0, :-1].float()
            nats += float(torch.nn.functional.cross_entropy(logits, batch[0, 1:], reduction="sum"))
            tokens += len(piece) - 1
            size += len(tokenizer.decode(piece[1:]).encode())
    if not tokens:
        raise ValueError(f"there is nothing to predict in {len(texts)} texts; give longer ones")
    return LanguageFit(math.exp(nats / tokens), nats / size / math.log(2), tokens, size)
