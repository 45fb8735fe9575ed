"""The database of runs is whole or not there, whenever the process that makes it dies."""

import sqlite3
from contextlib import closing
from pathlib import Path

import mlflow.store.db.utils
import pytest
from sqlalchemy import Engine

from sleep_pipeline.tracking.config import TrackingConfig
from sleep_pipeline.tracking.database import open_client
from sleep_pipeline.tracking.run import TrackedRun


class Killed(BaseException):
    """Stands for SIGKILL: no handler of errors sees it."""


@pytest.fixture
def config(tmp_path: Path) -> TrackingConfig:
    return TrackingConfig(tracking_uri="sqlite:///runs.db").resolved(tmp_path)


def half_made(file: Path, tables: int = 5) -> None:
    """What MLflow leaves at the configured place itself if it dies between two tables."""
    with closing(sqlite3.connect(file)) as database:
        for number in range(tables):
            database.execute(f"CREATE TABLE experiments_{number} (name TEXT)")
        database.commit()


@pytest.mark.slow
def test_a_kill_while_the_tables_are_made_leaves_nothing_in_the_way(
    config: TrackingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(engine: Engine) -> None:
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE registered_models (name TEXT)")
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(mlflow.store.db.utils, "_initialize_tables", dies)
        with pytest.raises(Killed):
            TrackedRun.start(config, "nights", "night 1", {})
    assert not (tmp_path / "runs.db").exists()
    run = TrackedRun.start(config, "nights", "night 1", {"night": "1"})
    run.finish("FINISHED")
    assert open_client(config).get_run(run.run_id).data.tags["night"] == "1"


@pytest.mark.slow
@pytest.mark.parametrize("version", [False, True], ids=["no version", "an empty table of versions"])
def test_a_half_made_file_is_put_aside(config: TrackingConfig, tmp_path: Path, version: bool) -> None:
    half_made(tmp_path / "runs.db")
    if version:
        with closing(sqlite3.connect(tmp_path / "runs.db")) as database:
            database.execute("CREATE TABLE alembic_version (version_num TEXT)")
            database.commit()
    run = TrackedRun.start(config, "nights", "night 1", {})
    run.finish("FINISHED")
    assert (tmp_path / "runs.db.unfinished").exists()


@pytest.mark.slow
def test_a_file_with_runs_and_one_that_is_no_database_are_left(
    config: TrackingConfig, tmp_path: Path, empty_database: Path
) -> None:
    file = tmp_path / "runs.db"
    file.write_bytes(empty_database.read_bytes())
    open_client(config)
    assert file.read_bytes() == empty_database.read_bytes()
    file.write_bytes(b"a letter, not a database" * 100)
    open_client(config)
    assert file.read_bytes().startswith(b"a letter")
