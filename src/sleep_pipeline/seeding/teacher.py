"""Teacher sampling: what a model says about a context that it has before it, checked against itself, with its beliefs.

The teacher writes questions with answers, rewrites, implications and continuations (paper.md section 3, the data set
`D`). Every question is put to it again in context; what it would not answer the same way is not kept. Questions that
stand in a context with their answers are taken as they are, since somebody has said that this is how they are answered.
A model passes over some of what a text tells, so it also asks about a few sentences at a time. `lessons.py` reads the
teacher's beliefs about what is kept.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from sleep_pipeline.generation.likelihood import says_as_written
from sleep_pipeline.generation.sampler import Reply, SamplingSettings, TransformersSampler
from sleep_pipeline.memories.chunking import sentences
from sleep_pipeline.seeding.agreement import Claim, agreeing_replies, answer_probabilities
from sleep_pipeline.seeding.answers import Match, given_pairs, plain_answer, read_pairs

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Message = dict[str, str]
Check = Literal["probability", "replies"]
"""How it is told whether the teacher agrees with itself; see `TeacherSettings`."""
GIVEN = "given"
"""The kind of samples that stand in a context as they are."""
logger = logging.getLogger(__name__)
_READ_AT_ONCE = 32
"""Conversations whose beliefs are read at a time, at most."""
_UNREADABLE = 0.8
"""Share of replies that are of no use, above which the prompts are likely not for this model."""


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TeacherPrompt(_Settings):
    """One thing that the teacher is asked to do with a context.

    Attributes:
        kind: name of what comes of it, such as `questions` or `rewrite`.
        ask: the instruction, with the context as system turn.
        form: `pairs`: the reply holds `Question:` and `Answer:` lines, each pair one sample; `text`: the whole reply is
            one sample.
        recall: for `text`, the user turn to which the student gives this reply without the context.
        share: how many of a context's replies this prompt gets, relative to the others.
    """

    kind: str
    ask: str
    form: Literal["pairs", "text"] = "pairs"
    recall: str = ""
    share: float = Field(1.0, gt=0)


def _default_prompts() -> list[TeacherPrompt]:
    return [
        TeacherPrompt(kind="everything", ask="Ask about everything that the text tells, and answer.", share=4),
        TeacherPrompt(kind="questions", ask="Write 4 questions about the text and answer them.", share=2),
    ]


class TeacherSettings(_Settings):
    """How a night's samples are drawn.

    Attributes:
        prompts: what the teacher is asked; embedded models understand those that they were trained on.
        replies: replies a context, over all prompts.
        excerpt_sentences: a context of more sentences is also asked about in excerpts of so many, overlapping by half:
            questions and answers alone, since other texts need the whole. 0 asks about whole contexts only, and passes
            over some of what they tell.
        excerpts: of a context at most; those of a long one have more sentences each.
        excerpt_replies: replies an excerpt.
        max_new_tokens: of one reply.
        temperature: 1 draws as the teacher believes.
        check: `probability`: how likely the teacher is to give an answer again, letter for letter, which one pass
            tells; `replies`: every question is asked again, which takes longer and knows an answer in other words.
        reasked: how often, at temperature 1; 0 checks nothing, with either check, and keeps everything.
        agreement: least probability of the answer, or share of the replies that must be the same; 0 keeps everything.
        learn: what is learned of a question: the `answers` as they were written with it, or the `replies` that say them
            again when it is asked, as the teacher would, such as in sentences; for `check='replies'`.
        match: when answers are the same; see `same_answer`. Models that answer in sentences need `contains`.
        top_k: tokens whose log-probabilities are kept at every position.
        unknown: answers that say that nothing is known; such samples are dropped.
        batch_size: conversations at a time; at most 32 where beliefs are read, which take more room.
        experts: whether the teacher has the experts of earlier nights. Without them it reads as well as on the first
            night, whatever the nights have done to its reading, and knows nothing of earlier memories.
    """

    prompts: list[TeacherPrompt] = Field(default_factory=_default_prompts, min_length=1)
    replies: PositiveInt = 24
    excerpt_sentences: NonNegativeInt = 2
    excerpts: PositiveInt = 12
    excerpt_replies: PositiveInt = 6
    max_new_tokens: PositiveInt = 160
    temperature: float = Field(1.0, ge=0)
    check: Check = "probability"
    reasked: int = Field(3, ge=0)
    agreement: float = Field(0.6, ge=0, le=1)
    learn: Literal["answers", "replies"] = "answers"
    match: Match = "exact"
    top_k: PositiveInt = 16
    unknown: tuple[str, ...] = ("I do not know.",)
    batch_size: PositiveInt = 64
    experts: bool = False

    @field_validator("excerpt_sentences")
    @classmethod
    def _overlap(cls, sentences: int) -> int:
        if sentences == 1:
            raise ValueError("excerpts of 1 sentence cannot overlap, and many say nothing alone; give 0 or 2 and more")
        return sentences

    @field_validator("prompts")
    @classmethod
    def _usable(cls, prompts: list[TeacherPrompt]) -> list[TeacherPrompt]:
        forms: dict[str, str] = {}
        for prompt in prompts:
            if prompt.kind == GIVEN:
                raise ValueError(
                    f"a prompt of the kind {GIVEN!r}: that is what pairs are called that stand in a memory"
                )
            if forms.setdefault(prompt.kind, prompt.form) != prompt.form:
                raise ValueError(
                    f"two prompts of the kind {prompt.kind!r} have different forms, and whether a sample is checked is "
                    "told by its kind; name one of them otherwise"
                )
            if prompt.form == "text" and not prompt.recall.strip():
                raise ValueError(
                    f"the prompt of the kind {prompt.kind!r} has form='text' and no recall, so that every memory would "
                    "be the answer to the same empty question; give the user turn that is answered so"
                )
        return prompts

    @model_validator(mode="after")
    def _comparable(self) -> Self:
        if self.check == "probability" and self.match != "exact":
            raise ValueError(
                f"match={self.match!r} compares replies, and check='probability' draws none; give check='replies'"
            )
        if self.learn == "replies" and (self.check == "probability" or not self.reasked):
            raise ValueError(
                f"learn='replies' learns what is said when a question is asked again, and check={self.check!r} with "
                f"reasked={self.reasked} asks none; give check='replies' and reasked of 1 or more"
            )
        return self

    @property
    def reading_rows(self) -> int:
        """Conversations at a time where beliefs are read."""
        return min(_READ_AT_ONCE, self.batch_size)


@dataclass(frozen=True)
class TeacherSample:
    """One sample of the data set `D`.

    Attributes:
        context: index of the context that it tells of.
        kind: of the prompt that it came from; `GIVEN` without one.
        question: the user turn, for teacher and student alike.
        answer: what is right.
        agreement: how likely the teacher is to give this answer again, or how often it did; 1 for texts, and for pairs
            that are given.
        excerpt: the sentences of the context that the teacher had before it; empty for the whole.
        reply: how the teacher gave the answer when it was asked again; empty if that is not what is learned.
    """

    context: int
    kind: str
    question: str
    answer: str
    agreement: float
    excerpt: str = ""
    reply: str = ""

    def read(self, contexts: Sequence[str | None]) -> str | None:
        """What the teacher had before it, of the contexts that it was asked about."""
        return self.excerpt or contexts[self.context]

    def messages(self, context: str | None = None) -> list[Message]:
        """The conversation: with what the teacher reads before it, without as the student sees it."""
        system = [{"role": "system", "content": context}] if context else []
        return [*system, {"role": "user", "content": self.question}, {"role": "assistant", "content": self.said}]

    @property
    def said(self) -> str:
        """The assistant turn."""
        return self.reply or self.answer


@dataclass(frozen=True)
class TeacherData:
    """What came of sampling.

    Attributes:
        samples: what is kept.
        dropped: why and how often something was not.
        unlearnable: contexts of which nothing was kept.
    """

    samples: list[TeacherSample]
    dropped: Counter[str] = field(default_factory=Counter)
    unlearnable: list[int] = field(default_factory=list)


def shares(prompts: Sequence[TeacherPrompt], replies: int) -> list[int]:
    """How many of `replies` each prompt gets: largest remainders, the first of equals first."""
    total = sum(prompt.share for prompt in prompts)
    exact = [replies * prompt.share / total for prompt in prompts]
    counts = [int(value) for value in exact]
    by_rest = sorted(range(len(prompts)), key=lambda index: (counts[index] - exact[index], index))
    for index in by_rest[: replies - sum(counts)]:
        counts[index] += 1
    return counts


def sample_teacher(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    contexts: Sequence[str],
    settings: TeacherSettings,
    seed: int = 0,
    progress: bool = False,
) -> TeacherData:
    """Let the model, in the view that it is in, write about each context and check itself.

    Args:
        model: a causal LM.
        tokenizer: with a chat template.
        contexts: texts that fit into the model's window with a reply.
        settings: see `TeacherSettings`.
        seed: the same seed gives the same samples.
        progress: whether to show bars.
    """
    wholes = [_Text(context, text) for context, text in enumerate(contexts)]
    parts = [
        _Text(context, part, excerpt=True)
        for context, text in enumerate(contexts)
        for part in excerpts(text, settings.excerpt_sentences, settings.excerpts)
    ]
    asking = [prompt for prompt in settings.prompts if prompt.form == "pairs"]
    writer = _Writer(model, tokenizer, settings, progress)
    for each in wholes:
        writer.take_pairs(each, GIVEN, given_pairs(each.text), agreement=1.0)
    writer.write(wholes, settings.prompts, settings.replies, 1000 * seed)
    if asking:
        writer.write(parts, asking, settings.excerpt_replies, 1000 * seed + 500)
    written, dropped = list(writer.written.values()), writer.dropped
    kept = _check(model, tokenizer, contexts, written, settings, seed, dropped, progress)
    learnable = {sample.context for sample in kept}
    return TeacherData(kept, +dropped, [index for index in range(len(contexts)) if index not in learnable])


def excerpts(context: str, count: int, most: int) -> list[str]:
    """Parts of a text that overlap by half and together are all of it.

    Args:
        context: the text.
        count: sentences of a part, 2 or more, if that makes no more than `most` of them; 0 for no parts.
        most: parts; of a longer text they are longer.

    Returns:
        The parts in order; none of a text that has no more sentences than one part.
    """
    told = [sentence for sentence in sentences(context) if sentence.strip()]
    if not count:
        return []
    # As many half parts as parts, and one.
    step = max(count // 2, math.ceil(len(told) / (most + 1)))
    size = max(count, 2 * step)
    if len(told) <= size:
        return []
    return ["".join(told[start : start + size]).strip() for start in range(0, len(told) - size + step, step)]


@dataclass(frozen=True)
class _Text:
    """What the teacher is asked about: a context, or an excerpt of it."""

    context: int
    text: str
    excerpt: bool = False


@dataclass
class _Writer:
    """All that the teacher writes, each sample once: what it writes about the whole is not taken from a part again."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    settings: TeacherSettings
    progress: bool
    written: dict[tuple[int, str, str], TeacherSample] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)

    def write(self, texts: Sequence[_Text], prompts: Sequence[TeacherPrompt], replies: int, seed: int) -> None:
        """Ask for so many replies about each text."""
        if not texts:
            return
        settings = self.settings
        sampler = TransformersSampler(
            self.model,
            self.tokenizer,
            SamplingSettings(settings.max_new_tokens, settings.temperature, batch_size=settings.batch_size),
        )
        for number, (prompt, count) in enumerate(zip(prompts, shares(prompts, replies), strict=True)):
            if not count:
                continue
            asked = [
                [{"role": "system", "content": each.text}, {"role": "user", "content": prompt.ask}] for each in texts
            ]
            title = f"{prompt.kind}{', by excerpts' if texts[0].excerpt else ''}" if self.progress else None
            drawn = sampler.sample(asked, count, seed=seed + number, progress=title)
            useless = [
                reply.text
                for each, answers in zip(texts, drawn, strict=True)
                for reply in answers
                if not self._take(each, prompt, reply)
            ]
            if len(useless) > _UNREADABLE * count * len(texts):
                logger.warning(
                    "%d of %d replies to the prompt %r are cut off or not in the form asked for, such as %r: for this "
                    "model, say in seeding.teacher.prompts what the lines of a reply look like (conf/instruct does), "
                    "or raise seeding.teacher.max_new_tokens",
                    len(useless),
                    count * len(texts),
                    prompt.ask,
                    useless[0][:200],
                )

    def _take(self, text: _Text, prompt: TeacherPrompt, reply: Reply) -> bool:
        """Take the samples of a reply; False if it has the form of none."""
        if not reply.ended:
            self.dropped["cut off"] += 1
            return False
        pairs = read_pairs(reply.text) if prompt.form == "pairs" else [(prompt.recall, reply.text.strip())]
        if not pairs or not pairs[0][1]:
            self.dropped["malformed"] += 1
            return False
        self.take_pairs(text, prompt.kind, pairs, agreement=1.0 if prompt.form == "text" else 0.0)
        return True

    def take_pairs(self, text: _Text, kind: str, pairs: Sequence[tuple[str, str]], agreement: float) -> None:
        """Take those that are not there yet."""
        for question, answer in pairs:
            if not answer:
                continue
            if not says_as_written(self.tokenizer, answer):
                self.dropped["changed by the chat template"] += 1
                continue
            key = (text.context, question, plain_answer(answer))
            if key in self.written:
                self.dropped["duplicate"] += 1
                continue
            excerpt = text.text if text.excerpt else ""
            self.written[key] = TeacherSample(text.context, kind, question, answer, agreement, excerpt)


def _check(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    contexts: Sequence[str],
    written: list[TeacherSample],
    settings: TeacherSettings,
    seed: int,
    dropped: Counter[str],
    progress: bool,
) -> list[TeacherSample]:
    """The samples on which the teacher agrees with itself; a text has no question to ask again.

    An excerpt may lack what makes it untrue, so the whole text must not answer otherwise, either; that it does not say
    is what excerpts are for.
    """
    forms = {GIVEN: "text", **{prompt.kind: prompt.form for prompt in settings.prompts}}
    pairs = [sample for sample in written if forms[sample.kind] == "pairs"]
    kept = [sample for sample in written if forms[sample.kind] == "text"]
    unknown = {plain_answer(answer) for answer in settings.unknown}

    def agreements(claims: Sequence[Claim], seed: int, part: str) -> list[tuple[float, list[Reply]]]:
        if not settings.reasked:
            return [(1.0, [])] * len(claims)
        title = f"agreement{part}" if progress else None
        if settings.check == "probability":
            likely = answer_probabilities(model, tokenizer, claims, settings.batch_size, title)
            return [(probability, []) for probability in likely]
        times = settings.reasked
        same = agreeing_replies(
            model, tokenizer, claims, times, settings.match, settings.batch_size, seed=seed, title=title
        )
        return [(len(replies) / times, replies) for replies in same]

    known = [sample for sample in pairs if plain_answer(sample.answer) not in unknown]
    dropped["says that it does not know"] += len(pairs) - len(known)
    said = agreements(
        [(sample.read(contexts) or "", sample.question, (sample.answer,)) for sample in known], 1000 * seed + 999, ""
    )
    agreed = {
        replace(sample, agreement=share): replies
        for sample, (share, replies) in zip(known, said, strict=True)
        if share >= settings.agreement
    }
    dropped["disagrees with itself"] += len(known) - len(agreed)
    parts = [sample for sample in agreed if sample.excerpt]
    # Of a whole text: the answer, or one of those that say nothing.
    allowed = agreements(
        [(contexts[sample.context], sample.question, (sample.answer, *settings.unknown)) for sample in parts],
        1000 * seed + 998,
        ", whole texts",
    )
    denied = {sample for sample, (share, _) in zip(parts, allowed, strict=True) if share < settings.agreement}
    dropped["an excerpt that the whole text contradicts"] += len(denied)
    # Two answers to a question may be said in the same way.
    lessons: dict[tuple[int, str, str], TeacherSample] = {}
    for sample, replies in agreed.items():
        if sample not in denied:
            for own in _in_own_words(sample, replies, tokenizer) if settings.learn == "replies" else [sample]:
                lessons.setdefault((own.context, own.question, own.said), own)
    kept += lessons.values()
    return sorted(kept, key=lambda sample: sample.context)


def said_again(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    contexts: Sequence[str],
    samples: Sequence[TeacherSample],
    settings: TeacherSettings,
    seed: int = 0,
    progress: bool = False,
) -> list[TeacherSample]:
    """Questions with answers that came from elsewhere, such as from dreams, as the teacher answers them.

    Args:
        model: in the teacher's view.
        tokenizer: with a chat template.
        contexts: that the samples speak of.
        samples: questions with answers.
        settings: how often it is asked, and when it agrees; what it disagrees with is left out.
        seed: the same seed draws the same replies.
        progress: whether to show a bar.
    """
    claims = [(sample.read(contexts) or "", sample.question, (sample.answer,)) for sample in samples]
    times, title = settings.reasked, "agreement" if progress else None
    same = agreeing_replies(
        model, tokenizer, claims, times, settings.match, settings.batch_size, seed=seed, title=title
    )
    return [
        own
        for sample, replies in zip(samples, same, strict=True)
        if len(replies) >= settings.agreement * times
        for own in _in_own_words(replace(sample, agreement=len(replies) / times), replies, tokenizer)
    ]


def _in_own_words(
    sample: TeacherSample, replies: Sequence[Reply], tokenizer: PreTrainedTokenizerBase
) -> list[TeacherSample]:
    """A sample for every way in which the teacher said the answer again, or as it is if it ended none."""
    said = dict.fromkeys(reply.text.strip() for reply in replies if reply.ended)
    own = [replace(sample, reply=text) for text in said if text and says_as_written(tokenizer, text)]
    return own or [sample]
