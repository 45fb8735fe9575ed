"""Lessons: samples as the student meets them, with what the teacher believed at each of their tokens.

The teacher's log-probabilities are read once (`divergences.CachedTeacher`), so that it need not run again.
"""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jinja2 import TemplateError
from rapidfuzz import fuzz, process

from sleep_pipeline.generation.likelihood import encode_reply, says_as_written
from sleep_pipeline.generation.modes import evaluating
from sleep_pipeline.generation.reading import inputs_of, reading_batches
from sleep_pipeline.generation.sampler import SamplingSettings, TransformersSampler
from sleep_pipeline.memories.chunking import sentences
from sleep_pipeline.progress import bar
from sleep_pipeline.seeding.answers import find_answer, read_pairs, words
from sleep_pipeline.seeding.divergences import CachedTeacher, cache_teacher
from sleep_pipeline.seeding.hidden import answer_head, hidden_states
from sleep_pipeline.seeding.teacher import TeacherSample, TeacherSettings, shares

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)
_FULL_STOPS = ".\u3002"
"""At the end of an answer, and not of what it is in a text."""


@dataclass(frozen=True)
class Lesson:
    """A sample as the student meets it.

    Attributes:
        ids: the student's conversation.
        start: where the answer begins in `ids`.
        teacher: the teacher's beliefs at each of the answer's tokens, its end mark among them.
        teacher_prompt: the teacher's conversation before the answer; empty where it cannot be asked again, because its
            context is gone.
        view: which teacher it is, where there are several.
    """

    ids: tuple[int, ...]
    start: int
    teacher: CachedTeacher
    teacher_prompt: tuple[int, ...] = ()
    view: int = 0


def read_beliefs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    contexts: Sequence[str | None],
    samples: Sequence[TeacherSample],
    top_k: int,
    batch_size: int = 32,
    student_reads: bool = False,
    view: int = 0,
    progress: str | None = None,
) -> list[Lesson]:
    """The teacher's log-probabilities of each sample's answer, with the context before it.

    Args:
        model: in the teacher's view.
        tokenizer: with a chat template.
        contexts: as given to `sample_teacher`; None where the teacher knows without one.
        samples: what it kept.
        top_k: tokens kept at every position; the mass of the others is kept as one number.
        batch_size: conversations at a time.
        student_reads: whether the student has the context as well, to stay able to read.
        view: the number of this teacher, where there are several.
        progress: title of a bar; None for no bar.

    Raises:
        ValueError: the chat template writes an answer differently after a context, or its prompt once the answer is
            there, or the logits cannot be had from the last hidden states (see `answer_head`).
    """
    import torch

    if not samples:
        return []

    taught = [encode_reply(tokenizer, sample.messages(sample.read(contexts))) for sample in samples]
    learned = taught if student_reads else [encode_reply(tokenizer, sample.messages()) for sample in samples]
    for sample, (with_ids, with_start), (without_ids, start) in zip(samples, taught, learned, strict=True):
        if with_ids[with_start:] != without_ids[start:]:
            raise ValueError(
                f"the chat template writes the answer {sample.said!r} differently after a system turn: teacher and "
                "student would not speak of the same tokens; use a template that only appends"
            )
    lessons: dict[int, Lesson] = {}
    head = answer_head(model)
    shown = bar(title=progress, total=len(taught), unit="answer")
    for batch in reading_batches(model, taught, batch_size, logits=False):
        with evaluating(model), torch.inference_mode():
            inputs = inputs_of(model, tokenizer, taught, batch)
            states = hidden_states(model, inputs.own["input_ids"], inputs.own["attention_mask"], more=inputs.more)
        for row, index, away in zip(states, batch.rows, batch.skipped, strict=True):
            ids, start = taught[index]
            without_ids, without_start = learned[index]
            # Logits of the answers alone: those of whole conversations would be gigabytes with a large vocabulary.
            with torch.inference_mode():
                logits = head(row[start - 1 - away : len(ids) - 1 - away])
            kept = cache_teacher(logits, min(top_k, logits.shape[-1]))
            teacher = CachedTeacher(kept.tokens_NK.cpu(), kept.log_probs_NK.cpu(), kept.tail_N.cpu())
            lessons[index] = Lesson(tuple(without_ids), without_start, teacher, tuple(ids[:start]), view)
        shown.update(len(batch.rows))
    shown.close()
    return [lessons[index] for index in range(len(samples))]


def reading_lessons(lessons: Sequence[Lesson]) -> list[Lesson]:
    """The same answers with the context before them: the student goes on reading what it now also knows.

    The teacher's beliefs are the same ones. Lessons whose context is gone are left out.
    """
    return [
        Lesson(
            (*lesson.teacher_prompt, *lesson.ids[lesson.start :]),
            len(lesson.teacher_prompt),
            lesson.teacher,
            (),
            lesson.view,
        )
        for lesson in lessons
        if lesson.teacher_prompt
    ]


def altered_texts(
    contexts: Sequence[str], samples: Sequence[TeacherSample], count: int, seed: int
) -> tuple[list[str], list[TeacherSample]]:
    """Tonight's texts with one thing changed, each with the question that it now answers otherwise.

    What a text says comes before what is remembered, and nothing shows it as hard as a text that contradicts a memory:
    an expert that is open there is wrong. The answer in the text is replaced by the one to the most similar question
    whose answer is another, which tells of a thing of the same kind.

    Args:
        contexts: tonight's.
        samples: what the teacher kept; those whose answer has no word, or does not stand in their context as it is, are
            passed over.
        count: texts at most.
        seed: decides which samples.

    Returns:
        The texts, and a sample about each.
    """
    texts: list[str] = []
    asked: list[TeacherSample] = []
    # The words of a question that stand in its text are mostly names, and say nothing of its kind.
    told = [set(words(context)) for context in contexts]
    kinds = [
        " ".join(word for word in words(sample.question) if word not in told[sample.context]) for sample in samples
    ]
    bare = [sample.answer.rstrip(_FULL_STOPS) for sample in samples]
    has_words = [bool(words(answer)) for answer in bare]
    for place in random.Random(seed).sample(range(len(samples)), len(samples)):
        if len(texts) >= count:
            break
        sample = samples[place]
        text, said = contexts[sample.context], find_answer(bare[place])
        if not has_words[place] or not said.search(text):
            continue
        others = [
            kind if has_word and answer not in text else None
            for kind, answer, has_word in zip(kinds, bare, has_words, strict=True)
        ]
        nearest = process.extractOne(kinds[place], others, scorer=fuzz.token_sort_ratio)
        if nearest is None:
            continue
        other = nearest[2]
        asked.append(TeacherSample(len(texts), "altered", sample.question, samples[other].answer, 1.0))
        texts.append(bare[other].join(said.split(text)))
    return texts, asked


def self_made_documents(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    max_new_tokens: int,
    seed: int,
    batch_size: int = 64,
    requests: Sequence[str] = (),
    progress: str | None = None,
) -> list[str]:
    """Texts that the model writes when it is asked for them, or given nothing but the opening of a system turn.

    What a model puts there of itself is like what it was trained to find there: the embedded one a document, a general
    one instructions or code, so that it has to be asked. Of what it writes when asked, a text that is cut counts up to
    its last sentence; of the others only those that the model ended. Each counts once, so there may be fewer than
    `count` (with a warning where half of them are missing), and none where the chat template has no system turn of
    its own.

    Args:
        model: in the teacher's view.
        tokenizer: with a chat template.
        count: how many are asked for.
        max_new_tokens: where a text is cut.
        seed: of the sampling.
        batch_size: texts at a time.
        requests: for texts, in turn; none opens system turns.
        progress: title of a bar; None for no bar.
    """
    drawing = SamplingSettings(max_new_tokens, batch_size=batch_size)
    if requests:
        return _requested(model, tokenizer, count, drawing, seed, requests, progress)
    kept = _own_turns(model, tokenizer, "system", drawing, count, seed, progress)
    if kept is None:
        logger.warning(
            "the chat template writes nothing before and after a system turn alone, so the model makes up no documents "
            "to go on reading (seeding.replay.open_book_documents): it rehearses tonight's texts alone"
        )
        return []
    if 2 * len(kept) < count:
        logger.warning(
            "%d of %d made-up documents can be read about, the others are cut off after %d tokens, empty or the same: "
            "raise seeding.replay.document_tokens, or reading fades",
            len(kept),
            count,
            max_new_tokens,
        )
    return kept


def _requested(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    settings: SamplingSettings,
    seed: int,
    requests: Sequence[str],
    progress: str | None,
) -> list[str]:
    """What the model writes when asked, up to its last whole sentence, each text once."""
    asked = [[{"role": "user", "content": requests[number % len(requests)]}] for number in range(count)]
    drawn = TransformersSampler(model, tokenizer, settings).sample(asked, 1, seed, progress)
    texts = [reply.text.strip() if reply.ended else _whole_sentences(reply.text) for (reply,) in drawn]
    kept = list(dict.fromkeys(text for text in texts if text))
    if 2 * len(kept) < count:
        logger.warning(
            "%d of %d documents that the model was asked for (seeding.replay.document_requests) can be read about, the "
            "others are empty, the same, or have no sentence of less than %d tokens: reading fades",
            len(kept),
            count,
            settings.max_new_tokens,
        )
    return kept


def _whole_sentences(text: str) -> str:
    return "".join(sentences(text)[:-1]).strip()


def _own_turns(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    role: str,
    settings: SamplingSettings,
    count: int,
    seed: int,
    progress: str | None,
) -> list[str] | None:
    """What the model writes into a turn that is opened for it (compare Magpie, Xu et al. 2024), each text once.

    None where the chat template writes nothing around such a turn; what the model did not end is left out.
    """
    mark = "\u2042"
    try:
        whole = str(tokenizer.apply_chat_template([{"role": role, "content": mark}], tokenize=False))
    except TemplateError:
        whole = ""
    opening, _, closing = whole.partition(mark)
    if not opening or not closing:
        return None
    ids = tokenizer(opening, add_special_tokens=False)["input_ids"]
    (replies,) = TransformersSampler(model, tokenizer, settings).continue_ids([ids], count, seed, progress)
    texts = [re.split(re.escape(closing.strip()) if closing.strip() else r"\Z", reply.text)[0] for reply in replies]
    ended = [text.strip() for text, reply in zip(texts, replies, strict=True) if reply.ended and text.strip()]
    return list(dict.fromkeys(ended))


def conversation_lessons(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    tokens: int,
    settings: TeacherSettings,
    seed: int,
    progress: bool = False,
) -> list[Lesson]:
    """Requests that the model makes up, with its own replies: a student that keeps to them goes on knowing what it did.

    Lessons in reading have a text before them, and free texts are no conversation; what a model answers without any
    text is rehearsed by these alone.

    Args:
        model: in the teacher's view.
        tokenizer: with a chat template.
        count: requests; those that are cut off, empty or the same are left out.
        tokens: of a request, and of a reply, which may be cut: the student learns what the teacher believes at each
            token, also at the last one, that it would go on.
        settings: batches, the temperature of replies, and how many tokens of the teacher's beliefs are kept.
        seed: of the sampling.
        progress: whether to show bars.
    """
    if not count:
        return []
    drawing = SamplingSettings(tokens, batch_size=settings.batch_size)
    requests = _own_turns(model, tokenizer, "user", drawing, count, seed, "made-up requests" if progress else None)
    if not requests:
        logger.warning(
            "the model makes up no conversations (seeding.replay.conversations): its chat template writes nothing "
            "around a user turn, or it ends none within %d tokens (seeding.replay.conversation_tokens)",
            tokens,
        )
        return []
    asked = [[{"role": "user", "content": request}] for request in requests]
    replying = SamplingSettings(tokens, settings.temperature, batch_size=settings.batch_size)
    drawn = TransformersSampler(model, tokenizer, replying).sample(
        asked, 1, seed + 1, "replies to them" if progress else None
    )
    samples = [
        TeacherSample(0, "conversation", request, reply.text.strip(), 1.0)
        for request, (reply,) in zip(requests, drawn, strict=True)
        if reply.text.strip()
    ]
    samples = [sample for sample in samples if says_as_written(tokenizer, sample.answer)]
    return read_beliefs(model, tokenizer, [None], samples, settings.top_k, settings.reading_rows, student_reads=True)


def free_lessons(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    tokens: int,
    top_k: int,
    seed: int,
    batch_size: int = 64,
) -> list[Lesson]:
    """Texts that the model begins of itself, with its beliefs: a student that keeps to them goes on speaking as it did.

    Args:
        model: in the teacher's view.
        tokenizer: its beginning-of-sequence token starts the texts, or else the model's; without one there are none,
            and a warning says so.
        count: how many.
        tokens: of each; shorter where the model ends.
        top_k: tokens kept at every position.
        seed: of the sampling.
        batch_size: texts at a time.
    """
    import torch

    if not count:
        return []
    first = tokenizer.bos_token_id
    if first is None:
        first = getattr(model.config.get_text_config(), "bos_token_id", None)
    if first is None:
        logger.warning(
            "neither the tokenizer nor the model of %s has a token that begins a text, so that nothing of how it "
            "speaks is rehearsed (replay.free_texts)",
            model.config.name_or_path,
        )
        return []
    sampler = TransformersSampler(model, tokenizer, SamplingSettings(tokens, batch_size=min(count, batch_size)))
    (replies,) = sampler.continue_ids([[first]], count, seed=seed)
    lessons = []
    for reply in replies:
        ids = (first, *reply.ids)
        if len(ids) < 2:
            continue
        with evaluating(model), torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids], device=model.device)).logits[0, :-1]
        kept = cache_teacher(logits, min(top_k, logits.shape[-1]))
        teacher = CachedTeacher(kept.tokens_NK.cpu(), kept.log_probs_NK.cpu(), kept.tail_N.cpu())
        lessons.append(Lesson(ids, 1, teacher))
    return lessons


def open_book_lessons(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[str],
    settings: TeacherSettings,
    replies: int,
    seed: int,
    progress: str | None = None,
) -> list[Lesson]:
    """Lessons in reading: what the model does with documents, which both teacher and student have before them.

    They are the teacher's own tasks, writing about a text and answering what was written, since a student that can no
    longer do them is no teacher of the next night. Nothing is asked again: whatever the model says about these
    documents now is what it shall go on saying, but for what the chat template would change.
    """
    samples = []
    sampler = TransformersSampler(
        model,
        tokenizer,
        SamplingSettings(settings.max_new_tokens, settings.temperature, batch_size=settings.batch_size),
    )
    for number, (prompt, count) in enumerate(zip(settings.prompts, shares(settings.prompts, replies), strict=True)):
        asked = [[{"role": "system", "content": text}, {"role": "user", "content": prompt.ask}] for text in documents]
        drawn = sampler.sample(asked, count, 1000 * seed + number, progress) if count else []
        for context, written in enumerate(drawn):
            for text in dict.fromkeys(reply.text.strip() for reply in written if reply.ended and reply.text.strip()):
                samples.append(TeacherSample(context, "writing", prompt.ask, text, 1.0))
                if prompt.form == "pairs":
                    samples += [TeacherSample(context, prompt.kind, *pair, 1.0) for pair in read_pairs(text)]
    samples = [sample for sample in samples if says_as_written(tokenizer, sample.answer)]
    return read_beliefs(model, tokenizer, documents, samples, settings.top_k, settings.reading_rows, student_reads=True)
