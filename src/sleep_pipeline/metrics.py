"""How library code reports numbers over time without knowing who keeps them."""

from collections.abc import Mapping
from typing import Protocol


class MetricSink(Protocol):
    """Takes the metrics of one step; `tracking.sink.MlflowSink` writes them to MLflow."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record `metrics` (name -> value) at `step` (optimizer steps, counted from 0)."""


class NullSink:
    """Drops what it is given: the sink of a loop that nobody watches."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Do nothing."""
