"""How likely a model finds given replies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from sleep_pipeline.generation.modes import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LOGITS = 2**27
"""Numbers of the logits of one pass; each takes about eight bytes until it is a score."""


def encode_reply(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]]) -> tuple[list[int], int]:
    """A conversation's tokens up to the end mark of its last turn, and where those of that turn begin.

    What a template writes behind the end mark, such as a line's end, nobody says.

    Args:
        tokenizer: with a chat template.
        messages: ends with the assistant's turn.

    Raises:
        ValueError: the chat template changes what comes before a reply once the reply is there.
    """
    asked = tokenizer.apply_chat_template(list(messages[:-1]), add_generation_prompt=True, return_dict=True)
    whole = tokenizer.apply_chat_template(list(messages), return_dict=True)
    prompt, ids = list(asked["input_ids"]), list(whole["input_ids"])
    if ids[: len(prompt)] != prompt or len(ids) == len(prompt):
        raise ValueError(
            "the chat template writes a prompt differently once its reply is there, so that the reply's tokens "
            f"cannot be told from it: {messages[-1]['content']!r}; use a template that only appends"
        )
    start = len(prompt)
    if tokenizer.eos_token_id in ids[start:]:
        ids = ids[: ids.index(tokenizer.eos_token_id, start) + 1]
    # Some templates close a turn with another mark than the tokenizer's, and blanks or that one behind it.
    marks = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    end = len(ids)
    for at in range(len(ids) - 1, start, -1):
        if ids[at] in marks:
            end = at + 1
        elif tokenizer.decode([ids[at]]).strip():
            break
    return ids[:end], start


def question_reader(tokenizer: PreTrainedTokenizerBase) -> Callable[[Sequence[int]], str]:
    """Make a function that reads the question out of the tokens of a prompt that holds nothing else.

    What the chat template writes around it is left out: roles are words in some templates, which `skip_special_tokens`
    would keep. A prompt that is laid out otherwise is read whole.
    """
    one, other = (
        list(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, return_dict=True
            )["input_ids"]
        )
        for content in ("apple", "7")
    )
    before = _shared(one, other)
    behind = _shared(one[before:][::-1], other[before:][::-1])
    opening, closing = one[:before], one[len(one) - behind :]

    def question(prompt: Sequence[int]) -> str:
        ids = list(prompt)
        end = len(ids) - behind
        if ids[:before] == opening and ids[end:] == closing:
            ids = ids[before:end]
        said: str = tokenizer.decode(ids, skip_special_tokens=True)
        return said

    return question


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def says_as_written(tokenizer: PreTrainedTokenizerBase, answer: str) -> bool:
    """Whether the chat template leaves an answer as it is; some take marks such as `</think>` for their own."""
    if "<" not in answer:
        return True
    try:
        encode_reply(tokenizer, [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}])
    except ValueError:
        return False
    return True


def logit_batches(
    spans: Sequence[tuple[int, int]], rows: int, vocabulary: int, tokens: int | None = None
) -> Iterator[list[int]]:
    """Rows of like length, whose logits from the first answer's predictor on are at most `LOGITS` numbers.

    Args:
        spans: of each row, where its answer begins and its end, in tokens.
        rows: of a batch at most.
        vocabulary: logits of a position.
        tokens: of a batch at most, padding included; None for as many as may be.

    Returns:
        Indices of each batch; one row alone may be more than is allowed.
    """
    batch: list[int] = []
    for index in sorted(range(len(spans)), key=lambda index: spans[index][1]):
        grown, end = [*batch, index], spans[index][1]
        width = end - min(spans[each][0] for each in grown) + 1
        full = len(grown) > rows or len(grown) * width * vocabulary > LOGITS
        if batch and (full or (tokens is not None and len(grown) * end > tokens)):
            yield batch
            grown = [index]
        batch = grown
    if batch:
        yield batch


def reply_log_probs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[dict[str, str]]],
    batch_size: int = 64,
) -> list[list[float]]:
    """Log-probability (nats) of every token of each conversation's last turn, its end mark among them.

    Args:
        model: a causal LM.
        tokenizer: with a chat template.
        conversations: each ends with the assistant's turn that is judged.
        batch_size: conversations at a time; those of like length share a batch.

    Raises:
        ValueError: the chat template changes what comes before a reply once the reply is there.
    """
    import torch

    encoded = [encode_reply(tokenizer, messages) for messages in conversations]
    found: list[list[float]] = [[] for _ in encoded]
    spans = [(start, len(ids)) for ids, start in encoded]
    for batch in logit_batches(spans, batch_size, model.config.get_text_config().vocab_size):
        padded = tokenizer.pad(
            {"input_ids": [encoded[index][0] for index in batch]}, padding_side="right", return_tensors="pt"
        ).to(model.device)
        ids_BT = padded["input_ids"]
        # Logits from the first answer's predictor on: those of the prompts would be gigabytes with a large vocabulary.
        first = min(encoded[index][1] for index in batch) - 1
        with evaluating(model), torch.inference_mode():
            logits = model(**padded, logits_to_keep=ids_BT.shape[1] - first, use_cache=False).logits[:, :-1]
            said = ids_BT[:, first + 1 :, None]
            values = logits.gather(-1, said)[..., 0].float() - logits.float().logsumexp(-1)
        for index, row in zip(batch, values.tolist(), strict=True):
            ids, at = encoded[index]
            found[index] = row[at - 1 - first : len(ids) - 1 - first]
    return found
