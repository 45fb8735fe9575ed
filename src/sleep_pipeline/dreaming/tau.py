"""The measure `tau` of a trial: how well a copy of the model answers probe questions without any context.

A measure gives every copy one score a probe, so that copies can be compared probe by probe. All copies of a stack are
measured at once: `run_trials(model, dreams, settings, measure)`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sleep_pipeline.dreaming.dreams import to_row
from sleep_pipeline.dreaming.rows import IGNORED, Row, Stack, predictions, side_by_side
from sleep_pipeline.dreaming.settings import TauSettings
from sleep_pipeline.generation.modes import plain_generation
from sleep_pipeline.generation.reading import logit_batches
from sleep_pipeline.generation.sampler import end_marks
from sleep_pipeline.memory.beside import network_of
from sleep_pipeline.memory.blocks import text_config
from sleep_pipeline.seeding.answers import same_answer
from sleep_pipeline.seeding.teacher import TeacherSample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Probe:
    """A question with its answer.

    Attributes:
        context: index of the context that answers it.
        question: the user turn.
        answer: the assistant turn.
    """

    context: int
    question: str
    answer: str

    @classmethod
    def of(cls, sample: TeacherSample) -> Probe:
        """A teacher's sample that is held out of all training."""
        return cls(sample.context, sample.question, sample.answer)


Marks = tuple[float, ...]
"""A score a probe, in the order of the probes; more is better."""


class Measure(Protocol):
    """Scores trained copies; fits `run_trials` as its `evaluate`."""

    def __call__(self, model: nn.Module, trials: Sequence[int], /) -> list[Marks]:
        """Marks of each of K copies, with their adapters on."""
        ...

    def before(self, model: nn.Module) -> Marks:
        """Marks of the model as it is, in eval mode."""
        ...


class _Probes(ABC):
    """Reads every probe with every copy, some probes at a time."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, probes: Sequence[Probe], rows_at_once: int = 256) -> None:
        if not probes:
            raise ValueError("there is no probe to measure by; hold some questions out of the night")
        self.tokenizer, self.probes, self.rows_at_once = tokenizer, list(probes), rows_at_once
        self.rows = [to_row(tokenizer, probe.question, probe.answer) for probe in probes]

    def __call__(self, model: nn.Module, trials: Sequence[int], /) -> list[Marks]:
        return self._marks(model, len(trials))

    def before(self, model: nn.Module) -> Marks:
        """See `Measure`."""
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad():
                return self._marks(model, 1)[0]
        finally:
            model.train(was_training)

    def _marks(self, model: nn.Module, copies: int) -> list[Marks]:
        found = torch.zeros(copies, len(self.rows))
        spans = [(row.start, len(row.ids)) for row in self.rows]
        # A probe is a row of every copy.
        logits = copies * text_config(network_of(model)).vocab_size
        for batch in logit_batches(spans, max(1, self.rows_at_once // copies), logits):
            found[:, batch] = self._read(model, batch, copies).float().cpu()
        return [tuple(row) for row in found.tolist()]

    def _stack(self, model: nn.Module, batch: Sequence[int], copies: int) -> Stack:
        return side_by_side([[self.rows[index] for index in batch]] * copies, next(model.parameters()).device)

    @abstractmethod
    def _read(self, model: nn.Module, batch: Sequence[int], copies: int) -> Tensor:
        """Scores `[copies, probes of the batch]`."""


class ProbeLikelihood(_Probes):
    """Mean log-probability (nats a token, end mark included) of each probe's answer."""

    def _read(self, model: nn.Module, batch: Sequence[int], copies: int) -> Tensor:
        stack = self._stack(model, batch, copies)
        logits = predictions(model, stack)
        each = F.cross_entropy(
            logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32)),
            stack.labels_NS.flatten(),
            ignore_index=IGNORED,
            reduction="none",
        ).view_as(stack.labels_NS)
        counts = (stack.labels_NS != IGNORED).sum(1)
        return -(each.sum(1) / counts).view(copies, -1)


class GivenQuestions(_Probes):
    """Whether each probe's answer is given word for word: 1 or 0.

    The answers are read, not generated: greedy decoding gives an answer exactly if every one of its tokens is the
    likeliest after the true ones before it (as in `rows.exact_match`).
    """

    def _read(self, model: nn.Module, batch: Sequence[int], copies: int) -> Tensor:
        stack = self._stack(model, batch, copies)
        said = predictions(model, stack).argmax(-1)
        return ((said == stack.labels_NS) | (stack.labels_NS == IGNORED)).all(-1).view(copies, -1)


class SaidAnswers(_Probes):
    """Whether each probe's answer is given but for case, outer punctuation and spaces: 1 or 0, by greedy decoding."""

    def _read(self, model: nn.Module, batch: Sequence[int], copies: int) -> Tensor:
        asked = [list(self.rows[index].ids[: self.rows[index].start]) for index in batch] * copies
        padded = self.tokenizer.pad({"input_ids": asked}, padding_side="left", return_tensors="pt")
        longest = max(self.rows[index].learned for index in batch)
        ends = end_marks(model, self.tokenizer) or None
        with plain_generation(model):
            output: Tensor = model.generate(  # type: ignore[operator]
                **padded.to(next(model.parameters()).device),
                do_sample=False,
                max_new_tokens=longest + 4,
                pad_token_id=self.tokenizer.pad_token_id,
                eos_token_id=ends,
            )
        said = self.tokenizer.batch_decode(output[:, padded["input_ids"].shape[1] :], skip_special_tokens=True)
        wanted = [self.probes[index].answer for index in batch] * copies
        return torch.tensor([same_answer(*pair) for pair in zip(said, wanted, strict=True)]).view(copies, -1)


def make_measure(tokenizer: PreTrainedTokenizerBase, probes: Sequence[Probe], settings: TauSettings) -> Measure:
    """The measure that the settings name.

    Raises:
        ValueError: there are no probes.
    """
    kinds: dict[str, Callable[..., Measure]] = {
        "likelihood": ProbeLikelihood,
        "exact": GivenQuestions,
        "normalised": SaidAnswers,
    }
    kind = settings.kind if settings.kind == "likelihood" else settings.match
    return kinds[kind](tokenizer, probes, settings.rows_at_once)


def held_out_rows(tokenizer: PreTrainedTokenizerBase, probes: Sequence[Probe], contexts: int) -> list[list[Row]]:
    """The probes of each context as rows, for `scores.score`."""
    rows: list[list[Row]] = [[] for _ in range(contexts)]
    for probe in probes:
        rows[probe.context].append(to_row(tokenizer, probe.question, probe.answer))
    return rows
