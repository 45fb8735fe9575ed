"""Classes that arrive a few at a time: sleep against what else one would do with the same examples.

    python benchmarks/class_incremental.py --json build/clinc150.json --threads 1     # all methods, 3 seeds, hours
    python benchmarks/class_incremental.py --methods sleep,sft --seeds 0 --folder PATH --json build/clinc150.json
    python benchmarks/class_incremental.py --json build/clinc150.json --table         # what stands there, in Markdown
    python benchmarks/class_incremental.py --json build/clinc150.json --figure build/clinc150.png
    python benchmarks/class_incremental.py --quick                                    # made-up classes, under a minute

After every task all classes seen so far are asked about and told apart, by the likelihood of their labels; after the
last one also by free generation, and out-of-scope texts by how likely their answers are. With equal settings, methods
that train take the same steps of the same number of examples, joint training as many as all tasks together, and sleep's
fast memory its `day_steps` besides; `icl` and `inca` train nothing. Sleep and `replay` take fewer of these steps in the
first tasks and more in the last ones (`growth`). Seconds are those of the machine as it was.

The JSON is written after every run, and runs that stand in it with equal settings, data and weights are not done again.
A method's figures speak of its latest settings; runs with earlier ones stay in `runs`. Give variants of one method
(`--set '{"settings": {"sentence_model": ...}}' --variant sentence`) names of their own. `--set '{"hub": true}'` takes
the data from a hub, of the declared name or of `"folder": NAME` beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from _results import as_it_was, locked, merged
from sleep_pipeline.baselines.benchmark import curve, numbers, open_data, run_benchmark, stream_of
from sleep_pipeline.baselines.methods import METHODS
from sleep_pipeline.baselines.settings import BenchmarkSettings
from sleep_pipeline.environment import apply_defaults
from sleep_pipeline.evaluation.statistics import seeds_and_questions
from sleep_pipeline.evaluation.tasks import (
    ClassStream,
    Example,
    LabelledData,
    TaskError,
    declared,
    task_names,
)
from sleep_pipeline.hardware import software
from sleep_pipeline.language_model import ModelLoadError
from sleep_pipeline.memory.digest import base_digest
from sleep_pipeline.night_model import MachineSettings, open_base
from sleep_pipeline.registry import write_atomically
from sleep_pipeline.reporting.accuracy import accuracy_plot
from sleep_pipeline.tracking.git import git_state

Run = dict[str, Any]

ONE_PROTOCOL = ("task", "tasks", "classes", "ask", "test_rows_per_class", "text_words", "normalise")
"""Settings that all runs of one JSON share, or its table would compare what cannot be compared."""
BOTH = "95 % bootstrap over seeds and questions"
QUESTIONS = "95 % over the questions of the only seed"
SEEDS = "least and greatest of the seeds"
UNITS = {"stored_bytes": "bytes", "seconds": "s of learning", "asking_seconds": "s", "tokens": "tokens learned from"}
BRIEF = {
    "seeding": {"rows": 16, "replay": {"stored_rows": 16}, "optimizer": {"steps": 20}},
    "shots": 4,
}
WORDS = {
    "food": ("bread", "apple", "soup", "cheese"),
    "water": ("river", "lake", "rain", "sea"),
    "music": ("song", "drum", "choir", "piano"),
    "money": ("bank", "coin", "debt", "price"),
    "travel": ("train", "road", "ticket", "plane"),
    "sleep": ("bed", "night", "dream", "pillow"),
}


def made_up_stream(settings: BenchmarkSettings) -> ClassStream:
    """Two tasks of three classes of our own making, each told by its words."""
    told = ("tell me about the {}", "i need a {} now", "where is my {}", "what about this {}", "the {} is late")
    declaration = declared(settings.task).model_copy(update={"name": "made_up", "classes": len(WORDS), "tasks": 2})
    rows = [Example(text.format(word), label) for label, words in WORDS.items() for word in words for text in told]
    test = [Example(f"{word} please", label) for label, words in WORDS.items() for word in words]
    data = LabelledData(
        declaration, tuple(WORDS), tuple(rows), (), tuple(test), ("why", "two and two", "no", "so it goes"), ()
    )
    return stream_of(settings, data)


def without_place(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without where the data lie on this machine: their digest says which they are."""
    return {name: value for name, value in settings.items() if name not in ("folder", "hub")}


def as_they_were(settings: Mapping[str, Any]) -> BenchmarkSettings:
    """A run's settings; those that have come since were at their defaults, or as `as_it_was` has them.

    Every task had as many steps as the others, and so had every refining.
    """
    own = {"growth": 0.0, **settings.get("settings", {})}
    own["seeding"] = as_it_was(own.get("seeding", {}), sampled=False)
    if "refining" in own.get("dreaming", {}):
        own["dreaming"] = {**own["dreaming"], "refining": {"passes": 0.0, **own["dreaming"]["refining"]}}
    return BenchmarkSettings.model_validate({**settings, "settings": own})


def identity(run: Mapping[str, Any], seed: bool = True) -> str:
    """What two runs must have in common to be the same, or with other seeds the same method."""
    whole = without_place(as_they_were(run["settings"]).model_dump(mode="json", by_alias=True))
    settings = {name: value for name, value in whole.items() if seed or name != "seed"}
    data = run["data"]["sha256"] if seed else None
    return json.dumps([run["name"], settings, data, run["model"], run["weights_digest"]], sort_keys=True)


def latest(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs of every method with its latest settings, by seed; methods in the order of `METHODS`."""
    newest = {run["name"]: identity(run, seed=False) for run in runs}
    found: dict[str, list[Run]] = {}
    for name in sorted(newest, key=lambda name: (list(METHODS).index(name.partition(":")[0]), name)):
        own = {run["seed"]: run for run in runs if identity(run, seed=False) == newest[name]}
        found[name] = [own[seed] for seed in sorted(own)]
    return found


def figures(runs: Sequence[Run]) -> dict[str, Any]:
    """Every measure of every method: mean over seeds, unit, interval, and what the interval is of.

    `below_joint` is what joint training gets right more of the same questions, with the seeds that both have.
    """
    found: dict[str, Any] = {}
    newest = latest(runs)
    joint = {run["seed"]: run["answers"]["by_likelihood"] for run in newest.get("joint", ())}
    for name, own in newest.items():
        both = [run for run in own if name != "joint" and run["seed"] in joint]
        if both:
            estimate = seeds_and_questions(
                [joint[run["seed"]] for run in both], [run["answers"]["by_likelihood"] for run in both]
            )
            found[f"{name}.below_joint"] = {
                "value": estimate.value,
                "unit": "share",
                "interval": [estimate.low, estimate.high],
                "interval_of": f"{BOTH}, paired",
                "seeds": len(both),
            }
        for measure in dict.fromkeys(measure for run in own for measure in numbers(run)):
            values = [numbers(run)[measure] for run in own if measure in numbers(run)]
            whole = own[0]["figures"][measure]
            of, interval = SEEDS, [min(values), max(values)]
            if len(own) == 1 and isinstance(whole, dict):
                of, interval = QUESTIONS, [whole["low"], whole["high"]]
            elif measure in ("final_accuracy", "final_accuracy_freely"):
                kind = "freely" if measure.endswith("freely") else "by_likelihood"
                estimate = seeds_and_questions([run["answers"][kind] for run in own])
                of, interval = BOTH, [estimate.low, estimate.high]
            found[f"{name}.{measure}"] = {
                "value": statistics.mean(values),
                "unit": UNITS.get(measure, "probability" if measure.endswith("auroc") else "share"),
                "interval": interval,
                "interval_of": of,
                "seeds": len(values),
            }
    return found


def protocol(runs: Sequence[Run]) -> dict[str, Any]:
    """How the figures came about."""
    own = [run for group in latest(runs).values() for run in group]
    first = own[0]
    return {
        "command": "python benchmarks/class_incremental.py",
        "task": first["task"],
        "version": first["version"],
        **{name: value for name, value in first["data"].items() if name != "sha256"},
        "ask": first["settings"].get("ask", "test"),
        "test_rows_per_class": first["settings"]["test_rows_per_class"],
        "normalise": first["settings"]["normalise"],
        "seeds": {name: [run["seed"] for run in group] for name, group in latest(runs).items()},
        "settings": {name: group[0]["settings"] for name, group in latest(runs).items()},
        "model": sorted({run["model"] for run in own}),
        "weights_digest": sorted({run["weights_digest"] for run in own}),
        "git_commit": sorted({run["git_commit"] or "unknown" for run in own}),
        "software": [dict(pairs) for pairs in dict.fromkeys(tuple(run["software"].items()) for run in own)],
    }


def write(path: Path, runs: Sequence[Run]) -> None:
    """Write figures and protocol to be read by people, and a run a line."""
    head = json.dumps({"figures": figures(runs), "protocol": protocol(runs)}, indent=1).removesuffix("\n}")
    lines = ",\n".join(json.dumps(run, separators=(",", ":")) for run in runs)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, f'{head},\n "runs": [\n{lines}\n]\n}}\n')


def read(path: Path) -> list[Run]:
    """The runs of such a file; none where there is no file."""
    if not path.is_file():
        return []
    try:
        runs: list[Run] = json.loads(path.read_text(encoding="utf-8"))["runs"]
    except (ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"{path} is no JSON of this benchmark ({error}); give another file") from error
    return runs


def table(runs: Sequence[Run]) -> str:
    """The methods side by side, in Markdown."""
    found = figures(runs)

    def cell(name: str, measure: str, scale: float, form: str, interval: bool = False) -> str:
        figure = found.get(f"{name}.{measure}")
        if figure is None:
            return "-"
        value, (low, high) = figure["value"], figure["interval"]
        spread = f" ({scale * low:{form}} to {scale * high:{form}})" if interval and low < high else ""
        return f"{scale * value:{form}}{spread}"

    columns = {
        "final accuracy (%)": ("final_accuracy", 100, ".1f", True),
        "by free generation (%)": ("final_accuracy_freely", 100, ".1f", True),
        "below joint (points)": ("below_joint", 100, ".1f", True),
        "forgetting (points)": ("forgetting", 100, ".1f", True),
        "BWT (points)": ("backward_transfer", 100, ".1f", True),
        "stored (MB)": ("stored_bytes", 1e-6, ".2f", False),
        "seconds": ("seconds", 1, ",.0f", False),
        "tokens (M)": ("tokens", 1e-6, ".2f", False),
        "out-of-scope AUROC": ("out_of_scope_auroc", 1, ".3f", True),
    }
    lines = [f"| method | seeds | {' | '.join(columns)} |", f"|---|---|{'---|' * len(columns)}"]
    for name, own in latest(runs).items():
        lines.append(f"| {name} | {len(own)} | {' | '.join(cell(name, *column) for column in columns.values())} |")
    only = f". Where there is one seed: {QUESTIONS}" if any(len(own) == 1 for own in latest(runs).values()) else ""
    return "\n".join(lines) + f"\n\nIntervals of accuracies: {BOTH}; of the rest: {SEEDS}{only}.\n"


def check_protocol(runs: Sequence[Run], wanted: BenchmarkSettings, task: str, path: Path) -> None:
    """Refuse to put runs of another protocol into a file.

    Raises:
        SystemExit: a run that stands there was made by another one.
    """
    asked = wanted.model_dump(mode="json")
    for run in runs:
        found = as_they_were(run["settings"]).model_dump(mode="json")
        other = [name for name in ONE_PROTOCOL if found[name] != asked[name]]
        if other or run["task"] != task:
            told = f"{other[0]}={found[other[0]]}, not {asked[other[0]]}" if other else run["task"]
            raise SystemExit(f"{path} holds runs with {told}: give a file of its own")


def check_base(runs: Sequence[Run], weights: str, data: Mapping[int, str], path: Path) -> None:
    """Refuse to put runs of another base model, or of other data, into a file.

    Args:
        runs: that stand there.
        weights: digest of the base model's.
        data: digest of every seed's stream.
        path: of the file.

    Raises:
        SystemExit: a run that stands there was made with others.
    """
    for run in runs:
        if run["weights_digest"] != weights:
            raise SystemExit(f"{path} holds runs of {run['model']} with other weights: give a file of its own")
        if data.get(run["seed"], run["data"]["sha256"]) != run["data"]["sha256"]:
            raise SystemExit(f"{path} holds runs of seed {run['seed']} with other data: give a file of its own")


def live(
    settings: BenchmarkSettings, stream: ClassStream, name: str, model: str, machine: MachineSettings, say: bool = True
) -> Run:
    """One method's life with a fresh base model, as it stands in the JSON."""
    base, tokenizer = open_base(model, machine)
    told = (lambda line: print(f"    {line}", flush=True)) if say else None
    record = run_benchmark(settings, stream, base, tokenizer, told)
    git = git_state(Path(__file__).parent)
    return {
        "name": name,
        **record,
        "settings": without_place(record["settings"]),
        "model": model,
        "git_commit": git.commit if git else None,
        "software": software(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def parsed() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="train briefly; made-up classes, or two tasks of --folder")
    parser.add_argument("--task", default="clinc150", choices=task_names())
    parser.add_argument("--folder", type=Path, help="of the task's files; default: data/01_raw/TASK; a hub: see above")
    parser.add_argument("--methods", default="all", help=f"all, or some of {', '.join(METHODS)}")
    parser.add_argument("--variant", default="", help="a name for these settings, beside other ones of the method")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument(
        "--ask", choices=("test", "validation"), default="test", help="validation: to choose settings by"
    )
    parser.add_argument("--threads", type=int, default=None, help="of torch; default: its own choice")
    parser.add_argument("--model", default="embedded", help="the base model: embedded, a folder, or a hub name")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--set", default="{}", help="JSON of benchmark settings to change (parameters_benchmark.yml)")
    parser.add_argument("--json", type=Path, help="write the figures here, and go on from what stands here")
    parser.add_argument("--table", action="store_true", help="run nothing; print what stands in --json")
    parser.add_argument("--figure", type=Path, help="run nothing; draw what stands in --json")
    return parser, parser.parse_args()


def show(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Print the table, draw the figure."""
    runs = read(arguments.json) if arguments.json else []
    if not runs:
        parser.error("--table and --figure show runs that stand in a file: give it with --json")
    if arguments.table:
        print(table(runs), end="")
    if arguments.figure:
        curves = {name: [curve(run) for run in own] for name, own in latest(runs).items()}
        arguments.figure.parent.mkdir(parents=True, exist_ok=True)
        accuracy_plot(curves, runs[-1]["task"]).savefig(arguments.figure, dpi=150)


def planned(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> list[BenchmarkSettings]:
    """The settings of all runs, checked before the first of them."""
    names = list(METHODS) if arguments.methods == "all" else arguments.methods.split(",")
    base = BenchmarkSettings(task=arguments.task).model_dump(by_alias=True, mode="json")
    base |= {"ask": arguments.ask, "threads": arguments.threads}
    if arguments.folder is not None:
        base["folder"] = str(arguments.folder.resolve())
    if arguments.quick:
        base = merged(base, {"settings": BRIEF})
        if arguments.folder is not None:
            size = declared(arguments.task)
            base |= {"tasks": 2, "classes": min(5, size.classes // size.tasks), "test_rows_per_class": 4}
    seeds = arguments.seeds.split(",")[: 1 if arguments.quick else None]
    try:
        changes = json.loads(arguments.set)
        if not isinstance(changes, dict):
            parser.error(f'--set {arguments.set} is no JSON object; give it as {{"settings": {{...}}}}')
        base = merged(base, changes)
        return [
            BenchmarkSettings.model_validate(base | {"method": name, "seed": seed}) for seed in seeds for name in names
        ]
    except (ValidationError, ValueError) as error:
        parser.error(str(error))


def main() -> None:
    """Run the grid: every seed's methods one after the other."""
    parser, arguments = parsed()
    apply_defaults()
    if arguments.table or arguments.figure:
        show(parser, arguments)
        return
    grid = planned(parser, arguments)
    machine = MachineSettings(device=arguments.device, threads=arguments.threads)
    made_up = arguments.quick and grid[0].folder is None and not grid[0].hub
    try:
        data = None if made_up else open_data(grid[0], Path("data/01_raw"))
        seeds = {one.seed: one for one in grid}
        streams = {seed: made_up_stream(one) if data is None else stream_of(one, data) for seed, one in seeds.items()}
    except TaskError as error:
        parser.error(str(error))
    if data is not None and data.quarantined:
        first, count = data.quarantined[0], len(data.quarantined)
        print(f"{count} rows are left out; the first, {first.file}:{first.line}: {first.reason}", flush=True)
    runs = read(arguments.json) if arguments.json else []
    check_protocol(runs, grid[0], streams[grid[0].seed].name, arguments.json)
    try:
        run_grid(grid, streams, runs, arguments, machine)
    except (ModelLoadError, ModuleNotFoundError) as error:
        raise SystemExit(str(error)) from error


def run_grid(
    grid: Sequence[BenchmarkSettings],
    streams: Mapping[int, ClassStream],
    runs: list[Run],
    arguments: argparse.Namespace,
    machine: MachineSettings,
) -> None:
    """Do the runs that do not stand among `runs`, and write the JSON after each."""
    from sleep_pipeline.baselines.benchmark import describe_stream

    weights = base_digest(open_base(arguments.model, machine)[0])
    digests = {seed: describe_stream(stream)["sha256"] for seed, stream in streams.items()}
    check_base(runs, weights, digests, arguments.json)
    for settings in grid:
        stream = streams[settings.seed]
        name = f"{settings.method}:{arguments.variant}" if arguments.variant else settings.method
        asked = {
            "name": name,
            "settings": without_place(settings.model_dump(mode="json", by_alias=True)),
            "data": describe_stream(stream),
            "model": arguments.model,
            "weights_digest": weights,
        }
        standing = next((run for run in runs if identity(run) == identity(asked)), None)
        told = f": stands in {arguments.json}" if standing is not None else ""
        print(f"{name}, seed {settings.seed}{told}", flush=True)
        run = standing or live(settings, stream, name, arguments.model, machine)
        with nullcontext() if arguments.json is None else locked(arguments.json):
            # Others may have written meanwhile. The latest settings of a method are those that were asked for last.
            present = read(arguments.json) if arguments.json else runs
            runs = [*(other for other in present if identity(other) != identity(run)), run]
            if arguments.json:
                write(arguments.json, runs)
        if standing is None:
            for measure, figure in figures(runs).items():
                if measure.startswith(f"{name}."):
                    low, high = figure["interval"]
                    print(f"  {measure}: {figure['value']:.3f} [{low:.3f}, {high:.3f}] {figure['unit']}", flush=True)


if __name__ == "__main__":
    main()
