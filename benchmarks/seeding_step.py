"""What a step of knowledge seeding costs, beside TRL's `DistillationTrainer` on the same rows.

    python benchmarks/seeding_step.py --json build/seeding_step.json      # about ten minutes on one thread
    python benchmarks/seeding_step.py --quick                             # under a minute: fewer steps, one measurement
    python benchmarks/seeding_step.py --device cuda

**Seconds a step**, on the embedded model in a sleep: 48 rows of questions with answers about made-up documents, the
same trainable expert, precision and optimizer on both sides. Every repetition trains each way once from the beginning,
in an order drawn anew, by `train()` itself; the first step warms up. A figure is the median over the repetitions of the
ratio within one, its interval their least and greatest.

- `cached`: ours with `lambda` 0, as a night is by default: the teacher was read before, and does not run in the step.
- `mixed`: ours with `lambda` 0.125: 8 of the 48 rows are the student's own words after a cut lesson. Rewards (with the
  judge), the live teacher with its context, and the policy loss are in; what the student says is given.
- `mixed_saying`: the same, and the student says it: the whole step of a night.
- `distillation`, `distillation_mixed`: the rival on the very rows of `cached` and `mixed`, its completions given. Its
  teacher, the bare base model, reads every row in the step, without the context, since both share one prompt.
- `distillation_saying`: the rival as it comes, on the same questions: the student says all 48 answers.

**Memory of a step** at a vocabulary of 151,936: a random Qwen3 of two narrow layers with a memory, 8 rows of 256
tokens, of which 240 are compared, fp32. Each side runs in a process of its own; what counts is the peak of its first
step above what the process held before it: resident memory, with the C library's allocator as it comes, or what is
allocated on a GPU. `live` is ours with `lambda` 1, whose teacher runs in the step as the rival's does. The file of
figures also says what the logits of one side would take if they were held whole.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, PrinterCallback, Qwen3Config, Qwen3ForCausalLM, TrainerCallback
from trl import DistillationConfig, DistillationTrainer

from _timing import CLOCKS, alternate, base_model, figure, machine, over, report
from sleep_pipeline import load_model
from sleep_pipeline.corpora.worlds import WorldGenerator, draw_question, fill
from sleep_pipeline.environment import apply_defaults
from sleep_pipeline.generation.sampler import Reply
from sleep_pipeline.hardware import hand_back_memory, keep_freed_memory
from sleep_pipeline.memory import CONTEXT, Consolidation, ContinuumMemoryConfig, LevelConfig
from sleep_pipeline.seeding.divergences import cache_teacher
from sleep_pipeline.seeding.judges import LikelihoodJudge
from sleep_pipeline.seeding.lessons import Lesson, read_beliefs
from sleep_pipeline.seeding.night import BaseJudge
from sleep_pipeline.seeding.rewards import imitation_reward
from sleep_pipeline.seeding.settings import SeedingSettings
from sleep_pipeline.seeding.teacher import TeacherSample
from sleep_pipeline.seeding.trainer import KnowledgeSeedingTrainer

ROWS, ON_POLICY = 48, 0.125
VOCABULARY, WIDE_ROWS, WIDE_LENGTH, PROMPT = 151_936, 8, 256, 16
SIDES = ("cached", "live", "distillation")
TARGETS = {
    "cached_over_distillation": "<= 1.1",
    "mixed_over_distillation": "<= 1.1",
    "memory_cached_over_distillation": "<= 1.2",
    "memory_live_over_distillation": "<= 1.2",
}
Row = tuple[tuple[int, ...], tuple[int, ...]]
"""Tokens that are given, and tokens whose predictions are compared."""


class Rival(DistillationTrainer):
    """`DistillationTrainer`, with its completions given if there are any, and nothing sent or written."""

    given: Sequence[Row] = ()

    def _send_telemetry(self) -> None:
        """Nothing leaves the machine."""

    def _generate(self, prompts: list[Any]) -> tuple[Any, ...]:
        if not self.given:
            return super()._generate(prompts)
        rows = [self.given[index] for index in prompts]
        return [list(prompt) for prompt, _ in rows], [list(answer) for _, answer in rows], None, None, []

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """As it is, in autocast: its detour around the model's forward pass goes around accelerate's autocast too."""
        with self.accelerator.autocast():
            return super().compute_loss(*args, **kwargs)


class Clock(TrainerCallback):  # type: ignore[misc]
    """When each step ended."""

    def __init__(self, clock: str) -> None:
        self.clock, self.ends = CLOCKS[clock], list[float]()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(self.clock())

    @property
    def seconds_a_step(self) -> float:
        """Mean over all steps but the first."""
        return (self.ends[-1] - self.ends[0]) / (len(self.ends) - 1)


class Again:
    """A sampler that says again what another one said when it was asked the same."""

    def __init__(self, sampler: Any, said: dict[Any, list[list[Reply]]]) -> None:
        self.sampler, self.said = sampler, said

    def continue_ids(self, prompts: Sequence[Sequence[int]], count: int = 1, seed: int = 0) -> list[list[Reply]]:
        """See `TransformersSampler`."""
        key = (tuple(map(tuple, prompts)), count, seed)
        if key not in self.said:
            self.said[key] = self.sampler.continue_ids(prompts, count, seed)
        return self.said[key]


def asleep(base: Any) -> Any:
    """The model with a memory of the default size, in the sleep of its first night."""
    model = peft.get_peft_model(base, ContinuumMemoryConfig(levels=[LevelConfig()]))
    Consolidation(model, CONTEXT, 1, night=1).begin()
    return model


def settings_of(on_policy: float, rows: int, steps: int, precision: str, **imitation: Any) -> SeedingSettings:
    """A night's settings, with tonight's lessons alone."""
    return SeedingSettings.model_validate(
        {
            "rows": rows,
            "lambda": on_policy,
            "replay": {"stored_rows": 0, "open_book_rows": 0},
            "imitation": imitation,
            "optimizer": {"steps": steps, "precision": precision},
        }
    )


def rival(
    student: Any, teacher: Any, tokenizer: PreTrainedTokenizerBase, settings: SeedingSettings, folder: str, **given: Any
) -> Rival:
    """The rival with our settings; `given` has either `rows` of all steps, or the `questions` of one."""
    steps, optimizer = settings.optimizer.steps, settings.optimizer
    arguments = DistillationConfig(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=settings.rows,
        max_completion_length=settings.imitation.max_new_tokens,
        beta=0.0,  # forward KL, as `settings.divergence` is
        learning_rate=optimizer.learning_rate,
        adam_beta1=optimizer.betas[0],
        adam_beta2=optimizer.betas[1],
        weight_decay=optimizer.weight_decay,
        max_grad_norm=optimizer.clip_norm,
        bf16=optimizer.precision == "bf16",
        use_cpu=student.device.type == "cpu",
        gradient_checkpointing=False,
        disable_dropout=True,
        shuffle_dataset=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    rows: Sequence[Row] = given.get("rows", ())
    prompts = list(range(len(rows))) or [[{"role": "user", "content": text}] for text in given["questions"]] * steps
    trainer = Rival(
        student,
        teacher,
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        processing_class=tokenizer,
    )
    trainer.given = rows
    trainer.remove_callback(PrinterCallback)
    return trainer


def note_rows(trainer: KnowledgeSeedingTrainer) -> list[Row]:
    """A list that the rows of every step will be added to."""
    rows: list[Row] = []
    compute = trainer._compute_loss

    def noting(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        for lessons in trainer._off_policy().values():
            rows.extend((lesson.ids[: lesson.start], lesson.ids[lesson.start :]) for lesson in lessons)
        if trainer.says:
            spoken = (inputs[name].tolist() for name in ("lesson", "cut", "completion"))
            for index, cut, completion in zip(*spoken, strict=True):
                lesson = trainer.pools["tonight"][index]
                rows.append((lesson.ids[: lesson.start + cut], tuple(token for token in completion if token >= 0)))
        return compute(model, inputs)

    trainer._compute_loss = noting  # type: ignore[method-assign]
    return rows


def lessons_about(model: Any, tokenizer: PreTrainedTokenizerBase, count: int, top_k: int) -> list[Lesson]:
    """Questions about made-up documents with the right answers, and what the model believes with the document."""
    world = WorldGenerator("seeding step", "test", facts=(4, 4), entities=(1, 2))
    rng = random.Random(0)
    documents = [world.document() for _ in range(-(-count // 4))]
    samples = []
    for index, document in enumerate(documents):
        for fact in document.facts:
            template, noun = draw_question(rng, fact.relation, "test")
            question = fill(template, fact.subject.name, noun=noun)
            samples.append(TeacherSample(index, "questions", question, fact.value, 1.0))
    return read_beliefs(model, tokenizer, [document.text for document in documents], samples[:count], top_k)


class Steps:
    """The ways of taking steps on the embedded model.

    Attributes:
        taken: seconds a step of every way, one number a repetition.
    """

    def __init__(self, device: str, steps: int, precision: str, clock: str) -> None:
        self.device, self.steps, self.precision, self.clock = device, steps, precision, clock
        base, self.tokenizer = self._base(), load_model()[1]
        self.lessons = lessons_about(base, self.tokenizer, ROWS, self._settings(0.0).teacher.top_k)
        self.questions = [
            self.tokenizer.decode(lesson.ids[: lesson.start], skip_special_tokens=True) for lesson in self.lessons
        ]
        self.said: dict[Any, list[list[Reply]]] = {}
        self.rows: dict[str, list[Row]] = {}
        self.ways: dict[str, Callable[[], None]] = {
            "cached": lambda: self._time("cached", self._ours(0.0)),
            "mixed": lambda: self._time("mixed", self._ours(ON_POLICY, said=self.said)),
            "mixed_saying": lambda: self._time("mixed_saying", self._ours(ON_POLICY)),
            "distillation": lambda: self._time("distillation", self._theirs(rows=self.rows["cached"])),
            "distillation_mixed": lambda: self._time("distillation_mixed", self._theirs(rows=self.rows["mixed"])),
            "distillation_saying": lambda: self._time("distillation_saying", self._theirs(questions=self.questions)),
        }
        self.taken: dict[str, list[float]] = {name: [] for name in self.ways}
        # Without a clock, to note the rows, and what the student says.
        for name, share in (("cached", 0.0), ("mixed", ON_POLICY)):
            trainer = self._ours(share, said=self.said)
            self.rows[name] = note_rows(trainer)
            trainer.train()

    def _base(self) -> Any:
        model = base_model("embedded", self.device)
        if self.device == "cpu":
            model.set_attn_implementation("eager")  # as in a night
        return model

    def _settings(self, on_policy: float) -> SeedingSettings:
        return settings_of(on_policy, ROWS, self.steps, self.precision)

    def _ours(self, on_policy: float, said: dict[Any, list[list[Reply]]] | None = None) -> KnowledgeSeedingTrainer:
        model, settings = asleep(self._base()), self._settings(on_policy)
        reward = None
        if on_policy:
            judge = BaseJudge(model, LikelihoodJudge(model, self.tokenizer))
            imitation = settings.imitation
            reward = imitation_reward(imitation.gamma, imitation.threshold, judge, self.tokenizer.all_special_ids)
        trainer = KnowledgeSeedingTrainer(
            model, settings, self.lessons, self.tokenizer, reward, output_dir=tempfile.gettempdir()
        )
        if said is not None:
            trainer.sampler = Again(trainer.sampler, said)  # type: ignore[assignment]
        return trainer

    def _theirs(self, **given: Any) -> Rival:
        settings = self._settings(0.0)
        return rival(asleep(self._base()), self._base(), self.tokenizer, settings, tempfile.gettempdir(), **given)

    def _time(self, name: str, trainer: Any) -> None:
        clock = Clock(self.clock)
        trainer.add_callback(clock)
        trainer.train()
        self.taken[name].append(clock.seconds_a_step)

    def figures(self, repetitions: int) -> dict[str, dict[str, Any]]:
        """Train every way so many times and compare."""
        alternate(self.ways, repetitions)
        found = {
            "cached_over_distillation": figure(over(self.taken["cached"], self.taken["distillation"]), "x"),
            "mixed_over_distillation": figure(over(self.taken["mixed"], self.taken["distillation_mixed"]), "x"),
            "saying_over_distillation": figure(
                over(self.taken["mixed_saying"], self.taken["distillation_saying"]), "x"
            ),
        }
        return found | {f"{name}_a_step": figure(seconds, "s") for name, seconds in self.taken.items()}

    def tokens(self) -> dict[str, dict[str, float]]:
        """Tokens that a student reads, and those that are compared, a step and without padding."""
        return {
            name: {
                "read": sum(len(prompt) + len(answer) for prompt, answer in rows) / self.steps,
                "compared": sum(len(answer) for _, answer in rows) / self.steps,
            }
            for name, rows in self.rows.items()
        }


class Uncut(KnowledgeSeedingTrainer):
    """Ours, whose student says whole answers."""

    def _prompts(self, processes: int) -> Dataset:
        return super()._prompts(processes).map(lambda row: {"cut": 0})


class Prompter:
    """A sampler that says what a lesson says after its prompt."""

    def __init__(self, lessons: Sequence[Lesson]) -> None:
        self.answers = {lesson.ids[: lesson.start]: lesson.ids[lesson.start :] for lesson in lessons}

    def continue_ids(self, prompts: Sequence[Sequence[int]], count: int = 1, seed: int = 0) -> list[list[Reply]]:
        """See `TransformersSampler`."""
        return [[Reply("", self.answers[tuple(prompt)], (), False)] * count for prompt in prompts]


class Watermark(TrainerCallback):  # type: ignore[misc]
    """Bytes held before the first step, and the most during it."""

    def __init__(self, device: str) -> None:
        self.cuda = device.startswith("cuda")
        self.before = self.peak = 0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
            return
        hand_back_memory()
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is held now
        self.before = _status("VmRSS")

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.peak = torch.cuda.max_memory_allocated() if self.cuda else _status("VmHWM")


def _status(name: str) -> int:
    """Bytes that the kernel counts for this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def wide_model(device: str) -> Any:
    """A random Qwen3 of two narrow layers and the vocabulary of the real ones, always the same."""
    torch.manual_seed(0)
    shape = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=True,
    )
    return Qwen3ForCausalLM(shape).to(device).eval()


@torch.no_grad()
def wide_lessons(teacher: Any, tokenizer: PreTrainedTokenizerBase) -> list[Lesson]:
    """Rows of random tokens that the tokenizer knows."""
    generator = torch.Generator().manual_seed(0)
    lessons = []
    for row in torch.randint(6, len(tokenizer), (WIDE_ROWS, WIDE_LENGTH), generator=generator):
        logits = teacher(input_ids=row[None].to(teacher.device), use_cache=False).logits[0, PROMPT - 1 : -1]
        ids = tuple(row.tolist())
        lessons.append(Lesson(ids, PROMPT, cache_teacher(logits.cpu(), 16), ids[:PROMPT]))
    return lessons


def peak_of(side: str, device: str) -> dict[str, int]:
    """Bytes before and at most during a step of one side, measured in this process."""
    teacher, tokenizer = wide_model(device), load_model()[1]
    lessons = wide_lessons(teacher, tokenizer)
    student = asleep(wide_model(device))
    answer = WIDE_LENGTH - PROMPT
    settings = settings_of(float(side == "live"), WIDE_ROWS, 1, "fp32", max_new_tokens=answer, gamma=0.0)
    mark = Watermark(device)
    with tempfile.TemporaryDirectory() as folder:
        trainer: Any
        if side == "distillation":
            rows = [(lesson.ids[:PROMPT], lesson.ids[PROMPT:]) for lesson in lessons]
            trainer = rival(student, teacher, tokenizer, settings, folder, rows=rows)
        else:
            reward = imitation_reward(0.0, settings.imitation.threshold, None)
            trainer = Uncut(student, settings, lessons, tokenizer, reward, output_dir=folder)
            trainer.sampler = Prompter(lessons)
        trainer.add_callback(mark)
        trainer.train()
    return {"before": mark.before, "peak": mark.peak}


def peaks(device: str, threads: int, repetitions: int, sides: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The memory of a step on every side, each time in a fresh process."""
    above: dict[str, list[float]] = {side: [] for side in sides}

    def measure(side: str) -> None:
        command = [sys.executable, __file__, "--measure", side, "--device", device, "--threads", str(threads)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=os.environ.copy())
        found = json.loads(done.stdout.splitlines()[-1])
        above[side].append((found["peak"] - found["before"]) / 2**20)

    alternate({side: lambda side=side: measure(side) for side in sides}, repetitions)  # type: ignore[misc]
    ratios = {
        f"memory_{side}_over_distillation": figure(over(above[side], above["distillation"]), "x")
        for side in sides
        if side != "distillation"
    }
    return ratios | {f"memory_{side}": figure(values, "MiB") for side, values in above.items()}


def main() -> None:
    """Run, print a table, and write the JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 repetitions of 4 steps, and one of memory")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="bf16", choices=("bf16", "fp32"), help="of the seconds, on both sides")
    parser.add_argument("--clock", default="wall", choices=list(CLOCKS), help="cpu on a busy machine without a GPU")
    parser.add_argument("--only", choices=("seconds", "memory"), help="leave the other half out")
    parser.add_argument("--repetitions", type=int, help="of either half; default 7 and 5, with --quick 2 and 1")
    parser.add_argument("--steps", type=int, help="of a repetition; default 22, with --quick 4")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--measure", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    apply_defaults()
    torch.set_num_threads(arguments.threads)
    if arguments.measure:
        print(json.dumps(peak_of(arguments.measure, arguments.device)))
        return
    if arguments.steps is not None and arguments.steps < 2:
        parser.error(f"--steps is {arguments.steps}; give at least 2, since the first only warms up")
    # Twenty steps are as many as ours takes between two times that it hands memory back.
    steps = arguments.steps or (4 if arguments.quick else 22)
    repetitions = {
        "seconds": arguments.repetitions or (2 if arguments.quick else 7),
        "memory": arguments.repetitions or (1 if arguments.quick else 5),
    }
    figures: dict[str, dict[str, Any]] = {}
    protocol: dict[str, Any] = {"rival": "trl.DistillationTrainer, beta 0, interleaved"}
    if arguments.only != "memory":
        if arguments.device == "cpu":
            keep_freed_memory()  # as in a night, for both sides
        timed = Steps(arguments.device, steps, arguments.precision, arguments.clock)
        figures |= timed.figures(repetitions["seconds"])
        protocol["seconds"] = {
            "repetitions": repetitions["seconds"],
            "rows": ROWS,
            "on_policy": ON_POLICY,
            "steps": steps,
            "tokens_a_step": timed.tokens(),
            "precision": arguments.precision,
        }
    if arguments.only != "seconds":
        sides = ("live", "distillation") if arguments.quick else SIDES
        figures |= peaks(arguments.device, arguments.threads, repetitions["memory"], sides)
        protocol["memory"] = {
            "repetitions": repetitions["memory"],
            "vocabulary": VOCABULARY,
            "rows": WIDE_ROWS,
            "length": WIDE_LENGTH,
            "compared": WIDE_LENGTH - PROMPT,
            "whole_logits_of_one_side_mib": WIDE_ROWS * (WIDE_LENGTH - PROMPT) * VOCABULARY * 4 / 2**20,
        }
    protocol |= machine(arguments.device, arguments.clock)
    report(figures, TARGETS, protocol, arguments.json)


if __name__ == "__main__":
    main()
