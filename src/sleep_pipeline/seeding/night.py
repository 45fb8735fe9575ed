"""One night's seeding from end to end: sample the teacher, read its beliefs, train the new expert, keep for replay.

    store = ReplayStore(stored=2000, open_book=600)
    seeded = seed_night(model, tokenizer, documents, SeedingSettings(), store, night=1)

`gather` and `learn` are its halves, for those who save what lies between them.
"""

from __future__ import annotations

import logging
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from sleep_pipeline.memory import CONTEXT, Journal, Pair, base_view, consolidation, state_of, teacher_view
from sleep_pipeline.memory.slots import SlotState
from sleep_pipeline.seeding.hidden import answer_head
from sleep_pipeline.seeding.judges import Judge, LikelihoodJudge, Trio
from sleep_pipeline.seeding.lessons import (
    Lesson,
    altered_texts,
    conversation_lessons,
    free_lessons,
    open_book_lessons,
    read_beliefs,
    reading_lessons,
    self_made_documents,
)
from sleep_pipeline.seeding.replay import ReplayStore
from sleep_pipeline.seeding.rewards import imitation_reward
from sleep_pipeline.seeding.settings import SeedingSettings
from sleep_pipeline.seeding.teacher import TeacherData, sample_teacher

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NightData:
    """What the teacher leaves for the student.

    Attributes:
        data: its samples, and what was dropped.
        lessons: the samples with its beliefs.
        open_book: new lessons in reading.
        seconds: what it took, by part.
    """

    data: TeacherData
    lessons: list[Lesson]
    open_book: list[Lesson]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Learned:
    """What came of training.

    Attributes:
        history: metrics, every few steps, from the beginning of the training on.
        rollouts: what the student said itself, with its rewards; where a killed run went on, since then alone.
        seconds: how long it took.
    """

    history: list[dict[str, float]]
    rollouts: list[dict[str, Any]]
    seconds: float


@dataclass(frozen=True)
class Seeded:
    """A night's seeding.

    Attributes:
        night: its number.
        slot: of the expert that holds it; None if there was nothing to learn.
        gathered: see `NightData`.
        learned: see `Learned`.
    """

    night: int
    slot: int | None
    gathered: NightData
    learned: Learned

    @property
    def seconds(self) -> dict[str, float]:
        """What the night took, by part."""
        return {**self.gathered.seconds, "training": self.learned.seconds}


@dataclass
class BaseJudge:
    """A judge that asks the bare base model inside a model with a memory, so that it stays frozen over the nights."""

    model: PreTrainedModel
    inner: Judge

    def agree(self, trios: Sequence[Trio]) -> list[bool]:
        """See `Judge`."""
        with base_view(self.model):
            return self.inner.agree(trios)


def gather(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    contexts: Sequence[str],
    settings: SeedingSettings,
    seed: int,
    progress: bool = False,
    withheld: Callable[[str], bool] | None = None,
) -> NightData:
    """Sample the teacher about each context, and about documents that it makes up, and read its beliefs.

    Args:
        model: in the teacher's view.
        tokenizer: with a chat template.
        contexts: what is to be remembered, each within the model's window.
        settings: see `SeedingSettings`.
        seed: the same seed gives the same lessons.
        progress: whether to show bars.
        withheld: says of a question that it will be asked; no altered text is about it. Of the samples, the caller
            takes out what is asked.

    Raises:
        ValueError: the model's logits cannot be had from its last hidden states (see `answer_head`).
    """
    # A model whose logits cannot be had is refused before hours of sampling.
    answer_head(model)
    asked, replay = settings.teacher, settings.replay
    clock = _Clock()
    teacher = nullcontext if settings.teacher.experts else base_view
    with clock("sampling"), teacher(model):
        data = sample_teacher(model, tokenizer, contexts, asked, seed, progress)
    clock.tell(f"{len(data.samples)} answers about {len(contexts)} texts", "sampling")
    with clock("beliefs"), teacher(model):
        lessons = read_beliefs(
            model,
            tokenizer,
            contexts,
            data.samples,
            asked.top_k,
            asked.reading_rows,
            progress="beliefs" if progress else None,
        )
    open_book: list[Lesson] = []
    reader = base_view if replay.base_reader else nullcontext
    with clock("open book"), reader(model):
        if replay.open_book_documents and replay.open_book_rows:
            documents = self_made_documents(
                model,
                tokenizer,
                replay.open_book_documents,
                replay.document_tokens,
                1000 * seed + 17,
                asked.batch_size,
                replay.document_requests,
                "made-up documents" if progress else None,
            )
            open_book = open_book_lessons(
                model,
                tokenizer,
                documents,
                asked,
                replay.open_book_replies,
                1000 * seed + 18,
                "about made-up documents" if progress else None,
            )
        if replay.open_book_rows:
            known = [sample for sample in data.samples if withheld is None or not withheld(sample.question)]
            texts, about = altered_texts(contexts, known, replay.altered_texts, 1000 * seed + 20)
            open_book += read_beliefs(
                model, tokenizer, texts, about, asked.top_k, asked.reading_rows, student_reads=True
            )
            open_book += free_lessons(
                model,
                tokenizer,
                replay.free_texts,
                replay.free_text_tokens,
                asked.top_k,
                1000 * seed + 19,
                asked.batch_size,
            )
            open_book += conversation_lessons(
                model, tokenizer, replay.conversations, replay.conversation_tokens, asked, 1000 * seed + 21, progress
            )
    clock.tell(f"{len(open_book)} lessons to go on reading and speaking", "open book")
    return NightData(data, lessons, open_book, clock.seconds)


def learn(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    lessons: Sequence[Lesson],
    store: ReplayStore,
    settings: SeedingSettings,
    seed: int,
    open_book: Sequence[Lesson] = (),
    judge: Judge | None = None,
    views: Sequence[Callable[[], AbstractContextManager[None]]] = (),
    folder: Path | None = None,
    progress: bool = False,
    resume: bool = False,
    penalty: Callable[[], Tensor] | None = None,
) -> Learned:
    """Train what of the model requires gradients on tonight's lessons, with replay.

    Args:
        model: the student.
        tokenizer: with a chat template.
        lessons: tonight's.
        store: of earlier nights; not changed.
        settings: see `SeedingSettings`.
        seed: decides the order of everything.
        open_book: tonight's lessons in reading.
        judge: `r_sem`; None asks the base model's own likelihood.
        views: see `KnowledgeSeedingTrainer`.
        folder: for checkpoints, if the settings ask for any; None keeps none after the run.
        progress: whether to show a bar.
        resume: whether to go on from the last complete checkpoint of the same run in `folder`, if there is one.
        penalty: see `KnowledgeSeedingTrainer`.

    Raises:
        OSError: a checkpoint cannot be written.
    """
    from sleep_pipeline.seeding.checkpoints import last_checkpoint
    from sleep_pipeline.seeding.trainer import KnowledgeSeedingTrainer, silent_ids

    reward = None
    if settings.alpha < 1 and settings.prompts:
        gamma = settings.imitation.gamma
        if gamma and judge is None:
            judge = BaseJudge(model, LikelihoodJudge(model, tokenizer))
        reward = imitation_reward(gamma, settings.imitation.threshold, judge, sorted(silent_ids(tokenizer)))
    # No more of tonight's texts than of the others, which free speech is a part of.
    tonight = reading_lessons(lessons)
    tonight = random.Random(seed).sample(tonight, min(len(tonight), len(open_book)))
    began = time.perf_counter()
    with _folder(folder) as place:
        trainer = KnowledgeSeedingTrainer(
            model,
            settings,
            lessons,
            tokenizer,
            reward,
            replayed=store.lessons("stored"),
            earlier=len(store.nights("stored")),
            open_book=[*store.lessons("open_book"), *open_book, *tonight],
            views=views,
            seed=seed,
            output_dir=place,
            progress=progress,
            penalty=penalty,
        )
        last = last_checkpoint(place, trainer.run) if resume else None
        try:
            trainer.train(resume_from_checkpoint=None if last is None else str(last))
        except (RuntimeError, SafetensorError) as error:
            # What torch and safetensors say of a file that they could not write to its end.
            if not any(mark in str(error) for mark in ("inline_container", "Error while serializing")):
                raise
            raise OSError(
                f"a checkpoint of the training could not be written to {place}: is the disk full? The same command "
                f"goes on from the last whole one ({error})"
            ) from error
    return Learned(trainer.history, trainer.rollouts, time.perf_counter() - began)


def learns_along(settings: SeedingSettings, store: ReplayStore) -> bool:
    """Whether a sleep lets earlier experts learn: if the settings say so, and what they know is rehearsed."""
    return settings.plastic and bool(store.pools["stored"].lessons)


def make_room(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    store: ReplayStore,
    settings: SeedingSettings,
    night: int,
    seed: int,
    folder: Path | None = None,
    level: int = 1,
) -> int | None:
    """Merge the two oldest experts of a level that has room for the merged one alone.

    The same trainer, with the model as it is for a teacher: what is in the store was answered by all experts together,
    and the merged expert learns to answer it in place of the two. A level that hands on tonight is emptied anyway, and
    may fill its last slot before.

    Returns:
        The slot of the merged expert, or None if there was room.

    Raises:
        ValueError: nothing is in the store that the merged expert could learn from.
    """
    state = state_of(model)
    emptied = {pair.sender for pair in state.config.schedule().overdue(night, state.table.handed_on)}
    if level in emptied and not state.table.in_state(level, SlotState.FREE):
        # An earlier night was cut short before it handed on.
        hand_on(model, tokenizer, store, settings, night, seed, folder)
        return None
    if level in emptied or not state.table.must_merge(level):
        return None
    slots = state.table.slots(level)
    oldest = sorted(state.table.active(level), key=lambda slot: (slots[slot].night or 0, slot))[:2]
    lessons = store.lessons("stored")
    if not lessons:
        raise ValueError(
            f"level {level} of the memory is full, and no lesson is kept for replay that its experts could be merged "
            "by; begin the life with more slots (memory.levels) or with replay (seeding.replay)"
        )
    with consolidation(model, level, level, oldest, night, plastic=learns_along(settings, store)) as sleep:
        learn(model, tokenizer, lessons, store, _off_policy(settings), seed, folder=folder, resume=True)
        return sleep.commit()


def hand_on(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    store: ReplayStore,
    settings: SeedingSettings,
    night: int,
    seed: int,
    folder: Path | None = None,
) -> list[Pair]:
    """Move every level that is due into the next slower one: its experts' lessons, replayed, into one new expert.

    With one level there is nothing to do. The sender's experts are the teacher and are reset in the student; what they
    were taught since the level was last emptied lies in the store. A level whose turn fell on a night that was not
    kept, or that had nothing to learn, is moved on the next one.

    Args:
        model: with a memory, outside of any sleep, after the context of the night has been seeded.
        tokenizer: with a chat template.
        store: with the lessons of the nights whose experts the senders hold.
        settings: see `SeedingSettings`; all rows are off-policy.
        night: position on the schedule.
        seed: decides the order of everything.
        folder: for checkpoints.

    Returns:
        The pairs that slept, in order.
    """
    state = state_of(model)
    done = []
    for pair in state.config.schedule().overdue(night, state.table.handed_on):
        if not state.table.active(pair.sender):
            continue
        own = 31 * seed + pair.sender
        room, level = (None if folder is None else folder / f"{name}_{pair.receiver}" for name in ("room", "level"))
        make_room(model, tokenizer, store, settings, night, own, room, pair.receiver)
        last = state.table.handed_on(pair.sender)
        kept = store.pools["stored"].lessons
        lessons = [lesson for lesson, of in kept if of > last] or [lesson for lesson, _ in kept]
        along = learns_along(settings, store)
        with consolidation(model, pair.sender, pair.receiver, night=night, plastic=along) as sleep:
            learn(model, tokenizer, lessons, store, _off_policy(settings), own, folder=level, resume=True)
            sleep.commit()
        state.table.hand_on(pair.sender, night)
        state.changed()
        done.append(pair)
    return done


def _off_policy(settings: SeedingSettings) -> SeedingSettings:
    """For lessons whose teacher cannot be asked again."""
    return settings.model_copy(update={"on_policy": 0.0, "alpha": 1.0})


def seed_night(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    contexts: Sequence[str],
    settings: SeedingSettings,
    store: ReplayStore,
    night: int,
    seed: int = 0,
    judge: Judge | None = None,
    journal: Journal | None = None,
    progress: bool = False,
) -> Seeded:
    """Move what the model knows with the contexts before it into one new expert of its first level.

    Either the seeding happens or nothing of it: an error leaves the model and the store as they were, but for two
    experts that were merged beforehand to make room. Where the teacher says nothing that can be learned, the night ends
    without an expert.

    Args:
        model: with a memory; outside of any sleep.
        tokenizer: with a chat template.
        contexts: what is to be remembered, each within the model's window.
        settings: see `SeedingSettings`.
        store: of earlier nights; tonight's lessons are added.
        night: its number, 1 or more.
        seed: of the whole life; every night draws its own from it.
        judge: `r_sem`; None asks the base model's own likelihood.
        journal: where to keep the transaction on disk.
        progress: whether to show bars.
    """
    own = 7919 * seed + night
    make_room(model, tokenizer, store, settings, night, own)
    plastic = learns_along(settings, store)
    with consolidation(model, CONTEXT, 1, night=night, journal=journal, plastic=plastic) as sleep:
        with teacher_view(model):
            gathered = gather(model, tokenizer, contexts, settings, own, progress)
        if not gathered.lessons:
            sleep.abort()
            return Seeded(night, None, gathered, Learned([], [], 0.0))
        learned = learn(
            model,
            tokenizer,
            gathered.lessons,
            store,
            settings.for_night(len(gathered.lessons)),
            own,
            gathered.open_book,
            judge,
            progress=progress,
        )
        slot = sleep.commit()
    store.add("stored", gathered.lessons, night, seed)
    store.add("open_book", gathered.open_book, night, seed)
    hand_on(model, tokenizer, store, settings, night, own)
    return Seeded(night, slot, gathered, learned)


@contextmanager
def _folder(folder: Path | None) -> Iterator[Path]:
    """The folder, or one for the time being."""
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="seeding-") as made:
        yield Path(made)


@dataclass
class _Clock:
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - began

    def tell(self, what: str, part: str) -> None:
        """Log what came of a part, and how long it took."""
        logger.info("%s: %s (%.0f s)", part, what, self.seconds[part])
