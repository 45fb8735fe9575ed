"""How likely a model finds given replies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sleep_pipeline.generation.modes import evaluating
from sleep_pipeline.generation.reading import alike_at_first, inputs_of, reading_batches
from sleep_pipeline.progress import bar

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
    before = alike_at_first(one, other)
    behind = alike_at_first(one[before:][::-1], other[before:][::-1])
    opening, closing = one[:before], one[len(one) - behind :]

    def question(prompt: Sequence[int]) -> str:
        ids = list(prompt)
        end = len(ids) - behind
        if ids[:before] == opening and ids[end:] == closing:
            ids = ids[before:end]
        said: str = tokenizer.decode(ids, skip_special_tokens=True)
        return said

    return question


def says_as_written(tokenizer: PreTrainedTokenizerBase, answer: str) -> bool:
    """Whether the chat template leaves an answer as it is; some take marks such as `</think>` for their own.

    What a template puts around every answer, such as an empty thought before it, is no change. Blanks count for
    nothing.
    """
    if "<" not in answer:
        return True
    plain = "apple"
    try:
        said, usual = (_written(tokenizer, content) for content in (answer, plain))
    except ValueError:
        return False
    before, _, behind = usual.partition(plain)
    return said == before + "".join(answer.split()) + behind


def _written(tokenizer: PreTrainedTokenizerBase, answer: str) -> str:
    """What a chat template makes of an answer, without blanks."""
    ids, start = encode_reply(tokenizer, [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}])
    return "".join(tokenizer.decode(ids[start:], skip_special_tokens=True).split())


def reply_log_probs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[dict[str, str]]],
    batch_size: int = 64,
    progress: str | None = None,
) -> list[list[float]]:
    """Log-probability (nats) of every token of each conversation's last turn, its end mark among them.

    Args:
        model: a causal LM.
        tokenizer: with a chat template.
        conversations: each ends with the assistant's turn that is judged.
        batch_size: conversations at a time; what several begin with is read once.
        progress: title of a bar; None for no bar.

    Raises:
        ValueError: the chat template changes what comes before a reply once the reply is there.
    """
    import torch

    if not conversations:
        return []
    encoded = [encode_reply(tokenizer, messages) for messages in conversations]
    found: list[list[float]] = [[] for _ in encoded]
    shown = bar(title=progress, total=len(encoded), unit="answer")
    for batch in reading_batches(model, encoded, batch_size):
        with evaluating(model), torch.inference_mode():
            inputs = inputs_of(model, tokenizer, encoded, batch)
            ids_BT = inputs.own["input_ids"]
            starts = [encoded[row][1] - away for row, away in zip(batch.rows, batch.skipped, strict=True)]
            # Logits from the first answer's predictor on: those of the prompts would be gigabytes with a large
            # vocabulary.
            first = min(starts) - 1
            logits = model(**inputs.own, **inputs.more, logits_to_keep=ids_BT.shape[1] - first).logits[:, :-1]
            said = ids_BT[:, first + 1 :, None]
            values = logits.gather(-1, said)[..., 0].float() - logits.float().logsumexp(-1)
        for row, start, found_T in zip(batch.rows, starts, values.tolist(), strict=True):
            said_before = start - 1 - first
            found[row] = found_T[said_before : said_before + len(encoded[row][0]) - encoded[row][1]]
        shown.update(len(batch.rows))
    shown.close()
    return found
