"""What workers bring: isolated trials in this process on one thread, against two or more workers of Ray (extra `ray`).

    python benchmarks/trial_workers.py --json build/trial_workers.json     # some minutes
    python benchmarks/trial_workers.py --quick                             # under a minute on an idle machine

Dreams of 30 to 80 random tokens, all of them learned, on the embedded model; adapters of rank 8 on every linear layer.
Every repetition times each way once, in an order drawn anew; a figure is the median over the repetitions of the ratio
within one repetition, its interval their least and greatest. Workers are started and given the model before, which is
timed apart: it is paid once a night. They need as many idle cores as there are of them.

`differing_trials` counts the trials whose losses, or any number of whose adapter, are not the same bits in both ways,
and `largest_difference` is the largest of any number of an adapter.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from _timing import LONGEST, SHORTEST, alternate, base_model, draw, figure, machine, over, report
from sleep_pipeline.dreaming.settings import TrialSettings
from sleep_pipeline.dreaming.trials import Trial, run_trials
from sleep_pipeline.dreaming.workers import Workers


def difference(one: Trial, other: Trial) -> float:
    """Return the largest difference of any number of two adapters."""
    return max(
        float((getattr(factors, name) - getattr(other.adapter.layers[layer], name)).abs().max())
        for layer, factors in one.adapter.layers.items()
        for name in ("down", "up")
    )


def main() -> None:
    """Run, print a table, and write the JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 repetitions of 16 dreams and 5 steps")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    repetitions, count, steps = (2, 16, 5) if arguments.quick else (7, 32, 20)
    model = base_model("embedded", "cpu")
    dreams = draw(model.config.vocab_size, count)
    settings = TrialSettings(rank=8, steps=steps)
    began = time.perf_counter()
    with Workers(arguments.workers) as workers:
        workers.hold(model)
        started = time.perf_counter() - began
        began = time.perf_counter()
        workers.hold(model)
        sent = time.perf_counter() - began
        run_trials(model, dreams, settings.model_copy(update={"steps": 1}), None, workers)
        taken, returned = alternate(
            {
                "one_process": lambda: run_trials(model, dreams, settings),
                "workers": lambda: run_trials(model, dreams, settings, None, workers),
            },
            repetitions,
        )
    pairs = list(zip(returned["one_process"].trials, returned["workers"].trials, strict=True))
    apart = [difference(*pair) for pair in pairs]
    differing = sum(one.losses != other.losses or gap > 0 for (one, other), gap in zip(pairs, apart, strict=True))
    figures = {
        "one_process_over_workers": figure(over(taken["one_process"], taken["workers"]), "times"),
        **{f"{name}_seconds": figure(values, "s") for name, values in taken.items()},
        "start_seconds": figure([started], "s"),
        "send_again_seconds": figure([sent], "s"),
        "differing_trials": figure([differing], "of " + str(count)),
        "largest_difference": figure([max(apart)], ""),
    }
    protocol = {
        "workers": f"{arguments.workers} of one thread each, beside a process of one thread",
        "dreams": f"{count} of {SHORTEST}-{LONGEST} random tokens, all learned",
        "steps": steps,
        "rank": settings.rank,
        "repetitions": repetitions,
        "value": "median over repetitions of the ratio within one; interval: least and greatest",
        **machine("cpu", "wall"),
    }
    report(figures, {}, protocol, arguments.json)


if __name__ == "__main__":
    main()
