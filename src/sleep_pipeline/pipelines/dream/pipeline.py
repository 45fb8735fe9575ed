"""Wiring of the `dream` pipeline."""

from __future__ import annotations

from typing import Any

from kedro.pipeline import Pipeline, node

from sleep_pipeline.pipelines.dream import nodes


def create_pipeline(**_: Any) -> Pipeline:
    """A trained expert -> dreams -> those that help, as lessons."""
    return Pipeline(
        [
            node(
                nodes.dream_night,
                inputs=[
                    "seeded_model",
                    "contexts",
                    "teacher_samples",
                    "probes",
                    "params:collect",
                    "params:model",
                    "params:machine",
                    "params:memory",
                    "params:seeding",
                    "params:dreaming",
                    "params:night",
                    "params:random_seed",
                    "models_folder",
                    "primary_folder",
                    "probes_folder",
                ],
                outputs=["dreams", "dream_lessons", "dream_summary", "dream_page", "dreamer"],
                name="dream_night_node",
            ),
        ],
        tags=["dream", "night"],
    )
