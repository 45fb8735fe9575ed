"""MLflow shows what the register says. Real MLflow on a throw-away SQLite database."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from sleep_pipeline.registry import BASE, Night, NightRegistry
from sleep_pipeline.tracking.config import TrackingConfig
from sleep_pipeline.tracking.registry import mirror, registered_name


@pytest.fixture
def config(tmp_path: Path, empty_database: Path) -> TrackingConfig:
    shutil.copy(empty_database, tmp_path / "runs.db")
    return TrackingConfig(tracking_uri="sqlite:///runs.db", experiments={"sleep": "nights"}).resolved(tmp_path)


@pytest.fixture
def registry(tmp_path: Path) -> NightRegistry:
    """Night 1 promoted, night 2 rejected, night 3 waiting."""
    registry = NightRegistry(tmp_path / "models")
    for number, parent in ((1, BASE), (2, 1), (3, 1)):
        registry.register(
            Night(
                number=number,
                parent=parent,
                checkpoint=f"night_{number:03d}",
                manifest_digest=f"{number:064d}",
                time="2026-11-20T03:00:00+00:00",
                scores={"recall_gain": 0.5, "forgetting": None},
                memories=("a", "b"),
            )
        )
        if number == 1:
            registry.promote(1)
        if number == 2:
            registry.reject(2)
    return registry


def shown(config: TrackingConfig, name: str = "sleep-pipeline") -> dict[str, Any]:
    """Night by alias, tags by night and parents by night, as MLflow tells them."""
    client = MlflowClient(config.tracking_uri)
    experiment = client.get_experiment_by_name("nights")
    assert experiment is not None
    models = {model.model_id: model for model in client.search_logged_models([experiment.experiment_id])}
    versions = {str(version.version): version for version in client.search_model_versions(f"name = '{name}'")}
    parents = {}
    for model in models.values():
        above = models.get(model.tags.get("parent_model_id", ""))
        parents[model.tags["night"]] = None if above is None else above.tags["night"]
    return {
        "aliases": {
            alias: versions[str(version)].tags["night"]
            for alias, version in client.get_registered_model(name).aliases.items()
        },
        "tags": {version.tags["night"]: version.tags for version in versions.values()},
        "parents": parents,
        "models": models,
        "versions": {version.source.removeprefix("models:/") for version in versions.values()},
    }


def test_every_night_is_a_version_with_its_parent_and_the_aliases_agree(
    registry: NightRegistry, config: TrackingConfig
) -> None:
    assert mirror(registry, config)
    found = shown(config)
    assert found["parents"] == {"1": None, "2": "1", "3": "1"}
    # The previous champion is the base model, which is no version.
    assert found["aliases"] == {"champion": "1", "challenger": "3"}
    assert found["tags"]["2"]["status"] == "rejected"
    assert found["tags"]["3"] == {
        "night": "3",
        "parent": "1",
        "environment": "base",
        "status": "complete",
        "checkpoint": "night_003",
        "manifest_digest": f"{3:064d}",
        "memories": "2",
        "time": "2026-11-20T03:00:00+00:00",
        "score.recall_gain": "0.5",
    }
    assert found["versions"] == set(found["models"])
    assert {str(model.status) for model in found["models"].values()} == {"READY"}


def test_mirroring_again_adds_nothing_and_follows_what_changed(registry: NightRegistry, config: TrackingConfig) -> None:
    mirror(registry, config)
    before = shown(config)
    registry.promote(3)
    assert mirror(registry, config)
    after = shown(config)
    assert set(after["models"]) == set(before["models"])
    assert after["aliases"] == {"champion": "3", "previous_champion": "1"}


@pytest.mark.slow
def test_a_night_that_is_rejected_later_is_shown_as_rejected(registry: NightRegistry, config: TrackingConfig) -> None:
    mirror(registry, config)
    registry.reject(3)
    mirror(registry, config)
    found = shown(config)
    assert found["tags"]["3"]["status"] == "rejected"
    assert {model.tags["night"]: model.tags["status"] for model in found["models"].values()}["3"] == "rejected"
    assert found["aliases"] == {"champion": "1"}


@pytest.mark.parametrize("step", ["finalize_logged_model", "create_model_version", "set_registered_model_alias"])
def test_a_mirror_that_broke_on_the_way_is_mended(
    registry: NightRegistry, config: TrackingConfig, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, step, refuse)
        assert not mirror(registry, config)
    assert mirror(registry, config)
    found = shown(config)
    assert [str(model.status) for model in found["models"].values()] == ["READY"] * 3
    assert found["versions"] == set(found["models"])
    assert found["aliases"] == {"champion": "1", "challenger": "3"}


def test_the_run_of_the_last_night_is_the_source_of_its_model(registry: NightRegistry, config: TrackingConfig) -> None:
    client = MlflowClient(config.tracking_uri)
    experiment = client.create_experiment("nights", artifact_location=config.artifact_location)
    run = client.create_run(experiment)
    assert mirror(registry, config, run_id=run.info.run_id)
    sources = {model.tags["night"]: model.source_run_id for model in shown(config)["models"].values()}
    assert sources == {"1": None, "2": None, "3": run.info.run_id}


def test_the_run_of_a_night_tells_what_became_of_it(registry: NightRegistry, config: TrackingConfig) -> None:
    client = MlflowClient(config.tracking_uri)
    experiment = client.create_experiment("nights", artifact_location=config.artifact_location)
    runs = {}

    def outcomes() -> dict[int, str | None]:
        return {night: client.get_run(run).data.tags.get("outcome") for night, run in runs.items()}

    def live(number: int, promote: bool) -> None:
        manifest = f"{number:064d}"
        decision = {"promote": promote, "checks": []}
        registry.register(Night(number, 1, f"night_{number:03d}", manifest, "2026-11-20", decision=decision))
        (registry.promote if promote else registry.reject)(number)
        runs[number] = client.create_run(experiment).info.run_id
        assert mirror(registry, config, run_id=runs[number])

    live(4, promote=False)
    live(5, promote=True)
    assert outcomes() == {4: "rejected", 5: "promoted"}
    registry.rollback(BASE)
    client.delete_run(runs[4])
    assert mirror(registry, config)
    assert outcomes() == {4: "rejected", 5: "rolled back"}
    registry.reject(5)
    client.delete_run(runs[5])
    assert mirror(registry, config), "a run that was deleted is no reason to stop"


def test_environments_have_models_of_their_own(registry: NightRegistry, config: TrackingConfig) -> None:
    assert mirror(registry, config)
    assert mirror(registry, config, environment="smoke")
    assert registered_name("smoke") == "sleep-pipeline-smoke"
    assert shown(config, "sleep-pipeline-smoke")["aliases"] == {"champion": "1", "challenger": "3"}
    assert len(shown(config)["models"]) == 6


def test_a_server_that_is_away_is_a_warning_and_no_error(
    registry: NightRegistry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # What the user has set about waiting stays as it is.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = TrackingConfig(tracking_uri="http://127.0.0.1:9", artifact_location="mlflow-artifacts:/x")
    assert mirror(registry, away) is False
    assert [record.levelname for record in caplog.records if "sleep_pipeline" in record.name] == ["WARNING"]
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"
    assert {"MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_TRACKING_URI"}.isdisjoint(os.environ)


def test_with_tracking_off_nothing_is_written(registry: NightRegistry, tmp_path: Path) -> None:
    off = TrackingConfig(enabled=False, tracking_uri="sqlite:///off.db").resolved(tmp_path)
    assert mirror(registry, off) is False
    assert not (tmp_path / "off.db").exists()


def test_an_empty_register_makes_no_model(tmp_path: Path, config: TrackingConfig) -> None:
    assert mirror(NightRegistry(tmp_path / "none"), config)
    assert list(MlflowClient(config.tracking_uri).search_registered_models()) == []
