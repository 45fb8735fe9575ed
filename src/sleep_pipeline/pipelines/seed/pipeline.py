"""Wiring of the `seed` pipeline."""

from __future__ import annotations

from typing import Any

from kedro.pipeline import Pipeline, node

from sleep_pipeline.pipelines.seed import nodes


def create_pipeline(**_: Any) -> Pipeline:
    """Contexts -> the teacher's samples and beliefs -> a trained expert."""
    return Pipeline(
        [
            node(
                nodes.sample_lessons,
                inputs=[
                    "contexts",
                    "memories",
                    "params:model",
                    "params:machine",
                    "params:memory",
                    "params:seeding",
                    "params:collect",
                    "params:evaluation",
                    "params:night",
                    "params:random_seed",
                    "models_folder",
                    "primary_folder",
                    "probes_folder",
                ],
                outputs=["teacher_samples", "lessons", "probes", "seed_summary"],
                name="sample_lessons_node",
            ),
            node(
                nodes.train_expert,
                inputs=[
                    "lessons",
                    "params:model",
                    "params:machine",
                    "params:memory",
                    "params:seeding",
                    "params:night",
                    "params:random_seed",
                    "seed_summary",
                    "models_folder",
                    "seed_progress_folder",
                ],
                outputs=["seeded_model", "seed_metrics", "rollouts"],
                name="train_expert_node",
            ),
        ],
        tags=["seed", "night"],
    )
