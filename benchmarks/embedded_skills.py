"""What the embedded language model can do: every skill on held-out worlds and wordings, greedy, whole answers.

    python benchmarks/embedded_skills.py --json build/embedded_skills.json    # three draws of 300 examples a skill
    python benchmarks/embedded_skills.py --quick                              # one draw of 20, under a minute
    python benchmarks/embedded_skills.py --model PATH_OR_HUB_NAME             # any other causal LM

An interval is Wilson's (exact match) or a bootstrap's (shares), 95 %, over all draws together; it speaks of the
examples, not of other training runs of the model.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from sleep_pipeline.evaluation.skills import evaluate_skills
from sleep_pipeline.evaluation.statistics import mean_interval
from sleep_pipeline.language_model import EMBEDDED, load_model

TARGETS = {
    "question_answering": ">= 95",
    "closed_book": "<= 3",
    "unanswerable": ">= 80",
    "needles": ">= 80",
    "classification": ">= 80",
    "question_writing": ">= 90",
}


def main() -> None:
    """Run, print a table, and write the JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one draw of 20 examples")
    parser.add_argument("--model", default=EMBEDDED, help="embedded, a folder, or a hub name")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    count, seeds = (20, [0]) if arguments.quick else (300, [0, 1, 2])
    model, tokenizer = load_model(arguments.model)
    scores: dict[str, list[float]] = {}
    for seed in seeds:
        for name, report in evaluate_skills(model, tokenizer, count, seed).items():
            scores.setdefault(name, []).extend(score for _, _, score in report.graded)
    figures: dict[str, dict[str, Any]] = {}
    for name, values in scores.items():
        estimate = mean_interval(values)
        value, low, high = (100 * part for part in (estimate.value, estimate.low, estimate.high))
        figures[name] = {"value": value, "unit": "%", "interval": [low, high]}
        target = f"  target {TARGETS[name]}" if name in TARGETS else ""
        print(f"{name:20s} {value:6.1f} % [{low:5.1f}, {high:5.1f}]  {len(values)} examples{target}")
    if arguments.json:
        protocol = {
            "model": arguments.model,
            "parameters": model.num_parameters(),
            "examples": f"{count} a skill and draw, test split of names and wordings",
            "seeds": seeds,
            "decoding": "greedy, zero-shot, whole answers",
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"figures": figures, "protocol": protocol}, indent=2) + "\n")


if __name__ == "__main__":
    main()
