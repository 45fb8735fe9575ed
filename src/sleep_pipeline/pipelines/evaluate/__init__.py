"""The `evaluate` pipeline: what was learned, what was lost, and whether the night is kept."""

from sleep_pipeline.pipelines.evaluate.pipeline import create_pipeline

__all__ = ["create_pipeline"]
