"""One MLflow run from start to end, through the client only.

MLflow's fluent interface keeps one active run per thread and ends it at interpreter exit as if it had
succeeded. A run held by its id knows neither problem: nothing else can log into it by accident, and
one that is cut short ends as KILLED.
"""

import atexit
import getpass
import logging
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from sleep_pipeline.tracking.config import TrackingConfig
from sleep_pipeline.tracking.database import open_client
from sleep_pipeline.tracking.flatten import clean_name
from sleep_pipeline.tracking.sink import MlflowSink

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow.entities import DatasetInput
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)

# MLflow takes at most 100 parameters in one request.
_PARAMS_PER_REQUEST = 100


class TrackingError(RuntimeError):
    """MLflow cannot record the run as configured."""


@contextmanager
def whatever_mlflow_says() -> Iterator[None]:
    """Go on where MLflow fails after a run has begun: what it shows is a view of the night, and not the night."""
    try:
        yield
    except Exception as error:
        logger.warning("MLflow does not take what the run says (%s: %s); the run goes on", type(error).__name__, error)


class TrackedRun:
    """A started MLflow run: takes parameters, tags, metrics and files until `finish`."""

    def __init__(self, client: "MlflowClient", run_id: str) -> None:
        self.client = client
        self.run_id = run_id
        self.sink = MlflowSink(client, run_id)
        self._ended = False
        atexit.register(self.finish, "KILLED")

    @classmethod
    def unfinished(cls, config: TrackingConfig, experiment: str, tags: Mapping[str, str]) -> "TrackedRun | None":
        """Take up the latest run with these tags, unless it finished or there is none.

        Runs below it that a killed process left open end as KILLED. Whoever calls makes sure that none is alive.
        """
        from mlflow.entities import RunStatus

        client = open_client(config)
        experiments = [experiment_id(client, experiment, config)]
        query = " and ".join(f"tags.`{clean_name(name)}` = '{value}'" for name, value in tags.items())
        found = client.search_runs(experiments, query, max_results=1, order_by=["attributes.start_time DESC"])
        if not found or found[0].info.status == RunStatus.to_string(RunStatus.FINISHED):
            return None
        run_id = found[0].info.run_id
        client.update_run(run_id, status="RUNNING")
        with whatever_mlflow_says():
            left_open = f"tags.`mlflow.parentRunId` = '{run_id}' and attributes.status = 'RUNNING'"
            for child in client.search_runs(experiments, left_open):
                client.set_terminated(child.info.run_id, "KILLED")
        return cls(client, run_id)

    @classmethod
    def start(cls, config: TrackingConfig, experiment: str, name: str, tags: Mapping[str, str]) -> "TrackedRun":
        """Start a run in `experiment`, or attach to the one that `MLFLOW_RUN_ID` names.

        Args:
            config: resolved settings (`TrackingConfig.resolved`).
            experiment: name of the experiment, made on first use.
            name: the run's name in the user interface; an attached run keeps its own.
            tags: set on the run, attached or new.

        Raises:
            TrackingError: `MLFLOW_RUN_ID` names no run, or the experiment was deleted.
        """
        from mlflow.exceptions import MlflowException

        client = open_client(config)
        attached = os.environ.get("MLFLOW_RUN_ID")
        if attached:
            try:
                client.update_run(attached, status="RUNNING")
            except MlflowException as error:
                raise TrackingError(
                    f"MLFLOW_RUN_ID={attached} names no run that can be resumed in {config.shown_uri}: "
                    "unset the variable or correct it."
                ) from error
            run = cls(client, attached)
            run.set_tags(tags)
            return run
        identity = {"mlflow.user": _user(), "mlflow.source.type": "LOCAL"}
        created = client.create_run(experiment_id(client, experiment, config), run_name=name, tags={**identity, **tags})
        return cls(client, created.info.run_id)

    def child(self, name: str, tags: Mapping[str, str]) -> "TrackedRun":
        """Start a run that MLflow shows below this one."""
        experiment = self.client.get_run(self.run_id).info.experiment_id
        identity = {"mlflow.user": _user(), "mlflow.source.type": "LOCAL", "mlflow.parentRunId": self.run_id}
        created = self.client.create_run(experiment, run_name=name, tags={**identity, **tags})
        return TrackedRun(self.client, created.info.run_id)

    def log_params(self, params: Mapping[str, str]) -> None:
        """Record `params`; where an attached run already holds another value, the first one stays."""
        from mlflow.entities import Param

        present = self.client.get_run(self.run_id).data.params
        for name in sorted(params.keys() & present.keys()):
            if params[name] != present[name]:
                logger.warning("Run %s keeps %s=%s, not %s.", self.run_id, name, present[name], params[name])
        fresh = [Param(name, value) for name, value in params.items() if name not in present]
        for first in range(0, len(fresh), _PARAMS_PER_REQUEST):
            self.client.log_batch(self.run_id, params=fresh[first : first + _PARAMS_PER_REQUEST])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set `tags`, replacing values that are there."""
        for name, value in tags.items():
            self.client.set_tag(self.run_id, clean_name(name), value)

    def log_inputs(self, inputs: "Sequence[DatasetInput]") -> None:
        """Record data sets that the run reads; one of the same name and digest that is there stays as it is."""
        self.client.log_inputs(self.run_id, inputs)

    def log_text(self, text: str, artifact_file: str) -> None:
        """Store `text` as the artifact `artifact_file` (`folder/name.txt`)."""
        self.client.log_text(self.run_id, text, artifact_file)

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Store the file or folder at `path`, which exists, below the artifact folder `folder`."""
        if path.is_dir():
            target = f"{folder}/{path.name}" if folder else path.name
            self.client.log_artifacts(self.run_id, str(path), target)
        else:
            self.client.log_artifact(self.run_id, str(path), folder)

    def log_figure(self, figure: "Figure", artifact_file: str) -> None:
        """Store a matplotlib figure as `artifact_file`; the suffix (`.png`, `.svg`) says how."""
        self.client.log_figure(self.run_id, figure, artifact_file)

    def finish(self, status: str) -> None:
        """Write what waits and end the run as FINISHED, FAILED or KILLED; later calls do nothing."""
        if self._ended:
            return
        self._ended = True
        atexit.unregister(self.finish)
        try:
            self.sink.flush()
        finally:
            self.client.set_terminated(self.run_id, status)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container may run under a user id that has no name.
        return str(os.getuid()) if hasattr(os, "getuid") else "unknown"


def experiment_id(client: "MlflowClient", name: str, config: TrackingConfig) -> str:
    """Return the id of the experiment `name`, which is made if there is none.

    One whose files go to another folder than is configured stays as it is, with a warning: MLflow keeps an absolute
    path, which is a wrong one once the project was moved.

    Raises:
        TrackingError: the experiment was deleted.
    """
    from mlflow.exceptions import MlflowException

    def existing() -> Any:
        return client.get_experiment_by_name(name)

    experiment = existing()
    location = f"{config.artifact_location.rstrip('/')}/{clean_name(name)}"
    if experiment is None:
        try:
            return client.create_experiment(name, artifact_location=location)
        except MlflowException:
            # Another process may have made it in between.
            experiment = existing()
            if experiment is None:
                raise
    if experiment.lifecycle_stage != "active":
        raise TrackingError(
            f"The MLflow experiment {name!r} in {config.shown_uri} is deleted: restore it with "
            f"`mlflow experiments restore --experiment-id {experiment.experiment_id}` or name another one "
            "in conf/local/mlflow.yml."
        )
    number = str(experiment.experiment_id)
    there, here = _local_folder(str(experiment.artifact_location)), _local_folder(location)
    if there is not None and (here is None or there.resolve() != here.resolve()):
        _warn_of_folder(name, number, there, here or location, config.shown_uri)
    return number


def _local_folder(location: str) -> Path | None:
    """The folder that an artifact location means; None for one of a server or store."""
    parts = urlsplit(location)
    if parts.scheme == "file":
        return Path(url2pathname(parts.path))
    return None if parts.scheme else Path(location)


@cache
def _warn_of_folder(name: str, number: str, there: Path, here: Path | str, shown_uri: str) -> None:
    """Say once a process that files of an experiment go elsewhere, and what to do about it."""
    command = f"mlflow experiments rename --experiment-id {number} --new-name {shlex.quote(f'{name} before')}"
    logger.warning(
        "Files of the MLflow experiment %r go to %s, not to %s: was the project moved? MLflow cannot change that. Make "
        "the one a link to the other, or give the experiment another name, and the next run makes a new one: "
        "`MLFLOW_TRACKING_URI=%s %s`",
        name,
        there,
        here,
        shlex.quote(shown_uri),
        command,
    )
