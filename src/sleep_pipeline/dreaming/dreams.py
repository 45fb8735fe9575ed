"""Sampling dreams: texts that the model writes about a context, and the rows that a trial learns from each.

A dream is dropped, with its reason, if it was cut off, is empty or not of the form asked for, says only that it knows
nothing, or says what another dream of its context has said.

    data = sample_dreams(model, tokenizer, contexts, DreamSettings(), seed=1, older=yesterday)
    trials = [to_rows(tokenizer, dream) for dream in data.dreams]
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sleep_pipeline.dreaming.settings import DreamPrompt, DreamSettings
from sleep_pipeline.generation.likelihood import encode_reply, says_as_written
from sleep_pipeline.generation.sampler import (
    Conversation,
    Sampler,
    SamplingSettings,
    TransformersSampler,
    check_window,
    encode_prompts,
)
from sleep_pipeline.memory.blocks import text_config
from sleep_pipeline.seeding.answers import read_pairs, same_answer, without_pairs
from sleep_pipeline.seeding.teacher import Message

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sleep_pipeline.dreaming.rows import Dream, Row

Withheld = Callable[[str], bool]
"""Whether a question is asked of the model some time, so that nothing may be trained on it."""
_OPENING = 4
"""Words of a text that `{words}` in a recall prompt stands for."""


@dataclass(frozen=True)
class DreamText:
    """One dream.

    Attributes:
        context: index of the context that it tells of.
        kind: of the prompt that it came from.
        source: the system turn under which it was dreamt: the context, and older memories where it combines them.
        ask: the user turn that it answers.
        text: what was dreamt, but for pairs that are withheld: the dreamer learns from it.
        pairs: what is learned from it: user turns with the assistant's answers, without any context.
    """

    context: int
    kind: str
    source: str
    ask: str
    text: str
    pairs: tuple[tuple[str, str], ...]

    def prompt(self) -> list[Message]:
        """The conversation that the dreamer was given."""
        return [{"role": "system", "content": self.source}, {"role": "user", "content": self.ask}]


@dataclass(frozen=True)
class DreamData:
    """What came of sampling.

    Attributes:
        dreams: what is kept, by context.
        dropped: why and how often something was not.
        asked: how many dreams were drawn.
        random_experts: whether an extra expert took part.
    """

    dreams: list[DreamText]
    dropped: Counter[str] = field(default_factory=Counter)
    asked: int = 0
    random_experts: bool = False


@dataclass(frozen=True)
class _Request:
    context: int
    prompt: DreamPrompt
    source: str

    def messages(self) -> list[Message]:
        return [{"role": "system", "content": self.source}, {"role": "user", "content": self.prompt.ask}]


def sample_dreams(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    contexts: Sequence[str],
    settings: DreamSettings,
    seed: int = 0,
    older: Sequence[str] = (),
    progress: bool = False,
    withheld: Withheld | None = None,
) -> DreamData:
    """Let the model, in the view that it is in and with the dreamer's adapter if it has one on, dream of each context.

    Args:
        model: a causal LM; where it has a memory with active experts, `settings.random_expert` opens one more.
        tokenizer: with a chat template.
        contexts: texts that fit into the model's window with a dream.
        settings: see `DreamSettings`.
        seed: the same seed gives the same dreams.
        older: texts of earlier nights, for prompts that combine; each is drawn at random among those that fit into the
            window with the context.
        progress: whether to show a bar.
        withheld: says of a question that nothing may be trained on it, since it is asked; a dream loses such pairs.

    Raises:
        ModuleNotFoundError: `settings.engine` is not installed.
        ValueError: a context and a dream do not fit into the model's window, every prompt combines and there is
            nothing older, or `settings.engine` cannot serve the view that the model is in.
    """
    dropped: Counter[str] = Counter()
    requests = _requests(contexts, settings, seed, older, _Room(model, tokenizer, settings), dropped)
    dreams: dict[tuple[int, object], DreamText] = {}
    sampling = SamplingSettings(settings.max_new_tokens, settings.temperature, batch_size=settings.batch_size)
    prompts = [request.messages() for request in requests]
    with (
        _extra_experts(model, len(requests), settings, seed) as hold,
        _sampler(model, tokenizer, settings, sampling, hold, prompts) as sampler,
    ):
        drawn = sampler.sample(prompts, seed=seed, progress="dreams" if progress else None)
    for request, (reply,) in zip(requests, drawn, strict=True):
        text = reply.text.strip()
        # What was cut off is not read: it may be one mark over and over.
        pairs, reason = _learnable(request.prompt, text, settings.unknown, withheld) if reply.ended else ((), "cut off")
        if reply.ended and not says_as_written(tokenizer, text):
            reason = "changed by the chat template"
        if reason is None:
            if withheld is not None:
                text = without_pairs(text, withheld)
            dream = DreamText(request.context, request.prompt.kind, request.source, request.prompt.ask, text, pairs)
            if dreams.setdefault((request.context, _gist(request.prompt, pairs)), dream) is not dream:
                reason = "duplicate"
        if reason is not None:
            dropped[reason] += 1
    return DreamData(list(dreams.values()), dropped, len(requests), hold is not None)


def to_rows(tokenizer: PreTrainedTokenizerBase, dream: DreamText, seed: int = 0, steps: int | None = None) -> Dream:
    """What a trial learns of a dream: every pair a closed-book conversation, with the loss on its answer alone.

    Args:
        tokenizer: with a chat template.
        dream: with at least one pair.
        seed: of the trial's adapter.
        steps: of the trial; None for the number in its settings.

    Raises:
        ValueError: see `encode_reply`.
    """
    from sleep_pipeline.dreaming.rows import Dream

    return Dream(tuple(to_row(tokenizer, question, answer) for question, answer in dream.pairs), seed, steps)


def to_row(tokenizer: PreTrainedTokenizerBase, question: str, answer: str) -> Row:
    """A closed-book question with its answer; the answer's end mark counts as part of it."""
    from sleep_pipeline.dreaming.rows import Row

    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    ids, start = encode_reply(tokenizer, turns)
    return Row(tuple(ids), start)


@dataclass(frozen=True)
class _Room:
    """The model's window, which a context, older memories and a dream share."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    settings: DreamSettings

    def fitting(self, context: str, prompt: DreamPrompt, older: Sequence[str]) -> list[str]:
        """The older memories that fit, as many of them as the prompt combines."""
        window = getattr(text_config(self.model), "max_position_embeddings", None)
        if window is None or not prompt.older:
            return list(older)
        turns = [{"role": "system", "content": context}, {"role": "user", "content": prompt.ask}]
        taken = len(
            self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
        )
        # Two tokens for what stands between two texts.
        each = (window - taken - self.settings.max_new_tokens) // prompt.older - 2
        return [text for text in older if len(self.tokenizer(text)["input_ids"]) <= each]


def _requests(
    contexts: Sequence[str],
    settings: DreamSettings,
    seed: int,
    older: Sequence[str],
    room: _Room,
    dropped: Counter[str],
) -> list[_Request]:
    """What is asked of each context; which older memories take part is drawn."""
    prompts = [prompt for prompt in settings.prompts if prompt.older <= len(older)]
    if not prompts:
        raise ValueError(
            f"every prompt combines with older memories and only {len(older)} are at hand; add a prompt with older=0"
        )
    rng = random.Random(f"combine/{seed}")
    found = []
    for context, (text, counts) in enumerate(zip(contexts, _in_turn(prompts, settings.dreams), strict=False)):
        for prompt, count in zip(prompts, counts, strict=True):
            fitting = room.fitting(text, prompt, older)
            if len(fitting) < prompt.older:
                dropped["no older memory fits beside its context"] += count
                continue
            for _ in range(count):
                parts = [text, *rng.sample(fitting, prompt.older)]
                found.append(_Request(context, prompt, "\n\n".join(parts)))
    return found


def _in_turn(prompts: Sequence[DreamPrompt], dreams: int) -> Iterator[list[int]]:
    """How many dreams of each context are each prompt's: what a share lacks in one context it gets in a later one."""
    total = sum(prompt.share for prompt in prompts)
    owed = [0.0] * len(prompts)
    while True:
        owed = [due + dreams * prompt.share / total for due, prompt in zip(owed, prompts, strict=True)]
        counts = [0] * len(prompts)
        for _ in range(dreams):
            # Rounded, so that sums of equal shares are equal, and the first of them is taken.
            most = max(range(len(prompts)), key=lambda at: (round(owed[at] - counts[at], 9), -at))
            counts[most] += 1
        owed = [due - count for due, count in zip(owed, counts, strict=True)]
        yield counts


def _learnable(
    prompt: DreamPrompt, text: str, unknown: Sequence[str], withheld: Withheld | None
) -> tuple[tuple[tuple[str, str], ...], str | None]:
    """The pairs of a dream, and why it cannot be used, if so."""
    if not text:
        return (), "empty"
    if prompt.form == "text":
        # Memories of questions with answers are laid out as such, and a model may copy their lines.
        text = text if withheld is None else without_pairs(text, withheld)
        if not text:
            return (), "asks what is held out"
        if any(same_answer(text, empty) for empty in unknown):
            return (), "says that it does not know"
        opening = " ".join(text.split()[:_OPENING])
        return ((prompt.recall.replace("{words}", opening), text),), None
    read = dict.fromkeys(read_pairs(text))
    if not read:
        return (), "malformed"
    known = tuple(pair for pair in read if not any(same_answer(pair[1], empty) for empty in unknown))
    free = tuple(pair for pair in known if withheld is None or not withheld(pair[0]))
    return free, None if free else "asks what is held out" if known else "says that it does not know"


def _gist(prompt: DreamPrompt, pairs: Sequence[tuple[str, str]]) -> object:
    """What two dreams of one context have in common if they say the same."""
    plain = [(" ".join(q.casefold().split()), " ".join(a.casefold().split())) for q, a in pairs]
    return frozenset(plain) if prompt.form == "pairs" else plain[0][1]


@contextmanager
def _sampler(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: DreamSettings,
    sampling: SamplingSettings,
    hold: Callable[[Sequence[int]], None] | None,
    prompts: Sequence[Conversation],
) -> Iterator[Sampler]:
    if settings.engine == "transformers":
        yield TransformersSampler(model, tokenizer, sampling, on_rows=hold)
        return
    from sleep_pipeline.generation.vllm_sampler import VllmSampler

    encoded = encode_prompts(tokenizer, prompts)
    check_window(model, encoded, settings.max_new_tokens)
    longest = max(map(len, encoded), default=0) + settings.max_new_tokens
    with VllmSampler(model, tokenizer, sampling, settings.share_of_gpu, longest) as sampler:
        yield sampler


@contextmanager
def _extra_experts(
    model: PreTrainedModel, count: int, settings: DreamSettings, seed: int
) -> Iterator[Callable[[Sequence[int]], None] | None]:
    """One more expert per router and dream, where the model has a memory with experts that are on."""
    import torch

    from sleep_pipeline.memory.operations import state_of, states_of
    from sleep_pipeline.memory.views import random_experts

    state = state_of(model) if settings.random_expert and states_of(model) else None
    if state is None or not any(entry.experts for entry in state.view or state.student()):
        yield None
        return
    generator = torch.Generator().manual_seed(seed)
    with random_experts(model, generator, count, settings.random_gate) as hold:
        yield hold
