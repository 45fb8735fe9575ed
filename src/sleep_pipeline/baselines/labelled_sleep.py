"""Sleep on labelled tasks: what a fast memory or the context knows of a task moves into one slow expert a night.

Three senders: `fast`, level 1's own weights, which learn the task by day (paper.md eq. 2) and are cleared by night;
`context`, labelled examples in the prompt; `both`. The answers of the training set are the labels that were given, with
what the teacher believes at each of their tokens; paper.md samples the answers from the teacher too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch
from peft import get_peft_model

from sleep_pipeline.baselines.embedding import BackboneEmbedder, Embedder, nearest
from sleep_pipeline.baselines.finetuning import IMPOSSIBLE
from sleep_pipeline.baselines.hope import Awake
from sleep_pipeline.baselines.labelled import Answering, Spent
from sleep_pipeline.baselines.tuning import labelled_lessons, steps_of
from sleep_pipeline.memory import CONTEXT, ContinuumMemoryConfig, consolidation, state_of, teacher_view
from sleep_pipeline.memory.levels import PROSPECTIVE, WORKSPACE
from sleep_pipeline.memory.operations import level_tensors
from sleep_pipeline.seeding.divergences import CachedTeacher
from sleep_pipeline.seeding.lessons import Lesson, read_beliefs
from sleep_pipeline.seeding.night import learn, learns_along, make_room
from sleep_pipeline.seeding.replay import ReplayStore, nbytes
from sleep_pipeline.seeding.settings import SeedingSettings
from sleep_pipeline.seeding.teacher import TeacherSample

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sleep_pipeline.evaluation.classification import Choice
    from sleep_pipeline.evaluation.tasks import ClassTask, Example

Sender = Literal["fast", "context", "both"]


def corrected(lesson: Lesson) -> Lesson:
    """The lesson from a teacher that is certain of the label's token wherever it believed more in another one.

    A memory's label is given, so a teacher that errs is not to be imitated there; elsewhere its doubts teach more than
    the label alone.
    """
    label = torch.tensor(lesson.ids[lesson.start :])
    teacher = lesson.teacher
    wrong = teacher.tokens_NK[:, 0] != label
    if not wrong.any():
        return lesson
    tokens, log_probs, tail = (t.clone() for t in (teacher.tokens_NK, teacher.log_probs_NK, teacher.tail_N))
    for place in wrong.nonzero()[:, 0].tolist():
        others = [token for token in tokens[place].tolist() if token != label[place]]
        tokens[place] = torch.tensor([int(label[place]), *others][: tokens.shape[1]])
    log_probs[wrong] = IMPOSSIBLE
    log_probs[wrong, 0] = 0.0
    tail[wrong] = IMPOSSIBLE
    return replace(lesson, teacher=CachedTeacher(tokens, log_probs, tail))


class LabelledSleep:
    """One night a task.

    Args:
        base: the base model, which stays frozen.
        answering: how it is asked.
        settings: of seeding; lessons in reading are left out.
        memory: of two levels whose fast one counts steps, or of one level for the sender `context`.
        sender: who teaches.
        embedder: by which the context's examples are found; the backbone's own by default.
        shots: examples in the teacher's prompt at most, the example itself not among them.
        day_steps: of the fast memory, each of `settings.rows` examples.
        day_rate: its learning rate.
        growth: see `steps_of`.
        seed: of everything that is drawn.

    Raises:
        ValueError: the memory's levels are not those that the sender needs.
    """

    incremental = True

    def __init__(
        self,
        base: PreTrainedModel,
        answering: Answering,
        settings: SeedingSettings,
        memory: ContinuumMemoryConfig,
        sender: Sender = "fast",
        embedder: Embedder | None = None,
        shots: int = 8,
        day_steps: int = 200,
        day_rate: float = 3e-3,
        growth: float = 0.0,
        seed: int = 0,
    ) -> None:
        wanted = 1 if sender == "context" else 2
        if len(memory.levels) != wanted:
            raise ValueError(
                f"the sender {sender!r} needs a memory of {wanted} levels, and this one has {len(memory.levels)}; "
                "change memory.levels or the sender"
            )
        self.model: PreTrainedModel = get_peft_model(base, memory).eval()
        self.labels, self.spent = list[str](), Spent()
        replay = settings.replay.model_copy(update={"open_book_rows": 0})
        self._settings = settings.model_copy(update={"replay": replay})
        self._store = ReplayStore(replay.stored_capacity, replay.open_book_capacity)
        tokenizer = answering.tokenizer
        self.awake = None if sender == "context" else Awake(self.model, tokenizer.pad_token_id, day_rate)
        self._embedder = embedder or BackboneEmbedder(self.model, tokenizer)
        self._answering, self._sender, self._shots = answering, sender, shots
        self._day_steps, self._receiver, self._seed, self._growth = day_steps, wanted, seed, growth

    def observe(self, task: ClassTask) -> None:
        """See `LabelledLearner`."""
        self.labels += task.labels
        with self.spent.metering(self.model):
            self._night(task, 7919 * self._seed + task.number)

    def _night(self, task: ClassTask, own: int) -> None:
        tokenizer, settings, receiver = self._answering.tokenizer, self._settings, self._receiver
        # Before the day: a merged expert must not make up for a fast memory that the night clears.
        make_room(self.model, tokenizer, self._store, settings, task.number, own, level=receiver)
        if self.awake is not None:
            certain = labelled_lessons(self._answering, self.model, self.labels, task.train)
            self.awake.live(certain, self._day_steps, settings.rows, own)
        sender = CONTEXT if self.awake is None else receiver - 1
        updates = None if self.awake is None else self.awake.updates
        plastic = learns_along(settings, self._store)
        with consolidation(self.model, sender, receiver, night=task.number, updates=updates, plastic=plastic) as sleep:
            self._clear_sender()
            lessons = self._taught(task, own)
            sleep.commit()
        if updates is not None:
            updates.load_state_dict({})
        self._store.add("stored", lessons, task.number, self._seed)

    def _taught(self, task: ClassTask, own: int) -> list[Lesson]:
        """Teach the task, and return the lessons of it."""
        with teacher_view(self.model):
            lessons = self._lessons(task.train)
        settings = steps_of(self._settings, self._growth, task)
        if not self._store.nights("stored"):
            # Nothing can be replayed yet: as the rivals do, the first task takes those rows itself.
            settings = settings.model_copy(update={"rows": settings.rows + settings.replay.stored_rows})
        learn(self.model, self._answering.tokenizer, lessons, self._store, settings, own)
        return lessons

    @torch.no_grad()
    def _clear_sender(self) -> None:
        """The student's fast memory is empty, or there would be nothing for the slow expert to learn."""
        if self.awake is not None:
            for tensors in level_tensors(state_of(self.model), self._receiver - 1):
                tensors.get_parameter(PROSPECTIVE[1]).zero_()

    def _lessons(self, examples: Sequence[Example]) -> list[Lesson]:
        """The examples with the teacher's beliefs about their labels; the model is in the teacher's view."""
        room = self._answering.room(self.model, self.labels)
        prompts = [
            self._answering.prompt(example.text, shown, room)
            for example, shown in zip(examples, self._shown(examples), strict=True)
        ]
        contexts = [prompt[0]["content"] if len(prompt) > 1 else None for prompt in prompts]
        samples = [
            TeacherSample(number, "label", prompt[-1]["content"], example.label, 1.0)
            for number, (prompt, example) in enumerate(zip(prompts, examples, strict=True))
        ]
        lessons = read_beliefs(
            self.model, self._answering.tokenizer, contexts, samples, self._settings.teacher.top_k, batch_size=16
        )
        return [corrected(lesson) for lesson in lessons]

    def _shown(self, examples: Sequence[Example]) -> list[list[Example]]:
        if self._sender == "fast":
            return [[] for _ in examples]
        vectors = self._embedder.embed([example.text for example in examples])
        places = nearest(vectors, vectors, self._shots + 1).tolist()
        return [
            [examples[place] for place in row if place != number][: self._shots] for number, row in enumerate(places)
        ]

    def predict(self, texts: Sequence[str], freely: bool = False) -> list[Choice]:
        """See `LabelledLearner`."""
        return self._answering.ask(self.model, texts, self.labels, freely=freely)

    @property
    def stored(self) -> int:
        """See `LabelledLearner`; free slots are not counted."""
        state = state_of(self.model)
        expert = sum(
            tensors.get_parameter(name).nbytes for tensors in level_tensors(state, self._receiver) for name in WORKSPACE
        )
        fast = 0 if self.awake is None else self.awake.nbytes
        return expert * len(state.table.active(self._receiver)) + fast + nbytes(self._store)
