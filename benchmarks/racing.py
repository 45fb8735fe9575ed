"""What racing saves in trials, and how often it decides as all copies would.

    python benchmarks/racing.py --json build/racing.json     # documents 0, 1, 2; some fifteen minutes on an idle thread
    python benchmarks/racing.py --documents 100,101          # those that the defaults were chosen on
    python benchmarks/racing.py --quick                      # few copies, under a minute
    python benchmarks/racing.py --documents 0 --keep build/racing   # runs of documents kept there are not run again

A world is 10 made-up documents of 4 facts in names and wordings of the test split. The embedded model writes 5 dreams
of each, and every dream that is well-formed is tried as a night tries it, with all of `--copies` seeds: the truth. What
becomes of a seed's copy does not depend on when it runs, so the race is replayed on these outcomes, for several
numbers of seeds and settings of `rewards.racing`. That this is so is checked by one race that really trains:
`live_same` is the share of dreams for which it ran as many copies and decided as the replay did.

Tokens are those that copies were trained on, a dream's tokens times its copies: all take as many steps. Every copy is
also measured once, on the probes of all documents, so `copies` is the share of what measuring reads. `night` replays a
night that tries the best 12 dreams of a world and 4 drawn from the others. `fewer` is the rival: fewer seeds for all
dreams without a race, against the decisions of all seeds. `seconds` is the race's time over that of all copies, with
all else that judging takes, in one process. Intervals are over the dreams of all worlds, Wilson's for shares of
decisions and a bootstrap for tokens; dreams of a world share a baseline and the noise, so they are not quite
independent.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from _dreams import FACTS, documents
from _timing import alternate, machine, report
from sleep_pipeline import load_model
from sleep_pipeline.dreaming.dreams import sample_dreams, to_rows
from sleep_pipeline.dreaming.night import DreamReport, Tau, judge_dreams, try_dreams
from sleep_pipeline.dreaming.scores import Scores, select
from sleep_pipeline.dreaming.settings import DreamingSettings, RewardSettings
from sleep_pipeline.dreaming.tau import Marks, Probe
from sleep_pipeline.environment import apply_defaults
from sleep_pipeline.evaluation.statistics import mean_interval
from sleep_pipeline.hardware import keep_freed_memory

SIGMAS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0)
TOP, DRAWN = 12, 4


@dataclass(frozen=True)
class World:
    """Dreams of one world, and what became of all their copies.

    Attributes:
        seed: of the documents and of everything else.
        contexts: of each dream.
        tokens: of each dream.
        omega: its score.
        asked: context of each probe.
        before: marks of the model as it is.
        marks: dream, seed, probe.
        live: of the race that was run, each dream's copies and reward.
        apart: largest difference between a mark of that race and the same one here.
        seconds: by way, `all` or `race`.
    """

    seed: int
    contexts: list[int]
    tokens: list[int]
    omega: list[float]
    asked: list[int]
    before: list[float]
    marks: list[list[list[float]]]
    live: list[tuple[int, int]]
    apart: float
    seconds: dict[str, float]


@dataclass(frozen=True)
class Outcome:
    """One dream in a race: whether it was decided as by all copies, what it would be, and how many of them it took."""

    same: bool
    truth: int
    copies: int
    seeds: int
    tokens: int


def live(settings: DreamingSettings, seed: int, contexts: int, device: str, clock: str) -> World:
    """Dream of a world, and try all dreams with all copies and in a race."""
    torch.manual_seed(seed)
    model, tokenizer = load_model()
    if device == "cpu":
        model.set_attn_implementation("eager")
    model.to(device)
    asked = documents(f"racing {seed}", contexts)
    texts = list(asked)
    data = sample_dreams(model, tokenizer, texts, settings.dreams, seed)
    probes = [Probe(at, *pair) for at, text in enumerate(texts) for pair in asked[text]]

    def judged(racing: float | None) -> DreamReport:
        rewards = settings.rewards.model_copy(update={"racing": racing})
        scores = settings.scores.model_copy(update={"top_k": len(data.dreams), "each": "night"})
        own = settings.model_copy(update={"rewards": rewards, "scores": scores})
        return judge_dreams(model, tokenizer, texts, data.dreams, probes, own, seed)

    ways = {"all": lambda: judged(None), "race": lambda: judged(settings.rewards.racing)}
    taken, found = alternate(ways, 1, clock, seed)
    everything, raced = found["all"].tried, found["race"].tried
    assert [dream.dream for dream in everything] == [dream.dream for dream in raced]
    apart = [
        abs(a - b)
        for one, other in zip(everything, raced, strict=True)
        for mine, theirs in zip(one.marks, other.marks, strict=False)
        for a, b in zip(mine, theirs, strict=True)
    ]
    return World(
        seed,
        [dream.dream.context for dream in everything],
        [to_rows(tokenizer, dream.dream).tokens for dream in everything],
        [float(dream.omega or 0.0) for dream in everything],
        [probe.context for probe in probes],
        list(found["all"].before),
        [[list(row) for row in dream.marks] for dream in everything],
        [(len(dream.marks), int(dream.reward or 0)) for dream in raced],
        max(apart),
        {way: seconds[0] for way, seconds in taken.items()},
    )


def decide(world: World, which: Sequence[int], rewards: RewardSettings) -> list[tuple[int, int]]:
    """Of each of some dreams of a world, how many copies were run of it and its reward."""
    tau = Tau(world.contexts, tuple(world.before), [Probe(context, "", "") for context in world.asked], rewards)

    def look_up(pairs: Sequence[tuple[int, int]]) -> list[Marks]:
        return [tuple(world.marks[index][number]) for index, number in pairs]

    marks, verdicts = try_dreams(which, look_up, tau)
    return [(len(marks[index]), verdicts[index].reward) for index in which]


def replay(
    world: World, rewards: RewardSettings, seeds: int, sigmas: float | None, night: bool = False
) -> list[Outcome]:
    """Race a world's dreams, or those that a night would choose."""
    which = list(range(len(world.contexts)))
    if night:
        order = sorted(which, key=lambda index: (-world.omega[index], index))
        chosen = select(Scores(tuple(world.omega), tuple(order)), TOP, DRAWN, world.seed)
        which = [choice.index for choice in chosen if choice.kept]
    truth = decide(world, which, rewards.model_copy(update={"seeds": seeds, "racing": None}))
    raced = decide(world, which, rewards.model_copy(update={"seeds": seeds, "racing": sigmas}))
    return [
        Outcome(mine == wanted, wanted, copies, seeds, world.tokens[index])
        for index, (copies, mine), (_, wanted) in zip(which, raced, truth, strict=True)
    ]


def share(flags: Sequence[bool]) -> dict[str, Any]:
    """A share of dreams with Wilson's interval."""
    found = mean_interval([float(flag) for flag in flags])
    return {"value": found.value, "unit": "share", "interval": [found.low, found.high]}


def spent(outcomes: Sequence[Outcome], weigh: bool) -> dict[str, Any]:
    """Share of all tokens, or of all copies, that the race took."""
    run = np.array([outcome.copies * (outcome.tokens if weigh else 1) for outcome in outcomes], dtype=np.float64)
    all_of_it = np.array([outcome.seeds * (outcome.tokens if weigh else 1) for outcome in outcomes], dtype=np.float64)
    found = stats.bootstrap(
        (run, all_of_it),
        lambda a, b, axis: a.sum(axis) / b.sum(axis),
        paired=True,
        method="percentile",
        rng=0,
    ).confidence_interval
    return {"value": run.sum() / all_of_it.sum(), "unit": "share", "interval": [found.low, found.high]}


def figures(worlds: Sequence[World], rewards: RewardSettings, numbers: Sequence[int]) -> dict[str, Any]:
    """Of every number of seeds, with the settings in use, over the dreams of all worlds."""
    found: dict[str, Any] = {}
    for seeds in numbers:
        for name in ("", "_night"):
            outcomes = [
                outcome for world in worlds for outcome in replay(world, rewards, seeds, rewards.racing, bool(name))
            ]
            found[f"same_{seeds}{name}"] = share([outcome.same for outcome in outcomes])
            found[f"tokens_{seeds}{name}"] = spent(outcomes, weigh=True)
            found[f"copies_{seeds}{name}"] = spent(outcomes, weigh=False)
            if not name:
                found[f"rewarded_{seeds}"] = share([bool(outcome.truth) for outcome in outcomes])
    most = numbers[-1]
    for fewer in range(2, most):
        same = []
        for world in worlds:
            which = range(len(world.contexts))
            few, all_of_them = (
                decide(world, which, rewards.model_copy(update={"seeds": count, "racing": None}))
                for count in (fewer, most)
            )
            same += [mine[1] == wanted[1] for mine, wanted in zip(few, all_of_them, strict=True)]
        found[f"same_{most}_fewer_{fewer}"] = share(same)
    agree = []
    for world in worlds:
        which = range(len(world.contexts))
        told = decide(world, which, rewards.model_copy(update={"seeds": most}))
        agree += [tuple(mine) == tuple(theirs) for mine, theirs in zip(world.live, told, strict=True)]
    found["live_same"] = share(agree)
    found["live_apart"] = _between([world.apart for world in worlds], "nats")
    found["seconds"] = _between([world.seconds["race"] / world.seconds["all"] for world in worlds], "ratio")
    return found


def _between(values: Sequence[float], unit: str) -> dict[str, Any]:
    return {"value": float(np.median(values)), "unit": unit, "interval": [min(values), max(values)]}


def curve(worlds: Sequence[World], rewards: RewardSettings, numbers: Sequence[int]) -> list[dict[str, float]]:
    """Share of the same decisions and of tokens, by number of seeds and sigmas."""
    points = []
    for seeds in numbers:
        for sigmas in SIGMAS:
            outcomes = [outcome for world in worlds for outcome in replay(world, rewards, seeds, sigmas)]
            wrong = [outcome for outcome in outcomes if not outcome.same]
            points.append(
                {
                    "seeds": seeds,
                    "sigmas": sigmas,
                    "same": 1 - len(wrong) / len(outcomes),
                    "missed": sum(outcome.truth for outcome in wrong) / len(outcomes),
                    "tokens": spent(outcomes, weigh=True)["value"],
                }
            )
    return points


def main() -> None:
    """Run, print tables, and write the JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 documents, 2 dreams each, 3 copies, 8 steps")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--documents", default="0,1,2", help="seeds of worlds")
    parser.add_argument("--contexts", type=int, default=10, help="documents a world")
    parser.add_argument("--dreams", type=int, default=5, help="a document")
    parser.add_argument("--copies", type=int, default=6, help="a dream")
    parser.add_argument("--sigmas", type=float, default=1.0, help="of the race that is reported")
    parser.add_argument("--keep", type=Path, help="folder of outcomes, a file a world; what is there is not run again")
    parser.add_argument("--threads", type=int, default=None, help="of torch; default: its own choice")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="of `seconds`")
    arguments = parser.parse_args()
    apply_defaults()
    keep_freed_memory()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    seeds = [int(seed) for seed in arguments.documents.split(",")]
    contexts, copies, dreams = arguments.contexts, arguments.copies, arguments.dreams
    changes: dict[str, Any] = {}
    if arguments.quick:
        seeds, contexts, copies, dreams = seeds[:1], 3, 3, 2
        changes = {"trials": {"steps": 8, "lr": 5e-3}}
    changes |= {"dreams": {"dreams": dreams}}
    changes["rewards"] = {"noise": "seeds", "seeds": copies, "racing": arguments.sigmas}
    settings = DreamingSettings.model_validate(changes)
    worlds = []
    for seed in seeds:
        kept = arguments.keep and arguments.keep / f"{seed}.json"
        if kept and kept.exists():
            worlds.append(World(**json.loads(kept.read_text())))
        else:
            worlds.append(live(settings, seed, contexts, arguments.device, arguments.clock))
            if kept:
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_text(json.dumps(asdict(worlds[-1])) + "\n")
        print(f"documents {seed}: {len(worlds[-1].contexts)} dreams, {worlds[-1].seconds}", flush=True)
    numbers = sorted({min(3, copies), min(4, copies), copies})
    points = curve(worlds, settings.rewards, numbers)
    for point in points:
        print("{seeds:g} seeds, {sigmas:4.2f} sigmas: {same:.3f} the same, {tokens:.3f} of the tokens".format(**point))
    wanted = {f"same_{copies}": ">= 0.95", f"tokens_{copies}": "<= 0.40", "live_same": "1"}
    protocol = {
        "command": "python benchmarks/racing.py",
        "model": "embedded",
        "contexts": f"{contexts} documents of {FACTS} facts, {dreams} dreams each, test split",
        "documents": seeds,
        "interval": "95 %, Wilson or bootstrap over dreams of all worlds; live_apart and seconds: least and greatest",
        "settings": settings.model_dump(mode="json"),
        "curve": points,
        "worlds": [{"seed": world.seed, "dreams": len(world.contexts), "seconds": world.seconds} for world in worlds],
        **machine(arguments.device, arguments.clock),
    }
    report(figures(worlds, settings.rewards, numbers), wanted, protocol, arguments.json)


if __name__ == "__main__":
    main()
