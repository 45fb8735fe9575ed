"""Step metrics are gathered, and none is lost."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from sleep_pipeline.tracking.sink import BATCH, MlflowSink


class FakeClient:
    """Keeps the requests; refuses them while `away`."""

    def __init__(self) -> None:
        self.requests: list[list[tuple[str, float, int]]] = []
        self.refused = 0
        self.away = False

    def log_batch(self, run_id: str, metrics: Sequence[Metric]) -> None:
        if self.away:
            self.refused += 1
            raise MlflowException("database is locked")
        self.requests.append([(metric.key, metric.value, metric.step) for metric in metrics])


def make(client: FakeClient, seconds: float = 1e9) -> MlflowSink:
    fake: Any = client
    return MlflowSink(fake, "run", seconds_between_writes=seconds)


def test_metrics_wait_until_they_are_flushed() -> None:
    client = FakeClient()
    sink = make(client)
    sink.log_metrics({"loss": 2.0, "lr": 0.1}, step=0)
    assert client.requests == []
    sink.flush()
    assert client.requests == [[("loss", 2.0, 0), ("lr", 0.1, 0)]]


def test_a_full_batch_is_written_at_once_and_within_the_limit_of_a_request() -> None:
    client = FakeClient()
    sink = make(client)
    for step in range(BATCH + 5):
        sink.log_metrics({"loss": float(step)}, step)
    sink.flush()
    assert [len(request) for request in client.requests] == [BATCH, 5]
    assert [metric for request in client.requests for metric in request] == [
        ("loss", float(step), step) for step in range(BATCH + 5)
    ]


def test_metrics_are_written_when_the_time_has_come() -> None:
    client = FakeClient()
    make(client, seconds=0.0).log_metrics({"loss": 1.0}, step=3)
    assert client.requests == [[("loss", 1.0, 3)]]


def test_numbers_of_other_libraries_and_odd_names_are_taken() -> None:
    client = FakeClient()
    sink = make(client, seconds=0.0)
    sink.log_metrics({"acc@5": np.float32(0.5), "n": np.int64(3)}, step=0)
    assert client.requests == [[("acc_5", 0.5, 0), ("n", 3.0, 0)]]


def test_a_store_that_is_away_stops_nothing_and_gets_everything_later() -> None:
    client = FakeClient()
    sink = make(client)
    client.away = True
    for step in range(BATCH + 10):
        sink.log_metrics({"loss": 0.0}, step)
    assert client.refused == 1
    client.away = False
    sink.flush()
    assert sum(map(len, client.requests)) == BATCH + 10


def test_a_store_that_is_away_at_the_end_is_an_error() -> None:
    client = FakeClient()
    sink = make(client)
    sink.log_metrics({"loss": 0.0}, step=0)
    client.away = True
    with pytest.raises(MlflowException, match="locked"):
        sink.flush()
