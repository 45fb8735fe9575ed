"""Training in sequence, with and without what the literature does against forgetting.

All of them go through the seeding trainer, so steps, optimizer and tokens are the same: a lesson whose teacher is
certain of every token is plain supervised fine-tuning, since the forward divergence from a one-hot distribution is the
cross-entropy.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from sleep_pipeline.seeding.batches import pad
from sleep_pipeline.seeding.divergences import CachedTeacher
from sleep_pipeline.seeding.hidden import answer_head, hidden_states
from sleep_pipeline.seeding.lessons import Lesson
from sleep_pipeline.seeding.night import gather, learn
from sleep_pipeline.seeding.replay import ReplayStore, nbytes
from sleep_pipeline.seeding.settings import SeedingSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Data = Literal["documents", "samples", "beliefs"]
IMPOSSIBLE = -1e4
"""Log-probability of what a certain teacher rules out, finite as in `divergences`."""


def certain(lesson: Lesson) -> Lesson:
    """The same lesson from a teacher that is certain of every token: supervised fine-tuning.

    It keeps as many tokens as before, the others ruled out: lessons of a step are compared over as many tokens as all
    of their teachers keep.
    """
    answer = list(lesson.ids[lesson.start :])
    width = lesson.teacher.tokens_NK.shape[1]
    kept = [
        [said, *(token for token in tokens if token != said)][:width]
        for said, tokens in zip(answer, lesson.teacher.tokens_NK.tolist(), strict=True)
    ]
    log_probs = torch.full((len(answer), width), IMPOSSIBLE)
    log_probs[:, 0] = 0.0
    teacher = CachedTeacher(torch.tensor(kept), log_probs, torch.full((len(answer),), IMPOSSIBLE))
    return replace(lesson, teacher=teacher)


def certain_lesson(ids: tuple[int, ...], start: int) -> Lesson:
    """A lesson of these tokens, from the place `start` on, from a teacher that is certain of each."""
    said = torch.tensor(ids[start:], dtype=torch.long)[:, None]
    return Lesson(ids, start, CachedTeacher(said, torch.zeros(said.shape), torch.full((len(said),), IMPOSSIBLE)))


def raw_lesson(tokenizer: PreTrainedTokenizerBase, document: str) -> Lesson:
    """A document as text to be continued from its first token on, where conversations have their text."""
    ids = tuple(tokenizer.apply_chat_template([{"role": "system", "content": document}], return_dict=True)["input_ids"])
    return certain_lesson(ids, 1)


class FineTuning:
    """Fine-tuning in sequence.

    Args:
        base: the base model; full fine-tuning changes it.
        tokenizer: with a chat template.
        settings: of seeding; `lambda` and the reward are left out.
        data: `documents`: the raw texts; `samples`: what the model says about them with the text before it; `beliefs`:
            the same with its distributions, which is self-distillation. As with sleep, the teacher reads without what
            earlier nights taught, unless `teacher.experts` says otherwise: with the adapter set aside, or, where all
            weights train, from a copy of the base model, which is not counted as stored.
        rank: of one LoRA adapter over all linear layers, trained on every night; None trains all weights.
        replay: whether lessons of earlier nights are replayed, as many as sleep replays.
        anchor: weight of elastic weight consolidation; 0 for none.
        learning_rate: peak, of AdamW alone; None takes the optimizer of the settings.
        seed: of everything that is drawn.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: SeedingSettings,
        data: Data,
        rank: int | None = None,
        replay: bool = False,
        anchor: float = 0.0,
        learning_rate: float | None = None,
        seed: int = 0,
    ) -> None:
        self._reader: PreTrainedModel | None = None
        if rank is None:
            if data != "documents" and not settings.teacher.experts:
                self._reader = copy.deepcopy(base).requires_grad_(False).eval()
            # As memories and adapters are: in half the precision, small steps would change nothing.
            self.model = base.float().requires_grad_(True)
        else:
            config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
            self.model = get_peft_model(base, config)
        none = {} if replay else {"stored_rows": 0, "open_book_rows": 0}
        kept = settings.replay.model_copy(update={"gate_penalty": 0.0, **none})
        optimizer = settings.optimizer
        if learning_rate is not None:
            optimizer = optimizer.model_copy(update={"learning_rate": learning_rate, "muon_rate": None})
        # One-hot teachers are fine-tuned to by cross-entropy, whatever divergence sleep is tried with.
        divergence = settings.divergence if data == "beliefs" else "forward_kl"
        self._settings = settings.model_copy(
            update={
                "on_policy": 0.0,
                "alpha": 1.0,
                "replay": kept,
                "optimizer": optimizer,
                "divergence": divergence,
            }
        )
        self._store = ReplayStore(kept.stored_capacity, kept.open_book_capacity)
        self._tokenizer, self._data, self._rank, self._replay, self._seed = tokenizer, data, rank, replay, seed
        self._anchor = Anchor(self.model, anchor) if anchor else None
        self.training_seconds: list[float] = []

    def learn(self, documents: Sequence[str], night: int) -> None:
        """See `Learner`."""
        own = 7919 * self._seed + night
        self.model.eval()
        open_book: list[Lesson] = []
        if self._data == "documents":
            lessons = [raw_lesson(self._tokenizer, document) for document in documents]
        else:
            with self._teacher() as teacher:
                gathered = gather(teacher, self._tokenizer, documents, self._settings, own)
            lessons, open_book = gathered.lessons, gathered.open_book
            if self._data == "samples":
                lessons = [certain(lesson) for lesson in lessons]
        if not lessons:
            return
        settings = self._settings.model_copy(update={"rows": self._rows(lessons)})
        learned = learn(
            self.model, self._tokenizer, lessons, self._store, settings, own, open_book, penalty=self._anchor
        )
        self.training_seconds.append(learned.seconds)
        if self._replay:
            self._store.add("stored", lessons, night, self._seed)
            self._store.add("open_book", open_book, night, self._seed)
        if self._anchor is not None:
            self._anchor.remember(lessons, self._tokenizer.pad_token_id, own)

    @contextmanager
    def _teacher(self) -> Iterator[PreTrainedModel]:
        """The model that reads: without what earlier nights taught, as sleep sets aside its experts."""
        if self._settings.teacher.experts or not isinstance(self.model, PeftModel):
            yield self.model if self._reader is None else self._reader
            return
        with self.model.disable_adapter():
            yield self.model

    def _rows(self, lessons: Sequence[Lesson]) -> int:
        """As many rows as make sleep's tokens a step: documents are longer than questions with answers."""
        if self._data != "documents":
            return self._settings.rows
        mean = sum(len(lesson.ids) for lesson in lessons) / len(lessons)
        return max(1, round(self._settings.rows * QUESTION_TOKENS / mean))

    @property
    def stored(self) -> int:
        """See `Learner`."""
        own = sum(p.nbytes for p in self.model.parameters() if p.requires_grad)
        # Between nights the anchor's centre is the weights themselves; its importance comes on top.
        return own + (own if self._anchor is not None else 0) + nbytes(self._store)


QUESTION_TOKENS = 20
"""Tokens of a question with its answer on the embedded model."""


class Anchor:
    """Elastic weight consolidation (Kirkpatrick et al. 2017) in its online form (Schwarz et al. 2018).

    The penalty `weight / 2 * sum F (theta - theta*)^2` holds every weight to its value of the last night, by a running
    sum of the diagonals of the Fisher information. Each night's diagonal is scaled to a mean of 1 first, as Schwarz et
    al. do it: the better a night was learned, the smaller are its gradients, so that without it the nights learned
    worst would be held best, and no one weight of the penalty would fit two nights.

    Args:
        model: what is trained.
        weight: of the penalty; 1 pulls as hard as an L2 penalty of that weight would, on the average parameter.
        samples: lessons that the Fisher information is estimated on, one at a time.
        decay: what is left of the earlier nights' Fisher information when a night's is added, 0 to 1. Below 1 their
            sum stays bounded, or the pull would grow with every night until nothing more is learned.

    Raises:
        ValueError: the decay is not within 0 and 1.
    """

    def __init__(self, model: PreTrainedModel, weight: float, samples: int = 256, decay: float = 0.9) -> None:
        if not 0 <= decay <= 1:
            raise ValueError(f"decay={decay} is no share of earlier importance; give 0 to 1")
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._model, self.weight, self.samples, self.decay = model, weight, samples, decay
        self._fisher: list[Tensor] = []
        self._centre: list[Tensor] = []

    def __call__(self) -> Tensor:
        """The penalty at the present weights; 0 before the first night is over."""
        total = self._parameters[0].new_zeros(())
        for parameter, fisher, centre in zip(self._parameters, self._fisher, self._centre, strict=False):
            total = total + (fisher * (parameter - centre).square()).sum()
        return self.weight / 2 * total

    def remember(self, lessons: Sequence[Lesson], pad_token_id: int, seed: int) -> None:
        """Add a night's Fisher information and move the centre to the present weights."""
        fisher = self.information(lessons, pad_token_id, seed)
        mean = sum(float(part.sum()) for part in fisher) / sum(part.numel() for part in fisher)
        if mean > 0:
            fisher = [part / mean for part in fisher]
        before = self._fisher or [torch.zeros_like(part) for part in fisher]
        self._fisher = [self.decay * old + new for old, new in zip(before, fisher, strict=True)]
        self._centre = [parameter.detach().clone() for parameter in self._parameters]

    def information(self, lessons: Sequence[Lesson], pad_token_id: int, seed: int) -> list[Tensor]:
        """The diagonal of the Fisher information about a lesson's answer, a tensor a parameter.

        Every token is drawn from the model's own belief after the true ones before it: gradients of the given tokens
        would make it the empirical Fisher, which is none (Kunstner et al. 2019).
        """
        head = answer_head(self._model)
        device = self._parameters[0].device
        chosen = random.Random(seed).sample(list(lessons), min(self.samples, len(lessons)))
        generator = torch.Generator().manual_seed(seed)
        fisher = [torch.zeros_like(parameter) for parameter in self._parameters]
        for lesson in chosen:
            ids, mask = pad([lesson.ids], pad_token_id, device)
            hidden = hidden_states(self._model, ids, mask)[0, lesson.start - 1 : -1]
            log_probs = torch.log_softmax(head(hidden).float(), dim=-1)
            drawn = torch.multinomial(log_probs.detach().exp().cpu(), 1, generator=generator).to(device)
            said = log_probs.gather(-1, drawn).sum()
            for total, gradient in zip(
                fisher, torch.autograd.grad(said, self._parameters, allow_unused=True), strict=True
            ):
                if gradient is not None:
                    total += gradient.square() / len(chosen)
        return fisher
