"""What every method can do with labelled streams: observe a task, answer, and say what it keeps and spends.

Beside `protocol.Learner`, whose nights bring documents. All methods answer through `Answering`: one form of prompt, one
way to score labels, so that they differ in what they learn and show alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from sleep_pipeline.evaluation.classification import (
    BATCH_TOKENS,
    Choice,
    PromptForm,
    best_labels,
    free_labels,
    one_line,
)
from sleep_pipeline.generation.likelihood import encode_reply

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sleep_pipeline.evaluation.tasks import ClassTask, Example


@dataclass
class Spent:
    """What learning has cost.

    Attributes:
        seconds: of `observe`, and of training that it puts off.
        tokens: that the model read meanwhile, padding aside; a training step's tokens count once. What a dreamer reads
            with an adapter of its own is not counted, and the copies that try dreams are with their padding.
    """

    seconds: float = 0.0
    tokens: int = 0

    @contextmanager
    def metering(self, *models: nn.Module) -> Iterator[None]:
        """Add what the block takes and what the models read in it."""
        hooks = [model.register_forward_pre_hook(self._count, with_kwargs=True) for model in models]
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - began
            for hook in hooks:
                hook.remove()

    def _count(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        ids, mask = kwargs.get("input_ids", args[0] if args else None), kwargs.get("attention_mask")
        if ids is None:
            return
        # The mask of a pass that goes on from a cache covers what was read before.
        self.tokens += ids.numel() if mask is None else int(mask[:, -ids.shape[1] :].sum())


class LabelledLearner(Protocol):
    """A method that meets classes task by task.

    Attributes:
        model: that answers.
        labels: of the tasks observed so far, in words.
        spent: see `Spent`.
        incremental: whether it can answer after every task; else after the last alone.
    """

    model: PreTrainedModel
    labels: list[str]
    spent: Spent
    incremental: bool

    @property
    def stored(self) -> int:
        """Bytes kept between tasks beside the base model: parameters of its own, statistics, and data."""
        ...

    def observe(self, task: ClassTask) -> None:
        """Learn a task's training examples, which are gone afterwards unless the method keeps them."""
        ...

    def predict(self, texts: Sequence[str], freely: bool = False) -> list[Choice]:
        """Which of the labels seen so far each text has: the likeliest, or `freely` what the model says of itself."""
        ...


@dataclass
class Answering:
    """Asks a model for labels.

    Attributes:
        tokenizer: with a chat template.
        form: of the prompts.
        normalise: whether labels are compared by log-probability a token.
        batch_tokens: of the prompts that are read at a time.
        batch_size: prompts that are answered freely at a time.
    """

    tokenizer: PreTrainedTokenizerBase
    form: PromptForm = field(default_factory=PromptForm)
    normalise: bool = False
    batch_tokens: int = BATCH_TOKENS
    batch_size: int = 16

    def ask(
        self,
        model: PreTrainedModel,
        texts: Sequence[str],
        labels: Sequence[str],
        shown: Sequence[Sequence[Example]] | None = None,
        candidates: Sequence[Sequence[int]] | None = None,
        freely: bool = False,
    ) -> list[Choice]:
        """The model's answers.

        Args:
            model: a causal LM.
            texts: to be classified.
            labels: seen so far.
            shown: for each text the examples in its prompt, the most useful first; what does not fit the window is
                left out from the end.
            candidates: for each text the places of the labels that it may have.
            freely: let the model speak instead of comparing labels.
        """
        if not labels:
            raise ValueError("there is no label to choose from: let the method observe a task first")
        room = self.room(model, labels)
        prompts = [self.prompt(text, () if shown is None else shown[number], room) for number, text in enumerate(texts)]
        if freely:
            return free_labels(model, self.tokenizer, prompts, labels, self.batch_size)
        return best_labels(
            model, self.tokenizer, prompts, labels, candidates, self.normalise, batch_tokens=self.batch_tokens
        )

    def prompt(self, text: str, shown: Sequence[Example] = (), room: int | None = None) -> list[dict[str, str]]:
        """A prompt of at most `room` tokens: examples are left out from the end, then the end of the text is cut."""
        kept, ids = list(shown), None
        while True:
            conversation = self.form.conversation(text, kept[::-1])
            excess = 0 if room is None else self._length(conversation, room) - room
            if excess <= 0:
                return conversation
            if kept:
                kept.pop()
                continue
            if ids is None:
                ids = self.tokenizer(one_line(text), add_special_tokens=False)["input_ids"]
            # Every round cuts the same tokens shorter: a text that was cut within a character may read as more of them.
            ids = ids[: max(0, len(ids) - excess)]
            text = self.tokenizer.decode(ids).rstrip("\ufffd")
            if not text:
                raise ValueError(f"the model's window leaves no room for a text: {room} tokens beside a label")

    def taught(self, example: Example, room: int | None = None) -> list[dict[str, str]]:
        """An example as a conversation that ends with its label, its text cut as a question's would be."""
        return [*self.prompt(example.text, (), room), {"role": "assistant", "content": example.label}]

    def _length(self, conversation: Sequence[dict[str, str]], room: int) -> int:
        # A token stands for a byte at least, and a template adds few: short prompts need no counting.
        size = sum(len(turn["content"].encode()) for turn in conversation)
        if size + 16 * len(conversation) <= room:
            return 0
        asked = self.tokenizer.apply_chat_template(list(conversation), add_generation_prompt=True, return_dict=True)
        return len(asked["input_ids"])

    def room(self, model: PreTrainedModel, labels: Sequence[str]) -> int | None:
        """Tokens of a prompt that leave the model's window room for the longest label; None without a limit."""
        window = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if window is None:
            return None
        longest = max(labels, key=lambda label: len(label.encode()))
        ids, start = encode_reply(
            self.tokenizer, [*self.form.conversation("a"), {"role": "assistant", "content": longest}]
        )
        return int(window) - 2 * (len(ids) - start) - 8


def text_bytes(examples: Sequence[Example]) -> int:
    """Bytes of texts and labels as UTF-8."""
    return sum(len(one.text.encode()) + len(one.label.encode()) for one in examples)
