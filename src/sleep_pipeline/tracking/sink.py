"""Step metrics on their way into MLflow."""

import logging
import time
from collections.abc import Mapping
from threading import Lock
from typing import TYPE_CHECKING

from sleep_pipeline.tracking.flatten import clean_name

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)

# MLflow takes at most 1000 metrics in one request.
BATCH = 1000


class MlflowSink:
    """A `MetricSink` that gathers metrics and writes many at once.

    A request to the SQLite store costs milliseconds whatever it carries, which a training loop of
    millisecond steps would feel. Metrics reach the store when `BATCH` are waiting, when
    `seconds_between_writes` have passed, and on `flush`. A store that is busy or away for a while does
    not stop the work that is being measured: what could not be written is tried again next time.
    """

    def __init__(self, client: "MlflowClient", run_id: str, seconds_between_writes: float = 5.0) -> None:
        self._client = client
        self._run_id = run_id
        self._seconds = seconds_between_writes
        self._waiting: list[Metric] = []
        self._written_at = time.monotonic()
        self._failed = False
        # Kedro's thread runner and a node's own threads may share the sink.
        self._lock = Lock()

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record `metrics` at `step`; values may be Python, NumPy or one-element torch numbers."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        fresh = [Metric(clean_name(name), float(value), now, step) for name, value in metrics.items()]
        with self._lock:
            self._waiting.extend(fresh)
            waited = time.monotonic() - self._written_at
            # After a failure the clock alone decides, or a full buffer would try again at every step.
            if waited >= self._seconds or (len(self._waiting) >= BATCH and not self._failed):
                self._try_to_write()

    def flush(self) -> None:
        """Write everything that waits.

        Raises:
            mlflow.exceptions.MlflowException: the store refuses; what waits is kept.
        """
        with self._lock:
            self._write()

    def _try_to_write(self) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._write()
            self._failed = False
        except MlflowException as error:
            self._failed = True
            self._written_at = time.monotonic()
            logger.warning("%d metrics wait, MLflow did not take them: %s", len(self._waiting), error)

    def _write(self) -> None:
        while self._waiting:
            self._client.log_batch(self._run_id, metrics=self._waiting[:BATCH])
            del self._waiting[:BATCH]
        self._written_at = time.monotonic()
