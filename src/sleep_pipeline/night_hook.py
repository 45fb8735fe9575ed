"""The Kedro hook that lets one night run at a time, and none that could not be evaluated in the end."""

from __future__ import annotations

from typing import Any

from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline

from sleep_pipeline.night_lock import NightLock

_EVALUATION = "params:evaluation"


class NightHook:
    """Holds the lock of a life while a pipeline of a night runs; a second run is told who has it."""

    def __init__(self) -> None:
        self._lock: NightLock | None = None

    @hook_impl(tryfirst=True)
    def before_pipeline_run(self, pipeline: Pipeline, catalog: CatalogProtocol[Any, Any]) -> None:
        """Check what only the end of the night needs, and take the lock, before anything is recorded or computed."""
        self._release()
        if _EVALUATION in pipeline.inputs():
            from sleep_pipeline.evaluation.harness import fetch_harness
            from sleep_pipeline.evaluation.settings import EvaluationSettings

            fetch_harness(EvaluationSettings.model_validate(catalog.load(_EVALUATION)).harness)
        if any("night" in node.tags for node in pipeline.nodes):
            lock = NightLock(catalog.load("models_folder"))
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
