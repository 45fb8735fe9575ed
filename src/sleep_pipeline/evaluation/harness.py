"""Tasks of lm-evaluation-harness, asked of a model as it stands in memory.

The harness is an extra, and most of its tasks fetch their data from a hub: nothing of it is imported, and nothing is
fetched, unless a task is set.
"""

from __future__ import annotations

import difflib
import importlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleep_pipeline.evaluation.settings import HarnessSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_BOOTSTRAPS = 1000
"""Resamples for the standard errors of metrics that have no formula for it; the harness's own 100,000 take minutes."""


def check_harness(settings: HarnessSettings) -> None:
    """Find out whether the tasks could be run, without fetching any data.

    Raises:
        ModuleNotFoundError: the harness is not installed.
        NotADirectoryError: `include_path` is no folder.
        ValueError: there is no task of a name.
    """
    if settings.tasks:
        _task_manager(settings)


def fetch_harness(settings: HarnessSettings) -> None:
    """Check the settings and load the tasks' data, so that what cannot be had shows before a night and not after it.

    Raises:
        ModuleNotFoundError: the harness is not installed.
        NotADirectoryError: `include_path` is no folder.
        ValueError: there is no task of a name.
        RuntimeError: a task or its data cannot be loaded.
    """
    if not settings.tasks:
        return
    manager = _task_manager(settings)
    from lm_eval.tasks import get_task_dict

    try:
        get_task_dict(list(settings.tasks), manager)
    except Exception as error:  # Whatever a task's own loader raises.
        raise RuntimeError(
            f"evaluation.harness.tasks={list(settings.tasks)} cannot be loaded ({type(error).__name__}: {error}); "
            "check the network and HF_HUB_OFFLINE, or the declaration of the task, or leave the task out"
        ) from error


def harness_scores(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: HarnessSettings
) -> dict[str, float]:
    """Run the tasks on a model.

    Args:
        model: a causal LM, with or without a memory, under whatever view holds; it stays where it is.
        tokenizer: its tokenizer.
        settings: which tasks, and how.

    Returns:
        `harness/TASK/METRIC` for every metric and its standard error (`METRIC_stderr`), with `.FILTER` behind it where
        a task has filters, and `harness/TASK/samples`. A group of tasks has the scores of its members, too. Empty
        without tasks.

    Raises:
        ModuleNotFoundError: the harness is not installed.
        NotADirectoryError: `include_path` is no folder.
        ValueError: there is no task of a name.
    """
    if not settings.tasks:
        return {}
    manager = _task_manager(settings)
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    found: Any = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=settings.batch_size),
        tasks=list(settings.tasks),
        num_fewshot=settings.num_fewshot,
        limit=settings.limit,
        apply_chat_template=settings.chat_template,
        task_manager=manager,
        bootstrap_iters=_BOOTSTRAPS,
        log_samples=False,
    )
    return _flat(found)


def _flat(found: Mapping[str, Any]) -> dict[str, float]:
    scores: dict[str, float] = {}
    samples = found.get("n-samples", {})
    for task, metrics in found["results"].items():
        for key, value in metrics.items():
            # `acc,none` is a metric behind no filter; a key without a comma tells something else.
            name, comma, filtered = key.partition(",")
            if not comma or not isinstance(value, int | float) or not math.isfinite(value):
                continue
            scores[f"harness/{task}/{name}" + ("" if filtered == "none" else f".{filtered}")] = float(value)
        if task in samples:
            scores[f"harness/{task}/samples"] = float(samples[task]["effective"])
    return scores


def _task_manager(settings: HarnessSettings) -> Any:
    """The harness's register of tasks, which holds all that are set."""
    try:
        # For the check alone: it must not fail after the night.
        importlib.import_module("lm_eval.models.huggingface")
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"evaluation.harness.tasks={list(settings.tasks)} needs lm-evaluation-harness ({error}): "
            "pip install 'sleep-pipeline[harness]', or set no tasks",
            name=error.name,
        ) from error
    folder = settings.include_path
    if folder is not None:
        if not Path(folder).is_dir():
            raise NotADirectoryError(
                f"evaluation.harness.include_path={folder!r} is no folder; give the one that holds the declarations of "
                "your tasks (.yaml), or none"
            )
        # The harness comes with thousands of declarations: they are not read where none of them is asked for.
        own = TaskManager(include_path=folder, include_defaults=False)
        if set(settings.tasks) <= set(own.all_subtasks):
            return own
    manager = TaskManager(include_path=folder)
    known = set(manager.all_tasks)
    for name in settings.tasks:
        if name not in known:
            close = difflib.get_close_matches(name, sorted(known), n=3)
            remedy = f"did you mean {' or '.join(map(repr, close))}?" if close else "`lm-eval ls tasks` lists them all"
            raise ValueError(f"evaluation.harness.tasks={list(settings.tasks)}: there is no task {name!r}; {remedy}")
    return manager
