"""Nodes of the `benchmark` pipeline. Outputs are partitions, named after the task, the method and the seed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sleep_pipeline.baselines.settings import BenchmarkSettings
from sleep_pipeline.hardware import software
from sleep_pipeline.night_model import MachineSettings
from sleep_pipeline.progress import bar
from sleep_pipeline.tracking import active_run, active_sink, log_figure
from sleep_pipeline.tracking.git import git_state

# Kedro evaluates the annotations of nodes when a command starts, so these stand for types whose import is slow.
Stream = Any  # evaluation.tasks.ClassStream
Table = Any  # pandas.DataFrame
Plot = Any  # matplotlib.figure.Figure

logger = logging.getLogger(__name__)


def load_stream(benchmark: BenchmarkSettings, raw_folder: Path) -> tuple[Stream, dict[str, Table]]:
    """Read the task and deal its classes out, so that whatever is wrong with the data shows before any long work."""
    from dataclasses import asdict

    import pandas as pd

    from sleep_pipeline.baselines.benchmark import describe_stream, open_stream

    run = active_run()
    if run is not None:
        tags = {"task": benchmark.task, "method": benchmark.method, "seed": str(benchmark.seed)}
        run.set_tags({**tags, "mlflow.runName": benchmark.key.replace("/", " ")})
    stream, quarantined = open_stream(benchmark, raw_folder)
    held = describe_stream(stream)
    logger.info(
        "%s, seed %d: %d tasks, %d classes, %d training and %d test rows, %d out of scope",
        *(stream.name, stream.seed, held["tasks"], held["classes"]),
        *(held["train_rows"], held["test_rows"], held["out_of_scope_rows"]),
    )
    if quarantined:
        first = quarantined[0]
        logger.warning(
            "%d rows were left out, the first at %s:%d: %s; all stand in the run's quarantine.parquet",
            *(len(quarantined), first.file, first.line, first.reason),
        )
    left_out = pd.DataFrame([asdict(row) for row in quarantined], columns=["file", "line", "reason"])
    return stream, {benchmark.key: left_out}


def run_method(
    benchmark_stream: Stream, benchmark: BenchmarkSettings, model: str, machine: MachineSettings
) -> dict[str, dict[str, Any]]:
    """Load a base model of its own, let the method live through the stream with it, and say what came of it."""
    from datetime import UTC, datetime

    from sleep_pipeline.baselines.benchmark import numbers, run_benchmark
    from sleep_pipeline.night_model import open_base

    if benchmark.threads is not None:
        machine = machine.model_copy(update={"threads": benchmark.threads})
    base, tokenizer = open_base(model, machine)
    with bar(benchmark_stream.tasks, benchmark.method, unit="task") as shown:

        def progress(line: str) -> None:
            logger.info("%s, %s", benchmark.method, line)
            shown.update()

        record = run_benchmark(benchmark, benchmark_stream, base, tokenizer, progress)
    git = git_state(Path(__file__).parent)
    record |= {
        "model": model,
        "git_commit": git.commit if git else None,
        "software": software(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    metrics = {f"benchmark/{name}": value for name, value in numbers(record).items()}
    active_sink().log_metrics(metrics, step=len(benchmark_stream.tasks))
    return {benchmark.key: record}


def report_result(
    benchmark_results: dict[str, Callable[[], dict[str, Any]]], benchmark: BenchmarkSettings
) -> tuple[dict[str, dict[str, float]], dict[str, Table], dict[str, Plot]]:
    """The measures by name, the matrix R in long form, and the figure of accuracy over the classes seen."""
    import pandas as pd

    from sleep_pipeline.baselines.benchmark import cells, curve, numbers
    from sleep_pipeline.reporting.accuracy import accuracy_plot

    record = benchmark_results[benchmark.key]()
    matrix = pd.DataFrame(cells(record), columns=["task_after", "task_asked", "accuracy"])
    seen = curve(record)
    first = len(record["final"]) - len(seen) + 1
    for task, (_, accuracy) in enumerate(seen, start=first):
        active_sink().log_metrics({"benchmark/accuracy_seen": accuracy}, step=task)
    for task, answers in enumerate(record["final"], start=1):
        active_sink().log_metrics({"benchmark/final_accuracy_of_task": sum(answers) / len(answers)}, step=task)
    figure = accuracy_plot({benchmark.method: [seen]}, f"{benchmark.task}, seed {benchmark.seed}")
    log_figure(figure, "accuracy.png")
    return {benchmark.key: numbers(record)}, {benchmark.key: matrix}, {benchmark.key: figure}
