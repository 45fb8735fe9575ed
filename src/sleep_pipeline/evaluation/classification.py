"""Classification by a language model: which of the labels seen so far it would answer with.

Two ways, reported apart: the likelihood of every label as the reply, which always names one of them, and free
generation, which counts only where the reply is a label, letter for letter but for case and outer punctuation.

Scoring reads every prompt once; labels continue its cache. The best label is found exactly without scoring all of
them: a label is never likelier than its first token, which the prompt's pass already gives, so labels are scored in
the order of that bound until none of the rest can win.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sleep_pipeline.generation.likelihood import encode_reply
from sleep_pipeline.generation.modes import evaluating
from sleep_pipeline.generation.replies import greedy_replies
from sleep_pipeline.seeding.answers import same_answer

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sleep_pipeline.evaluation.tasks import Example

Conversation = Sequence[dict[str, str]]

BATCH_TOKENS = 1024
"""On two cores three times as fast as 16,384 for prompts of 250 tokens; a GPU wants more."""
_CACHED = 8
"""Tokens in the caches of continuations at a time, as a multiple of those of prompts: their passes are shorter."""
_FIRST_ROUND, _NEXT_ROUNDS = 4, 16
"""Labels of a prompt that are scored at a time."""


@dataclass(frozen=True)
class PromptForm:
    """How an utterance is asked about: a form that the embedded model met in its pretraining (`corpora/puzzles.py`).

    Attributes:
        head: before the examples.
        example: of a labelled example, one a line of the system turn.
        query: the user turn.
    """

    head: str = ""
    example: str = "{text} -> {label}"
    query: str = "{text} ->"

    def conversation(self, text: str, examples: Sequence[Example] = ()) -> list[dict[str, str]]:
        """The prompt for a text; without examples there is no system turn. Newlines become spaces."""
        query = {"role": "user", "content": self.query.format(text=one_line(text))}
        if not examples:
            return [query]
        lines = [self.example.format(text=one_line(example.text), label=example.label) for example in examples]
        return [{"role": "system", "content": self.head + "\n".join(lines)}, query]


def one_line(text: str) -> str:
    """The text with every run of white space as one space."""
    return " ".join(text.split())


@dataclass(frozen=True)
class Choice:
    """An answer.

    Attributes:
        label: chosen; empty where none was.
        score: log-probability of the label (nats), its mean over tokens if normalised; 0 in free generation.
    """

    label: str
    score: float


@dataclass(frozen=True)
class _Prompts:
    """Prompts that were read, padded on the left: rows are theirs."""

    cache: Any
    mask_BT: Tensor
    first_BV: Tensor


def label_log_probs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Conversation],
    labels: Sequence[str],
    normalise: bool = False,
    batch_tokens: int = BATCH_TOKENS,
) -> Tensor:
    """Log-probability (nats) of each label as the reply to each prompt, its end mark included, `[prompts, labels]`.

    Args:
        model: a causal LM.
        tokenizer: with a chat template.
        prompts: conversations that end with a user turn.
        labels: at least one.
        normalise: divide by the label's number of tokens.
        batch_tokens: of the prompts that are read at a time.

    Raises:
        ValueError: there is no label, or a prompt and its label do not fit into the model's window.
    """
    import torch

    replies = _replies(tokenizer, prompts, labels)
    found = torch.zeros(len(prompts), len(labels))
    everything = range(len(labels))
    for batch, read in _read(model, tokenizer, prompts, replies, batch_tokens):
        wanted = [(row, label) for row in range(len(batch)) for label in everything]
        values = _continued(model, read, wanted, replies, batch_tokens)
        found[batch] = torch.tensor(values).view(len(batch), -1)
    return found / torch.tensor([len(reply) for reply in replies]) if normalise else found


def best_labels(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Conversation],
    labels: Sequence[str],
    candidates: Sequence[Sequence[int]] | None = None,
    normalise: bool = False,
    batch_tokens: int = BATCH_TOKENS,
) -> list[Choice]:
    """The likeliest label of each prompt: the argmax of `label_log_probs` at a fraction of its cost.

    Args:
        model: a causal LM.
        tokenizer: with a chat template.
        prompts: conversations that end with a user turn.
        labels: at least one.
        candidates: for each prompt the places of the labels that it may have; all of them if left out.
        normalise: compare log-probabilities a token.
        batch_tokens: of the prompts that are read at a time.

    Raises:
        ValueError: there is no label, or a prompt and its label do not fit into the model's window.
    """
    import torch

    replies = _replies(tokenizer, prompts, labels)
    sizes = [len(reply) if normalise else 1 for reply in replies]
    first = torch.tensor([reply[0] for reply in replies])
    chosen: list[Choice] = [Choice("", 0.0)] * len(prompts)
    for batch, read in _read(model, tokenizer, prompts, replies, batch_tokens):
        bounds = (read.first_BV[:, first.to(read.first_BV.device)].cpu() / torch.tensor(sizes)).tolist()
        # Each prompt's labels still to be scored, the most promising last.
        waiting: list[list[int]] = []
        for bound, index in zip(bounds, batch, strict=True):
            mine = range(len(labels)) if candidates is None else candidates[index]
            waiting.append([-negative for _, negative in sorted((bound[label], -label) for label in mine)])
        best: list[tuple[float, int]] = [(-torch.inf, -1)] * len(batch)
        width = _FIRST_ROUND
        while True:
            wanted = []
            for row, rest in enumerate(waiting):
                for _ in range(min(width, len(rest))):
                    if bounds[row][rest[-1]] < best[row][0]:
                        rest.clear()
                        break
                    wanted.append((row, rest.pop()))
            if not wanted:
                break
            for (row, label), value in zip(wanted, _continued(model, read, wanted, replies, batch_tokens), strict=True):
                score = value / sizes[label]
                # Of equals the first wins, as in an argmax.
                if (score, -label) > (best[row][0], -best[row][1]) or best[row][1] < 0:
                    best[row] = (score, label)
            width = _NEXT_ROUNDS
        for row, index in enumerate(batch):
            score, label = best[row]
            chosen[index] = Choice(labels[label], score) if label >= 0 else Choice("", 0.0)
    return chosen


def free_labels(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Conversation],
    labels: Sequence[str],
    batch_size: int = 64,
) -> list[Choice]:
    """The label that the model says of itself to each prompt, greedily; empty where it says something else."""
    longest = max(len(reply) for reply in _replies(tokenizer, prompts, labels)) if prompts else 1
    with evaluating(model):
        said = greedy_replies(model, tokenizer, prompts, longest, batch_size)
    return [Choice(matched(reply, labels), 0.0) for reply in said]


def matched(reply: str, labels: Sequence[str]) -> str:
    """The label that a reply is, but for case, outer punctuation and spaces; empty if it is none."""
    return next((label for label in labels if same_answer(reply, label)), "")


def _replies(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Conversation], labels: Sequence[str]
) -> list[list[int]]:
    """The tokens of every label as a reply, with the end mark; the same after every prompt, which only comes before."""
    if not labels:
        raise ValueError("there is no label to choose from: let the method observe a task first")
    if not prompts:
        return []
    replies = []
    for label in labels:
        ids, start = encode_reply(tokenizer, [*prompts[0], {"role": "assistant", "content": label}])
        replies.append(ids[start:])
    return replies


def _read(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Conversation],
    replies: Sequence[Sequence[int]],
    batch_tokens: int,
) -> Iterator[tuple[list[int], _Prompts]]:
    """One pass over the prompts, those of like length together."""
    import torch

    encoded = [
        list(tokenizer.apply_chat_template(list(prompt), add_generation_prompt=True, return_dict=True)["input_ids"])
        for prompt in prompts
    ]
    window = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max(map(len, encoded), default=0) + max(map(len, replies), default=0)
    if window is not None and longest > window:
        raise ValueError(
            f"a prompt and a label of {longest} tokens do not fit into the model's window of {window}; give fewer "
            "examples, or shorten the text"
        )
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and (end + 1 - start) * len(encoded[order[end]]) <= batch_tokens:
            end += 1
        batch, start = order[start:end], end
        padded = tokenizer.pad(
            {"input_ids": [encoded[index] for index in batch]}, padding_side="left", return_tensors="pt"
        ).to(model.device)
        mask = padded["attention_mask"]
        with evaluating(model), torch.inference_mode():
            output = model(**padded, position_ids=(mask.cumsum(-1) - 1).clamp(min=0), use_cache=True, logits_to_keep=1)
        yield batch, _Prompts(output.past_key_values, mask, output.logits[:, -1].float().log_softmax(-1))


def _continued(
    model: PreTrainedModel,
    read: _Prompts,
    wanted: Sequence[tuple[int, int]],
    replies: Sequence[Sequence[int]],
    batch_tokens: int,
) -> list[float]:
    """Log-probability of each wanted `(prompt, reply)`, summed over the reply's tokens."""
    import torch

    device = read.mask_BT.device
    # Replies of like length together, so that little is padded.
    order = sorted(range(len(wanted)), key=lambda place: len(replies[wanted[place][1]]))
    found = [0.0] * len(wanted)
    pairs = max(1, _CACHED * batch_tokens // read.mask_BT.shape[1])
    for begin in range(0, len(order), pairs):
        chunk = order[begin : begin + pairs]
        rows = torch.tensor([wanted[place][0] for place in chunk], device=device)
        mine = [replies[wanted[place][1]] for place in chunk]
        lengths = torch.tensor([len(reply) for reply in mine], device=device)
        width = int(lengths.max())
        ids = torch.zeros(len(chunk), width, dtype=torch.long)
        for row, reply in enumerate(mine):
            ids[row, : len(reply)] = torch.tensor(reply)
        ids = ids.to(device)
        there = torch.arange(width, device=device) < lengths[:, None]
        with evaluating(model), torch.inference_mode():
            values = read.first_BV[rows].gather(-1, ids[:, :1])
            if width > 1:
                before = read.mask_BT[rows]
                output = model(
                    input_ids=ids[:, :-1],
                    attention_mask=torch.cat([before, there[:, :-1].to(before.dtype)], dim=-1),
                    position_ids=before.sum(-1, keepdim=True) + torch.arange(width - 1, device=device),
                    past_key_values=_rows_of(read.cache, rows),
                    use_cache=True,
                )
                logits = output.logits.float()
                rest = logits.gather(-1, ids[:, 1:, None])[..., 0] - logits.logsumexp(-1)
                values = torch.cat([values, rest], dim=-1)
            sums = values.masked_fill(~there, 0.0).sum(-1).tolist()
        for place, value in zip(chunk, sums, strict=True):
            found[place] = value
    return found


def _rows_of(cache: Any, rows: Tensor) -> Any:
    """A cache of its own with some rows of another, which stays as it is."""
    chosen = copy.copy(cache)
    chosen.layers = [copy.copy(layer) for layer in cache.layers]
    chosen.reorder_cache(rows)
    return chosen
