"""What it costs to know whether the teacher agrees with itself, and whether both checks say the same.

    python benchmarks/teacher_check.py --json build/teacher_check.json    # 16 documents, minutes on one thread
    python benchmarks/teacher_check.py --quick                            # 3 documents, under a minute

The embedded model writes questions and answers about made-up documents and excerpts of them once, as in a night; then
all that it wrote is checked:

- `replies`: every question is asked three times more.
- `probability`: one pass tells how likely each answer is to come again; a text is read once for all its questions.
- `whole`: the same, with the text read anew for every answer.

Each repetition times every way once, in an order drawn anew; a figure is the median over repetitions of the ratio
within one, its interval their least and greatest. `same_decision` is the share of samples that `replies` and
`probability` both keep or both drop, and `replies_twice` that of two rounds of replies, which is all that can be
expected of the first. `log_prob_difference` is the largest between `probability` and `whole`, nats an answer.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from _timing import CLOCKS, alternate, figure, machine, over, report
from sleep_pipeline import load_model
from sleep_pipeline.corpora.worlds import WorldGenerator
from sleep_pipeline.generation import reading
from sleep_pipeline.seeding.agreement import agreeing_replies, answer_probabilities
from sleep_pipeline.seeding.teacher import TeacherSettings, sample_teacher

WANTED = {"replies_over_probability": "> 1", "whole_over_probability": "> 1", "log_prob_difference": "< 1e-3"}


def same_decisions(left: Sequence[float], right: Sequence[float], agreement: float) -> float:
    """The share of samples that both keep or both drop."""
    return sum((a >= agreement) == (b >= agreement) for a, b in zip(left, right, strict=True)) / len(left)


def main() -> None:
    """Run, print a table, and write the JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 documents, 2 repetitions")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--documents", type=int, default=16)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clock", default="wall", choices=list(CLOCKS), help="cpu on a busy machine without a GPU")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    documents, repetitions = (3, 2) if arguments.quick else (arguments.documents, arguments.repetitions)
    model, tokenizer = load_model()
    model.to(arguments.device)
    world = WorldGenerator("teacher check", "test", facts=(4, 4))
    texts = [world.document().text for _ in range(documents)]
    settings = TeacherSettings()
    written = sample_teacher(model, tokenizer, texts, settings.model_copy(update={"agreement": 0.0})).samples
    claims = [(sample.read(texts) or "", sample.question, (sample.answer,)) for sample in written]
    rounds = list[list[float]]()

    def whole() -> list[float]:
        with patch.object(reading, "goes_on_from_caches", lambda model: False):
            return answer_probabilities(model, tokenizer, claims, settings.batch_size)

    def replies() -> list[float]:
        times = settings.reasked
        same = agreeing_replies(model, tokenizer, claims, times, settings.match, settings.batch_size, seed=len(rounds))
        rounds.append([len(agreeing) / times for agreeing in same])
        return rounds[-1]

    ways: dict[str, Callable[[], Any]] = {
        "probability": lambda: answer_probabilities(model, tokenizer, claims, settings.batch_size),
        "whole": whole,
        "replies": replies,
    }
    taken, found = alternate(ways, repetitions, arguments.clock)
    differences = [
        abs(math.log(one) - math.log(other)) for one, other in zip(found["probability"], found["whole"], strict=True)
    ]
    agreement = settings.agreement
    figures = {
        f"{name}_over_probability": figure(over(taken[name], taken["probability"]), "times")
        for name in ("replies", "whole")
    }
    figures |= {f"{name}_seconds": figure(values, "s") for name, values in taken.items()}
    figures["same_decision"] = figure([same_decisions(one, found["probability"], agreement) for one in rounds], "share")
    figures["replies_twice"] = figure(
        [same_decisions(one, other, agreement) for one, other in pairwise(rounds)], "share"
    )
    kept = {"replies": rounds[-1], "probability": found["probability"]}
    figures |= {
        f"{name}_kept": figure([sum(value >= agreement for value in values) / len(values)], "share")
        for name, values in kept.items()
    }
    figures["log_prob_difference"] = figure([max(differences)], "nats")
    protocol = {
        "model": "embedded",
        "samples": f"{len(claims)} about {documents} documents and excerpts of them",
        "reasked": settings.reasked,
        "agreement": agreement,
        "batch_size": settings.batch_size,
        "repetitions": repetitions,
        "value": "median over repetitions of the ratio within one; interval: least and greatest",
        "dtype": str(next(model.parameters()).dtype),
        **machine(arguments.device, arguments.clock),
    }
    report(figures, WANTED, protocol, arguments.json)


if __name__ == "__main__":
    main()
