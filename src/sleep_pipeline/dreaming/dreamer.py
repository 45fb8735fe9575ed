"""A night dreamt by a dreamer, a LoRA adapter beside the memory, that gets better at it by ReST-EM.

    dreamer = new_dreamer(model, settings.rest_em, seed=1)
    night = dream_and_improve(model, dreamer, tokenizer, contexts, probes, settings, seed=1)
    night.report.lessons()  # as after any night's dreaming
    print(night.rest_em.summary() if night.rest_em else night.skipped)

Nothing of the model changes but the dreamer's adapter.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from peft import LoraConfig

from sleep_pipeline.dreaming.dreams import Withheld
from sleep_pipeline.dreaming.night import DreamReport, asked_by, dream_night
from sleep_pipeline.dreaming.rest_em import RestEmReport, rest_em, trial_reward
from sleep_pipeline.dreaming.settings import DREAMER, DreamingSettings, Mix, RestEmSettings
from sleep_pipeline.dreaming.stacked_lora import lay_out
from sleep_pipeline.dreaming.tau import Probe
from sleep_pipeline.dreaming.workers import hire
from sleep_pipeline.memory import add_beside
from sleep_pipeline.memory.beside import memory_aside, network_of

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class ImprovedNight:
    """A night's dreams, and what became of the dreamer.

    Attributes:
        report: the night's dreams.
        rest_em: how the rounds went; None if they were skipped.
        skipped: why they were; empty if they were not.
        trained_on: contexts that the rounds were trained on.
        held_out: contexts that told whether a round helped.
    """

    report: DreamReport
    rest_em: RestEmReport | None = None
    skipped: str = ""
    trained_on: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether the dreamer is another one than before."""
        return self.rest_em is not None and any(done.kept for done in self.rest_em.rounds)


def new_dreamer(model: PreTrainedModel, settings: RestEmSettings, seed: int = 0) -> PeftModel:
    """Put a dreamer that dreams as the model does on a network, beside its memory if it has one.

    Args:
        model: a causal LM, or one wrapped by peft; its weights and flags stay as they are.
        settings: of the adapter's form.
        seed: of its first weights.
    """
    # Those of a tower beside the decoder, which reads pictures, would never learn anything.
    with memory_aside(model):
        targets = list(lay_out(network_of(model), settings.rank, settings.alpha, settings.targets).shapes)
    config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, lora_dropout=0.0, target_modules=targets)
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return add_beside(model, config, DREAMER).eval()
    finally:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)


def hold_out(contexts: Sequence[str], settings: RestEmSettings, seed: int) -> tuple[list[str], list[str]]:
    """Those that are trained on and those that are held out, each in their order.

    Args:
        contexts: at least two, all different.
        settings: of the share.
        seed: the same seed holds out the same ones.

    Raises:
        ValueError: there are fewer than two.
    """
    _, count = settings.split(len(contexts))
    drawn = set(random.Random(f"hold out/{seed}").sample(range(len(contexts)), count))
    train = [text for at, text in enumerate(contexts) if at not in drawn]
    return train, [text for at, text in enumerate(contexts) if at in drawn]


def dream_and_improve(
    model: PreTrainedModel,
    dreamer: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    contexts: Sequence[str],
    probes: Sequence[Probe],
    settings: DreamingSettings,
    seed: int = 0,
    older: Sequence[str] = (),
    progress: bool = False,
    withheld: Withheld | None = None,
    mix: Mix | None = None,
) -> ImprovedNight:
    """Run ReST-EM on the night's contexts and take what it dreamt and tried for the night's dreams.

    Trials are what a night's dreaming costs, and ReST-EM has tried dreams of every context already, so the night does
    not dream again. Its dreams are those of the last round that was kept: of the contexts trained on, the ones that
    the round chose its lessons from; of those held out, the ones that the improved dreamer dreamt. If no round was
    kept, they are the first ones, of the dreamer as it was. All were tried, so `settings.scores` chooses none; and the
    rounds leave out contexts without a probe, since their dreams cannot be judged.

    With fewer than two contexts that have a probe nothing can be held out: the dreamer dreams as it is, once.

    Args:
        model: a causal LM, in the view that it is in.
        dreamer: see `new_dreamer`; its adapter is on while it dreams and off in the trials, and on afterwards.
        tokenizer: with a chat template.
        contexts: texts that fit into the model's window with a dream.
        probes: questions about the contexts that no dream may be trained on, at least one.
        settings: see `DreamingSettings`.
        seed: the same seed gives the same night.
        older: texts of earlier nights, for dreams that combine.
        progress: whether to show a bar, where there are no rounds.
        withheld: see `dream_night`.
        mix: of kinds, as the dreamer's earlier nights left it.

    Raises:
        ValueError: see `dream_night`.
    """
    asked: dict[str, list[tuple[str, str]]] = {}
    for probe in probes:
        asked.setdefault(contexts[probe.context], []).append((probe.question, probe.answer))
    known = [text for text in dict.fromkeys(contexts) if text in asked]
    # Dreams that are compared with dreams of other contexts need two contexts on either side of the split.
    least = 2 if settings.rewards.noise == "seeds" else 4
    if len(known) < least:
        mixed = settings.model_copy(update={"dreams": settings.dreams.mixed(mix or {})})
        report = dream_night(model, tokenizer, contexts, probes, mixed, seed, older, progress, dreamer, withheld)
        return ImprovedNight(report, skipped=_too_few(len(known), len(set(contexts)), least))
    train, held_out = hold_out(known, settings.rest_em, seed)
    judged: list[DreamReport] = []
    with hire(model, settings.trials) as workers:
        reward = trial_reward(model, dreamer, tokenizer, asked, settings, judged.append, workers)
        rounds = rest_em(
            dreamer,
            tokenizer,
            train,
            held_out,
            reward,
            settings.rest_em,
            settings.dreams,
            seed,
            older,
            withheld or asked_by(probes),
            mix,
        )
    on_train, on_held_out = (
        [report for report in judged if report.contexts == tuple(side)] for side in (train, held_out)
    )
    kept = [done.number for done in rounds.rounds if done.kept]
    last = kept[-1] if kept else 1
    # Held-out contexts are judged once before the rounds, and after each that had something to learn from.
    times = sum(bool(done.rewarded) for done in rounds.rounds[:last]) if kept else 0
    report = _together(contexts, probes, asked, [on_train[last - 1], on_held_out[times]])
    seconds: Counter[str] = Counter()
    for part in judged:
        seconds.update(part.seconds)
    report = replace(report, seconds=dict(seconds))
    return ImprovedNight(report, rounds, "", tuple(train), tuple(held_out))


def _too_few(known: int, contexts: int, least: int) -> str:
    return (
        f"ReST-EM was skipped: {known} of {contexts} context{'' if contexts == 1 else 's'} had held-out questions to "
        f"judge dreams by, and it needs {least}, {'one' if least == 2 else 'two'} of them held out of training."
    )


def _together(
    contexts: Sequence[str],
    probes: Sequence[Probe],
    asked: Mapping[str, Sequence[tuple[str, str]]],
    parts: Sequence[DreamReport],
) -> DreamReport:
    """Reports on some of the contexts each as one on all of them."""
    places = {text: index for index, text in reversed(list(enumerate(contexts)))}
    dreams = [
        replace(night, dream=replace(night.dream, context=places[part.contexts[night.dream.context]]))
        for part in parts
        for night in part.dreams
    ]
    before: dict[tuple[str, str, str], float] = {}
    for part in parts:
        questions = [(text, *pair) for text in part.contexts for pair in asked[text]]
        before |= dict(zip(questions, part.before, strict=True))
    return DreamReport(
        contexts=tuple(contexts),
        dreams=tuple(sorted(dreams, key=lambda night: night.dream.context)),
        asked=sum(part.asked for part in parts),
        dropped=sum((part.dropped for part in parts), Counter()),
        before=tuple(before[contexts[probe.context], probe.question, probe.answer] for probe in probes),
        random_experts=any(part.random_experts for part in parts),
    )
