"""The `seed` pipeline: what the model knows with the memories before it goes into a new expert."""

from sleep_pipeline.pipelines.seed.pipeline import create_pipeline

__all__ = ["create_pipeline"]
