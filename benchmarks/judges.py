"""How well the base model's own judgement of whether two answers mean the same agrees with truth.

    python benchmarks/judges.py --json build/judges.json    # 3 seeds, some minutes on a thread
    python benchmarks/judges.py --quick                     # one seed, few pairs, under a minute

Pairs of answers to a question about a made-up fact of the test split. Half of them mean the same: the value and a
sentence that states the fact, with a full stop or in small letters, or two statements in different words. The others
differ in the value, which is another one of the same document, in the same forms. The threshold is the default one
(`sensitivity`, `specificity`), and for comparison calibrated on as many pairs of another world (`calibrated_*`).
Intervals are Wilson's over the pairs of all seeds; that of the thresholds is their least and greatest.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from _timing import report
from sleep_pipeline import load_model
from sleep_pipeline.corpora.worlds import Document, Fact, WorldGenerator, draw_question, fill, statements
from sleep_pipeline.environment import apply_defaults
from sleep_pipeline.evaluation.statistics import mean_interval
from sleep_pipeline.memory.digest import base_digest
from sleep_pipeline.seeding.judges import LikelihoodJudge, Trio


def pair(rng: random.Random, document: Document, fact: Fact, same: bool) -> Trio | None:
    """A question about a fact and two answers that mean the same, or do not; None without another value."""
    template, noun = draw_question(rng, fact.relation, "test")
    question = fill(template, fact.subject.name, noun=noun)
    told = statements(fact, "test")
    one, other = rng.sample(told, 2)
    if same:
        return (question, *rng.choice([(fact.value, one), (fact.value, f"{fact.value}."), (one, other)]))
    values = [each.value for each in document.facts if each.value != fact.value]
    if not values:
        return None
    wrong = rng.choice(values)
    changed = other.replace(fact.value, wrong)
    return (question, *rng.choice([(fact.value, changed), (fact.value, wrong), (one, changed)]))


def pairs(name: str, count: int) -> tuple[list[Trio], list[bool]]:
    """So many pairs of a world, every other one of which means the same."""
    world, rng = WorldGenerator(f"judges {name}", "test", facts=(4, 4), entities=(2, 2)), random.Random(name)
    trios: list[Trio] = []
    while len(trios) < count:
        document = world.document()
        for fact in document.facts:
            found = pair(rng, document, fact, same=len(trios) % 2 == 0)
            if found is not None and len(trios) < count:
                trios.append(found)
    return trios, [number % 2 == 0 for number in range(count)]


def main() -> None:
    """Run, print a table, and write the JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, 24 pairs")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--pairs", type=int, default=200, help="to calibrate on, and as many to measure on, a seed")
    parser.add_argument("--threads", type=int, default=None, help="of torch; default: its own choice")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    apply_defaults()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    seeds, count = (["0"], 24) if arguments.quick else (arguments.seeds.split(","), arguments.pairs)
    model, tokenizer = load_model()
    right: dict[str, list[float]] = {}
    thresholds = []
    for seed in seeds:
        judge = LikelihoodJudge(model, tokenizer)
        trios, same = pairs(f"measured {seed}", count)
        note(right, "", judge.agree(trios), same)
        thresholds.append(judge.calibrate(*pairs(f"calibrated {seed}", count)).threshold)
        note(right, "calibrated_", judge.agree(trios), same)
    figures: dict[str, Any] = {}
    for name, answers in right.items():
        found = mean_interval(answers)
        figures[name] = {"value": found.value, "unit": "share of pairs", "interval": [found.low, found.high]}
    middle = sum(thresholds) / len(thresholds)
    figures["calibrated_threshold"] = {
        "value": middle,
        "unit": "nats a token",
        "interval": [min(thresholds), max(thresholds)],
    }
    protocol = {
        "command": "python benchmarks/judges.py",
        "model": "embedded",
        "weights": base_digest(model),
        "seeds": seeds,
        "pairs": f"{count} a seed to measure on, as many to calibrate on, test split",
        "default_threshold": LikelihoodJudge(model, tokenizer).threshold,
        "interval": "95 %, Wilson, over pairs; of the threshold least and greatest",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    report(figures, {}, protocol, arguments.json)


def note(right: dict[str, list[float]], prefix: str, agreed: Sequence[bool], same: Sequence[bool]) -> None:
    """Add whether each pair was judged as it is, apart for those that mean the same and the others."""
    for told, true in zip(agreed, same, strict=True):
        name = f"{prefix}{'sensitivity' if true else 'specificity'}"
        right.setdefault(name, []).append(float(told == true))


if __name__ == "__main__":
    main()
