"""The knowledge-seeding trainer: paper.md eq. 5 over eq. 3's mixture, on top of TRL's GRPO trainer.

    loss = alpha F + (1 - alpha) P

- `F`: mean token divergence from teacher to student over a step's rows. Off-policy rows are lessons (tonight's and
  replayed ones) with cached teachers; on-policy rows are what the student says itself when a lesson's answer is cut at
  random (eq. 4), with the teacher asked live in its own view. `lambda` is the share of on-policy rows among tonight's.
- `P`: `-advantage * log p` summed over what the student said, mean over its rows; the advantage of a continuation is
  its imitation reward minus the mean of its group. Sampling and training use the same weights, so this is the plain
  policy gradient of `E[r]`, without clipping (at the default temperature 1; it samples otherwise at any other).

One student forward pass serves both. Deviations from the paper: replay takes part in `F` with the same weight a token,
and the mean is over tokens, not over sequences first. GRPO's own machinery gives the on-policy prompts, reward
functions, logging, checkpoints and accelerate; batches of several processes hold different rows, whole groups each.

What trains is whatever requires a gradient: in a sleep, the expert in training and its router entry, and in a plastic
one its level's earlier experts with theirs.
"""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from sleep_pipeline.generation.likelihood import question_reader
from sleep_pipeline.generation.sampler import SamplingSettings, TransformersSampler
from sleep_pipeline.hardware import hand_back_memory
from sleep_pipeline.memory import base_view, state_of, teacher_view, trace_routing
from sleep_pipeline.memory.checkpointing import inputs_without_gradients
from sleep_pipeline.seeding.batches import Batch, batches, join_teachers, pad, positions
from sleep_pipeline.seeding.checkpoints import load_trained, run_digest, save_trained
from sleep_pipeline.seeding.divergences import Head, LiveTeacher, compare_tokens
from sleep_pipeline.seeding.hidden import answer_head, causal_lm, hidden_states, last_block_of
from sleep_pipeline.seeding.lessons import Lesson
from sleep_pipeline.seeding.optimizing import apart, with_muon
from sleep_pipeline.seeding.order import evenly, shuffled
from sleep_pipeline.seeding.progress import Bar
from sleep_pipeline.seeding.rewards import RewardFunction
from sleep_pipeline.seeding.settings import SeedingSettings

View = Callable[[], AbstractContextManager[None]]
_TIDY_EVERY = 20
"""Steps after which freed memory goes back to the system: more often costs time, more rarely memory."""


class KnowledgeSeedingTrainer(GRPOTrainer):
    """Distils lessons into what of the model requires gradients.

    Args:
        model: a causal LM with a memory, in a sleep; its default state is the student.
        settings: see `SeedingSettings`.
        lessons: tonight's, at least one.
        processing_class: the tokenizer.
        reward: of the student's own continuations; None trains on the divergence alone.
        replayed: lessons of earlier nights.
        earlier: how many nights these come from, which the settled steps share evenly with tonight's.
        open_book: lessons in reading.
        views: context managers that turn the model into each teacher, by `Lesson.view`; without any there is one, as
            `settings.teacher.experts` says.
        seed: decides rows, cuts and continuations.
        output_dir: where checkpoints go.
        progress: whether to show a bar.
        penalty: added to the loss of every step, such as what holds weights where they were.
        callbacks: of transformers' trainer.

    Raises:
        ValueError: there is no lesson, or nothing that trains, or the model's logits cannot be had from its last
            hidden states.
    """

    _tag_names = ["knowledge-seeding"]

    def __init__(
        self,
        model: nn.Module,
        settings: SeedingSettings,
        lessons: Sequence[Lesson],
        processing_class: PreTrainedTokenizerBase,
        reward: RewardFunction | None = None,
        replayed: Sequence[Lesson] = (),
        earlier: int = 1,
        open_book: Sequence[Lesson] = (),
        views: Sequence[View] = (),
        seed: int = 0,
        output_dir: str | Path = "seeding",
        progress: bool = False,
        penalty: Callable[[], Tensor] | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ):
        if not lessons:
            raise ValueError("there is no lesson to learn: the teacher's samples were all dropped; see what it said")
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ValueError("nothing of the model trains: begin a consolidation, which unlocks an expert, first")
        self.seeding, self.seed, self.earlier = settings, seed, earlier
        self.pools = {"tonight": list(lessons), "stored": list(replayed), "open_book": list(open_book)}
        own = teacher_view if settings.teacher.experts else base_view
        self.views = list(views) or [lambda: own(model)]
        self.rollouts: list[dict[str, Any]] = []
        # Without continuations to learn from, the trainer's prompts are drawn and left alone.
        self.penalty = penalty
        self.rewarded = reward is not None
        self.says = bool(settings.prompts) and any(lesson.teacher_prompt for lesson in lessons)
        imitation, optimizer = settings.imitation, settings.optimizer
        device = next(model.parameters()).device
        arguments = GRPOConfig(
            output_dir=str(output_dir),
            max_steps=optimizer.steps,
            per_device_train_batch_size=max(1, settings.prompts) * imitation.group,
            num_generations=imitation.group,
            max_completion_length=imitation.max_new_tokens,
            temperature=imitation.temperature,
            scale_rewards="none",
            beta=0.0,
            learning_rate=optimizer.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=math.ceil(optimizer.warmup_share * optimizer.steps),
            adam_beta1=optimizer.betas[0],
            adam_beta2=optimizer.betas[1],
            weight_decay=optimizer.weight_decay,
            max_grad_norm=optimizer.clip_norm,
            bf16=optimizer.precision == "bf16",
            use_cpu=device.type == "cpu",
            gradient_checkpointing=optimizer.gradient_checkpointing,
            disable_dropout=True,
            # A process may split its rows into two forward passes where another does not: no talk among them in these.
            ddp_broadcast_buffers=False,
            shuffle_dataset=False,
            remove_unused_columns=False,
            save_strategy="steps" if optimizer.checkpoint_every else "no",
            save_steps=optimizer.checkpoint_every or 500,
            save_total_limit=1,
            logging_steps=10,
            report_to="none",
            disable_tqdm=True,
            # NumPy takes no larger one; everything that is drawn here takes the whole seed.
            seed=seed % 2**32,
        )
        # Several visible GPUs would make it a DataParallel, which TRL refuses; more processes come from accelerate.
        arguments._n_gpu = min(arguments.n_gpu, 1)
        self.run = run_digest(seed, settings, self.pools, model)
        self._end = silent_ids(processing_class)
        self._question = question_reader(processing_class)
        self._caches = getattr(model.config, "use_cache", None)
        with inputs_without_gradients(causal_lm(model)):
            super().__init__(
                model=model,
                reward_funcs=[reward or _no_reward],
                args=arguments,
                train_dataset=self._prompts(arguments.world_size),
                processing_class=processing_class,
                callbacks=[*([Bar("training the expert")] if progress else []), *(callbacks or [])],
            )
        self.remove_callback(PrinterCallback)
        self.head: Head = answer_head(self.model)
        # Passes that are run twice, or whose gates are watched, work for all positions.
        twice = any(getattr(module, "gradient_checkpointing", False) for module in self.model.modules())
        everywhere = twice or optimizer.gradient_checkpointing or settings.replay.gate_penalty
        self.last_block = None if everywhere else last_block_of(self.model)
        self.sampler = TransformersSampler(
            self.model,
            processing_class,
            SamplingSettings(
                imitation.max_new_tokens, imitation.temperature, batch_size=arguments.per_device_train_batch_size
            ),
        )

    def _send_telemetry(self) -> None:
        """Nothing leaves the machine."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The night's manifest says what a checkpoint is."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, and hand the model back as it came.

        Accelerate leaves its forward pass in autocast for good, and a mark by which the next training would take the
        model for prepared already, and train without autocast. The trainer switches the cache of `generate` off.
        """
        own, forward = self.model.__dict__, self.model.__dict__.get("forward")
        try:
            with inputs_without_gradients(causal_lm(self.model)):
                return super().train(*args, **kwargs)
        finally:
            for name in ("forward", "_original_forward", "_is_accelerate_prepared"):
                own.pop(name, None)
            if forward is not None:
                self.model.forward = forward
            if self._caches is not None:
                self.model.config.use_cache = self._caches
            self.model.eval()

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """See `with_muon` and `apart`."""
        if getattr(self, "optimizer", None) is None:
            trained, settings = self.accelerator.unwrap_model(self.model), self.seeding.optimizer
            if settings.muon_rate is None:
                apart(super().create_optimizer(model), trained, settings)
            else:
                self.optimizer = with_muon(trained, settings)
        optimizer: torch.optim.Optimizer = self.optimizer
        return optimizer

    @property
    def history(self) -> list[dict[str, float]]:
        """The numbers that were logged, by step; also before a kill, for checkpoints hold them."""
        return [
            {"step": logged["step"], **{key: value for key, value in logged.items() if isinstance(value, int | float)}}
            for logged in self.state.log_history
        ]

    def _prompts(self, processes: int) -> Dataset:
        """Everything that is cut in this run, in order: one epoch, so that a resumed run goes on with the same."""
        rng = random.Random(f"{self.seed}/cuts")
        tonight = self.pools["tonight"]
        askable = [index for index, lesson in enumerate(tonight) if lesson.teacher_prompt] or [0]
        count = self.seeding.optimizer.steps * max(1, self.seeding.prompts) * processes
        rows = []
        for _ in range(count):
            index = rng.choice(askable)
            answer = tonight[index].ids[tonight[index].start :]
            spoken = [place for place, token in enumerate(answer) if token not in self._end]
            rows.append({"prompt": "", "lesson": index, "cut": rng.randrange(len(spoken)) if spoken else 0})
        return Dataset.from_list(rows)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Let the student go on where lessons were cut, and reward it."""
        if not self.says:
            return {"lesson": torch.tensor([row["lesson"] for row in inputs])}
        group = self.num_generations
        lessons = [self.pools["tonight"][row["lesson"]] for row in inputs]
        prompts = [lesson.ids[: lesson.start + row["cut"]] for lesson, row in zip(lessons, inputs, strict=True)]
        seed = random.Random(f"{self.seed}/{self._place}/{self._rank}").getrandbits(31)
        try:
            with self._generation_precision():
                drawn = self.sampler.continue_ids(prompts[::group], group, seed=seed)
        except FloatingPointError as error:
            # A student that cannot speak any more would have had no loss in this step.
            raise _diverged(self.state.global_step, math.nan) from error
        replies = [reply for replies in drawn for reply in replies]
        said = [[*reply.ids, *([] if reply.end is None else [reply.end])] for reply in replies]
        rewards = torch.zeros(len(inputs), device=self.accelerator.device)
        if self.rewarded:
            texts = [reply.text for reply in replies]
            columns = [
                self._wanted(lesson, row["cut"]) | {"prompt": row["prompt"]}
                for lesson, row in zip(lessons, inputs, strict=True)
            ]
            parts = self._calculate_rewards(columns, [row["prompt"] for row in inputs], texts, said)
            rewards = parts.nansum(dim=1)[self._rank * len(inputs) :][: len(inputs)]
            for row, lesson, text, reward in zip(inputs, columns, texts, rewards.tolist(), strict=True):
                self.rollouts.append(
                    {
                        "step": self.state.global_step,
                        "lesson": row["lesson"],
                        "cut": row["cut"],
                        "question": lesson["question"],
                        "reference": lesson["reference"],
                        "said": text,
                        "reward": reward,
                    }
                )
        means = rewards.view(-1, group).mean(dim=1).repeat_interleave(group)
        self._metrics["train"]["reward"].append(rewards.mean().item())
        width = max(1, max(map(len, said)))
        completion = torch.full((len(said), width), -1)
        for index, ids in enumerate(said):
            completion[index, : len(ids)] = torch.tensor(ids, dtype=torch.long)
        return {
            "lesson": torch.tensor([row["lesson"] for row in inputs]),
            "cut": torch.tensor([row["cut"] for row in inputs]),
            "completion": completion,
            "advantage": rewards - means,
        }

    def _wanted(self, lesson: Lesson, cut: int) -> dict[str, Any]:
        """The columns that an imitation reward needs."""
        rest = [token for token in lesson.ids[lesson.start + cut :] if token not in self._end]
        return {
            "reference_ids": rest,
            "reference": self.processing_class.decode(rest),
            "question": self._question(lesson.ids[: lesson.start]),
        }

    def _off_policy(self) -> dict[str, list[Lesson]]:
        """This step's lessons of each pool, the same whenever the step is run."""
        settings = self.seeding
        said = settings.prompts * settings.imitation.group if self.says else 0
        rows, stored = settings.rows, settings.replay.stored_rows
        settled = settings.replay.settled_share * settings.optimizer.steps
        if settled and stored and self.pools["stored"] and self.state.global_step >= settings.optimizer.steps - settled:
            rows, stored = evenly(rows + stored, self.earlier)
        counts = {"tonight": max(0, rows - said), "stored": stored, "open_book": settings.replay.open_book_rows}
        chosen: dict[str, list[Lesson]] = {}
        for pool, count in counts.items():
            first = (self._place * self.args.world_size + self._rank) * count
            lessons = self.pools[pool]
            places = range(first, first + count) if lessons else ()
            chosen[pool] = [lessons[shuffled(len(lessons), f"{self.seed}/{pool}", place)] for place in places]
        return chosen

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        began = time.perf_counter()
        if self.state.global_step % _TIDY_EVERY == 0:
            hand_back_memory()
        device, pools = self.accelerator.device, self._off_policy()
        off = [lesson for lessons in pools.values() for lesson in lessons]
        rows = [lesson.ids for lesson in off]
        spans = [(lesson.start, len(lesson.ids)) for lesson in off]
        spoken = []
        if self.says:
            columns = (inputs[name].tolist() for name in ("lesson", "cut", "completion"))
            for index, cut, completion in zip(*columns, strict=True):
                lesson = self.pools["tonight"][index]
                begin = lesson.ids[: lesson.start + cut]
                answer = tuple(token for token in completion if token >= 0)
                spoken.append((lesson, lesson.ids[lesson.start : lesson.start + cut], answer))
                rows.append(begin + answer)
                spans.append((len(begin), len(begin) + len(answer)))
        hidden, tokens = [torch.empty(0)] * len(rows), 0
        reading = set(range(len(off) - len(pools["open_book"]), len(off)))
        gates = _Gates(model) if self.seeding.replay.gate_penalty and reading else None
        for batch in batches(rows, self.processing_class.pad_token_id, device):
            at = positions([spans[row] for row in batch.rows], device)
            with contextlib.nullcontext() if gates is None else gates.watching(batch, reading):
                states = hidden_states(model, batch.ids, batch.mask, at, self.last_block)
            lengths = [spans[row][1] - spans[row][0] for row in batch.rows]
            for row, part in zip(batch.rows, states[at].split(lengths), strict=True):
                hidden[row] = part
            tokens += int(batch.mask.sum())
        settings = self.seeding
        distances, _ = (
            compare_tokens(
                torch.cat(hidden[: len(off)]), self.head, join_teachers(off, device), settings.divergence, settings.beta
            )
            if off
            else (torch.zeros(0, device=device), None)
        )
        parts = [distances]
        policy = distances.new_zeros(())
        if spoken:
            student = torch.cat(hidden[len(off) :])
            teacher = self._ask_teachers(spoken, device)
            said = torch.tensor([token for *_, answer in spoken for token in answer], device=device)
            on_policy, log_probs = compare_tokens(
                student, self.head, teacher, settings.divergence, settings.beta, tokens_N=said
            )
            weights = torch.cat(
                [
                    advantage.expand(len(answer))
                    for advantage, (*_, answer) in zip(inputs["advantage"].to(device), spoken, strict=True)
                ]
            )
            policy = -(weights * log_probs).sum() / len(spoken)
            parts.append(on_policy)
        everything = torch.cat(parts)
        loss = settings.alpha * everything.mean() + (1 - settings.alpha) * policy
        if gates is not None:
            openness = gates.mean()
            loss = loss + settings.replay.gate_penalty * openness
            self._metrics["train"]["openness/reading"].append(openness.item())
        if self.penalty is not None:
            loss = loss + self.penalty()
        if not torch.isfinite(loss):
            raise _diverged(self.state.global_step, loss.item())
        self._record(pools, parts, policy, tokens, time.perf_counter() - began)
        return loss

    def _record(
        self, pools: dict[str, list[Lesson]], parts: list[Tensor], policy: Tensor, tokens: int, seconds: float
    ) -> None:
        metrics = self._metrics["train"]
        counts = [sum(len(lesson.ids) - lesson.start for lesson in lessons) for lessons in pools.values()]
        with torch.no_grad():
            for name, part in zip(pools, parts[0].split(counts), strict=True):
                if part.numel():
                    metrics[f"divergence/{name}"].append(part.mean().item())
            if len(parts) > 1:
                metrics["divergence/on_policy"].append(parts[1].mean().item())
                metrics["policy_loss"].append(policy.item())
        said = self.args.per_device_train_batch_size if self.says else 0
        metrics["on_policy_share"].append(said / max(1, said + len(pools["tonight"])))
        metrics["forward_tokens_per_second"].append(tokens / seconds)

    @torch.no_grad()
    def _ask_teachers(
        self, spoken: Sequence[tuple[Lesson, tuple[int, ...], tuple[int, ...]]], device: torch.device
    ) -> LiveTeacher:
        """The teachers' last hidden states where they would say what the student said."""
        hidden, model = [torch.empty(0)] * len(spoken), self.accelerator.unwrap_model(self.model)
        for number, view in enumerate(self.views):
            mine = [index for index, (lesson, *_) in enumerate(spoken) if lesson.view == number]
            if not mine:
                continue
            rows = [spoken[index][0].teacher_prompt + spoken[index][1] + spoken[index][2] for index in mine]
            answers = [len(spoken[index][2]) for index in mine]
            with view():
                states = hidden_states(model, *pad(rows, self.processing_class.pad_token_id, device))
            spans = [(len(row) - length, len(row)) for row, length in zip(rows, answers, strict=True)]
            for index, part in zip(mine, states[positions(spans, device)].split(answers), strict=True):
                hidden[index] = part
        return LiveTeacher(torch.cat(hidden), self.head)

    @property
    def _rank(self) -> int:
        return self.accelerator.process_index

    @property
    def _place(self) -> int:
        """The number of this forward pass since the beginning of the run, resumed or not."""
        accumulated = self.args.gradient_accumulation_steps
        return self.state.global_step * accumulated + self._step % accumulated

    @contextlib.contextmanager
    def _generation_precision(self) -> Iterator[None]:
        """Autocast, which accelerate put into the forward pass, pays for a GPU; a CPU would cast all weights anew for
        every token.
        """
        own: dict[str, Any] = self.model.__dict__
        prepared = own.get("forward")
        if self.accelerator.device.type != "cpu" or "_original_forward" not in own:
            yield
            return
        self.model.forward = own["_original_forward"]
        try:
            yield
        finally:
            self.model.forward = prepared

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        save_trained(self.accelerator.unwrap_model(self.model), Path(output_dir or self.args.output_dir), self.run)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_trained(model if model is not None else self.model, Path(resume_from_checkpoint), self.run)


def _no_reward(completions: Sequence[Any], **_: Any) -> list[float]:
    """GRPO wants a reward where there is none."""
    return [0.0] * len(completions)


def silent_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens that are marks and say nothing."""
    # The mark of a turn's end may be special without a name, as in Phi 3.
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset({*tokenizer.all_special_ids, *added})


def _diverged(step: int, loss: float) -> FloatingPointError:
    return FloatingPointError(
        f"the loss of step {step} is {loss}: lower optimizer.learning_rate, or use precision fp32; nothing of this "
        "night has been kept"
    )


class _Gates:
    """How far the expert in training opens on lessons in reading, where it has nothing to add."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._open: list[Tensor] = []
        self._tokens = 0

    @contextlib.contextmanager
    def watching(self, batch: Batch, rows: set[int]) -> Iterator[None]:
        """Take in the gates of one forward pass, those of the batch's rows that are among `rows`."""
        with trace_routing(self.model, keep=True) as trace:
            yield
        weights = batch.mask * torch.tensor([[row in rows] for row in batch.rows], device=batch.mask.device)
        training = state_of(self.model).table.training()
        for (level, _), (gates,) in trace.gates.items():
            if training is None or level != training[0]:
                continue
            self._open.append((gates[..., -1] * weights).sum())
            self._tokens += int(weights.sum())

    def mean(self) -> Tensor:
        """Over tokens and layers, from 0 to 1; scalar."""
        return torch.stack(self._open).sum() / max(1, self._tokens)
