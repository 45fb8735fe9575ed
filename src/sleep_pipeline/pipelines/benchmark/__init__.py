"""The `benchmark` pipeline: one method's life with one stream of labelled tasks."""

from sleep_pipeline.pipelines.benchmark.pipeline import create_pipeline

__all__ = ["create_pipeline"]
