"""What is kept after many nights: sleep against what else one would do with the same documents.

    python benchmarks/retention.py --json build/retention.json                      # sleep, 10 nights, 3 seeds
    python benchmarks/retention.py --methods all --json build/retention.json        # every rival, hours on two cores
    python benchmarks/retention.py --json build/retention.json --table              # what the file holds, as Markdown
    python benchmarks/retention.py --json build/retention.json --figure build/retention.png              # as a picture
    python benchmarks/retention.py --quick                                          # under a minute: two short nights

The file is written after every life, and lives that stand in it are not lived again: a table may take several sittings,
and several processes at once with different methods or seeds.

Every night brings 8 made-up documents (`--documents` for more) of 4 facts each, in wordings that the model was not
pretrained on. After a night every earlier night's questions are asked without the documents, in held-out wordings; an
answer is right if it is the fact's value, letter for letter. Recall is relative to what the base model answers with the
documents before it.

Rivals train with AdamW at its `learning_rate` (full fine-tuning at a smaller one) and those with `_muon` as sleep does,
on as many tokens of the night: `documents_*` on the raw texts, `samples_*` on what the model itself says about them
(hard labels), `distillation_*` on its distributions; `_lora` in one adapter with as many parameters as all of sleep's
experts together, `_full` in all weights; `_replay` with as much replay as sleep, `_ewc` with elastic weight
consolidation. With `--equal steps` they take as many steps a night as sleep, with
`--equal seconds` as many as are trained in the same time, by a short life of both, night by night in turn, beforehand
(sampling is not counted, nor is what `_ewc` reads again to find out which weights matter).
`joint_*` learn all documents at once, in as many steps of as many rows as all nights together, and are the bound.
Every night takes the same steps, however many lessons it brings (`passes` is 0); with more documents give it more
(`--set '{"optimizer": {"steps": ...}}'`).
Ablations of sleep are named after what they lack or change; `frozen_experts` leaves earlier nights' experts as they
are, as the paper does. `no_replay` leaves them, too, since nothing of theirs is rehearsed.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from _lives import Life, figures, margin, show
from _results import as_it_was, locked, merged
from sleep_pipeline import load_model
from sleep_pipeline.baselines.finetuning import FineTuning
from sleep_pipeline.baselines.protocol import Learner
from sleep_pipeline.baselines.sleep import Sleep
from sleep_pipeline.corpora.worlds import WorldGenerator, draw_question, fill
from sleep_pipeline.corpora.worlds import questions as every_wording
from sleep_pipeline.environment import apply_defaults
from sleep_pipeline.evaluation.language import language_fit
from sleep_pipeline.evaluation.retention import Retention
from sleep_pipeline.evaluation.texts import ordinary_texts
from sleep_pipeline.generation.replies import greedy_replies
from sleep_pipeline.hardware import keep_freed_memory
from sleep_pipeline.memory import ContinuumMemoryConfig
from sleep_pipeline.memory.digest import base_digest
from sleep_pipeline.night_model import MemorySettings
from sleep_pipeline.registry import write_atomically
from sleep_pipeline.seeding.settings import OptimizerSettings, SeedingSettings
from sleep_pipeline.tracking.git import git_state

DOCUMENTS, FACTS = 8, 4
MEMORY = MemorySettings()


@dataclass(frozen=True)
class Question:
    """A question about one of a night's documents."""

    document: int
    text: str
    answer: str
    fact: int = 0


@dataclass(frozen=True)
class Day:
    """What a night learns from, and is asked."""

    documents: list[str]
    questions: list[Question]


def live(seed: int, number: int | str, documents: int = DOCUMENTS, all_wordings: bool = False) -> Day:
    """A day's documents with one question a fact, or with it in all the wordings that are held out."""
    world = WorldGenerator(f"retention {seed}/{number}", "test", facts=(FACTS, FACTS), entities=(1, 2))
    told = [world.document() for _ in range(documents)]
    rng = random.Random(f"{seed}/{number}")
    questions: list[Question] = []
    facts = [(index, fact) for index, document in enumerate(told) for fact in document.facts]
    for number_of_fact, (index, fact) in enumerate(facts):
        template, noun = draw_question(rng, fact.relation, "test")
        drawn = [fill(template, fact.subject.name, noun=noun)]
        texts = every_wording(fact.subject, fact.relation, "test") if all_wordings else drawn
        questions += [Question(index, text, fact.value, number_of_fact) for text in texts]
    return Day([document.text for document in told], questions)


def ask(model: Any, tokenizer: Any, day: Day, open_book: bool) -> list[int]:
    """1 for every question that is answered with the fact's value."""
    conversations = [
        [
            *([{"role": "system", "content": day.documents[question.document]}] if open_book else []),
            {"role": "user", "content": question.text},
        ]
        for question in day.questions
    ]
    replies = greedy_replies(model, tokenizer, conversations, max_new_tokens=24, batch_size=128)
    return [int(reply.strip() == question.answer) for reply, question in zip(replies, day.questions, strict=True)]


def memory(
    nights: int, layers: int, seed: int, starts_at: float = MEMORY.starts_at, **changes: Any
) -> ContinuumMemoryConfig:
    """The default memory with a slot a night, and the one that stays free for merging."""
    level = MEMORY.levels[0].model_copy(update={"num_slots": nights + 1, **changes})
    return MemorySettings(levels=(level,), starts_at=starts_at).config(layers, seed)


def at_once(days: Sequence[Day]) -> Day:
    """All days as one."""
    documents: list[str] = []
    questions: list[Question] = []
    for day in days:
        questions += [replace(question, document=question.document + len(documents)) for question in day.questions]
        documents += day.documents
    return Day(documents, questions)


def for_all(settings: SeedingSettings, nights: int) -> SeedingSettings:
    """The settings of one night that takes the steps and the rows of all of them."""
    longer = with_steps(settings, nights * settings.optimizer.steps)
    return longer.model_copy(update={"rows": settings.rows + settings.replay.stored_rows})


def with_steps(settings: SeedingSettings, steps: int) -> SeedingSettings:
    """The same settings with other steps a night."""
    return settings.model_copy(update={"optimizer": settings.optimizer.model_copy(update={"steps": steps})})


BRIEF = {
    "teacher": {"replies": 4},
    "replay": {"open_book_documents": 2, "open_book_replies": 2, "altered_texts": 16, "free_texts": 8},
}
"""Settings that change nothing about a step but how much there is to draw its rows from."""
BRIEF_STEPS = (5, 25)


def seconds_a_step(name: str, settings: SeedingSettings, nights: int, device: str) -> float:
    """Seconds of a training step of `name` over those of sleep, over whole lives that take turns night by night.

    Of nights of two lengths the difference is taken, so that what begins and ends a training does not count as steps.
    """
    brief = SeedingSettings.model_validate(merged(settings.model_dump(by_alias=True), BRIEF))
    both = ("sleep", name)
    seconds = dict.fromkeys(both, 0.0)
    for steps, sign in zip(BRIEF_STEPS, (-1, 1), strict=True):
        learners = {one: METHODS[one](*fresh_model(device), with_steps(brief, steps), nights, 0) for one in both}
        for number in range(nights):
            for one in both[:: 1 if number % 2 else -1]:
                learners[one].learn(live(0, f"timed {number}").documents, number + 1)
        for one in both:
            seconds[one] += sign * sum(learners[one].training_seconds)
    return seconds[name] / seconds["sleep"]


def fresh_model(device: str) -> tuple[Any, Any]:
    """The embedded model as it is loaded, with its tokenizer."""
    model, tokenizer = load_model()
    model.to(device)
    model.set_attn_implementation("eager")
    return model, tokenizer


Maker = Callable[[Any, Any, SeedingSettings, int, int], Learner]


def sleeping(change: dict[str, Any] | None = None, **memory_changes: Any) -> Maker:
    """Sleep with some settings changed."""

    def make(model: Any, tokenizer: Any, settings: SeedingSettings, nights: int, seed: int) -> Learner:
        changed = SeedingSettings.model_validate(merged(settings.model_dump(by_alias=True), change or {}))
        config = memory(nights, model.config.num_hidden_layers, seed, **memory_changes)
        return Sleep(model, tokenizer, changed, config, seed)

    return make


def tuning(
    data: Any, lora: bool, replay: bool = False, anchor: float = 0.0, rate: float | None = None, muon: bool = False
) -> Maker:
    """Fine-tuning in sequence, by AdamW unless it is `muon`; a LoRA gets the parameters of all experts together."""

    def make(model: Any, tokenizer: Any, settings: SeedingSettings, nights: int, seed: int) -> Learner:
        rank = None
        if lora:
            config = model.config
            # An expert has two matrices [rank, d] a layer with a memory; a LoRA of rank 1 has in + out a linear layer.
            linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.out_features < 4096]
            each = sum(m.in_features + m.out_features for m in linear)
            carrying = len(MEMORY.layers(config.num_hidden_layers))
            rank = max(1, nights * MEMORY.levels[0].rank * 2 * config.hidden_size * carrying // each)
        adamw = None if muon else rate or settings.optimizer.learning_rate
        return FineTuning(model, tokenizer, settings, data, rank, replay, anchor, adamw, seed)

    return make


METHODS: dict[str, Maker] = {
    "sleep": sleeping(),
    "documents_lora": tuning("documents", lora=True),
    "documents_full": tuning("documents", lora=False, rate=3e-4),
    "samples_lora": tuning("samples", lora=True),
    "samples_full": tuning("samples", lora=False, rate=3e-4),
    "samples_lora_replay": tuning("samples", lora=True, replay=True),
    "samples_lora_replay_muon": tuning("samples", lora=True, replay=True, muon=True),
    "samples_full_replay": tuning("samples", lora=False, replay=True, rate=3e-4),
    "samples_lora_ewc": tuning("samples", lora=True, anchor=0.2),
    "distillation_lora": tuning("beliefs", lora=True),
    "no_expansion": tuning("beliefs", lora=True, replay=True),
    "joint_lora": tuning("beliefs", lora=True, replay=True),
    "joint_full": tuning("beliefs", lora=False, replay=True, rate=3e-4),
    "no_imitation": sleeping({"lambda": 0.25, "alpha": 1.0}),
    "no_semantic_reward": sleeping({"lambda": 0.25, "imitation": {"gamma": 0.0}}),
    "on_policy_share": sleeping({"lambda": 0.25}),
    "on_policy_only": sleeping({"lambda": 1.0}),
    "no_replay": sleeping({"replay": {"stored_rows": 0, "open_book_rows": 0}}),
    "frozen_experts": sleeping({"optimizer": {"earlier_rate": 0.0}}),
    "adamw": sleeping({"optimizer": {"muon_rate": None}}),
    "all_layers": sleeping(starts_at=0.0, rank=16),
    "router_null_softmax": sleeping(router="null_softmax"),
    "router_sigmoid": sleeping(router="sigmoid"),
}
JOINT = [name for name in METHODS if name.startswith("joint")]
RIVALS = [name for name in METHODS if name.startswith(("documents", "samples", "distillation", "no_expansion"))] + JOINT


def run(
    name: str, settings: SeedingSettings, nights: int, seed: int, documents: int, say: bool, device: str = "cpu"
) -> Life:
    """Live through all nights, asking everything after each."""
    torch.manual_seed(seed)
    model, tokenizer = fresh_model(device)
    days = [live(seed, number, documents) for number in range(nights)]
    if name in JOINT:
        days, settings = [at_once(days)], for_all(settings, nights)
    probe = live(seed, "never learned", 16 * documents)
    open_book = [ask(model, tokenizer, day, open_book=True) for day in days]
    texts = ordinary_texts([], Path())
    perplexity = [language_fit(model, tokenizer, texts).perplexity]
    reading = [statistics.mean(ask(model, tokenizer, probe, open_book=True))]
    invented = [statistics.mean(ask(model, tokenizer, probe, open_book=False))]
    learner = METHODS[name](model, tokenizer, settings, nights, seed)
    retention = Retention()
    seconds, details = [], []
    for night, day in enumerate(days):
        before = ask(learner.model, tokenizer, day, open_book=False)
        began = time.perf_counter()
        learner.learn(day.documents, night + 1)
        seconds.append(time.perf_counter() - began)
        row = [ask(learner.model, tokenizer, earlier, open_book=False) for earlier in days[: night + 1]]
        retention = retention.append(night + 1, row, before=before, open_book=open_book[night])
        reading.append(statistics.mean(ask(learner.model, tokenizer, probe, open_book=True)))
        invented.append(statistics.mean(ask(learner.model, tokenizer, probe, open_book=False)))
        perplexity.append(language_fit(learner.model, tokenizer, texts).perplexity)
        if isinstance(learner, Sleep):
            last = learner.nights[-1]
            details.append({"lessons": len(last.gathered.lessons), **last.seconds})
        else:
            details.append({"steps": settings.optimizer.steps})
        if say:
            scores = " ".join(f"{statistics.mean(answers):.2f}" for answers in row)
            print(
                f"    night {night + 1}: {scores} | teacher {statistics.mean(open_book[night]):.2f}, reading "
                f"{reading[0]:.2f} -> {reading[-1]:.2f}, {seconds[-1]:.0f} s {details[-1] if details else ''}",
                flush=True,
            )
    return Life(retention, reading, invented, seconds, learner.stored, details, perplexity)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two short nights of sleep, one seed, under a minute")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--methods", default="sleep", help=f"all, rivals, or some of {', '.join(METHODS)}")
    parser.add_argument("--nights", type=int, default=10)
    parser.add_argument("--documents", type=int, default=DOCUMENTS, help=f"a night; default: {DOCUMENTS}")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--threads", type=int, default=None, help="of torch; default: its own choice")
    parser.add_argument("--device", default="cpu", help="where all of it runs; seconds of another device are no rivals")
    parser.add_argument(
        "--equal", choices=("steps", "seconds"), default="seconds", help="what rivals have as many of as sleep, a night"
    )
    parser.add_argument("--set", default="{}", help="JSON of seeding settings to change, for trying things out")
    parser.add_argument("--table", action="store_true", help="only print what stands in the file, as Markdown")
    parser.add_argument("--figure", type=Path, help="only draw what stands in the file, here")
    arguments = parser.parse_args()
    if arguments.table or arguments.figure:
        if arguments.json is None or not arguments.json.exists():
            parser.error(f"--table and --figure need a file of lives that were lived: --json {arguments.json} is none")
        show(json.loads(arguments.json.read_text(encoding="utf-8")), arguments.table, arguments.figure)
        return
    apply_defaults()
    keep_freed_memory()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    names = {"all": list(METHODS), "rivals": RIVALS}.get(arguments.methods) or arguments.methods.split(",")
    if unknown := set(names) - set(METHODS):
        parser.error(f"unknown methods {', '.join(sorted(unknown))}; choose from {', '.join(METHODS)}")
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    nights, documents = arguments.nights, arguments.documents
    # The steps of every method would not be equal if sleep's depended on its lessons.
    equal = SeedingSettings(optimizer=OptimizerSettings(passes=0.0)).model_dump(by_alias=True)
    settings = SeedingSettings.model_validate(merged(equal, json.loads(arguments.set)))
    if arguments.quick:
        nights, seeds, documents = 2, seeds[:1], 2
        settings = SeedingSettings.model_validate(
            merged(
                settings.model_dump(by_alias=True),
                {"rows": 8, "replay": {"stored_rows": 8, "open_book_documents": 4}, "optimizer": {"steps": 80}},
            )
        )
    protocol = {
        "command": "python benchmarks/retention.py",
        "nights": nights,
        "documents": documents,
        "facts": FACTS,
        "equal": arguments.equal,
        "settings": settings.model_dump(by_alias=True, mode="json"),
        "memory": MEMORY.model_dump(mode="json"),
        "model": base_digest(load_model()[0]),
        "threads": torch.get_num_threads(),
        "machine": torch.cuda.get_device_name() if arguments.device.startswith("cuda") else platform.machine(),
        "torch": torch.__version__,
    }
    git = git_state(Path(__file__).parent)
    commit = git.commit if git else None
    lives = earlier(arguments.json, protocol)
    costs: dict[str, float] = {}
    for seed in seeds:
        for name in names:
            if str(seed) in lives.get(name, {}):
                continue
            print(f"{name}, seed {seed}", flush=True)
            steps = settings.optimizer.steps
            if arguments.equal == "seconds" and name in RIVALS and name not in JOINT:
                costs[name] = costs.get(name) or seconds_a_step(name, settings, nights, arguments.device)
                steps = max(1, round(steps / costs[name]))
                print(f"    {steps} steps of {costs[name]:.2f} times the seconds of sleep's", flush=True)
            life = run(name, with_steps(settings, steps), nights, seed, documents, True, arguments.device)
            lived = {**life.to_json(), "commit": commit}
            with nullcontext() if arguments.json is None else locked(arguments.json):
                # Others may have written meanwhile.
                lives = {**lives, **earlier(arguments.json, protocol)}
                lives[name] = {**lives.get(name, {}), str(seed): lived}
                write(arguments.json, protocol, lives)
    found = write(arguments.json, protocol, lives)
    for key, figure in found.items():
        low, high = figure["interval"]
        print(f"{key}: {figure['value']:.3f} [{low:.3f}, {high:.3f}] {figure['unit']}")


def earlier(path: Path | None, protocol: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The lives that stand in a file already, by method and seed; they are not lived again.

    Raises:
        SystemExit: they were lived by another protocol.
    """
    if path is None or not path.exists():
        return {}
    record = json.loads(path.read_text(encoding="utf-8"))
    settings = SeedingSettings.model_validate(as_it_was(record["protocol"]["settings"]))
    record["protocol"]["settings"] = settings.model_dump(by_alias=True, mode="json")
    record["protocol"].setdefault("equal", "steps")
    what = ("nights", "documents", "facts", "equal", "settings", "memory", "model")
    other = [name for name in what if record["protocol"].get(name) != json.loads(json.dumps(protocol[name]))]
    if other:
        sys.exit(f"{path} holds lives of other {', '.join(other)}; write to another file, or delete that one")
    lives: dict[str, dict[str, Any]] = record["lives"]
    return lives


def write(path: Path | None, protocol: dict[str, Any], lives: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """All figures, which go into the file with what they come from."""
    found: dict[str, Any] = {}
    for name, mine in lives.items():
        found |= figures(name, [Life.from_json(life) for life in mine.values()])
    found |= margin(lives, [name for name in RIVALS if name not in JOINT])
    if path:
        record = {"figures": found, "protocol": protocol, "lives": lives}
        write_atomically(path, json.dumps(record, separators=(",", ":")) + "\n")
    return found


if __name__ == "__main__":
    main()
