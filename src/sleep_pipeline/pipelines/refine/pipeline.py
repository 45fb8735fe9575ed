"""Wiring of the `refine` pipeline."""

from __future__ import annotations

from typing import Any

from kedro.pipeline import Pipeline, node

from sleep_pipeline.pipelines.refine import nodes


def create_pipeline(**_: Any) -> Pipeline:
    """A trained expert -> the model of the night."""
    return Pipeline(
        [
            node(
                nodes.activate_expert,
                inputs=[
                    "seeded_model",
                    "lessons",
                    "params:model",
                    "params:machine",
                    "params:memory",
                    "params:seeding",
                    "params:night",
                    "params:random_seed",
                    "seed_summary",
                    "models_folder",
                ],
                outputs="night_model",
                name="activate_expert_node",
            ),
        ],
        tags=["refine", "night"],
    )
