"""A client whose database is whole: MLflow's tables appear all at once, or a run that was killed would bar the next."""

import logging
import secrets
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from sleep_pipeline.tracking.config import SQLITE, TrackingConfig

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)


def open_client(config: TrackingConfig) -> "MlflowClient":
    """Return a client of runs and registered models at the configured address, made ready if it is a new SQLite file.

    Args:
        config: resolved settings (`TrackingConfig.resolved`).
    """
    from mlflow.tracking import MlflowClient

    if config.tracking_uri.startswith(SQLITE):
        _prepare(Path(config.tracking_uri.removeprefix(SQLITE)), config.artifact_location)
    return MlflowClient(tracking_uri=config.tracking_uri, registry_uri=config.tracking_uri)


def _prepare(file: Path, artifacts: str) -> None:
    """Make the tables in a file beside this one, which takes seconds, and move it here when it is whole.

    MLflow makes them one by one, and a process that dies between two leaves a file that MLflow then refuses.
    """
    if file.exists():
        if _has_version(file):
            return
        aside = file.with_name(f"{file.name}.unfinished")
        logger.warning("%s was never finished and holds no run: it is now %s.", file, aside.name)
        file.replace(aside)
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    file.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: MLflow goes on using what it once opened under a name, even where the file is gone.
    made = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    store = SqlAlchemyStore(f"{SQLITE}{made}", artifacts)
    store.engine.dispose()
    made.replace(file)


def _has_version(file: Path) -> bool:
    """Whether the schema's version, which MLflow writes last, stands in the file; one that is not SQLite is left."""
    try:
        with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as database:
            found = database.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.OperationalError as error:
        return "no such table" not in str(error)
    except sqlite3.DatabaseError:
        return True
    return found is not None
