"""One night's dreaming from end to end: sample, score and choose, try, reward (paper.md section 4, steps 1 to 3).

    report = dream_night(model, tokenizer, contexts, probes, DreamingSettings(), seed=1)
    print(report.summary())
    sources, samples = report.lessons()  # for `seeding.lessons.read_beliefs` and the seeding trainer

Nothing of the model changes. What is rewarded is distilled by the caller; `dreamer` dreams a night that improves the
dreamer, too.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from sleep_pipeline.dreaming.dreams import DreamText, Withheld, sample_dreams, to_rows
from sleep_pipeline.dreaming.extras import check_workers
from sleep_pipeline.dreaming.racing import race
from sleep_pipeline.dreaming.rewards import (
    Verdict,
    baseline_of_others,
    early_level,
    foretold,
    judge,
    judge_among,
    rewarded_by,
)
from sleep_pipeline.dreaming.rows import Dream, fault
from sleep_pipeline.dreaming.scores import Kept, score, select
from sleep_pipeline.dreaming.settings import DreamingSettings, RewardSettings
from sleep_pipeline.dreaming.tau import Marks, Probe, held_out_rows, make_measure
from sleep_pipeline.dreaming.trials import precision_of, run_trials
from sleep_pipeline.dreaming.workers import Workers, workers_for
from sleep_pipeline.memories.contexts import plain_question
from sleep_pipeline.memory.blocks import text_config
from sleep_pipeline.seeding.teacher import TeacherSample

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


ALONE = "a dream is compared with dreams of other memories, and there are fewer than two"
"""Why no dream is tried where nothing could be told of any."""


@dataclass(frozen=True)
class NightDream:
    """A dream and what became of it.

    Attributes:
        dream: see `DreamText`.
        omega: its score; None if it was not scored.
        kept: why it was tried, `top` or `random`; empty if it was not.
        reason: the same in words.
        marks: of each of its copies, a score a probe; empty if it was not tried, fewer if a race decided it
            early.
        verdict: see `rewards.judge`; None if it was not tried.
    """

    dream: DreamText
    omega: float | None
    kept: Kept
    reason: str
    marks: tuple[Marks, ...] = ()
    verdict: Verdict | None = None

    @property
    def reward(self) -> int | None:
        """1 or 0; None if it was not tried."""
        return None if self.verdict is None else self.verdict.reward


@dataclass(frozen=True)
class DreamReport:
    """A night's dreams.

    Attributes:
        contexts: what was dreamt of.
        dreams: all that were well-formed.
        asked: how many dreams were drawn.
        dropped: why and how often one was not well-formed.
        before: score of the model as it is at each probe.
        random_experts: whether an extra expert took part in dreaming.
        seconds: what the night took, by part.
    """

    contexts: tuple[str, ...]
    dreams: tuple[NightDream, ...]
    asked: int
    dropped: Counter[str]
    before: Marks
    random_experts: bool = False
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def tried(self) -> list[NightDream]:
        """Dreams that copies learned."""
        return [dream for dream in self.dreams if dream.verdict is not None]

    @property
    def rewarded(self) -> list[NightDream]:
        """Dreams that helped."""
        return [dream for dream in self.dreams if dream.reward]

    def summary(self) -> str:
        """The night in two sentences."""
        text = f"{self.asked} dreams drawn, {len(self.dreams)} usable, {len(self.tried)} tried, "
        text += f"{len(self.rewarded)} helped."
        if not self.tried and any(dream.reason == ALONE for dream in self.dreams):
            text += f" Nothing could be told of them: {ALONE}."
        elif not self.rewarded:
            text += " No dream was better than the noise, so there is nothing to learn from this night's dreaming."
        return text

    def lessons(self) -> tuple[list[str], list[TeacherSample]]:
        """What the rewarded dreams teach, as the teacher's samples.

        Returns:
            Sources and samples; `sample.context` is an index into the sources, which are the night's contexts and,
            behind them, those that a dream combined with older memories.
        """
        sources = dict.fromkeys(self.contexts)
        for night in self.rewarded:
            sources.setdefault(night.dream.source)
        places = {source: index for index, source in enumerate(sources)}
        samples = [
            TeacherSample(places[night.dream.source], night.dream.kind, question, answer, 1.0)
            for night in self.rewarded
            for question, answer in night.dream.pairs
        ]
        return list(sources), list(dict.fromkeys(samples))

    def records(self) -> list[dict[str, Any]]:
        """A flat row a dream, for tables."""
        return [
            {
                "context": night.dream.context,
                "kind": night.dream.kind,
                "source": night.dream.source,
                "ask": night.dream.ask,
                "text": night.dream.text,
                "pairs": len(night.dream.pairs),
                "score": night.omega,
                "kept": night.kept,
                "reason": night.reason,
                "before": None if night.verdict is None else night.verdict.before,
                "after": None if night.verdict is None else night.verdict.after,
                "noise": None if night.verdict is None else night.verdict.noise,
                "chance": None if night.verdict is None else night.verdict.chance,
                "reward": night.reward,
            }
            for night in self.dreams
        ]


def dream_night(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    contexts: Sequence[str],
    probes: Sequence[Probe],
    settings: DreamingSettings,
    seed: int = 0,
    older: Sequence[str] = (),
    progress: bool = False,
    dreamer: PeftModel | None = None,
    withheld: Withheld | None = None,
) -> DreamReport:
    """Dream of each context and find out on isolated copies which dreams help.

    Args:
        model: a causal LM, in the view that it is in.
        tokenizer: with a chat template.
        contexts: texts that fit into the model's window with a dream.
        probes: questions about the contexts that no dream may be trained on, at least one.
        settings: see `DreamingSettings`.
        seed: the same seed gives the same night.
        older: texts of earlier nights, for dreams that combine.
        progress: whether to show a bar.
        dreamer: whose adapter, on the same network, is on while it dreams and off in the trials.
        withheld: see `sample_dreams`; None withholds the questions of the probes themselves.

    Raises:
        ModuleNotFoundError: an extra that the settings need is not installed.
        ValueError: see `sample_dreams`, `score`, `judge` and `check_workers`.
    """
    check_workers(settings.trials.workers, model.device.type)
    clock: dict[str, float] = {}
    with _timed(clock, "sampling"):
        sleeper = model if dreamer is None else dreamer
        held = withheld or asked_by(probes)
        data = sample_dreams(sleeper, tokenizer, contexts, settings.dreams, seed, older, progress, withheld=held)
    with nullcontext() if dreamer is None else dreamer.disable_adapter():
        return judge_dreams(
            model,
            tokenizer,
            contexts,
            data.dreams,
            probes,
            settings,
            seed,
            asked=data.asked,
            dropped=data.dropped,
            random_experts=data.random_experts,
            seconds=clock,
            progress=progress,
        )


def asked_by(probes: Sequence[Probe]) -> Withheld:
    """Withhold the questions of the probes, whatever their case and spaces."""
    asked = {plain_question(probe.question) for probe in probes}
    return lambda question: plain_question(question) in asked


def judge_dreams(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    contexts: Sequence[str],
    dreams: Sequence[DreamText],
    probes: Sequence[Probe],
    settings: DreamingSettings,
    seed: int = 0,
    asked: int | None = None,
    dropped: Counter[str] | None = None,
    random_experts: bool = False,
    seconds: dict[str, float] | None = None,
    workers: Workers | None = None,
    progress: bool = False,
) -> DreamReport:
    """The second half of `dream_night`: score, choose, try and reward dreams that are there already.

    Args:
        model: as the copies start from it; see `dream_night` for the others.
        tokenizer: with a chat template.
        contexts: what was dreamt of.
        dreams: see `sample_dreams`.
        probes: as for `dream_night`.
        settings: see `DreamingSettings`.
        seed: the same seed gives the same choice and copies.
        asked: for the report; None for as many as there are dreams.
        dropped: for the report.
        random_experts: for the report.
        seconds: for the report; the parts of this half are added.
        workers: processes for the trials, which are given the model as it is; None for those that
            `settings.trials.workers` asks for, for these dreams alone.
        progress: whether to show a bar.
    """
    clock = {} if seconds is None else dict(seconds)
    measure = make_measure(tokenizer, probes, settings.tau)
    with _timed(clock, "baseline"), precision_of(settings.trials, next(model.parameters()).device):
        before = measure.before(model)
    made = [to_rows(tokenizer, dream) for dream in dreams]
    held_out = held_out_rows(tokenizer, probes, len(contexts))
    faults = _faults(model, dreams, made, [bool(rows) for rows in held_out])
    among = settings.rewards.noise == "dreams"
    if among and not comparable([dreams[index].context for index, reason in enumerate(faults) if reason is None]):
        faults = [reason or ALONE for reason in faults]
    fit = [index for index, reason in enumerate(faults) if reason is None]
    with _timed(clock, "scores"):
        scores = score(
            model,
            [made[index] for index in fit],
            settings.scores,
            [dreams[index].context for index in fit],
            held_out,
        )
    groups = [dreams[index].context for index in fit] if settings.scores.each == "context" else None
    choices = dict(zip(fit, select(scores, settings.scores.top_k, settings.scores.random_b, seed, groups), strict=True))
    chosen = [index for index in fit if choices[index].kept]
    if among and not comparable([dreams[index].context for index in chosen]):
        choices |= {index: replace(choices[index], kept="", reason=ALONE) for index in chosen}
        chosen = []
    tau = Tau([dream.context for dream in dreams], before, probes, settings.rewards)

    def run(pairs: Sequence[tuple[int, int]]) -> list[Marks]:
        copies = [Dream(made[index].rows, seed=1000 * seed + number) for index, number in pairs]
        title = "trials" if progress else None
        tried = run_trials(model, copies, settings.trials, measure, hired, keep=False, progress=title)
        return [trial.outcome for trial in tried.trials]

    with _timed(clock, "trials"), workers_for(model, settings.trials, workers) if chosen else nullcontext() as hired:
        marks, verdicts = try_dreams(chosen, run, tau)
    if settings.rewards.by_lot:
        verdicts = by_lot(verdicts, seed)
    judged = []
    for index, dream in enumerate(dreams):
        choice = choices.get(index)
        if choice is None:
            judged.append(NightDream(dream, None, "", faults[index] or ""))
        else:
            judged.append(
                NightDream(
                    dream, choice.omega, choice.kept, choice.reason, tuple(marks.get(index, ())), verdicts.get(index)
                )
            )
    return DreamReport(
        tuple(contexts),
        tuple(judged),
        len(dreams) if asked is None else asked,
        dropped or Counter(),
        before,
        random_experts,
        clock,
    )


def comparable(contexts: Sequence[int]) -> bool:
    """Whether any of these dreams, given by their contexts, has two of other contexts to be compared with."""
    return bool(contexts) and len(contexts) - min(Counter(contexts).values()) >= 2


def _faults(
    model: PreTrainedModel, dreams: Sequence[DreamText], made: Sequence[Dream], has_probe: Sequence[bool]
) -> list[str | None]:
    """Why dreams can neither be scored nor tried."""
    config = text_config(model)
    window = getattr(config, "max_position_embeddings", None)
    return [
        fault(rows, window, config.vocab_size) if has_probe[dream.context] else "no probe of its context to judge it by"
        for dream, rows in zip(dreams, made, strict=True)
    ]


def try_dreams(
    chosen: Sequence[int], run: Callable[[Sequence[tuple[int, int]]], list[Marks]], tau: Tau
) -> tuple[dict[int, list[Marks]], dict[int, Verdict]]:
    """Run the copies of chosen dreams, all at once or in a race, and judge the dreams.

    Args:
        chosen: dreams.
        run: pairs of a dream and the number of a seed -> the marks of each copy.
        tau: what they are compared with.

    Returns:
        Of every dream chosen, the marks of the copies that were run, and the verdict.
    """
    settings = tau.settings
    if settings.racing is None:
        found = run([(index, number) for index in chosen for number in range(settings.seeds)])
        marks = {index: found[at * settings.seeds :][: settings.seeds] for at, index in enumerate(chosen)}
        if settings.noise == "dreams":
            return marks, tau.among(marks)
        return marks, {index: judge(*pair, settings) for index, pair in tau.compared(marks).items()}
    done = race(
        chosen,
        settings.seeds,
        run,
        tau.gains,
        lambda gains_NS: rewarded_by(gains_NS, settings),
        settings.margin,
        settings.racing,
        early_level(settings),
    )
    verdicts = {}
    for index, (after, baseline) in tau.compared(done.outcomes).items():
        if len(after) == settings.seeds:
            verdicts[index] = judge(after, baseline, settings)
        else:
            verdicts[index] = foretold(
                after, baseline, settings, done.chances[index], done.noise.deviation, done.noise.freedom
            )
    return done.outcomes, verdicts


def by_lot(verdicts: Mapping[int, Verdict], seed: int) -> dict[int, Verdict]:
    """The same verdicts with as many rewards, dealt at random: what dreaming brings if its reward tells nothing.

    Args:
        verdicts: by dream.
        seed: of the draw.
    """
    earned = sum(verdict.reward for verdict in verdicts.values())
    drawn = set(random.Random(f"by lot/{seed}").sample(sorted(verdicts), earned))
    return {index: replace(verdict, reward=int(index in drawn)) for index, verdict in verdicts.items()}


@dataclass(frozen=True)
class Tau:
    """What a dream's copies are compared with, and on which probes."""

    contexts: Sequence[int]
    before: Marks
    probes: Sequence[Probe]
    settings: RewardSettings

    def compared(self, marks: Mapping[int, Sequence[Marks]]) -> dict[int, tuple[list[list[float]], list[float]]]:
        """Of each dream tried, the scores of its copies on the probes in its scope, and the baseline's."""
        # A dream counts once, or those that a race runs longest, which are neither good nor bad, would count most.
        learned = [(self.contexts[index], _mean(rows)) for index, rows in marks.items()]
        found = {}
        for index, rows in marks.items():
            context = self.contexts[index]
            baseline: Sequence[float] = self.before
            if self.settings.baseline == "others":
                own = [owner == context for owner, _ in learned]
                baseline = baseline_of_others([row for _, row in learned], own, self.before)
            asked = [
                at for at, probe in enumerate(self.probes) if self.settings.scope == "all" or probe.context == context
            ]
            found[index] = [[row[at] for at in asked] for row in rows], [baseline[at] for at in asked]
        return found

    def among(self, marks: Mapping[int, Sequence[Marks]]) -> dict[int, Verdict]:
        """Verdicts on dreams that are compared with one another; see `rewards.judge_among`."""
        columns = {context: at for at, context in enumerate(sorted({probe.context for probe in self.probes}))}
        scores_DC = np.array(
            [
                [
                    fmean(
                        mark for mark, probe in zip(_mean(rows), self.probes, strict=True) if probe.context == context
                    )
                    for context in columns
                ]
                for rows in marks.values()
            ]
        ).reshape(len(marks), len(columns))
        verdicts = judge_among(scores_DC, [columns[self.contexts[index]] for index in marks], self.settings)
        return dict(zip(marks, verdicts, strict=True))

    def gains(self, marks: Mapping[int, Sequence[Marks]]) -> dict[int, list[float]]:
        """Each copy's mean gain."""
        return {
            index: [fmean(row) - fmean(baseline) for row in after]
            for index, (after, baseline) in self.compared(marks).items()
        }


def _mean(rows: Sequence[Marks]) -> Marks:
    """Of a dream's copies without those that diverged; the first one where all did."""
    finite = [row for row in rows if all(map(math.isfinite, row))]
    return tuple(map(fmean, zip(*finite, strict=True))) if finite else rows[0]


@contextmanager
def _timed(clock: dict[str, float], part: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    clock[part] = time.perf_counter() - began
