"""What ReST-EM brings: share of dreams rewarded on contexts that the rounds have never seen, before and after.

    python benchmarks/rest_em.py --json build/rest_em.json    # 3 rounds, 3 seeds, 32 + 16 contexts, an hour on a thread
    python benchmarks/rest_em.py --quick                      # one round, one seed, under a minute
    python benchmarks/rest_em.py --no-restart                 # every round goes on from the last one, as in SEAL

The file is written after every seed, and seeds that stand in it are not run again.

Contexts are made-up documents of 4 facts in names and wordings of the test split; every fact is asked about in one
wording, which no dream is trained on and by which trials judge the dreams. The embedded model dreams with nothing but
the dreamer's adapter. Of the documents that the rounds see, a quarter is held out of training for the guard that drops
a round. The figures are about others, which nothing was chosen by, dreamt of before and after with the same noise. A
dream that is not well-formed counts as not rewarded.

`rest_em.explore` of 1 (`--set`) leaves the kinds of dreams as often as their prompts say; otherwise the rounds learn
that, too, and `runs` tells how many dreams of each kind were drawn and rewarded.

A context's score is the share of its dreams that are rewarded. The intervals are 95 % percentile bootstraps over the
held-out contexts of all seeds together, that of the rise paired by context. The contexts of a seed share a dreamer, so
an interval speaks of other contexts more than of other trainings; `runs` of the JSON holds every seed on its own.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from _dreams import FACTS, documents
from _results import locked, merged
from sleep_pipeline import load_model
from sleep_pipeline.dreaming.dreamer import hold_out, new_dreamer
from sleep_pipeline.dreaming.dreams import sample_dreams
from sleep_pipeline.dreaming.night import DreamReport
from sleep_pipeline.dreaming.rest_em import rest_em, trial_reward
from sleep_pipeline.dreaming.settings import DreamingSettings, Mix
from sleep_pipeline.environment import apply_defaults
from sleep_pipeline.evaluation.statistics import Estimate, mean_interval, paired_difference
from sleep_pipeline.hardware import keep_freed_memory
from sleep_pipeline.memory.digest import base_digest
from sleep_pipeline.registry import write_atomically

TARGET = "> 0"


@dataclass(frozen=True)
class Run:
    """One seed.

    Attributes:
        before: the score of every held-out context.
        after: the same with the dreamer that was kept.
        guard: share of the guard's dreams that were rewarded, before and after.
        rounds: what happened in each.
        dropped: of dreams about held-out contexts, before and after, by reason.
        kinds: the same by kind, how many were drawn and rewarded.
        seconds: of all.
    """

    before: list[float]
    after: list[float]
    guard: dict[str, float]
    rounds: list[dict[str, Any]]
    dropped: dict[str, dict[str, int]]
    kinds: dict[str, dict[str, list[int]]]
    seconds: float


def run(settings: DreamingSettings, seed: int, seen: int, held_out: int, device: str) -> Run:
    """Let a fresh dreamer improve, and dream of the held-out contexts before and after."""
    began = time.perf_counter()
    torch.manual_seed(seed)
    model, tokenizer = load_model()
    if device == "cpu":
        model.set_attn_implementation("eager")
    model.to(device)
    dreamer = new_dreamer(model, settings.rest_em, seed)
    probes = documents(f"rest_em {seed}", seen + held_out)
    texts, others = list(probes)[:seen], list(probes)[seen:]
    train, guard = hold_out(texts, settings.rest_em, seed)
    reports: list[DreamReport] = []
    reward = trial_reward(model, dreamer, tokenizer, probes, settings, reports.append)

    kinds: dict[str, dict[str, list[int]]] = {}

    def look(when: str, mix: Mix) -> list[float]:
        data = sample_dreams(dreamer, tokenizer, others, settings.dreams.mixed(mix), 1000 * seed + 999)
        earned = reward(others, data, 1000 * seed + 999)
        scores = [0.0] * held_out
        for dream, value in zip(data.dreams, earned, strict=True):
            scores[dream.context] += value / settings.dreams.dreams
            counts = kinds.setdefault(when, {}).setdefault(dream.kind, [0, 0])
            counts[0], counts[1] = counts[0] + 1, counts[1] + int(value)
        return scores

    before = look("before", {})
    rounds = rest_em(dreamer, tokenizer, train, guard, reward, settings.rest_em, settings.dreams, seed)
    after = look("after", rounds.mix)
    print(f"seed {seed}: {rounds.summary()}", flush=True)
    done = [
        {
            **{name: getattr(each, name) for name in ("asked", "rewarded", "held_out", "kept")},
            "losses": [each.losses[0], each.losses[-1]] if each.losses else [],
        }
        for each in rounds.rounds
    ]
    guard = {"before": rounds.before, "after": rounds.after}
    dropped = {"before": dict(reports[0].dropped), "after": dict(reports[-1].dropped)}
    return Run(before, after, guard, done, dropped, kinds, time.perf_counter() - began)


def figure(estimate: Estimate, unit: str) -> dict[str, Any]:
    """An estimate as the table of figures has it."""
    return {"value": estimate.value, "unit": unit, "interval": [estimate.low, estimate.high]}


def figures(runs: Sequence[Run]) -> dict[str, Any]:
    """Over the held-out contexts of all seeds."""
    before, after = ([score for done in runs for score in getattr(done, name)] for name in ("before", "after"))
    seconds = [done.seconds for done in runs]
    return {
        "rewarded_before": figure(mean_interval(before), "share of dreams about held-out contexts"),
        "rewarded_after": figure(mean_interval(after), "share of dreams about held-out contexts"),
        "rise": figure(paired_difference(after, before), "share, after minus before, paired by context"),
        "seconds_a_seed": {
            "value": sum(seconds) / len(seconds),
            "unit": "s",
            "interval": [min(seconds), max(seconds)],
        },
    }


def main() -> None:
    """Run, print a table, and write the JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="one round, one seed, 4 + 3 contexts, fewer dreams and steps"
    )
    parser.add_argument("--json", type=Path, help="write the figures here; seeds that stand in it are not run again")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--threads", type=int, default=None, help="of torch; default: its own choice")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contexts", type=int, default=32, help="that the rounds see, a quarter of them the guard's")
    parser.add_argument("--held-out", type=int, default=16, help="contexts that the figures are about")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-restart", action="store_true", help="go on from the last round's dreamer")
    parser.add_argument("--set", default="{}", help="JSON of dreaming settings to change, for trying things out")
    arguments = parser.parse_args()
    apply_defaults()
    keep_freed_memory()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    seeds = arguments.seeds.split(",")
    seen, held_out = arguments.contexts, arguments.held_out
    changes: dict[str, Any] = {"rest_em": {"rounds": arguments.rounds, "restart": not arguments.no_restart}}
    if arguments.quick:
        seeds, seen, held_out = seeds[:1], 4, 3
        changes["rest_em"] |= {"rounds": 1, "steps": 10}
        changes |= {"dreams": {"dreams": 3}, "trials": {"steps": 8, "lr": 5e-3}, "rewards": {"seeds": 2}}
    settings = DreamingSettings.model_validate(merged(changes, json.loads(arguments.set)))
    protocol = {
        "command": "python benchmarks/rest_em.py",
        "model": "embedded",
        "weights": base_digest(load_model()[0]),
        "contexts": f"{seen} for the rounds and {held_out} held out a seed, {FACTS} facts each, test split",
        "interval": "95 % bootstrap over held-out contexts of all seeds; seconds: least and greatest",
        "settings": settings.model_dump(mode="json"),
        "device": torch.cuda.get_device_name() if arguments.device.startswith("cuda") else "cpu",
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "torch": torch.__version__,
    }
    runs = read(arguments.json, protocol) if arguments.json else {}
    for seed in seeds:
        if seed in runs:
            continue
        lived = run(settings, int(seed), seen, held_out, arguments.device)
        with nullcontext() if arguments.json is None else locked(arguments.json):
            # Others may have written meanwhile.
            runs = {**(read(arguments.json, protocol) if arguments.json else runs), seed: lived}
            if arguments.json:
                told = {seed: vars(runs[seed]) for seed in sorted(runs)}
                record = {"figures": figures(list(runs.values())), "protocol": protocol, "runs": told}
                write_atomically(arguments.json, json.dumps(record, indent=1) + "\n")
    for name, entry in figures(list(runs.values())).items():
        low, high = entry["interval"]
        target = f"  target {TARGET}" if name == "rise" else ""
        print(f"{name:16s} {entry['value']:7.3f} [{low:.3f}, {high:.3f}] {entry['unit']}{target}")


def read(path: Path, protocol: dict[str, Any]) -> dict[str, Run]:
    """The runs that stand in a file, by seed.

    Raises:
        SystemExit: they were made by another protocol.
    """
    if not path.exists():
        return {}
    record = json.loads(path.read_text(encoding="utf-8"))
    if record["protocol"] != json.loads(json.dumps(protocol)):
        sys.exit(f"{path} holds runs of another protocol; write to another file, or delete that one")
    return {seed: Run(**done) for seed, done in record["runs"].items()}


if __name__ == "__main__":
    main()
