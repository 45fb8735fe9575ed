"""The `dream` pipeline: the model writes about the memories, and isolated copies find out what of it helps."""

from sleep_pipeline.pipelines.dream.pipeline import create_pipeline

__all__ = ["create_pipeline"]
