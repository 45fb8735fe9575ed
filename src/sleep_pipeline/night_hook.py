"""The Kedro hook that lets one night run at a time, and none that would be refused or could not be evaluated."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from sleep_pipeline.night_going_on import (
    check_collected,
    check_records,
    clear_outputs,
    nodes_to_run,
    with_what_follows,
)
from sleep_pipeline.night_lock import NightLock
from sleep_pipeline.night_number import check_turn, folder_of, next_number
from sleep_pipeline.registry import NightRegistry
from sleep_pipeline.run_environment import environment_option, set_environment

if TYPE_CHECKING:
    from sleep_pipeline.evaluation.settings import EvaluationSettings

logger = logging.getLogger(__name__)

_NIGHT = "params:night"
_DREAMING = "params:dreaming"
_EVALUATION = "params:evaluation"
_MACHINE = "params:machine"
_MEMORIES = "memories_folder"
_PROBES = "probes_folder"
_RAW = "raw_folder"
_REPORTING = "reporting_folder"
_EVALUATES = "evaluate_night_node"
_SLEEP = "sleep"
LEAST_FREE_MIB = 256.0
"""Several times what a night of the embedded model leaves behind; `sleep-pipeline plan` says what any needs."""

CHECKPOINTS = 3
"""Of the size of the last night's that a night writes at a time: before dreaming, after it, and while it trains."""


class NightRoomError(OSError):
    """A night could not write down what it learns."""


def check_room(registry: NightRegistry) -> None:
    """Make sure that a night can write its checkpoints, as large as the last night's; the folder is made.

    Raises:
        NightRoomError: it cannot be written, or its disk is nearly full.
    """
    folder = registry.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"a night")
    except OSError as error:
        raise NightRoomError(
            f"{folder} cannot be written ({error.strerror}), and a night keeps its checkpoints there: make it "
            "writable, or make it a link to another place"
        ) from error
    free = shutil.disk_usage(folder).free / 2**20
    nights = registry.nights()
    last = (folder / nights[max(nights)].checkpoint).rglob("*") if nights else ()
    left = sum(file.stat().st_size for file in last if file.is_file()) / 2**20
    least = max(LEAST_FREE_MIB, CHECKPOINTS * left)
    if free < least:
        raise NightRoomError(
            f"the disk of {folder} has {free:.0f} MiB left, and a night needs at least {least:.0f}: make room first; "
            "nothing was begun"
        )


def check_processes() -> None:
    """Make sure that a night was not started in several processes, of which all but one would find it locked.

    Raises:
        RuntimeError: it was, as `accelerate launch` and `torchrun` do.
    """
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise RuntimeError(
            f"a night runs in one process, on one GPU, and this is one of {os.environ['WORLD_SIZE']} (WORLD_SIZE): run "
            "`kedro run --pipelines=sleep` without a launcher; to spread dreams' trials over processes, set "
            "dreaming.trials.workers; to train an expert on several GPUs, use KnowledgeSeedingTrainer in your code"
        )


def check_register(registry: NightRegistry, night: int, named: bool, reporting_folder: Path) -> None:
    """Make sure that the register is that of the night's life: of another one, Kedro would find its night done.

    Args:
        registry: of the catalog's `models_folder`.
        night: as the configuration has it.
        named: whether the user named it.
        reporting_folder: of the life.

    Raises:
        RegistryError: the register does not know a night that was registered, or the night was counted by another.
    """
    from sleep_pipeline.registry import RegistryError

    following = next_number(registry, reporting_folder)
    if not named and night != following:
        raise RegistryError(
            f"nights are counted in data/06_models, where the next one is night {night}, and the register in "
            f"{registry.folder} says {following}: name the night (--params=night={following}), or leave models_folder "
            "where it was and make it a link"
        )
    report = reporting_folder / folder_of(night) / "registered.json"
    if report.exists() and night not in registry.nights():
        raise RegistryError(
            f"{report} says that night {night} is registered, and the register in {registry.folder} does not know it: "
            f"`sleep-pipeline dvc restore{environment_option()}` enters what is there, or take the register from a "
            "backup; or begin a new life in another folder (globals: life)"
        )


def check_ancestors(registry: NightRegistry, primary_folder: Path, reporting_folder: Path) -> None:
    """Make sure that what a night is asked and compared by is there, before it is needed hours later.

    Raises:
        RegistryError: a file of a night that tonight stands on is gone; it names the file.
    """
    from sleep_pipeline.registry import RegistryError

    lineage = registry.lineage()
    wanted = [
        path
        for night in lineage
        for path in (
            primary_folder / folder_of(night.number) / "contexts.parquet",
            primary_folder / folder_of(night.number) / "probes.parquet",
            reporting_folder / folder_of(night.number) / "metrics.json",
        )
    ]
    if lineage:
        wanted.append(reporting_folder / folder_of(lineage[-1].number) / "retention.json")
    for path in wanted:
        if not path.exists():
            raise RegistryError(
                f"{path} is gone, and every later night is asked and compared by it: fetch it (dvc pull, or a backup), "
                f"or go back to a night before it (sleep-pipeline rollback --to=N{environment_option()})"
            )


def check_judge(registry: NightRegistry, reporting_folder: Path, evaluation: EvaluationSettings) -> None:
    """Make sure that tonight is asked and judged as the nights were that it is compared with.

    Raises:
        RegistryError: the champion was asked otherwise; it names both ways.
    """
    from sleep_pipeline.registry import RegistryError

    champion = registry.champion()
    if champion is None:
        return
    metrics = json.loads((reporting_folder / folder_of(champion.number) / "metrics.json").read_text(encoding="utf-8"))
    was, asked = metrics.get("asked"), evaluation.asked()
    if was is not None and was != asked:
        old, new = (", ".join(f"evaluation.{name}={way[name]}" for name in way) for way in (was, asked))
        raise RegistryError(
            f"night {champion.number} was judged with {old}, and tonight would be with {new}: what seems to be "
            "forgotten or gained would be the change; set it back, or begin a new life (globals: life)"
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
        from sleep_pipeline.night_model import MachineSettings

        machine = MachineSettings.model_validate(catalog.load(_MACHINE))
        check_night(DreamingSettings.model_validate(catalog.load(_DREAMING)), machine.device)


def _check_going_on(catalog: CatalogProtocol[Any, Any], registry: NightRegistry, night: int, runs: list[str]) -> None:
    if _MEMORIES not in catalog:
        return
    added = check_collected(catalog, registry, night, Path(catalog.load(_MEMORIES)), runs)
    if added:
        logger.info(
            "%d files came since night %d was collected, such as %s; what is new in them waits for the next night",
            len(added),
            night,
            added[0],
        )


def _whole_night(pipeline: Pipeline) -> Pipeline:
    """The night that a pipeline, such as one of its phases, is part of; itself where the project has none."""
    from kedro.framework.project import pipelines

    requested = pipelines._requested_pipelines
    pipelines.set_requested([_SLEEP])
    try:
        return pipelines[_SLEEP] if _SLEEP in pipelines else pipeline
    finally:
        pipelines.set_requested(requested)


class NightHook:
    """Holds the lock of a life while a pipeline of a night runs; a second run is told who has it."""

    def __init__(self) -> None:
        self._lock: NightLock | None = None

    @hook_impl(tryfirst=True)
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: CatalogProtocol[Any, Any]
    ) -> None:
        """Check what only the end of the night needs, and take the lock, before anything is recorded or computed."""
        self._release()
        set_environment(run_params.get("env"), run_params.get("runtime_params"))
        inputs = pipeline.inputs()
        registry = None
        anew: list[Node] = []
        if any("night" in node.tags for node in pipeline.nodes):
            check_processes()
            registry = NightRegistry(Path(catalog.load("models_folder")))
            check_room(registry)
            if _NIGHT in inputs:
                night = int(catalog.load(_NIGHT))
                check_turn(registry, night)
                if _REPORTING in catalog:
                    reporting = Path(catalog.load(_REPORTING))
                    check_register(registry, night, "night" in (run_params.get("runtime_params") or {}), reporting)
                    if any(node.name == _EVALUATES for node in pipeline.nodes):
                        from sleep_pipeline.evaluation.settings import EvaluationSettings

                        check_ancestors(registry, Path(catalog.load("primary_folder")), reporting)
                        check_judge(registry, reporting, EvaluationSettings.model_validate(catalog.load(_EVALUATION)))
            if _NIGHT in catalog:
                night, missing_alone = int(catalog.load(_NIGHT)), bool(run_params.get("only_missing_outputs"))
                runs = nodes_to_run(pipeline, catalog, missing_alone)
                check_records(registry, night, runs)
                _check_going_on(catalog, registry, night, [node.name for node in runs])
                if not missing_alone and night not in registry.nights():
                    anew = with_what_follows(runs, _whole_night(pipeline))
        _check_inputs(inputs, catalog)
        if registry is not None:
            lock = NightLock(registry.folder)
            lock.acquire()
            self._lock = lock
            clear_outputs(catalog, anew)

    @hook_impl(trylast=True)
    def after_pipeline_run(self) -> None:
        """Give the lock back."""
        self._release()

    @hook_impl(trylast=True)
    def on_pipeline_error(self) -> None:
        """Give the lock back."""
        self._release()

    def _release(self) -> None:
        set_environment(None)
        if self._lock is not None:
            lock, self._lock = self._lock, None
            lock.release()
