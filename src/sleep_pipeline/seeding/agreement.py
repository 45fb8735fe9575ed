"""Whether a model says again what it said: how likely an answer is, or how often it comes when it is asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sleep_pipeline.generation.likelihood import reply_log_probs
from sleep_pipeline.generation.sampler import Reply, SamplingSettings, TransformersSampler
from sleep_pipeline.seeding.answers import Match, same_answer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_IN_A_SENTENCE = 32
"""Tokens around an answer that is said in a sentence."""

Claim = tuple[str, str, tuple[str, ...]]
"""A text, a question about it, and answers to it, of which any will do."""


def answer_probabilities(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    claims: Sequence[Claim],
    batch_size: int,
    title: str | None = None,
) -> list[float]:
    """How likely the model is to give one of each claim's answers, letter for letter and no word more.

    Args:
        model: in the teacher's view.
        tokenizer: with a chat template.
        claims: see `Claim`.
        batch_size: conversations at a time.
        title: of a bar; None for none.
    """
    own = list(dict.fromkeys((text, question, answer) for text, question, answers in claims for answer in answers))
    conversations = [
        [
            {"role": "system", "content": text},
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
        for text, question, answer in own
    ]
    found = reply_log_probs(model, tokenizer, conversations, batch_size, title)
    values = {single: math.exp(min(0.0, sum(log_probs))) for single, log_probs in zip(own, found, strict=True)}
    return [
        sum(values[text, question, answer] for answer in dict.fromkeys(answers)) for text, question, answers in claims
    ]


def agreeing_replies(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    claims: Sequence[Claim],
    reasked: int,
    match: Match = "exact",
    batch_size: int = 64,
    seed: int = 0,
    title: str | None = None,
) -> list[list[Reply]]:
    """Of so many replies to each claim's question, at temperature 1, those that are the same as one of its answers.

    Args:
        model: in the teacher's view.
        tokenizer: with a chat template.
        claims: see `Claim`; equal questions about equal texts get the same replies.
        reasked: how often a question is asked.
        match: see `same_answer`.
        batch_size: conversations at a time.
        seed: the same seed draws the same replies.
        title: of a bar; None for none.
    """
    lengths: dict[tuple[str, str], int] = {}
    for text, question, answers in claims:
        own = max(len(tokenizer(answer)["input_ids"]) for answer in answers)
        lengths[text, question] = max(own, lengths.get((text, question), 0))
    room = 4 if match == "exact" else _IN_A_SENTENCE
    again: dict[tuple[str, str], list[Reply]] = {}
    # A reply that never ends takes its batch to the limit: one long answer must not set that of all.
    for limit in sorted({_round_up(length) for length in lengths.values()}):
        asked = [pair for pair, length in lengths.items() if _round_up(length) == limit]
        sampler = TransformersSampler(model, tokenizer, SamplingSettings(limit + room, 1.0, batch_size=batch_size))
        prompts = [
            [{"role": "system", "content": text}, {"role": "user", "content": question}] for text, question in asked
        ]
        again |= zip(asked, sampler.sample(prompts, reasked, seed=seed + limit, progress=title), strict=True)
    return [
        [reply for reply in again[text, question] if any(same_answer(reply.text, answer, match) for answer in answers)]
        for text, question, answers in claims
    ]


def _round_up(tokens: int) -> int:
    """To a power of two, eight at least."""
    return int(2 ** max(3, math.ceil(math.log2(max(1, tokens)))))
