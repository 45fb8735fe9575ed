"""Teacher sampling: what a model says about a context that it has before it, checked against itself, with its beliefs.

The teacher writes questions with answers, rewrites, implications and continuations (paper.md section 3, the data set
`D`). Every question is asked again in context; what the teacher does not answer twice the same way is not kept.
`lessons.py` reads the teacher's beliefs about what is kept.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from sleep_pipeline.generation.likelihood import says_as_written
from sleep_pipeline.generation.sampler import SamplingSettings, TransformersSampler

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Message = dict[str, str]
Match = Literal["exact", "contains"]
"""How answers are compared; see `same_answer`."""
logger = logging.getLogger(__name__)
_IN_A_SENTENCE = 32
"""Tokens around an answer that is said in a sentence."""
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
        max_new_tokens: of one reply.
        temperature: 1 draws as the teacher believes.
        reasked: how often a question is asked again, at temperature 1; 0 keeps everything.
        agreement: least share of the answers that must be the same as the first.
        match: when answers are the same; see `same_answer`. Models that answer in sentences need `contains`.
        top_k: tokens whose log-probabilities are kept at every position.
        unknown: answers that say that nothing is known; such samples are dropped.
        batch_size: conversations at a time.
        experts: whether the teacher has the experts of earlier nights. Without them it reads as well as on the first
            night, whatever the nights have done to its reading, and knows nothing of earlier memories.
    """

    prompts: list[TeacherPrompt] = Field(default_factory=_default_prompts, min_length=1)
    replies: PositiveInt = 24
    max_new_tokens: PositiveInt = 160
    temperature: float = Field(1.0, ge=0)
    reasked: int = Field(3, ge=0)
    agreement: float = Field(0.6, ge=0, le=1)
    match: Match = "exact"
    top_k: PositiveInt = 16
    unknown: tuple[str, ...] = ("I do not know.",)
    batch_size: PositiveInt = 64
    experts: bool = False


@dataclass(frozen=True)
class TeacherSample:
    """One sample of the data set `D`.

    Attributes:
        context: index of the context that it tells of.
        kind: of the prompt that it came from.
        question: the user turn, for teacher and student alike.
        answer: the assistant turn.
        agreement: share of the times that the teacher gave this answer when asked again; 1 for texts.
    """

    context: int
    kind: str
    question: str
    answer: str
    agreement: float

    def messages(self, context: str | None = None) -> list[Message]:
        """The conversation: with the context as the teacher sees it, without as the student does."""
        system = [{"role": "system", "content": context}] if context else []
        return [*system, {"role": "user", "content": self.question}, {"role": "assistant", "content": self.answer}]


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


# Nothing is given back that was taken (`*+`): a reply may be one mark or space over and over, hundreds of times.
_MARK = r"[ \t]*+(?:[*_#>-]++[ \t]*+)?(?:\d++[.)][ \t]*+)?[*_]*+"
_LABEL = r"[ \t]*+\d*+[ \t]*+[*_]*+[ \t]*+:[ \t]*+[*_]*+[ \t]*+(\S.*+)"
_PAIR = re.compile(rf"^{_MARK}(?:Question|Q){_LABEL}\n\s*{_MARK}(?:Answer|A){_LABEL}$", flags=re.M | re.I)


def read_pairs(reply: str) -> list[tuple[str, str]]:
    """The `Question:` and `Answer:` lines of a reply as pairs; anything else is left out.

    Numbers, Markdown around the two words, `Q:` and `A:`, and blank lines in between are read as well: models write
    them unasked.
    """
    return [(_bare(question), _bare(answer)) for question, answer in _PAIR.findall(reply)]


def _bare(text: str) -> str:
    """Without Markdown's marks after it."""
    return text.strip().rstrip("*_").strip()


def without_pairs(reply: str, unwanted: Callable[[str], bool]) -> str:
    """A reply without the pairs whose questions are unwanted."""
    kept = _PAIR.sub(lambda found: "" if unwanted(_bare(found[1])) else found[0], reply)
    return reply if kept == reply else re.sub(r"\n\s*\n", "\n", kept).strip()


def same_answer(one: str, other: str, match: Match = "exact") -> bool:
    """Whether two short answers are the same.

    Args:
        one: an answer.
        other: another.
        match: `exact`: but for case, outer punctuation and spaces. `contains`: or all words of one stand in the other
            in a row, as when a model answers in a sentence.
    """
    if _plain(one) == _plain(other):
        return True
    if match == "exact":
        return False
    shorter, longer = sorted((_words(one), _words(other)), key=len)
    return bool(shorter) and any(
        longer[start : start + len(shorter)] == shorter for start in range(len(longer) - len(shorter) + 1)
    )


def _plain(answer: str) -> str:
    return " ".join(answer.casefold().split()).strip(" .,;:!?\"'")


def _words(answer: str) -> list[str]:
    return re.findall(r"\w+", answer.casefold())


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
    written, dropped = _write(model, tokenizer, contexts, settings, seed, progress)
    kept = _check(model, tokenizer, contexts, written, settings, seed, dropped, progress)
    learnable = {sample.context for sample in kept}
    return TeacherData(kept, dropped, [index for index in range(len(contexts)) if index not in learnable])


def _write(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    contexts: Sequence[str],
    settings: TeacherSettings,
    seed: int,
    progress: bool,
) -> tuple[list[TeacherSample], Counter[str]]:
    """All samples that the teacher writes, each once."""
    dropped: Counter[str] = Counter()
    written: dict[tuple[int, str, str], TeacherSample] = {}
    sampler = TransformersSampler(
        model,
        tokenizer,
        SamplingSettings(settings.max_new_tokens, settings.temperature, batch_size=settings.batch_size),
    )
    for number, (prompt, count) in enumerate(
        zip(settings.prompts, shares(settings.prompts, settings.replies), strict=True)
    ):
        if not count:
            continue
        asked = [[{"role": "system", "content": text}, {"role": "user", "content": prompt.ask}] for text in contexts]
        title = prompt.kind if progress else None
        useless: list[str] = []
        for context, replies in enumerate(sampler.sample(asked, count, seed=1000 * seed + number, progress=title)):
            for reply in replies:
                if not reply.ended:
                    dropped["cut off"] += 1
                    useless.append(reply.text)
                    continue
                pairs = read_pairs(reply.text) if prompt.form == "pairs" else [(prompt.recall, reply.text.strip())]
                if not pairs or not pairs[0][1]:
                    dropped["malformed"] += 1
                    useless.append(reply.text)
                for question, answer in pairs:
                    if not answer:
                        continue
                    if not says_as_written(tokenizer, answer):
                        dropped["changed by the chat template"] += 1
                        continue
                    key = (context, question, _plain(answer))
                    if key in written:
                        dropped["duplicate"] += 1
                    else:
                        agreement = 1.0 if prompt.form == "text" else 0.0
                        written[key] = TeacherSample(context, prompt.kind, question, answer, agreement)
        if len(useless) > _UNREADABLE * count * len(contexts):
            logger.warning(
                "%d of %d replies to the prompt %r are cut off or not in the form asked for, such as %r: for this "
                "model, say in seeding.teacher.prompts what the lines of a reply look like (conf/instruct does), or "
                "raise seeding.teacher.max_new_tokens",
                len(useless),
                count * len(contexts),
                prompt.ask,
                useless[0][:200],
            )
    return list(written.values()), dropped


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
    """The samples on which the teacher agrees with itself; a text has no question to ask again."""
    forms = {prompt.kind: prompt.form for prompt in settings.prompts}
    pairs = [sample for sample in written if forms[sample.kind] == "pairs"]
    kept = [sample for sample in written if forms[sample.kind] == "text"]
    asked = list(dict.fromkeys((sample.context, sample.question) for sample in pairs))
    answers: dict[tuple[int, str], list[str]] = {key: [] for key in asked}
    if settings.reasked and asked:
        longest = max(len(tokenizer(sample.answer)["input_ids"]) for sample in pairs)
        room = 4 if settings.match == "exact" else _IN_A_SENTENCE
        sampler = TransformersSampler(
            model, tokenizer, SamplingSettings(longest + room, 1.0, batch_size=settings.batch_size)
        )
        prompts = [
            [{"role": "system", "content": contexts[context]}, {"role": "user", "content": question}]
            for context, question in asked
        ]
        title = "agreement" if progress else None
        again = sampler.sample(prompts, settings.reasked, seed=1000 * seed + 999, progress=title)
        for key, replies in zip(asked, again, strict=True):
            answers[key] = [reply.text for reply in replies]
    unknown = {_plain(answer) for answer in settings.unknown}
    for sample in pairs:
        found = answers[sample.context, sample.question]
        same = [same_answer(sample.answer, answer, settings.match) for answer in found]
        agreement = sum(same) / len(same) if same else 1.0
        if _plain(sample.answer) in unknown:
            dropped["says that it does not know"] += 1
        elif agreement < settings.agreement:
            dropped["disagrees with itself"] += 1
        else:
            kept.append(TeacherSample(sample.context, sample.kind, sample.question, sample.answer, agreement))
    return sorted(kept, key=lambda sample: sample.context)
