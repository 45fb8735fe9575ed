"""What dreaming adds to seeding, at equal seconds, and what each of its parts adds to it.

    python benchmarks/dreaming.py --json build/dreaming.json                 # the default arms, 3 seeds
    python benchmarks/dreaming.py --arms all --json build/dreaming.json      # with ReST-EM, hours on a thread
    python benchmarks/dreaming.py --quick                                    # one seed, little of everything, a minute

A life's second night brings 16 made-up documents of 4 facts, in names and wordings of the test split. After it every
fact is asked about without the documents in all held-out wordings, those that a teacher's sample asks in the same words
left out; the share of them that is answered with its value is a fact's score.

    seeding             learns all that the teacher says, in the default steps
    seeding_longer      the same in as many steps as take the seconds of the whole night of `dreaming`
    dreaming            a tenth of the samples is held out and judges dreams; those that help are learned in refining,
                        which does not take place if none does
    refining_alone      as `dreaming`, with the night's lessons alone in refining
    random_rewards      as many dreams are learned, drawn from those that were tried
    no_selection        as many dreams are tried, drawn from all
    no_random_expert    the one earlier expert is not opened wide while dreaming, which is what a random one is here
    rest_em             the dreamer gets better in 3 rounds first

Arms but the first two start from the same seeded expert. Figures are means over the facts of all seeds with 95 %
bootstrap intervals, differences paired by fact; `runs` of the JSON holds every seed's answers.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model

from _results import locked, merged
from retention import MEMORY, Day, ask, live, memory
from sleep_pipeline import load_model
from sleep_pipeline.dreaming.dreamer import dream_and_improve, new_dreamer
from sleep_pipeline.dreaming.night import DreamReport, dream_night
from sleep_pipeline.dreaming.settings import DreamingSettings
from sleep_pipeline.dreaming.tau import Probe
from sleep_pipeline.environment import apply_defaults
from sleep_pipeline.evaluation.statistics import mean_interval, paired_difference
from sleep_pipeline.hardware import keep_freed_memory
from sleep_pipeline.memories.contexts import is_held_out, plain_question
from sleep_pipeline.memory import CONTEXT, base_view, consolidation
from sleep_pipeline.memory.digest import base_digest
from sleep_pipeline.registry import write_atomically
from sleep_pipeline.seeding.lessons import Lesson, read_beliefs
from sleep_pipeline.seeding.night import NightData, gather, learn, seed_night
from sleep_pipeline.seeding.replay import ReplayStore
from sleep_pipeline.seeding.settings import RefineSettings, SeedingSettings

ARMS: dict[str, dict[str, Any]] = {
    "dreaming": {},
    "refining_alone": {},
    "random_rewards": {"rewards": {"by_lot": True}},
    "no_selection": {"scores": {"top_k": 0, "random_b": 16}},
    "no_random_expert": {"dreams": {"random_expert": False}},
    "rest_em": {"rest_em": {"rounds": 3}},
}
"""What the arms after seeding change of a night's dreaming."""

PLAIN = ("seeding", "seeding_longer")
DEFAULT = [name for name in ARMS if name != "rest_em"]
JUDGING = 0.1


@dataclass
class Outcome:
    """What became of one arm.

    Attributes:
        answers: of every fact, the share of its questions that are answered with its value, closed book.
        earlier: the same of the earlier night's facts.
        reading: share of unseen documents' questions that are answered with the document before them.
        seconds: of the whole night.
        details: of its dreaming.
    """

    answers: list[float]
    earlier: list[float]
    reading: float
    seconds: float
    details: dict[str, float] = field(default_factory=dict)


class Night:
    """A second night, which can be lived in several ways."""

    def __init__(
        self,
        seed: int,
        documents: int,
        seeding: SeedingSettings,
        dreaming: DreamingSettings,
        refining: RefineSettings,
    ) -> None:
        self.seed, self.seeding, self.dreaming, self.refining = seed, seeding, dreaming, refining
        torch.manual_seed(seed)
        base, self.tokenizer = load_model()
        base.set_attn_implementation("eager")
        self.model: Any = get_peft_model(base, memory(2, base.config.num_hidden_layers, seed)).eval()
        self.store = ReplayStore(seeding.replay.stored_capacity, seeding.replay.open_book_capacity)
        self.earlier, self.day = (live(seed, f"dreaming {night}", documents, all_wordings=True) for night in (1, 2))
        self.unseen = live(seed, "dreaming, never learned", 2 * documents)
        seed_night(self.model, self.tokenizer, self.earlier.documents, seeding, self.store, 1, seed)
        self.own = 7919 * seed + 2
        self.asked = {plain_question(question.text) for day in (self.earlier, self.day) for question in day.questions}

    def lived(self, arms: Sequence[str], say: Callable[[str], None]) -> dict[str, Outcome]:
        """Every arm's outcome; questions that the teacher asks in the same words are taken out of the day."""
        with consolidation(self.model, CONTEXT, 1, night=2, plastic=self.seeding.plastic) as sleep:
            began = time.perf_counter()
            with base_view(self.model):
                data = gather(
                    self.model, self.tokenizer, self.day.documents, self.seeding, self.own, withheld=self._is_asked
                )
            sampling = time.perf_counter() - began
            said = {plain_question(sample.question) for sample in data.data.samples}
            kept = [question for question in self.day.questions if plain_question(question.text) not in said]
            self.day = Day(self.day.documents, kept)
            outcomes = self._arms(arms, data, sampling, say)
            sleep.abort()
        return outcomes

    def _arms(
        self, arms: Sequence[str], data: NightData, sampling: float, say: Callable[[str], None]
    ) -> dict[str, Outcome]:
        fresh = self._experts()
        outcomes: dict[str, Outcome] = {}

        def done(name: str, seconds: float, **details: float) -> None:
            outcomes[name] = self._outcome(seconds, details)
            say(f"    {name}: {statistics.mean(outcomes[name].answers):.3f} in {seconds:.0f} s {details or ''}")

        whole = self.seeding.for_night(len(data.lessons))
        seconds = sampling + self._learn(data.lessons, data, whole)
        done("seeding", seconds)
        training = seconds - sampling
        self._put(fresh)
        pairs = list(zip(data.lessons, data.data.samples, strict=True))
        rest = [lesson for lesson, sample in pairs if not self._judges(sample.question)]
        judging = {(s.context, s.question): s.answer for _, s in pairs if self._judges(s.question)}
        probes = [Probe(context, question, answer) for (context, question), answer in judging.items()]
        before = sampling + self._learn(rest, data, self.seeding.for_night(len(rest)))
        seeded = self._experts()
        for name in arms:
            self._put(seeded)
            began = time.perf_counter()
            report = None if name == "refining_alone" else self._dream(ARMS[name], probes)
            dreaming = time.perf_counter() - began
            lessons = rest if report is None else [*rest, *self._lessons(report)]
            # As in a night: without a dream that helped there is no refining.
            if report is None or len(lessons) > len(rest):
                self._learn(lessons, data, self.refining.seeding(self.seeding).for_night(len(lessons)))
            found = {} if report is None else {"tried": len(report.tried), "rewarded": len(report.rewarded)}
            done(
                name,
                before + time.perf_counter() - began,
                **found,
                dreaming=dreaming,
                dream_lessons=len(lessons) - len(rest),
            )
        if "dreaming" in outcomes:
            self._put(fresh)
            steps = round(whole.optimizer.steps * (outcomes["dreaming"].seconds - sampling) / training)
            optimizer = whole.optimizer.model_copy(update={"steps": steps})
            longer = whole.model_copy(update={"optimizer": optimizer})
            done("seeding_longer", sampling + self._learn(data.lessons, data, longer), steps=steps)
        return outcomes

    def _by_fact(self, day: Day) -> list[float]:
        """Of every fact that is asked about, the share of its questions that are answered without the documents."""
        right: dict[int, list[int]] = {}
        for question, answer in zip(day.questions, ask(self.model, self.tokenizer, day, open_book=False), strict=True):
            right.setdefault(question.fact, []).append(answer)
        return [statistics.mean(answers) for answers in right.values()]

    def _is_asked(self, question: str) -> bool:
        return plain_question(question) in self.asked

    def _judges(self, question: str) -> bool:
        return is_held_out(question, JUDGING, "dreams")

    def _learn(self, lessons: Sequence[Lesson], data: NightData, settings: SeedingSettings) -> float:
        return learn(self.model, self.tokenizer, lessons, self.store, settings, self.own, data.open_book).seconds

    def _dream(self, change: dict[str, Any], probes: Sequence[Probe]) -> DreamReport:
        settings = DreamingSettings.model_validate(merged(self.dreaming.model_dump(), change))

        def withheld(question: str) -> bool:
            return self._is_asked(question) or self._judges(question)

        given = (self.tokenizer, self.day.documents, probes, settings, self.own, self.earlier.documents)
        if not settings.rest_em.rounds:
            return dream_night(self.model, *given, withheld=withheld)
        dreamer = new_dreamer(self.model, settings.rest_em, self.own)
        try:
            return dream_and_improve(self.model, dreamer, *given, withheld=withheld).report
        finally:
            dreamer.base_model.disable_adapter_layers()

    def _lessons(self, report: DreamReport) -> list[Lesson]:
        sources, samples = report.lessons()
        reader = nullcontext() if self.seeding.teacher.experts else base_view(self.model)
        teacher = self.seeding.teacher
        with reader:
            return read_beliefs(self.model, self.tokenizer, sources, samples, teacher.top_k, teacher.reading_rows)

    def _experts(self) -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in self.model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def _put(self, experts: dict[str, torch.Tensor]) -> None:
        for name, parameter in self.model.named_parameters():
            if name in experts:
                parameter.copy_(experts[name])

    def _outcome(self, seconds: float, details: dict[str, float]) -> Outcome:
        return Outcome(
            self._by_fact(self.day),
            self._by_fact(self.earlier),
            statistics.mean(ask(self.model, self.tokenizer, self.unseen, open_book=True)),
            seconds,
            details,
        )


def figures(runs: dict[str, dict[str, Outcome]]) -> dict[str, Any]:
    """Of every arm, over the facts of all seeds that have lived it."""
    found: dict[str, Any] = {}

    def entry(name: str, estimate: Any, unit: str) -> None:
        found[name] = {"value": estimate.value, "unit": unit, "interval": [estimate.low, estimate.high]}

    for arm in dict.fromkeys(arm for outcomes in runs.values() for arm in outcomes):
        mine = {seed: outcomes[arm] for seed, outcomes in runs.items() if arm in outcomes}
        entry(f"{arm}.closed_book", mean_interval([a for o in mine.values() for a in o.answers]), "share")
        entry(f"{arm}.earlier_night", mean_interval([a for o in mine.values() for a in o.earlier]), "share")
        for name in ("reading", "seconds"):
            values = [getattr(outcome, name) for outcome in mine.values()]
            unit = "s" if name == "seconds" else "share, with unseen documents"
            found[f"{arm}.{name}"] = {
                "value": statistics.mean(values),
                "unit": f"{unit}; least and greatest seed",
                "interval": [min(values), max(values)],
            }
        for other in ("seeding_longer", "dreaming"):
            both = [seed for seed in mine if other in runs[seed]]
            if other != arm and both:
                after, before = ([a for s in both for a in runs[s][which].answers] for which in (arm, other))
                entry(f"{arm}.over_{other}", paired_difference(after, before), "share, paired by fact")
    return found


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, three documents, fewer steps and dreams")
    parser.add_argument("--json", type=Path, help="write the figures here; seeds that stand in it are not run again")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--arms", default=",".join(DEFAULT), help=f"all, or some of {', '.join(ARMS)}")
    parser.add_argument("--documents", type=int, default=16)
    parser.add_argument("--threads", type=int, default=None, help="of torch; default: its own choice")
    arguments = parser.parse_args()
    apply_defaults()
    keep_freed_memory()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    arms = list(ARMS) if arguments.arms == "all" else arguments.arms.split(",")
    if unknown := set(arms) - set(ARMS):
        parser.error(f"unknown arms {', '.join(sorted(unknown))}; choose from {', '.join(ARMS)}")
    seeds, documents = arguments.seeds.split(","), arguments.documents
    seeding, dreaming, refining = SeedingSettings(), DreamingSettings(), RefineSettings()
    if arguments.quick:
        refining = RefineSettings(steps=10, passes=0)
        seeds, documents, arms = seeds[:1], 3, ["dreaming"]
        few = {"optimizer": {"steps": 30}, "replay": {"open_book_documents": 4, "free_texts": 4}}
        seeding = SeedingSettings.model_validate(merged(seeding.model_dump(by_alias=True), few))
        less = {"dreams": {"dreams": 2}, "scores": {"top_k": 2, "random_b": 1}, "trials": {"steps": 5}}
        dreaming = DreamingSettings.model_validate(merged(dreaming.model_dump(), less))
    protocol = {
        "command": "python benchmarks/dreaming.py",
        "documents": documents,
        "questions": "all held-out wordings of every fact",
        "seeding": seeding.model_dump(by_alias=True, mode="json"),
        "dreaming": dreaming.model_dump(mode="json"),
        "refining": refining.model_dump(mode="json"),
        "memory": MEMORY.model_dump(mode="json"),
        "model": base_digest(load_model()[0]),
        "interval": "95 % percentile bootstrap over the facts of all seeds, unless the unit says otherwise",
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "torch": torch.__version__,
    }
    runs = read(arguments.json, protocol) if arguments.json else {}
    for seed in seeds:
        if set(arms) <= set(runs.get(seed, {})):
            continue
        print(f"seed {seed}", flush=True)
        night = Night(int(seed), documents, seeding, dreaming, refining)
        lived = night.lived(arms, lambda told: print(told, flush=True))
        with nullcontext() if arguments.json is None else locked(arguments.json):
            # Others may have written meanwhile.
            present = read(arguments.json, protocol) if arguments.json else runs
            runs = {**present, seed: {**present.get(seed, {}), **lived}}
            if arguments.json:
                told = {s: {arm: vars(outcome) for arm, outcome in outcomes.items()} for s, outcomes in runs.items()}
                record = {"figures": figures(runs), "protocol": protocol, "runs": told}
                write_atomically(arguments.json, json.dumps(record, separators=(",", ":")) + "\n")
    for name, figure in figures(runs).items():
        low, high = figure["interval"]
        print(f"{name}: {figure['value']:.3f} [{low:.3f}, {high:.3f}] {figure['unit']}")


def read(path: Path, protocol: dict[str, Any]) -> dict[str, dict[str, Outcome]]:
    """The runs that stand in a file, by seed and arm.

    Raises:
        SystemExit: they were made by another protocol.
    """
    if not path.exists():
        return {}
    record = json.loads(path.read_text(encoding="utf-8"))
    if {**record["protocol"], "threads": 0} != json.loads(json.dumps({**protocol, "threads": 0})):
        sys.exit(f"{path} holds runs of another protocol; write to another file, or delete that one")
    return {s: {arm: Outcome(**o) for arm, o in outcomes.items()} for s, outcomes in record["runs"].items()}


if __name__ == "__main__":
    main()
