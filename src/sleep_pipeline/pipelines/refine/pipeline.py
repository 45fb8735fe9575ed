"""Wiring of the `refine` pipeline."""

from __future__ import annotations

from typing import Any

from kedro.pipeline import Pipeline, node

from sleep_pipeline.pipelines.refine import nodes


def create_pipeline(**_: Any) -> Pipeline:
    """A trained expert and dreams that help -> the model of the night."""
    return Pipeline(
        [
            node(
                nodes.refine_expert,
                inputs=[
                    "seeded_model",
                    "lessons",
                    "dream_lessons",
                    "dreamer",
                    "params:model",
                    "params:machine",
                    "params:memory",
                    "params:seeding",
                    "params:refining",
                    "params:night",
                    "params:random_seed",
                    "seed_summary",
                    "models_folder",
                    "refine_progress_folder",
                ],
                outputs="night_model",
                name="refine_expert_node",
            ),
        ],
        tags=["refine", "night"],
    )
