"""Mirrors the register of nights into MLflow: a logged model a night, one registered model, its aliases, and of every
night's run what became of it.

`registry.json` is the truth and MLflow a view of it, for people who look at runs. The weights stay with DVC.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sleep_pipeline.registry import BASE, Night, NightRegistry
from sleep_pipeline.tracking.config import TrackingConfig
from sleep_pipeline.tracking.database import open_client
from sleep_pipeline.tracking.flatten import clean_name
from sleep_pipeline.tracking.run import experiment_id

logger = logging.getLogger(__name__)

MODEL_NAME = "sleep-pipeline"
MODEL_TYPE = "night"
_OUTCOME = "outcome"
"""Tag of a night's run, so that one that was turned down does not stand among the others like one of them."""
_ALIASES = ("champion", "challenger", "previous_champion")
# Some four minutes of retries by default, at the end of a night that needs no server.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}


def registered_name(environment: str) -> str:
    """Return the registered model of a configuration environment; each has nights of its own."""
    return MODEL_NAME if environment == "base" else f"{MODEL_NAME}-{environment}"


def mirror(
    registry: NightRegistry, config: TrackingConfig, environment: str = "base", run_id: str | None = None
) -> bool:
    """Make MLflow show what the register says; what is there already is left alone.

    A night must not fail because of its mirror: whatever goes wrong is a warning, and the next call makes up for it.

    Args:
        registry: of the nights.
        config: resolved settings (`TrackingConfig.resolved`).
        environment: of the configuration; it names the registered model and is a tag of its versions.
        run_id: the MLflow run of the last night, which becomes the source of its model.

    Returns:
        Whether MLflow now agrees with the register; False with tracking off.
    """
    if not config.enabled:
        return False
    try:
        with _environment(config.tracking_uri):
            _Mirror(registry, config, environment).update(run_id)
    except Exception as error:
        # Any of a dozen libraries below MLflow may raise here, and none may cost the night.
        logger.warning("MLflow at %s does not show the register of nights: %s", config.shown_uri, error)
        return False
    return True


@contextmanager
def _environment(tracking_uri: str) -> Iterator[None]:
    """Give up soon on a server that is away, unless the user has set how long to wait."""
    ours = {name: value for name, value in _PATIENCE.items() if name not in os.environ}
    # The SQLite store looks up the model of a new version at MLflow's global address, not at its own.
    ours["MLFLOW_TRACKING_URI"] = tracking_uri
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _outcome(night: Night, live: bool) -> str:
    """What became of a night, in a word for people."""
    if night.status == "rejected":
        return "rejected"
    return "promoted" if live else "rolled back" if night.decision.get("promote") else "undecided"


class _Mirror:
    def __init__(self, registry: NightRegistry, config: TrackingConfig, environment: str):
        self.registry, self.environment = registry, environment
        self.name = registered_name(environment)
        self.client = open_client(config)
        self.experiment = experiment_id(self.client, config.experiment("sleep"), config)

    def update(self, run_id: str | None) -> None:
        nights = self.registry.nights()
        if not nights:
            return
        versions, models = self._versions(), self._logged_models()
        live = {night.number for night in self.registry.lineage()}
        ids: dict[int, str] = {}
        for number, night in nights.items():
            digest = night.manifest_digest
            if digest not in models:
                models[digest] = self._log_model(night, ids, run_id if number == max(nights) else None)
            ids[number] = models[digest].model_id
            if models[digest].status != "READY":
                models[digest] = self.client.finalize_logged_model(ids[number], "READY")
            if digest not in versions:
                versions[digest] = self.client.create_model_version(
                    self.name, f"models:/{ids[number]}", model_id=ids[number], tags=self._tags(night)
                )
            if models[digest].tags.get("status") != night.status:
                self.client.set_logged_model_tags(ids[number], {"status": night.status})
            if versions[digest].tags.get("status") != night.status:
                self.client.set_model_version_tag(self.name, versions[digest].version, "status", night.status)
            outcome = _outcome(night, number in live)
            if models[digest].tags.get(_OUTCOME) != outcome:
                self._tell_run(models[digest].source_run_id, outcome)
                self.client.set_logged_model_tags(ids[number], {_OUTCOME: outcome})
        self._set_aliases({number: versions[night.manifest_digest].version for number, night in nights.items()})

    def _tell_run(self, run_id: str | None, outcome: str) -> None:
        """Show on a night's run what became of it; one that people deleted needs no word."""
        from mlflow.exceptions import MlflowException

        if run_id is None:
            return
        try:
            self.client.set_tag(run_id, _OUTCOME, outcome)
        except MlflowException as error:
            if error.error_code not in ("INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_DOES_NOT_EXIST"):
                raise

    def _versions(self) -> dict[str, Any]:
        """Return the versions of the registered model by the digest of their night's manifest; make the model."""
        from mlflow.exceptions import MlflowException

        found = {
            version.tags.get("manifest_digest", ""): version
            for version in self.client.search_model_versions(f"name = '{self.name}'")
        }
        if not found:
            try:
                self.client.create_registered_model(self.name, description="The nights of one model, a version each.")
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
        return found

    def _logged_models(self) -> dict[str, Any]:
        """Return the logged models of this environment by the digest of their night's manifest."""
        wanted = f"tags.environment = '{self.environment}'"
        found: dict[str, Any] = {}
        token: str | None = None
        while True:
            page = self.client.search_logged_models([self.experiment], wanted, page_token=token)
            found.update({model.tags.get("manifest_digest", ""): model for model in page})
            token = page.token
            if not token:
                return found

    def _log_model(self, night: Night, ids: dict[int, str], run_id: str | None) -> Any:
        tags = {**self._tags(night), "mlflow.model.isExternal": "true"}
        if night.parent != BASE:
            tags["parent_model_id"] = ids[night.parent]
        return self.client.create_logged_model(
            self.experiment, night.checkpoint, source_run_id=run_id, model_type=MODEL_TYPE, tags=tags
        )

    def _tags(self, night: Night) -> dict[str, str]:
        scores = {
            clean_name(f"score.{name}"): f"{value:.6g}" for name, value in night.scores.items() if value is not None
        }
        return {
            "night": str(night.number),
            "parent": "base" if night.parent == BASE else str(night.parent),
            "environment": self.environment,
            "status": night.status,
            "checkpoint": night.checkpoint,
            "manifest_digest": night.manifest_digest,
            "memories": str(len(night.memories)),
            "time": night.time,
            **scores,
        }

    def _set_aliases(self, versions: dict[int, str]) -> None:
        present = {name: str(version) for name, version in self.client.get_registered_model(self.name).aliases.items()}
        # The base model is no version: an alias that means it is absent here.
        wanted = {name: str(versions[at]) for name, at in self.registry.aliases().items() if at != BASE}
        for alias in _ALIASES:
            if alias in wanted and present.get(alias) != wanted[alias]:
                self.client.set_registered_model_alias(self.name, alias, wanted[alias])
            elif alias in present and alias not in wanted:
                self.client.delete_registered_model_alias(self.name, alias)
