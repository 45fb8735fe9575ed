"""Where runs are recorded does not depend on the working directory."""

from pathlib import Path

import pytest
from kedro.config import OmegaConfigLoader
from pydantic import ValidationError

from sleep_pipeline.settings import CONFIG_LOADER_ARGS
from sleep_pipeline.tracking.config import TrackingConfig
from sleep_pipeline.tracking.hooks import load_config


def test_relative_places_lie_in_the_project(tmp_path: Path) -> None:
    config = TrackingConfig(tracking_uri="sqlite:///runs.db", artifact_location="files").resolved(tmp_path)
    assert config.tracking_uri == f"sqlite:///{tmp_path}/runs.db"
    assert config.artifact_location == (tmp_path / "files").as_uri()


@pytest.mark.parametrize("uri", ["sqlite:////var/runs.db", "http://127.0.0.1:5000", "postgresql://db/runs"])
def test_other_addresses_stay_as_they_are(uri: str, tmp_path: Path) -> None:
    assert TrackingConfig(tracking_uri=uri).resolved(tmp_path).tracking_uri == uri


@pytest.mark.parametrize("location", ["s3://bucket/runs", "mlflow-artifacts:/runs"])
def test_remote_artifact_stores_stay_as_they_are(location: str, tmp_path: Path) -> None:
    assert TrackingConfig(artifact_location=location).resolved(tmp_path).artifact_location == location


def test_each_pipeline_has_its_experiment() -> None:
    config = TrackingConfig(default_experiment="other", experiments={"pretrain": "models"})
    assert (config.experiment("pretrain"), config.experiment("sleep")) == ("models", "other")


def test_an_unknown_setting_is_an_error() -> None:
    with pytest.raises(ValidationError, match="traking_uri"):
        TrackingConfig.model_validate({"traking_uri": "sqlite:///x.db"})


def load(project: Path, env: str | None = None) -> TrackingConfig:
    return load_config(OmegaConfigLoader(str(project / "conf"), env=env, **CONFIG_LOADER_ARGS), project)


def test_the_shipped_file_is_valid_and_writes_into_the_project(project_root: Path) -> None:
    config = load(project_root, env="base")
    assert config.enabled
    assert config.tracking_uri == f"sqlite:///{project_root}/mlflow.db"


def test_the_environment_variable_of_mlflow_wins(project_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert load(project_root, env="base").tracking_uri == "http://127.0.0.1:9"


def test_an_environment_overrides_single_settings(tmp_path: Path) -> None:
    for env, text in {"base": "experiments: {a: x}\n", "local": "experiments: {b: y}\n"}.items():
        folder = tmp_path / "conf" / env
        folder.mkdir(parents=True)
        (folder / "mlflow.yml").write_text(text, encoding="utf-8")
    assert load(tmp_path).experiments == {"a": "x", "b": "y"}


def test_without_a_file_the_defaults_hold(tmp_path: Path) -> None:
    for env in ("base", "local"):
        (tmp_path / "conf" / env).mkdir(parents=True)
    assert load(tmp_path) == TrackingConfig().resolved(tmp_path)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://mlflow:s3cr@t@db.example:5432/runs", "postgresql://db.example:5432/runs"),
        ("sqlite:////srv/a@b.db", "sqlite:////srv/a@b.db"),
        ("http://localhost:5000", "http://localhost:5000"),
    ],
)
def test_an_address_is_shown_without_its_password(uri: str, shown: str) -> None:
    assert TrackingConfig(tracking_uri=uri).shown_uri == shown
