"""Isolated trials in several processes by Ray (extra `ray`): each holds one copy of the model and trains whole stacks.

    with Workers(2) as workers:
        workers.hold(model)  # sent once, however many trials follow
        report = run_trials(model, dreams, settings, evaluate, workers)

The processes belong to a Ray of their own on this machine, without its dashboard and its usage statistics. Where the
caller has called `ray.init` before, they are taken from there, which may be a cluster of several machines.

A stack gives the same bits in a worker as here if both compute with the same number of threads on the same device.
Each worker gets its share of this process's threads, so that is so with one (`machine.threads: 1`). GPUs are untried.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import TracebackType
from typing import Any

import torch
from torch import nn

# A memory can be read in another process only where PEFT knows of it.
import sleep_pipeline.memory  # noqa: F401
from sleep_pipeline.dreaming.extras import check_workers
from sleep_pipeline.dreaming.rows import Dream
from sleep_pipeline.dreaming.settings import TrialSettings
from sleep_pipeline.dreaming.trials import Evaluate, Trial, run_stack
from sleep_pipeline.environment import apply_defaults
from sleep_pipeline.hardware import keep_freed_memory


class Workers:
    """Processes that train stacks of trials; closed at the end of a `with` block.

    Args:
        count: how many.
        device: type of the device that they compute on; on `cuda` each has a GPU of its own.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        ValueError: there are fewer cores or GPUs.
    """

    def __init__(self, count: int, device: str = "cpu") -> None:
        # Ray reads its switches, that of its usage statistics among them, when it starts.
        apply_defaults()
        check_workers(count, device)
        import ray

        self.count = count
        self._model: nn.Module | None = None
        self._owns_ray = not ray.is_initialized()
        if self._owns_ray:
            ray.init(
                address="local",
                num_cpus=count,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        worker = ray.remote(num_cpus=1, num_gpus=int(device == "cuda"))(_Worker)
        threads = max(1, torch.get_num_threads() // count)
        self._actors = [worker.remote(threads, device) for _ in range(count)]

    def hold(self, model: nn.Module) -> None:
        """Give every worker a copy of a model as it now is, its memory's view and its adapters' switches included.

        Call it again when anything about the model has changed.
        """
        import ray

        sent = ray.put(_copy_on_cpu(model))
        ray.get([actor.hold.remote(sent) for actor in self._actors])
        self._model = model

    def run(
        self,
        model: nn.Module,
        dreams: Sequence[Dream],
        groups: Sequence[Sequence[int]],
        settings: TrialSettings,
        evaluate: Evaluate | None = None,
        keep: bool = True,
    ) -> list[list[Trial]]:
        """Train and judge stacks, each by the next worker that is free.

        Args:
            model: the one that the workers hold; the adapters come back to its device.
            dreams: of all stacks.
            groups: the stacks, as indices of dreams.
            settings: see `TrialSettings`.
            evaluate: see `Evaluate`; every worker gets a copy.
            keep: whether the trained adapters come back.

        Raises:
            ValueError: the workers hold another model.
            RuntimeError: a worker died.
        """
        import ray
        from ray.util import ActorPool

        if model is not self._model:
            raise ValueError("the workers hold another model than the trials are to start from; call hold(model) first")
        task = ray.put((list(dreams), settings, evaluate, keep))
        device = next(model.parameters()).device
        pool = ActorPool(self._actors)
        try:
            stacks = list(pool.map_unordered(lambda actor, group: actor.run.remote(task, list(group)), groups))
        except ray.exceptions.RayActorError as error:
            raise RuntimeError(
                f"a worker died while it trained a stack, most often for want of memory: lower dreaming.trials.workers="
                f"{self.count} or dreaming.trials.memory_budget={settings.memory_budget} ({error})"
            ) from error
        return [[replace(trial, adapter=trial.adapter.to(device)) for trial in stack] for stack in stacks]

    def close(self) -> None:
        """End the processes."""
        import ray

        for actor in self._actors:
            ray.kill(actor)
        self._actors, self._model = [], None
        if self._owns_ray:
            ray.shutdown()

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def workers_for(model: nn.Module, settings: TrialSettings, workers: Workers | None = None) -> Iterator[Workers | None]:
    """Workers that hold a model: those given, else as many as the settings ask for; None for this process alone.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        ValueError: there are fewer cores or GPUs.
    """
    with nullcontext(workers) if workers is not None else hire(model, settings) as hired:
        if hired is not None:
            hired.hold(model)
        yield hired


def hire(model: nn.Module, settings: TrialSettings) -> Workers | nullcontext[None]:
    """As many workers as the settings ask for, for a model that they do not hold yet; None in the block for no worker.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        ValueError: there are fewer cores or GPUs.
    """
    return Workers(settings.workers, next(model.parameters()).device.type) if settings.workers else nullcontext()


class _Worker:
    """What runs in a process of its own."""

    def __init__(self, threads: int, device: str) -> None:
        torch.set_num_threads(threads)
        self.device = device
        if device == "cpu":
            keep_freed_memory()

    def hold(self, model: nn.Module) -> None:
        self.model = model.to(self.device)

    def run(
        self, task: tuple[Sequence[Dream], TrialSettings, Evaluate | None, bool], group: Sequence[int]
    ) -> list[Trial]:
        dreams, settings, evaluate, keep = task
        trials = run_stack(self.model, dreams, group, settings, evaluate, keep)
        return [replace(trial, adapter=trial.adapter.to("cpu")) for trial in trials]


def _copy_on_cpu(model: nn.Module) -> nn.Module:
    """A copy without gradients; weights that are on the CPU already are shared with it, not copied."""
    shared: dict[int, Any] = {id(tensor): tensor.detach().cpu() for tensor in model.buffers()}
    for parameter in model.parameters():
        shared[id(parameter)] = nn.Parameter(parameter.detach().cpu(), requires_grad=False)
    return copy.deepcopy(model, shared)
