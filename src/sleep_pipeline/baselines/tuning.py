"""Fine-tuning on labelled tasks, which `sft`, `ewc`, `replay` and `joint` are kinds of.

All go through the seeding trainer, as the baselines on documents do (`finetuning.py`): the same steps, optimizer and
rows a step, so that methods of one settings train the same number of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from peft import LoraConfig, get_peft_model

from sleep_pipeline.baselines.finetuning import Anchor, certain_lesson
from sleep_pipeline.baselines.labelled import Answering, Spent
from sleep_pipeline.generation.likelihood import encode_reply
from sleep_pipeline.seeding.lessons import Lesson
from sleep_pipeline.seeding.night import learn
from sleep_pipeline.seeding.replay import ReplayStore, nbytes
from sleep_pipeline.seeding.settings import SeedingSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sleep_pipeline.evaluation.classification import Choice
    from sleep_pipeline.evaluation.tasks import ClassTask, Example


def labelled_lessons(
    answering: Answering, model: PreTrainedModel, labels: Sequence[str], examples: Sequence[Example]
) -> list[Lesson]:
    """Examples as supervised fine-tuning learns them: the label after the prompt without other examples.

    Args:
        answering: how they are asked.
        model: whose window bounds them.
        labels: seen so far.
        examples: with some of these labels.
    """
    room = answering.room(model, labels)
    encoded = [encode_reply(answering.tokenizer, answering.taught(example, room)) for example in examples]
    return [certain_lesson(tuple(ids), start) for ids, start in encoded]


def steps_of(settings: SeedingSettings, growth: float, task: ClassTask) -> SeedingSettings:
    """The settings with the steps of a task: fewer for the first ones and more for the last ones.

    The later a task, the more classes there are to be told from its own. All tasks together take as many steps as they
    would with equal ones.

    Args:
        settings: see `SeedingSettings`.
        growth: share of the steps that grow evenly from task to task, 0 to 1; with 0.75 the first of ten tasks takes
            0.39 times the settings' steps, and the last one 1.61 times.
        task: of a stream whose length is known; otherwise the steps are those of the settings.
    """
    if not task.of:
        return settings
    times = 1 - growth + 2 * growth * task.number / (task.of + 1)
    optimizer = settings.optimizer
    steps = max(1, round(times * optimizer.steps))
    return settings.model_copy(update={"optimizer": optimizer.model_copy(update={"steps": steps})})


class Tuning:
    """Fine-tuning in sequence.

    Args:
        base: the base model; full fine-tuning changes it.
        answering: how it is asked.
        settings: of seeding; `lambda` and the reward are left out. A step takes `rows` and `replay.stored_rows`
            together, all of the present task where nothing is replayed.
        rank: of one LoRA adapter over all linear layers; None trains all weights.
        replay: whether examples of earlier tasks are kept, at most `replay.stored_capacity`, and replayed.
        anchor: weight of elastic weight consolidation; 0 for none.
        seed: of everything that is drawn.
        decay: of the consolidation's importance from task to task; see `Anchor`.
        growth: see `steps_of`.
    """

    incremental = True

    def __init__(
        self,
        base: PreTrainedModel,
        answering: Answering,
        settings: SeedingSettings,
        rank: int | None = None,
        replay: bool = False,
        anchor: float = 0.0,
        seed: int = 0,
        decay: float = 0.9,
        growth: float = 0.0,
    ) -> None:
        if rank is None:
            # As memories and adapters are: in half the precision, small steps would change nothing.
            self.model = base.float().requires_grad_(True)
        else:
            config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
            self.model = get_peft_model(base, config)
        kept = settings.replay.model_copy(
            update={"open_book_rows": 0, "gate_penalty": 0.0, **({} if replay else {"stored_rows": 0})}
        )
        self._whole = settings.rows + settings.replay.stored_rows
        # Cross-entropy with the labels, whatever divergence sleep is tried with.
        changes = {"on_policy": 0.0, "alpha": 1.0, "replay": kept, "divergence": "forward_kl"}
        self._settings = settings.model_copy(update=changes)
        self._store = ReplayStore(kept.stored_capacity, kept.open_book_capacity)
        self._anchor = Anchor(self.model, anchor, decay=decay) if anchor else None
        self._answering, self._replay, self._seed, self._growth = answering, replay, seed, growth
        self.labels, self.spent = list[str](), Spent()

    def observe(self, task: ClassTask) -> None:
        """See `LabelledLearner`."""
        self.labels += task.labels
        own = 7919 * self._seed + task.number
        with self.spent.metering(self.model):
            lessons = labelled_lessons(self._answering, self.model, self.labels, task.train)
            self._train(steps_of(self._settings, self._growth, task), lessons, own)
            if self._replay:
                self._store.add("stored", lessons, task.number, self._seed)
            if self._anchor is not None:
                self._anchor.remember(lessons, self._answering.tokenizer.pad_token_id, own)

    def predict(self, texts: Sequence[str], freely: bool = False) -> list[Choice]:
        """See `LabelledLearner`."""
        return self._answering.ask(self.model, texts, self.labels, freely=freely)

    def _train(self, settings: SeedingSettings, lessons: Sequence[Lesson], seed: int, times: int = 1) -> None:
        rehearsing = bool(self._store.lessons("stored"))
        optimizer = settings.optimizer
        settings = settings.model_copy(
            update={
                "rows": settings.rows if rehearsing else self._whole,
                "optimizer": optimizer.model_copy(update={"steps": times * optimizer.steps}),
            }
        )
        learn(self.model, self._answering.tokenizer, lessons, self._store, settings, seed, penalty=self._anchor)

    @property
    def stored(self) -> int:
        """See `LabelledLearner`."""
        own = sum(p.nbytes for p in self.model.parameters() if p.requires_grad)
        # Between tasks the anchor's centre is the weights themselves; its importance comes on top.
        return own + (own if self._anchor is not None else 0) + nbytes(self._store)
