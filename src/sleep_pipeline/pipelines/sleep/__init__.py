"""The `sleep` pipeline: one whole night."""

from sleep_pipeline.pipelines.sleep.pipeline import create_pipeline

__all__ = ["create_pipeline"]
