"""Labelled benchmark tasks: one declaration a task (`*.yml`), loaders for the published formats, and class streams.

data = load_task(declared("clinc150"), "data/01_raw/clinc150")
for task in class_stream(data, seed=0).tasks:
    ...
"""

from sleep_pipeline.evaluation.tasks.data import Example, LabelledData, Quarantined, TaskError
from sleep_pipeline.evaluation.tasks.declaration import TaskDeclaration, declared, task_names
from sleep_pipeline.evaluation.tasks.labels import in_words
from sleep_pipeline.evaluation.tasks.loading import load_task
from sleep_pipeline.evaluation.tasks.streams import (
    ClassStream,
    ClassTask,
    asked_on_validation,
    beginnings,
    class_stream,
    fewer_questions,
)

__all__ = [
    "ClassStream",
    "ClassTask",
    "Example",
    "LabelledData",
    "Quarantined",
    "TaskDeclaration",
    "TaskError",
    "asked_on_validation",
    "beginnings",
    "class_stream",
    "declared",
    "fewer_questions",
    "in_words",
    "load_task",
    "task_names",
]
