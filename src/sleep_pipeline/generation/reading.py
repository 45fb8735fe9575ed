"""Reading many texts at a time: batches whose logits fit, and beginnings that texts share read once.

Dozens of questions about one memory are the memory and a few words each, so most of what is read was read before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from sleep_pipeline.generation.modes import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LOGITS = 2**27
"""Numbers of the logits of one pass; each takes about eight bytes until it is a score."""
_LEAST = 16
"""Tokens in common from which on a beginning is read for itself."""
_NEARER = 0.6
"""Of what a text has in common with the next one, the part that it must share with those before it to join them."""
_WORTH = 512
"""Tokens saved from which on it is tried out whether the model can go on from a cache."""

Encoded = tuple[Sequence[int], int]
"""A text's tokens, and where those begin whose predictions are wanted, 1 or more."""


@dataclass(frozen=True)
class Batch:
    """Rows that a model reads at a time.

    Attributes:
        rows: which texts they are.
        skipped: of each, the tokens at its beginning that are read before, with other rows.
    """

    rows: list[int]
    skipped: list[int]


@dataclass(frozen=True)
class Inputs:
    """A batch as the model gets it.

    Attributes:
        own: `input_ids` `[B, T]` of what is not skipped, padded on the right, and the whole `attention_mask`.
        more: further arguments of the model, such as the cache of what is skipped.
    """

    own: dict[str, Any]
    more: dict[str, Any]


def logit_batches(
    spans: Sequence[tuple[int, int]],
    rows: int,
    vocabulary: int,
    tokens: int | None = None,
    order: Sequence[int] | None = None,
) -> Iterator[list[int]]:
    """Rows of like length, whose logits from the first answer's predictor on are at most `LOGITS` numbers.

    Args:
        spans: of each row, where its answer begins and its end, in tokens.
        rows: of a batch at most.
        vocabulary: logits of a position.
        tokens: of a batch at most, padding included; None for as many as may be.
        order: the rows that are meant, in this order; None for all by their length.

    Returns:
        Indices of each batch; one row alone may be more than is allowed.
    """
    batch: list[int] = []
    for index in sorted(range(len(spans)), key=lambda index: spans[index][1]) if order is None else order:
        grown = [*batch, index]
        end = max(spans[each][1] for each in grown)
        width = end - min(spans[each][0] for each in grown) + 1
        full = len(grown) > rows or len(grown) * width * vocabulary > LOGITS
        if batch and (full or (tokens is not None and len(grown) * end > tokens)):
            yield batch
            grown = [index]
        batch = grown
    if batch:
        yield batch


def shared_beginnings(texts: Sequence[Encoded]) -> list[int]:
    """How many tokens of each text can be read together with others' that begin alike; 0 where that is too few.

    What is asked about is never among what is shared, nor is the token that predicts it. In alphabetical order, a text
    joins those before it if that saves no less than to begin anew, and if it has not far more in common with the next.
    """
    order = sorted(range(len(texts)), key=lambda index: list(texts[index][0][: texts[index][1] - 1]))
    room = [texts[index][1] - 1 for index in order]
    alike = [
        min(alike_at_first(texts[one][0], texts[other][0]), *rooms)
        for one, other, *rooms in zip(order, order[1:], room, room[1:], strict=False)
    ]
    found = [0] * len(texts)
    begin, length = 0, room[0] if room else 0
    for place in range(1, len(order) + 1):
        shared = min(length, alike[place - 1]) if place < len(order) else 0
        ahead = alike[place] if place < len(alike) else 0
        size = place - begin
        # All but the first of a group are saved.
        if shared >= max(_LEAST, _NEARER * ahead) and size * shared >= (size - 1) * length:
            length = shared
            continue
        if size > 1:
            for index in order[begin:place]:
                found[index] = length
        begin, length = place, room[place] if place < len(order) else 0
    return found


def alike_at_first(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def reading_batches(
    model: PreTrainedModel, texts: Sequence[Encoded], rows: int, logits: bool = True
) -> Iterator[Batch]:
    """Batches of at most so many rows in which what texts share at their beginning is skipped, if the model allows it.

    Args:
        model: a causal LM.
        texts: see `Encoded`.
        rows: of a batch at most.
        logits: whether those of all rows exist at a time, which are then at most `LOGITS`.
    """
    vocabulary = model.config.get_text_config().vocab_size if logits else 0
    skipped = shared_beginnings(texts)
    # The first of each group is read all the same.
    saved = sum(skipped) - sum(
        len(begun) for begun in {tuple(ids[:n]) for (ids, _), n in zip(texts, skipped, strict=True)}
    )
    if saved < _WORTH or not goes_on_from_caches(model):
        skipped = [0] * len(texts)
    spans = [(start - away, len(ids) - away) for (ids, start), away in zip(texts, skipped, strict=True)]
    whole = sorted((row for row, away in enumerate(skipped) if not away), key=lambda row: spans[row][1])
    begun = sorted(
        (row for row, away in enumerate(skipped) if away),
        key=lambda row: (skipped[row], list(texts[row][0][: skipped[row]]), spans[row][1]),
    )
    for order in (whole, begun):
        for batch in logit_batches(spans, rows, vocabulary, order=order):
            yield Batch(batch, [skipped[row] for row in batch])


def inputs_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[Encoded], batch: Batch
) -> Inputs:
    """Read what the rows of a batch skip, each beginning once, and return what the model gets to go on.

    Args:
        model: in the mode that it is used in.
        tokenizer: pads.
        texts: see `Encoded`.
        batch: of `reading_batches`.
    """
    import torch

    device = model.device
    rests = [list(texts[row][0][away:]) for row, away in zip(batch.rows, batch.skipped, strict=True)]
    own = dict(tokenizer.pad({"input_ids": rests}, padding_side="right", return_tensors="pt").to(device))
    if not any(batch.skipped):
        return Inputs(own, {"use_cache": False})
    beginnings = [tuple(texts[row][0][:away]) for row, away in zip(batch.rows, batch.skipped, strict=True)]
    places = {beginning: place for place, beginning in enumerate(dict.fromkeys(beginnings))}
    before = tokenizer.pad({"input_ids": list(map(list, places))}, padding_side="right", return_tensors="pt").to(device)
    rows = torch.tensor([places[beginning] for beginning in beginnings], device=device)
    with torch.inference_mode():
        cache = model(**before, logits_to_keep=1, use_cache=True).past_key_values
        cache.reorder_cache(rows)
    positions = torch.tensor(batch.skipped, device=device)[:, None] + torch.arange(
        own["input_ids"].shape[1], device=device
    )
    # Padding stays within the window, too: learned positions have none beyond it.
    last = torch.tensor([len(texts[row][0]) - 1 for row in batch.rows], device=device)
    positions = positions.minimum(last[:, None])
    own["attention_mask"] = torch.cat([before["attention_mask"][rows], own["attention_mask"]], dim=-1)
    return Inputs(own, {"position_ids": positions, "past_key_values": cache, "use_cache": True})


def goes_on_from_caches(model: PreTrainedModel) -> bool:
    """Whether a model can go on from a cache with padding in its midst, tried out on a few tokens.

    One with a window, a convolution or a recurrence cannot: what it sees depends on what stands between.
    """
    import torch
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    size = model.config.get_text_config().vocab_size
    ids = torch.randint(0, size, (2, 6), generator=torch.Generator().manual_seed(0)).to(model.device)
    mask = torch.ones_like(ids)
    mask[1, 2] = 0
    positions = torch.tensor([[3, 4, 5], [2, 3, 4]], device=model.device)
    with evaluating(model), torch.inference_mode():
        try:
            cache = model(input_ids=ids[:, :3], attention_mask=mask[:, :3], use_cache=True).past_key_values
            if not isinstance(cache, DynamicCache) or any(type(layer) is not DynamicLayer for layer in cache.layers):
                return False
            cache.reorder_cache(torch.arange(2, device=model.device))
            found = model(
                input_ids=ids[:, 3:],
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            ).logits
            for row, kept in enumerate(found):
                text = ids[row, mask[row].bool()][None]
                expected = model(input_ids=text, attention_mask=torch.ones_like(text), use_cache=False).logits[0, -3:]
                if not torch.allclose(
                    kept.float(), expected.float(), rtol=1e-2, atol=1e-2 * float(expected.abs().max())
                ):
                    return False
        except Exception:  # a cache of its own kind, or positions that cannot be given
            return False
    return True
