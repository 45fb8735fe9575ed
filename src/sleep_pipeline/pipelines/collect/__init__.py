"""The `collect` pipeline: what is new among the memories, checked, masked and packed for the model."""

from sleep_pipeline.pipelines.collect.pipeline import create_pipeline

__all__ = ["create_pipeline"]
