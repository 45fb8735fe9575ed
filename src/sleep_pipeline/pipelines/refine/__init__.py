"""The `refine` pipeline: the dreams that helped go into the expert, which then becomes active."""

from sleep_pipeline.pipelines.refine.pipeline import create_pipeline

__all__ = ["create_pipeline"]
