"""Sleep that dreams of its classes: after a task is seeded, the model writes utterances of its labels and learns them.

    seeding   tonight's expert learns the task, but for a share of its examples that are held out
    writing   the dreamer, a LoRA adapter beside the bare base model, learns from tonight's examples to write one more
              utterance after a few of a label's, and writes some of each (as LAMBADA does, Anaby-Tavor et al. 2020)
    agreement the night's teacher reads every utterance; what it would give another label is dropped
    trials    isolated copies of the seeded model learn one set of utterances each; a set is rewarded if its copies give
              more right answers to the examples held out than copies that learned known examples once more
              (paper.md section 4, steps 1 to 3)
    refining  what was rewarded is learned, with the examples held out and the replay of seeding

Everything comes from the examples of the task. Deviations: paper.md lets the model dream as it is; the embedded one has
never written utterances, and what it writes untaught says nothing about the label. And it compares a copy with the
model that it started from, which every copy here falls behind.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import zip_longest
from statistics import fmean
from typing import TYPE_CHECKING, Any

from sleep_pipeline.baselines.dreaming_settings import ClassDreamSettings
from sleep_pipeline.baselines.labelled_sleep import LabelledSleep
from sleep_pipeline.dreaming.dreamer import new_dreamer
from sleep_pipeline.dreaming.dreams import DreamText, sample_dreams
from sleep_pipeline.dreaming.night import DreamReport, judge_dreams
from sleep_pipeline.dreaming.rest_em import fine_tune
from sleep_pipeline.dreaming.tau import Probe
from sleep_pipeline.evaluation.classification import one_line
from sleep_pipeline.evaluation.tasks import Example
from sleep_pipeline.memory import base_view, teacher_view
from sleep_pipeline.seeding.night import learn

if TYPE_CHECKING:
    from peft import PeftModel

    from sleep_pipeline.evaluation.tasks import ClassTask
    from sleep_pipeline.seeding.lessons import Lesson


_ASKING = 64
"""Tokens of the window that are left for what the dreamer is asked, and for the chat template."""
_KNOWN_SETS = 6
"""Sets of known examples, by whose spread it is told whether a set that was dreamt does more than they do."""


@dataclass(frozen=True)
class ClassDreams:
    """What came of a night's dreaming.

    Attributes:
        night: its number.
        drawn: utterances that the dreamer was asked for.
        dropped: why and how often one was not used.
        sets: of one utterance a label at most, which are what copies try.
        tried: sets that copies learned.
        rewarded: sets that helped.
        learned: utterances of those sets.
        before: mean score of the examples held out for the seeded model (see `TauSettings`; a share by default).
        known: the same of copies that learned known examples again.
        gains: of each set tried, over those copies.
        examples: some utterances that were learned, with their labels.
        seconds: by part.
    """

    night: int
    drawn: int
    dropped: dict[str, int]
    sets: int
    tried: int
    rewarded: int
    learned: int
    before: float
    known: float
    gains: tuple[float, ...]
    examples: tuple[tuple[str, str], ...]
    seconds: dict[str, float] = field(compare=False)

    def to_json(self) -> dict[str, Any]:
        """Return the whole in JSON's types."""
        return asdict(self)


def hold_out(examples: Sequence[Example], share: float) -> tuple[list[Example], list[Example]]:
    """What seeding sees, and what dreams are judged by: of each label the texts with the least hashes.

    Equal texts go together, and a text stays on its side whatever stands beside it but for the rounding. A label keeps
    at least one text on the first side, and one with two or more has one on the second.
    """
    texts: dict[str, set[str]] = {}
    for example in examples:
        texts.setdefault(example.label, set()).add(one_line(example.text).casefold())
    held = {
        (label, text)
        for label, own in texts.items()
        for text in sorted(own, key=lambda text: hashlib.sha256(text.encode()).digest())[
            : min(max(1, round(share * len(own))), len(own) - 1)
        ]
    }
    sides: tuple[list[Example], list[Example]] = ([], [])
    for example in examples:
        sides[(example.label, one_line(example.text).casefold()) in held].append(example)
    return sides


class DreamingSleep(LabelledSleep):
    """Sleep with a dreaming stage.

    Args:
        *of_sleep: see `LabelledSleep`.
        dreaming: see `ClassDreamSettings`.
        **rest: see `LabelledSleep`.

    Raises:
        ValueError: the settings want no dreams; and see `LabelledSleep`.

    Attributes:
        dreamt: what came of each night's dreaming.
    """

    def __init__(self, *of_sleep: Any, dreaming: ClassDreamSettings | None = None, **rest: Any) -> None:
        super().__init__(*of_sleep, **rest)
        self.dreamt: list[ClassDreams] = []
        self._dreaming = dreaming or ClassDreamSettings()
        if not self._dreaming.night.dreams.dreams:
            raise ValueError("dreaming.night.dreams.dreams is 0, which is the method `sleep`; give 1 or more a label")
        self._held_out: list[Example] = []
        self._dreamer: PeftModel = new_dreamer(self.model, self._dreaming.night.rest_em, self._seed)
        self._dreamer.base_model.disable_adapter_layers()

    def _night(self, task: ClassTask, own: int) -> None:
        seen, self._held_out = hold_out(task.train, self._dreaming.held_out)
        super()._night(replace(task, train=tuple(seen)), own)

    def _taught(self, task: ClassTask, own: int) -> list[Lesson]:
        lessons = super()._taught(task, own)
        clock: dict[str, float] = {}
        dropped: Counter[str] = Counter()
        with _timed(clock, "writing"):
            written = self._write(task, own, dropped)
        drawn = len(written) + sum(dropped.values())
        with _timed(clock, "agreement"):
            agreed = self._agreed(written, dropped)
        sets = self._sets(agreed)
        with _timed(clock, "trials"):
            report = self._judge(sets, task.train, own) if sets and len(self._held_out) > 1 else None
        nights = [] if report is None else report.dreams[: len(sets)]
        rewarded = [own_set for own_set, dream in zip(sets, nights, strict=False) if dream.reward]
        dreamt = [one for own_set in rewarded for one in own_set]
        with _timed(clock, "refining"):
            with teacher_view(self.model):
                more = self._lessons([*self._held_out, *dreamt])
            lessons = [*lessons, *more]
            settings = self._dreaming.refining.seeding(self._settings)
            learn(self.model, self._answering.tokenizer, lessons, self._store, settings, own + 1)
        tried = [night.verdict for night in nights if night.verdict is not None]
        self.dreamt.append(
            ClassDreams(
                task.number,
                drawn,
                dict(dropped),
                len(sets),
                len(tried),
                len(rewarded),
                len(dreamt),
                0.0 if report is None else fmean(report.before),
                tried[0].before if tried else 0.0,
                tuple(verdict.gain for verdict in tried),
                tuple((one.text, one.label) for one in dreamt[:8]),
                clock,
            )
        )
        return lessons

    def _write(self, task: ClassTask, own: int, dropped: Counter[str]) -> list[Example]:
        """The dreamer learns to write from tonight's examples and writes of each label, all but copies of examples."""
        night, shots = self._dreaming.night, self._dreaming.shots
        (prompt, *_) = night.dreams.prompts
        rng = random.Random(f"dreams/{own}")
        half, longest = self._lengths(task)
        texts = {
            label: [self._cut(one.text, half) for one in task.train if one.label == label] for label in task.labels
        }

        def drawn(label: str, but: str | None = None) -> str:
            others = [text for text in texts[label] if text != but]
            return self._cut("\n".join(rng.sample(others, min(shots, len(others)))), half, lines=True)

        lessons = [
            DreamText(0, prompt.kind, source, prompt.ask, text, ())
            for label, own_texts in texts.items()
            for text in own_texts
            if (source := drawn(label, text))
        ]
        labels = [label for label in task.labels for _ in range(night.dreams.dreams)]
        with self._writing() as dreamer:
            if lessons:
                fine_tune(dreamer, self._answering.tokenizer, lessons, night.rest_em, own)
            room = max(night.dreams.max_new_tokens, longest)
            one_each = night.dreams.model_copy(update={"prompts": [prompt], "dreams": 1, "max_new_tokens": room})
            data = sample_dreams(
                dreamer, self._answering.tokenizer, [drawn(label) for label in labels], one_each, seed=own
            )
        dropped.update(data.dropped)
        known = {one_line(one.text).casefold() for one in [*task.train, *self._held_out]}
        found = []
        for dream in data.dreams:
            text = one_line(dream.text)
            reason = "an example" if text.casefold() in known else None
            known.add(text.casefold())
            if reason is None:
                found.append(Example(text, labels[dream.context]))
            else:
                dropped[reason] += 1
        return found

    def _lengths(self, task: ClassTask) -> tuple[int | None, int]:
        """Tokens that examples and what is written after them may take each, and those of nine in ten examples.

        The first is None without a limit.
        """
        room = self._answering.room(self.model, self.labels)
        half = None if room is None else (room - _ASKING) // 2
        counts = sorted(len(self._answering.tokenizer(one_line(one.text))["input_ids"]) for one in task.train)
        longest = counts[int(0.9 * (len(counts) - 1))] + 1
        return half, longest if half is None else min(longest, half)

    def _cut(self, text: str, tokens: int | None, lines: bool = False) -> str:
        """A text's beginning, of so many tokens at most; its lines stay apart if they are to."""
        text = text if lines else one_line(text)
        if tokens is None or len(text.encode()) <= tokens:
            return text
        tokenizer = self._answering.tokenizer
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return text if len(ids) <= tokens else str(tokenizer.decode(ids[:tokens])).rstrip("\ufffd")

    @contextmanager
    def _writing(self) -> Iterator[PeftModel]:
        """The dreamer on the bare base model, which no night changes, so that what it learned stays true."""
        self._dreamer.base_model.enable_adapter_layers()
        try:
            with base_view(self.model):
                yield self._dreamer
        finally:
            self._dreamer.base_model.disable_adapter_layers()

    def _agreed(self, written: Sequence[Example], dropped: Counter[str]) -> list[Example]:
        """What the night's teacher gives the label that it was written for."""
        if not written:
            return []
        with teacher_view(self.model):
            choices = self._answering.ask(self.model, [one.text for one in written], self.labels)
        agreed = [one for one, choice in zip(written, choices, strict=True) if choice.label == one.label]
        if len(agreed) < len(written):
            dropped["the teacher gives another label"] += len(written) - len(agreed)
        return agreed

    def _sets(self, agreed: Sequence[Example]) -> list[list[Example]]:
        """Sets of one utterance of each label that has one left."""
        by_label = [[one for one in agreed if one.label == label] for label in self.labels]
        return [[one for one in row if one is not None] for row in zip_longest(*by_label)]

    def _pair(self, example: Example) -> tuple[str, str]:
        room = self._answering.room(self.model, self.labels)
        (query,) = self._answering.prompt(example.text, (), room)
        return query["content"], example.label

    def _judge(self, sets: Sequence[Sequence[Example]], seen: Sequence[Example], own: int) -> DreamReport:
        """Trials of the sets, in their order, and behind them of as large ones of examples that the expert knows.

        Copies learn without replay, which changes what was seeded whatever they learn, so a set is compared with as
        many known examples. A copy that misses a label stops saying it: known examples stand where a set has none.
        """
        rng = random.Random(f"known/{own}")
        by_label: dict[str, list[Example]] = {}
        for one in seen:
            by_label.setdefault(one.label, []).append(one)

        def filled(own_set: Sequence[Example]) -> list[Example]:
            missing = by_label.keys() - {one.label for one in own_set}
            return [*own_set, *(rng.choice(by_label[label]) for label in sorted(missing))]

        known: list[list[Example]] = [[] for _ in range(_KNOWN_SETS)]
        dreams = [
            DreamText(context, "utterances", "", "", "", tuple(self._pair(example) for example in filled(own_set)))
            for context, group in enumerate((sets, known))
            for own_set in group
        ]
        # By those of the first context both kinds are judged; the known ones need one of their own to be ranked by.
        probes = [Probe(int(at == 0), *self._pair(example)) for at, example in enumerate(self._held_out)]
        night = self._dreaming.night
        contexts = ["dreamt", "known"]
        return judge_dreams(self.model, self._answering.tokenizer, contexts, dreams, probes, night, seed=own)

    @property
    def stored(self) -> int:
        """See `LabelledLearner`; the dreamer is kept from night to night."""
        prefix = self._dreamer.base_model.prefix
        own = sum(p.nbytes for name, p in self._dreamer.named_parameters() if prefix in name)
        return super().stored + own


@contextmanager
def _timed(clock: dict[str, float], part: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    clock[part] = time.perf_counter() - began
