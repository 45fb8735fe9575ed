"""The Kedro hook that lets one night run at a time, and none that would be refused or could not be evaluated."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline

from sleep_pipeline.night_lock import NightLock
from sleep_pipeline.night_number import check_turn
from sleep_pipeline.registry import NightRegistry

_NIGHT = "params:night"
_DREAMING = "params:dreaming"
_EVALUATION = "params:evaluation"
_PROBES = "probes_folder"
_RAW = "raw_folder"
LEAST_FREE_MIB = 256.0
"""Several times what a night of the embedded model leaves behind; `sleep-pipeline plan` says what any needs."""


class NightRoomError(OSError):
    """A night could not write down what it learns."""


def check_room(folder: Path) -> None:
    """Make sure that a night can write into a folder, which is made if it does not exist.

    Raises:
        NightRoomError: it cannot be written, or its disk is nearly full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"a night")
    except OSError as error:
        raise NightRoomError(
            f"{folder} cannot be written ({error.strerror}), and a night keeps its checkpoints there: make it "
            "writable, or let models_folder of the catalog name another one"
        ) from error
    free = shutil.disk_usage(folder).free / 2**20
    if free < LEAST_FREE_MIB:
        raise NightRoomError(
            f"the disk of {folder} has {free:.0f} MiB left, and a night needs at least {LEAST_FREE_MIB:.0f}: make room "
            "first; nothing was begun"
        )


def _check_inputs(inputs: set[str], catalog: CatalogProtocol[Any, Any]) -> None:
    """Check what the nodes of a night would trip over hours after they began."""
    if _PROBES in inputs:
        from sleep_pipeline.evaluation.probes import given_probes

        given_probes(Path(catalog.load(_PROBES)))
    if _EVALUATION in inputs:
        from sleep_pipeline.evaluation.harness import fetch_harness
        from sleep_pipeline.evaluation.settings import EvaluationSettings
        from sleep_pipeline.evaluation.texts import ordinary_texts

        evaluation = EvaluationSettings.model_validate(catalog.load(_EVALUATION))
        if _RAW in inputs:
            ordinary_texts(evaluation.texts, Path(catalog.load(_RAW)))
        fetch_harness(evaluation.harness)
    if _DREAMING in inputs:
        from sleep_pipeline.dreaming.extras import check_night
        from sleep_pipeline.dreaming.settings import DreamingSettings

        check_night(DreamingSettings.model_validate(catalog.load(_DREAMING)))


class NightHook:
    """Holds the lock of a life while a pipeline of a night runs; a second run is told who has it."""

    def __init__(self) -> None:
        self._lock: NightLock | None = None

    @hook_impl(tryfirst=True)
    def before_pipeline_run(self, pipeline: Pipeline, catalog: CatalogProtocol[Any, Any]) -> None:
        """Check what only the end of the night needs, and take the lock, before anything is recorded or computed."""
        self._release()
        inputs = pipeline.inputs()
        registry = None
        if any("night" in node.tags for node in pipeline.nodes):
            registry = NightRegistry(Path(catalog.load("models_folder")))
            check_room(registry.folder)
            if _NIGHT in inputs:
                check_turn(registry, int(catalog.load(_NIGHT)))
        _check_inputs(inputs, catalog)
        if registry is not None:
            lock = NightLock(registry.folder)
            lock.acquire()
            self._lock = lock

    @hook_impl(trylast=True)
    def after_pipeline_run(self) -> None:
        """Give the lock back."""
        self._release()

    @hook_impl(trylast=True)
    def on_pipeline_error(self) -> None:
        """Give the lock back."""
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            lock, self._lock = self._lock, None
            lock.release()
