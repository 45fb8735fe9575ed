"""A benchmark run from its settings: the stream, the method's life with it, and the record of both.

stream, quarantined = open_stream(settings, raw_folder)
base, tokenizer = open_base("embedded", MachineSettings())
record = run_benchmark(settings, stream, base, tokenizer)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleep_pipeline.evaluation.tasks import (
    asked_on_validation,
    beginnings,
    class_stream,
    declared,
    fewer_questions,
    load_task,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sleep_pipeline.baselines.settings import BenchmarkSettings
    from sleep_pipeline.evaluation.tasks import ClassStream, LabelledData, Quarantined

Record = dict[str, Any]
Curve = list[tuple[int, float]]


def open_stream(settings: BenchmarkSettings, raw_folder: Path) -> tuple[ClassStream, tuple[Quarantined, ...]]:
    """The stream of a run, and the rows that were left out of its data.

    Args:
        settings: see `BenchmarkSettings`.
        raw_folder: that `settings.folder` is below.

    Raises:
        TaskError: the data cannot be used.
    """
    data = open_data(settings, raw_folder)
    return stream_of(settings, data), data.quarantined


def open_data(settings: BenchmarkSettings, raw_folder: Path) -> LabelledData:
    """The data of a run as published, which are the same for all methods and seeds.

    Args:
        settings: see `BenchmarkSettings`.
        raw_folder: that `settings.folder` is below.

    Raises:
        TaskError: the data cannot be used.
    """
    source: Path | str = (settings.folder or "") if settings.hub else raw_folder / (settings.folder or settings.task)
    return load_task(declared(settings.task), source, settings.hub)


def stream_of(settings: BenchmarkSettings, data: LabelledData) -> ClassStream:
    """The data as the settings have them asked and dealt."""
    if settings.ask == "validation":
        data = asked_on_validation(data)
    words = data.declaration.text_words if settings.text_words is None else settings.text_words
    if words:
        data = beginnings(data, words)
    if settings.test_rows_per_class is not None:
        data = fewer_questions(data, settings.test_rows_per_class)
    return class_stream(data, settings.seed, settings.tasks, settings.classes)


def run_benchmark(
    settings: BenchmarkSettings,
    stream: ClassStream,
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    progress: Callable[[str], None] | None = None,
) -> Record:
    """Let a method live through a stream, and return all that came of it in JSON's types.

    Args:
        settings: see `BenchmarkSettings`; where the data lie is not looked at.
        stream: that `open_stream` made of them.
        base: a base model of its own, which most methods change.
        tokenizer: of the base model.
        progress: told a line a task.

    Raises:
        ModuleNotFoundError: the method needs an extra that is not installed.
    """
    import torch

    from sleep_pipeline.baselines.labelled import Answering
    from sleep_pipeline.baselines.labelled_dreaming import DreamingSleep
    from sleep_pipeline.baselines.methods import make_method
    from sleep_pipeline.baselines.running import run_stream
    from sleep_pipeline.memory.digest import base_digest

    digest = base_digest(base)
    torch.manual_seed(settings.seed)
    answering = Answering(tokenizer, normalise=settings.normalise)
    method = make_method(settings.method, base, answering, settings.of_method, settings.seed)
    result = run_stream(method, stream, progress)
    dreamt = method.dreamt if isinstance(method, DreamingSleep) else []
    return {
        "method": settings.method,
        **result.to_json(),
        **({"dreams": [night.to_json() for night in dreamt]} if dreamt else {}),
        "answers": {
            "by_likelihood": by_label(stream, result.final),
            "freely": by_label(stream, result.final_freely),
        },
        "settings": settings.model_dump(mode="json", by_alias=True),
        "data": describe_stream(stream),
        "weights_digest": digest,
    }


def describe_stream(stream: ClassStream) -> dict[str, Any]:
    """What a stream holds: tasks, classes, rows of each kind, and a digest of everything in their order."""
    parts = {
        "train_rows": sum(len(task.train) for task in stream.tasks),
        "validation_rows": sum(len(task.validation) for task in stream.tasks),
        "test_rows": sum(len(task.test) for task in stream.tasks),
        "out_of_scope_rows": len(stream.out_of_scope),
    }
    told = [
        [[[one.text, one.label] for one in part] for part in (task.train, task.validation, task.test)]
        for task in stream.tasks
    ]
    digest = hashlib.sha256(json.dumps([told, stream.out_of_scope]).encode()).hexdigest()
    classes = sum(len(task.labels) for task in stream.tasks)
    return {"tasks": len(stream.tasks), "classes": classes, **parts, "sha256": digest}


def by_label(stream: ClassStream, answers: Sequence[Sequence[int]]) -> dict[str, str]:
    """The answers of each task by the question's label, a 1 or 0 a question in the order of the data."""
    found: dict[str, str] = {label: "" for task in stream.tasks for label in task.labels}
    for task, own in zip(stream.tasks, answers, strict=True):
        for question, right in zip(task.test, own, strict=True):
            found[question.label] += str(right)
    return found


def numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """The measures of a record by name, without their intervals; what was not measured is left out."""
    values = {
        name: figure["value"] if isinstance(figure, Mapping) else figure for name, figure in record["figures"].items()
    }
    return {name: float(value) for name, value in values.items() if value is not None}


def cells(record: Mapping[str, Any]) -> list[tuple[int, int, float]]:
    """The matrix R in long form: after which task, of which task, accuracy.

    A method that answers after the last task alone has that row and no other.
    """
    if record["retention"] is None:
        rows = {len(record["final"]): record["final"]}
    else:
        rows = dict(zip(record["retention"]["nights"], record["retention"]["scores"], strict=True))
    return [
        (after, of, sum(answers) / len(answers))
        for after, row in rows.items()
        for of, answers in enumerate(row, start=1)
    ]


def curve(record: Mapping[str, Any]) -> Curve:
    """Accuracy over the classes seen so far, by likelihood: number of classes, accuracy, after each task."""
    found = []
    rows = [record["final"]] if record["retention"] is None else record["retention"]["scores"]
    for row in rows:
        answers = [right for cell in row for right in cell]
        classes = sum(len(labels) for labels in record["labels"][: len(row)])
        found.append((classes, sum(answers) / len(answers)))
    return found
