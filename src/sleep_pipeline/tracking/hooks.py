"""The Kedro hook that records every `kedro run` as one MLflow run.

Deviation from the stack's plugin: see the package docstring. One run per Kedro session; a session that
starts while an earlier run is still open (a notebook cell that was interrupted) ends that one as KILLED.
Whether or not anything is recorded, what a node that fails had made by then is written if its error carries it.
"""

import logging
import os
import time
from pathlib import Path
from typing import Any

from kedro.config import AbstractConfigLoader, MissingConfigException
from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol, DatasetError
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from sleep_pipeline.registry import NightRegistry
from sleep_pipeline.session import NothingToDo
from sleep_pipeline.tracking.active import active_run, phase_run, set_active_run, set_phase_run
from sleep_pipeline.tracking.config import TrackingConfig
from sleep_pipeline.tracking.flatten import clean_name, used_parameters
from sleep_pipeline.tracking.git import GitState, git_state
from sleep_pipeline.tracking.inputs import NightInputs
from sleep_pipeline.tracking.registry import mirror
from sleep_pipeline.tracking.run import TrackedRun, whatever_mlflow_says

logger = logging.getLogger(__name__)

_NIGHT = "params:night"
_MODELS = "models_folder"
_SAME_NIGHT = ("life", "night", "kedro.env", "kedro.pipeline")
"""Tags by which a night that goes on finds its run; one of an earlier release tells no life, and is not taken up."""

PHASES = ("collect", "seed", "dream", "refine", "evaluate")
WHOLE_NIGHTS = ("sleep", "__default__")
REGISTERS = "register_night_node"


def _phase_of(node: Node) -> str | None:
    """The phase of the night that a node belongs to, by its tags."""
    return next((phase for phase in PHASES if "night" in node.tags and phase in node.tags), None)


def load_config(loader: AbstractConfigLoader, project_path: Path) -> TrackingConfig:
    """Read `mlflow.yml` of the run's environment; without one the defaults hold.

    Raises:
        pydantic.ValidationError: an unknown name or a value of the wrong type.
    """
    try:
        settings = loader["mlflow"]
    except MissingConfigException:
        settings = {}
    return TrackingConfig.model_validate(settings).resolved(project_path)


def _pipeline_name(run_params: dict[str, Any]) -> str:
    return "+".join(run_params.get("pipeline_names") or ["__default__"])


def _tags(
    run_params: dict[str, Any], pipeline: Pipeline, catalog: CatalogProtocol[Any, Any], git: GitState | None
) -> dict[str, str]:
    tags = {
        "kedro.pipeline": _pipeline_name(run_params),
        "kedro.env": str(run_params.get("env") or "base"),
        "kedro.run_id": str(run_params["run_id"]),
        "mlflow.source.name": "kedro run",
    }
    night = (run_params.get("runtime_params") or {}).get("night")
    if night is None and _NIGHT in pipeline.inputs():
        night = catalog.load(_NIGHT)
    if night is not None:
        tags["night"] = str(night)
    if _MODELS in pipeline.inputs():
        # As an address, which has none of the quotes that would end a value in a query.
        tags["life"] = Path(catalog.load(_MODELS)).resolve().as_uri()
    if git is not None:
        tags["mlflow.source.git.commit"] = git.commit
        tags["mlflow.source.git.branch"] = git.branch
        tags["mlflow.source.git.dirty"] = str(git.dirty).lower()
        tags["git.changed_data_files"] = str(git.data_changed)
    return tags


def _write_made(error: Exception, node: Node, catalog: CatalogProtocol[Any, Any]) -> None:
    """Write the outputs that an error carries as `made`, such as a quarantine that tells what to mend.

    Kedro saves nothing of a node that fails. As not all of its outputs are there, the next run does it again.
    """
    made = getattr(error, "made", {})
    for name in node.outputs:
        if name not in made:
            continue
        try:
            catalog.save(name, made[name])
        except DatasetError as problem:
            # The error of the node is what people must hear of.
            logger.warning("%s could not be written: %s", name, problem)


class MlflowHook:
    """Opens a run before the first node and closes it after the last, whatever happened between."""

    def __init__(self) -> None:
        self._config = TrackingConfig(enabled=False)
        self._started: dict[str, float] = {}
        self._phased = False
        self._phase: str | None = None
        self._inputs = NightInputs(Path())

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Read the settings, so that a mistake in `mlflow.yml` shows before any work."""
        self._config = load_config(context.config_loader, context.project_path)
        self._inputs = NightInputs(context.project_path)

    @hook_impl
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: CatalogProtocol[Any, Any]
    ) -> None:
        """Start the run and record what it was given."""
        self._end("KILLED")
        if not self._config.enabled:
            return
        name = _pipeline_name(run_params)
        git = git_state(Path(run_params["project_path"]))
        tags = _tags(run_params, pipeline, catalog, git)
        title = f"{name} night {tags['night']}" if "night" in tags else name
        experiment = self._config.experiment(name)
        self._phased = name in WHOLE_NIGHTS
        run = None
        if self._phased and "night" in tags and not os.environ.get("MLFLOW_RUN_ID"):
            same = {key: tags[key] for key in _SAME_NIGHT if key in tags}
            run = TrackedRun.unfinished(self._config, experiment, same)
        if run is None:
            run = TrackedRun.start(self._config, experiment, title, tags)
        else:
            run.set_tags(tags)
        set_active_run(run)
        self._started = {"": time.perf_counter()}
        logger.info("MLflow run %s in %s", run.run_id, self._config.shown_uri)
        parameters = used_parameters(pipeline, catalog)
        with whatever_mlflow_says():
            run.log_params(parameters)
        if git is not None and git.dirty:
            with whatever_mlflow_says():
                run.log_text(git.diff, "git/uncommitted.diff")
                run.log_text("\n".join(git.untracked), "git/untracked.txt")

    @hook_impl
    def before_node_run(self, node: Node, catalog: CatalogProtocol[Any, Any], inputs: dict[str, Any]) -> None:
        """Start the run of a phase at its first node, record what `node` reads of the night, and start its clock."""
        run, phase = active_run(), _phase_of(node)
        if run is not None and self._phased and phase is not None and phase != self._phase:
            self._end_phase("FINISHED")
            self._phase = phase
            with whatever_mlflow_says():
                set_phase_run(run.child(phase, {"phase": phase}))
        if run is not None and phase is not None:
            child = phase_run()
            self._inputs.record([run] if child is None else [run, child], catalog, inputs)
        self._started[node.name] = time.perf_counter()

    @hook_impl
    def after_node_run(self, node: Node) -> None:
        """Record how long `node` took."""
        self._log_seconds(node.name)

    @hook_impl
    def on_node_error(self, error: Exception, node: Node, catalog: CatalogProtocol[Any, Any]) -> None:
        """Write what the error says that `node` had made by then; record which node failed, and after how long."""
        _write_made(error, node, catalog)
        run = active_run()
        if run is not None:
            with whatever_mlflow_says():
                run.set_tags({"error.node": node.name})
            self._log_seconds(node.name)

    @hook_impl
    def after_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: CatalogProtocol[Any, Any]
    ) -> None:
        """Show a registered night as a model with its parent, and end the run as FINISHED."""
        if any(node.name == REGISTERS for node in pipeline.nodes):
            run = active_run()
            environment = str(run_params.get("env") or "base")
            registry = NightRegistry(catalog.load(_MODELS))
            mirror(registry, self._config, environment, run.run_id if run else None)
        self._end("FINISHED")

    @hook_impl
    def on_pipeline_error(self, error: Exception) -> None:
        """End the run as FAILED, with the error as a tag, unless there was nothing to do."""
        run, quiet = active_run(), isinstance(error, NothingToDo)
        if run is not None:
            with whatever_mlflow_says():
                run.set_tags({"nothing_to_do": str(error)} if quiet else {"error": f"{type(error).__name__}: {error}"})
        self._end("FINISHED" if quiet else "FAILED")

    def _log_seconds(self, name: str) -> None:
        run = active_run()
        started = self._started.pop(name, None)
        if run is not None and started is not None:
            seconds = time.perf_counter() - started
            run.sink.log_metrics({f"seconds/{clean_name(name or 'total')}": seconds}, step=0)

    def _end_phase(self, status: str) -> None:
        run = phase_run()
        self._phase = None
        set_phase_run(None)
        if run is not None:
            with whatever_mlflow_says():
                run.finish(status)

    def _end(self, status: str) -> None:
        run = active_run()
        if run is None:
            return
        self._end_phase(status)
        if status != "KILLED":
            self._log_seconds("")
        set_active_run(None)
        with whatever_mlflow_says():
            run.finish(status)
