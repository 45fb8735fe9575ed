"""ReST-EM for the dreamer (Singh et al. 2024, arXiv 2312.06585; paper.md section 4, step 4).

E-step: dream, and keep what is rewarded. M-step: fine-tune the dreamer's adapter on what was kept, so that such dreams
come more often, and ask for the kinds of dreams that were kept as often as they were: what kind a dream is of belongs
to the policy as its words do, and maximum likelihood gives it that share. Deviations: some dreams keep to the kinds'
shares as set, so that none is given up for good; and a round after which dreams of contexts held out of training earn
less is taken back.

    dreamer = add_beside(model, LoraConfig(r=8, ...), "dreamer")
    reward = trial_reward(model, dreamer, tokenizer, probes, DreamingSettings())
    report = rest_em(dreamer, tokenizer, train, held_out, reward, RestEmSettings(rounds=2), DreamSettings())
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sleep_pipeline.dreaming.dreams import DreamData, DreamText, Withheld, sample_dreams
from sleep_pipeline.dreaming.night import DreamReport, judge_dreams
from sleep_pipeline.dreaming.rows import Row, losses, side_by_side
from sleep_pipeline.dreaming.settings import DreamingSettings, DreamPrompt, DreamSettings, Mix, RestEmSettings
from sleep_pipeline.dreaming.tau import Probe
from sleep_pipeline.dreaming.workers import Workers
from sleep_pipeline.generation.likelihood import encode_reply
from sleep_pipeline.generation.reading import logit_batches
from sleep_pipeline.memory.beside import network_of
from sleep_pipeline.memory.blocks import text_config

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Reward = Callable[[Sequence[str], DreamData, int], Sequence[float]]
"""Contexts, dreams of them and a seed -> the reward of each dream."""

_TOKENS = 1024
"""Of one pass with gradients, padding included: what a large model keeps of more would not fit beside its weights."""


@dataclass(frozen=True)
class Round:
    """A round of ReST-EM.

    Attributes:
        number: from 1.
        asked: dreams drawn.
        rewarded: dreams that the dreamer was fine-tuned on.
        losses: of fine-tuning, a step each, nats a token; empty if nothing was rewarded.
        held_out: mean reward of a dream about a held-out context after the round.
        kept: whether the round was kept.
    """

    number: int
    asked: int
    rewarded: int
    losses: tuple[float, ...]
    held_out: float
    kept: bool


@dataclass(frozen=True)
class RestEmReport:
    """What came of ReST-EM.

    Attributes:
        before: mean reward of a dream about a held-out context, before any round.
        rounds: see `Round`.
        mix: how often the dreamer that was kept dreams of each kind.
    """

    before: float
    rounds: tuple[Round, ...]
    mix: Mix = field(default_factory=dict)

    @property
    def after(self) -> float:
        """The same with the dreamer that was kept, which is never less: rounds are kept by this number."""
        return max([self.before, *(done.held_out for done in self.rounds if done.kept)])

    @property
    def dropped(self) -> int:
        """Rounds that fine-tuned the dreamer and were taken back, since held-out contexts earned less."""
        return sum(bool(done.rewarded) and not done.kept for done in self.rounds)

    @property
    def idle(self) -> int:
        """Rounds in which no dream was rewarded, so that there was nothing to learn from."""
        return sum(not done.rewarded for done in self.rounds)

    def summary(self) -> str:
        """The rounds in a sentence."""
        ran = f"{len(self.rounds)} round{'' if len(self.rounds) == 1 else 's'} of ReST-EM"
        idle = f", {self.idle} without a dream that helped" if self.idle else ""
        kinds = ", ".join(f"{kind} {times:.1f}" for (kind, _), times in self.mix.items() if round(times, 1) != 1)
        mixed = f" Kinds of dreams, as multiples of their shares as set: {kinds}." if kinds else ""
        return (
            f"{ran}{idle}, {self.dropped} dropped by the guard: of the dreams about held-out contexts "
            f"{self.before:.0%} helped before and {self.after:.0%} after, by which rounds are kept.{mixed}"
        )


def rest_em(
    dreamer: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    contexts: Sequence[str],
    held_out: Sequence[str],
    reward: Reward,
    settings: RestEmSettings,
    dreams: DreamSettings,
    seed: int = 0,
    older: Sequence[str] = (),
    withheld: Withheld | None = None,
    mix: Mix | None = None,
) -> RestEmReport:
    """Improve the dreamer's adapter, and how often it dreams of each kind; nothing else of the model changes.

    Args:
        dreamer: a model whose adapter is the policy, such as `memory.add_beside` returns.
        tokenizer: with a chat template.
        contexts: what is dreamt of for training.
        held_out: what is dreamt of to see whether a round helped; at least one, none of them among `contexts`.
        reward: see `trial_reward`; asked once for the held-out contexts, and then each round for the others and, where
            it rewarded any, for the held-out ones again.
        settings: see `RestEmSettings`.
        dreams: how dreams are sampled.
        seed: the same seed gives the same rounds. Held-out contexts are dreamt of with the same noise every time.
        older: texts of earlier nights, for dreams that combine.
        withheld: see `sample_dreams`.
        mix: of kinds, as earlier rounds left it; None as `dreams` says.

    Raises:
        ValueError: there is no held-out context, or one is trained on.
    """
    if not held_out or set(held_out) & set(contexts):
        raise ValueError(
            f"{len(held_out)} contexts are held out and {len(set(held_out) & set(contexts))} of them are trained on; "
            "hold at least one context out of training, or nothing tells whether a round helped"
        )

    def dreamt(of: Sequence[str], kinds: Mix, own: int) -> DreamData:
        return sample_dreams(dreamer, tokenizer, of, dreams.mixed(kinds), own, older, withheld=withheld)

    def on_held_out(kinds: Mix) -> float:
        data = dreamt(held_out, kinds, 1000 * seed)
        return sum(reward(held_out, data, 1000 * seed)) / max(1, data.asked)

    start = best = _snapshot(dreamer)
    best_mix: Mix = dict(mix or {})
    before = best_reward = on_held_out(best_mix)
    rounds = []
    for number in range(1, settings.rounds + 1):
        own = 1000 * seed + number
        data = dreamt(contexts, best_mix, own)
        earned = reward(contexts, data, own)
        good = [dream for dream, value in zip(data.dreams, earned, strict=True) if value > 0]
        if not good:
            rounds.append(Round(number, data.asked, 0, (), best_reward, False))
            continue
        if settings.restart:
            _restore(dreamer, start)
        history = fine_tune(dreamer, tokenizer, good, settings, own)
        kinds = rewarded_kinds([prompt for prompt in dreams.prompts if prompt.older <= len(older)], good, settings)
        now = on_held_out({**best_mix, **kinds})
        kept = now >= best_reward
        if kept:
            best, best_reward, best_mix = _snapshot(dreamer), now, {**best_mix, **kinds}
        else:
            _restore(dreamer, best)
        rounds.append(Round(number, data.asked, len(good), tuple(history), now, kept))
    return RestEmReport(before, tuple(rounds), best_mix)


def rewarded_kinds(prompts: Sequence[DreamPrompt], good: Sequence[DreamText], settings: RestEmSettings) -> Mix:
    """How often each prompt is asked from now on: as often as its dreams were rewarded, and a little as it says itself.

    Args:
        prompts: that were asked, whose shares together stay what they are.
        good: dreams that were rewarded, at least one.
        settings: of `explore`.
    """
    total = sum(prompt.share for prompt in prompts)
    rewarded = Counter((dream.kind, dream.ask) for dream in good)
    own = {(prompt.kind, prompt.ask): prompt.share / total for prompt in prompts}
    earned = {name: rewarded[name] / len(good) for name in own}
    return {name: settings.explore + (1 - settings.explore) * earned[name] / own[name] for name in own}


def trial_reward(
    model: PreTrainedModel,
    dreamer: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    probes: Mapping[str, Sequence[tuple[str, str]]],
    settings: DreamingSettings,
    note: Callable[[DreamReport], None] | None = None,
    workers: Workers | None = None,
) -> Reward:
    """Reward dreams by isolated trials of the model without its dreamer's adapter.

    Every dream is tried whatever its score, so that the mean reward is that of the policy and not of the choice.

    Args:
        model: the network that dreamer and memory share.
        dreamer: whose adapter is off in the trials.
        tokenizer: with a chat template.
        probes: by context, questions with answers.
        settings: of scores, trials, measure and rewards.
        note: told of every report, in order.
        workers: processes for all trials; None for those that `settings.trials.workers` asks for, anew each time.
    """

    def earned(contexts: Sequence[str], data: DreamData, seed: int) -> list[float]:
        asked = [Probe(at, *pair) for at, context in enumerate(contexts) for pair in probes[context]]
        scores = settings.scores.model_copy(
            update={"kind": "gradient_norm", "top_k": len(data.dreams), "each": "night"}
        )
        with dreamer.disable_adapter():
            report = judge_dreams(
                model,
                tokenizer,
                contexts,
                data.dreams,
                asked,
                settings.model_copy(update={"scores": scores}),
                seed,
                asked=data.asked,
                dropped=data.dropped,
                random_experts=data.random_experts,
                workers=workers,
            )
        if note is not None:
            note(report)
        return [float(dream.reward or 0) for dream in report.dreams]

    return earned


def fine_tune(
    dreamer: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    dreams: Sequence[DreamText],
    settings: RestEmSettings,
    seed: int = 0,
) -> list[float]:
    """Supervised fine-tuning of the dreamer's adapter on dreams, with the loss on what was dreamt alone.

    Args:
        dreamer: see `rest_em`; its adapter must be on.
        tokenizer: with a chat template.
        dreams: at least one.
        settings: see `RestEmSettings`.
        seed: of the order.

    Returns:
        The loss of every step, nats a token.
    """
    rows = [_row(tokenizer, dream) for dream in dreams]
    weights = list(_weights(dreamer).values())
    optimizer = torch.optim.AdamW(weights, lr=settings.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, settings.steps)
    order = _in_turn(len(rows), random.Random(f"{seed}"))
    history = []
    device = next(dreamer.parameters()).device
    with _only(dreamer, weights), torch.enable_grad():
        for _ in range(settings.steps):
            batch = [rows[next(order)] for _ in range(min(settings.rows, len(rows)))]
            loss = _backward(dreamer, batch, device)
            nn.utils.clip_grad_norm_(weights, settings.clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
            history.append(loss)
    return history


def _backward(dreamer: PeftModel, batch: Sequence[Row], device: torch.device) -> float:
    """Add the gradients of a batch's mean loss a token, a few rows at a time, and return the loss."""
    spans = [(row.start, len(row.ids)) for row in batch]
    learned, total = sum(row.learned for row in batch), 0.0
    for part in logit_batches(spans, len(batch), text_config(network_of(dreamer)).vocab_size, _TOKENS):
        own = side_by_side([[batch[index] for index in part]], device)
        loss = losses(dreamer, own).sum() * own.counts_K[0] / learned
        loss.backward()
        total += float(loss.detach())
    return total


def _row(tokenizer: PreTrainedTokenizerBase, dream: DreamText) -> Row:
    ids, start = encode_reply(tokenizer, [*dream.prompt(), {"role": "assistant", "content": dream.text}])
    return Row(tuple(ids), start)


def _in_turn(count: int, rng: random.Random) -> Iterator[int]:
    while True:
        yield from rng.sample(range(count), count)


def _weights(dreamer: PeftModel) -> dict[str, Tensor]:
    """The adapter's own tensors, by name."""
    prefix: Any = dreamer.base_model.prefix
    return {name: weight for name, weight in dreamer.named_parameters() if prefix in name}


def _snapshot(dreamer: PeftModel) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in _weights(dreamer).items()}


@torch.no_grad()
def _restore(dreamer: PeftModel, kept: Mapping[str, Tensor]) -> None:
    for name, weight in _weights(dreamer).items():
        weight.copy_(kept[name])


@contextmanager
def _only(dreamer: PeftModel, weights: Sequence[Tensor]) -> Iterator[None]:
    """Nothing but these can be trained, without dropout; every flag is put back."""
    wanted = {parameter: parameter.requires_grad for parameter in dreamer.parameters()}
    training = {module: module.training for module in dreamer.modules()}
    try:
        dreamer.eval().requires_grad_(False)
        for weight in weights:
            weight.requires_grad_()
        yield
    finally:
        for parameter, flag in wanted.items():
            parameter.requires_grad_(flag)
        for module, flag in training.items():
            module.training = flag
