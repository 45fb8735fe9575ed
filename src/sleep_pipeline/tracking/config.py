"""Where runs are recorded: the typed form of `conf/base/mlflow.yml`."""

import re
from pathlib import Path, PurePath

from pydantic import BaseModel, ConfigDict

SQLITE = "sqlite:///"


class TrackingConfig(BaseModel):
    """Settings of the tracking hook; unknown names are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = True
    tracking_uri: str = "sqlite:///mlflow.db"
    artifact_location: str = "mlartifacts"
    default_experiment: str = "sleep-pipeline"
    experiments: dict[str, str] = {}

    @property
    def shown_uri(self) -> str:
        """The address of the store for people and logs, without a password in it."""
        return re.sub(r"(?<=://)[^/]*@", "", self.tracking_uri)

    def experiment(self, pipeline: str) -> str:
        """Return the experiment that runs of `pipeline` belong to."""
        return self.experiments.get(pipeline, self.default_experiment)

    def resolved(self, project_path: Path) -> "TrackingConfig":
        """Return a copy whose relative paths are anchored at `project_path`.

        MLflow reads a relative `sqlite:///FILE` against the working directory, so a run started in a
        subfolder would write to a database of its own. Addresses of servers and stores stay as they are.
        """
        uri, artifacts = self.tracking_uri, self.artifact_location
        database = uri.removeprefix(SQLITE)
        if uri.startswith(SQLITE) and not PurePath(database).is_absolute():
            uri = SQLITE + str(project_path.resolve() / database)
        if "://" not in artifacts and not artifacts.startswith("mlflow-artifacts:"):
            artifacts = (project_path.resolve() / artifacts).as_uri()
        return self.model_copy(update={"tracking_uri": uri, "artifact_location": artifacts})
