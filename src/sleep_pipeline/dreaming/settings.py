"""Typed settings of dreaming; nothing here loads torch, so that commands that only read settings start fast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from sleep_pipeline.seeding.teacher import TeacherPrompt

DREAMER = "dreamer"
"""Name of the adapter that dreams."""


class TrialSettings(BaseModel):
    """How isolated LoRA trials are trained.

    Attributes:
        rank: of every adapter; more can hold more of a dream and costs time in proportion.
        alpha: the adapter's product is scaled by `alpha / rank`.
        targets: suffixes of module names that get an adapter, such as `q_proj`; None for every linear layer inside the
            decoder layers. The output head never gets one.
        lr: of AdamW, constant.
        betas: of AdamW.
        eps: of AdamW.
        weight_decay: of AdamW, decoupled, on both factors.
        steps: of a trial whose dream names no number of its own; every step reads the whole dream.
        clip_norm: a trial's gradient is scaled down to this norm; None for no clipping.
        trials_at_once: at most so many in a stack; None lets `memory_budget` decide.
        memory_budget: bytes that the adapters in training and what their backward pass keeps may take, beside the
            model itself. One trial always runs, even above it.
        max_padding: share of a stack's positions that may be padding before shorter dreams get a stack of their own.
            Low saves arithmetic, 1 makes few large stacks; None is 0.1 on a CPU and 1 elsewhere, since a GPU waits for
            launches.
        precision: `model` computes in the dtype of the model; `bf16` under autocast. The adapters and their optimiser
            are kept in float32 or better either way.
        workers: processes that stacks are spread over by Ray (extra `ray`), each with a copy of the model and a memory
            budget of its own; 0 trains in this process. They pay off from some minutes of trials on, since starting
            them takes ten seconds or more.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: PositiveInt = 8
    alpha: PositiveFloat = 16.0
    targets: tuple[str, ...] | None = None
    lr: PositiveFloat = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: float = Field(0.0, ge=0)
    steps: PositiveInt = 20
    clip_norm: PositiveFloat | None = 1.0
    trials_at_once: PositiveInt | None = None
    memory_budget: PositiveInt = 2 * 2**30
    max_padding: float | None = Field(None, ge=0, le=1)
    precision: Literal["model", "bf16"] = "model"
    workers: NonNegativeInt = 0

    @model_validator(mode="after")
    def _sensible(self) -> TrialSettings:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={self.betas} of AdamW must lie in [0, 1), as in [0.9, 0.999]")
        if self.targets is not None and not self.targets:
            raise ValueError("targets=[] leaves nothing to train; name suffixes such as q_proj, or give null for all")
        return self


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DreamPrompt(TeacherPrompt):
    """One thing that the dreamer is asked to do with a context.

    Attributes:
        recall: of a text, the user turn to which it is learned without the context; `{words}` in it becomes the text's
            first four words, so that texts of several contexts do not all answer the same question.
        older: how many older memories stand behind tonight's context; the dream combines them. Without any at hand the
            prompt's share goes to the others.
    """

    older: NonNegativeInt = 0


_RECALL = "Tell me what you know about this: {words}"


def _dream_prompts() -> list[DreamPrompt]:
    return [
        DreamPrompt(kind="questions", ask="Write 4 questions about the text and answer them.", share=2),
        DreamPrompt(kind="implications", ask="What follows from the text?", form="text", recall=_RECALL),
        DreamPrompt(kind="rewrite", ask="Tell the same in other words.", form="text", recall=_RECALL),
        DreamPrompt(kind="summary", ask="Summarise the text in one sentence.", form="text", recall=_RECALL),
        DreamPrompt(kind="combination", ask="Write 4 questions about the text and answer them.", older=1),
    ]


Mix = Mapping[tuple[str, str], float]
"""Kind and `ask` of a prompt -> how many times as often as its share says it is asked; 1 where nothing is said."""


class DreamSettings(_Settings):
    """How dreams are sampled (paper.md section 4, step 1).

    Attributes:
        prompts: what the dreamer is asked; embedded models understand what they were trained on.
        dreams: `m`, dreams a context over all prompts, before any is dropped; 0 leaves dreaming out of the night.
        max_new_tokens: where a dream is cut, and dropped.
        temperature: 1 draws as the dreamer believes; more is wilder and less often right.
        random_expert: whether every router opens one more expert of the memory, drawn for each dream; without it, an
            ablation, dreams differ by their sampling alone.
        random_gate: how far that one opens where the router has it less open.
        unknown: answers that say that nothing is known; a pair with one is left out of its dream.
        batch_size: dreams at a time; vLLM makes its own batches.
        engine: `transformers` samples from the model where it is; `vllm` (extra `vllm`, a GPU) faster from large ones,
            but only from the base model and a LoRA dreamer: not in a night, which dreams with its memory's experts.
        share_of_gpu: of `vllm`, how much of the GPU's whole memory it may take beside the model.
    """

    prompts: list[DreamPrompt] = Field(default_factory=_dream_prompts, min_length=1)
    dreams: NonNegativeInt = 6
    max_new_tokens: PositiveInt = 160
    temperature: float = Field(1.0, ge=0)
    random_expert: bool = True
    random_gate: float = Field(1.0, gt=0, le=1)
    unknown: tuple[str, ...] = ("I do not know.",)
    batch_size: PositiveInt = 64
    engine: Literal["transformers", "vllm"] = "transformers"
    share_of_gpu: float = Field(0.5, gt=0, lt=1)

    def mixed(self, mix: Mix) -> DreamSettings:
        """The same with the shares of the prompts changed by a mix."""
        prompts = [
            prompt.model_copy(update={"share": prompt.share * mix.get((prompt.kind, prompt.ask), 1.0)})
            for prompt in self.prompts
        ]
        return self.model_copy(update={"prompts": prompts})


class ScoreSettings(_Settings):
    """How dreams are scored and chosen for a trial (paper.md section 4, step 2).

    Attributes:
        kind: a name in `scores.SCORERS`: `alignment` with the gradient of held-out samples, `greats` the same less
            what the dreams chosen before already bring, `influence` the cosine of projected gradients,
            `gradient_norm` without any held-out sample.
        over: gradients for the `linear` layers, or for the `memory`'s expert in training (else its active ones).
        targets: of the linear layers, suffixes of module names; None for all. Fewer cost less time and memory.
        interaction: of `greats`, what a chosen dream takes from one with the same gradient, as a share of its squared
            norm; about one over the number chosen makes their mean follow the held-out gradient.
        projection: of `influence`, side of each layer's projected gradient.
        tokens_at_once: largest batch of a backward pass, padding included. Few stay in a CPU's caches and pad less;
            a GPU may be faster with more.
        top_k: how many of the best are tried.
        random_b: how many of the others are tried, drawn at random; with `top_k` 0, an ablation, the scores count for
            nothing.
        each: whether these numbers are for the whole `night` or for every `context`.
    """

    kind: str = "alignment"
    over: Literal["linear", "memory"] = "linear"
    targets: tuple[str, ...] | None = None
    interaction: float = Field(0.1, ge=0)
    projection: PositiveInt = 8
    tokens_at_once: PositiveInt = 1024
    top_k: NonNegativeInt = 12
    random_b: NonNegativeInt = 4
    each: Literal["night", "context"] = "night"

    @model_validator(mode="after")
    def _something_to_try(self) -> ScoreSettings:
        if not self.top_k + self.random_b:
            raise ValueError("top_k=0 and random_b=0 leave no dream to try; give at least one of them")
        return self


class TauSettings(_Settings):
    """How a trained copy is measured (the paper's `tau`).

    Attributes:
        kind: `likelihood`: mean log-probability a token of the probes' answers, without context, which moves with
            every step; `questions`: whether an answer is given exactly, which is what counts but seldom changes in a
            few steps.
        match: of `questions`: `exact`, every token is the likeliest, read in one pass; `normalised`, the answer is
            generated and compared without case and outer punctuation.
        rows_at_once: largest batch, over all copies.
    """

    kind: Literal["likelihood", "questions"] = "likelihood"
    match: Literal["exact", "normalised"] = "exact"
    rows_at_once: PositiveInt = 256


class RewardSettings(_Settings):
    """When a dream is rewarded (paper.md eq. 6): if its copies are better than the baseline by more than noise.

    With `noise: seeds`, two of five dreams that know nothing of a memory are rewarded for it (`benchmarks/LOG.md`,
    2026-11-27), since dreams differ by more than the copies of one; with `dreams` it is the share that `level` says.

    Attributes:
        seeds: copies of every dream that are trained, from different initial adapters.
        test: `t`: the gain against its noise; `sign`: how many probes gained, whatever how much; `margin`: the mean
            gain alone, as in the paper.
        level: of `t` and `sign`, the chance that a dream that does nothing is rewarded.
        margin: smallest mean gain, in the unit of the measure (nats a token, or share of the answers).
        noise: `dreams`: what dreams of other contexts do to the own one, which takes dreams of two contexts or more,
            and does better from three on (`rewards.judge_among`); else, of `t`: `seeds` where the probes are all that
            counts, so that a dream that answers one of them well is good; `both` where they stand for many others,
            which takes some ten probes a context.
        baseline: `before`: the model as it is, as in the paper; `others`: the copies that learned a dream of another
            context, so that what any fine-tuning on answers brings is no merit (without any: the model as it is).
        scope: probes of the dream's `own` context, or of `all` contexts, where harm to others counts.
        racing: of noise `seeds` and `both`: seeds are run one by one, and a dream has no further copies once those to
            come would have to surprise by so many standard deviations to change its reward (see `racing`); None runs
            all at once. More decides more surely as all copies would and costs more of them. With 1, of six seeds a
            quarter are run, of three about two fifths; of the tests `sign` and `t` with noise `both`, dreams are only
            given up, never rewarded early.
        by_lot: an ablation: as many dreams are rewarded as earned it, but drawn by lot among those that were tried.
    """

    seeds: PositiveInt = 2
    test: Literal["t", "sign", "margin"] = "t"
    level: float = Field(0.05, gt=0, lt=1)
    margin: float = Field(0.0, ge=0)
    noise: Literal["dreams", "seeds", "both"] = "dreams"
    baseline: Literal["before", "others"] = "others"
    scope: Literal["own", "all"] = "own"
    racing: PositiveFloat | None = None
    by_lot: bool = False

    @model_validator(mode="after")
    def _noise_can_be_told(self) -> RewardSettings:
        if self.test == "t" and self.noise == "seeds" and self.seeds < 2:
            raise ValueError("one seed says nothing of the noise of seeds; give seeds=2 or more, or noise: both")
        if self.noise == "dreams":
            needed = {"test": ("t", "margin"), "baseline": ("others",), "scope": ("own",), "racing": (None,)}
            for name, values in needed.items():
                if (value := getattr(self, name)) not in values:
                    raise ValueError(
                        f"{name}={value!r} does not go with noise: dreams, which compares all dreams at once; give "
                        f"{' or '.join(str(value) for value in values)}, or noise: seeds"
                    )
        return self


class RestEmSettings(_Settings):
    """How the dreamer learns from its rewarded dreams (paper.md section 4, step 4).

    Attributes:
        rounds: of dreaming, judging and fine-tuning; 0 dreams without a dreamer's adapter. Every round tries every
            dream, so it takes about as long as a night's dreaming or, where that tries few of many, several times that.
        rank: of the dreamer's adapter; it cannot be changed while a life has one.
        alpha: the adapter's product is scaled by `alpha / rank`; kept for life like the rank.
        targets: suffixes of module names that get an adapter, such as `q_proj`; None for every linear layer inside the
            decoder layers; kept for life like the rank.
        held_out: share of the night's contexts that tell whether a round helped and that none is trained on. More
            tells better and leaves less to learn from.
        steps: of AdamW a round.
        rows: rewarded dreams in a step, drawn without replacement until all have been read.
        lr: of AdamW, falling linearly to zero.
        clip_norm: largest norm of the gradient.
        restart: whether every round fine-tunes the dreamer that the first round began with, as ReST-EM does to stay
            near it, instead of the last one.
        explore: share of the dreams whose kinds are as often as their prompts say; the rest are of the kinds that were
            rewarded in the last round, as often as they were. 1 leaves the kinds alone.
    """

    rounds: NonNegativeInt = 0
    rank: PositiveInt = 8
    alpha: PositiveFloat = 16.0
    targets: tuple[str, ...] | None = None
    held_out: float = Field(0.25, gt=0, lt=1)
    steps: PositiveInt = 40
    rows: PositiveInt = 8
    lr: PositiveFloat = 1e-3
    clip_norm: PositiveFloat = 1.0
    restart: bool = True
    explore: float = Field(0.1, gt=0, le=1)

    def split(self, contexts: int) -> tuple[int, int]:
        """How many of so many contexts are trained on and how many are held out.

        There is at least one on either side and, from four contexts on, two: with one alone, `rewards.baseline: others`
        finds no copies that learned of another context.

        Raises:
            ValueError: there are fewer than two.
        """
        if contexts < 2:
            raise ValueError(f"{contexts} contexts cannot be split; ReST-EM needs 2, one of them held out of training")
        least = min(2, contexts // 2)
        held_out = min(max(round(self.held_out * contexts), least), contexts - least)
        return contexts - held_out, held_out

    @model_validator(mode="after")
    def _something_to_train(self) -> RestEmSettings:
        if self.targets is not None and not self.targets:
            raise ValueError("targets=[] leaves nothing to train; name suffixes such as q_proj, or give null for all")
        return self


class DreamingSettings(_Settings):
    """A night's dreaming (paper.md section 4).

    Attributes:
        dreams: how they are sampled.
        scores: how they are scored and chosen.
        trials: how a copy learns one: fast, since a copy that has hardly learned tells little of its dream.
        tau: how a copy is measured.
        rewards: when a dream is rewarded.
        rest_em: how the dreamer gets better at it; off by default.
    """

    dreams: DreamSettings = Field(default_factory=DreamSettings)
    scores: ScoreSettings = Field(default_factory=ScoreSettings)
    trials: TrialSettings = Field(default_factory=lambda: TrialSettings(lr=5e-3))
    tau: TauSettings = Field(default_factory=TauSettings)
    rewards: RewardSettings = Field(default_factory=RewardSettings)
    rest_em: RestEmSettings = Field(default_factory=RestEmSettings)
