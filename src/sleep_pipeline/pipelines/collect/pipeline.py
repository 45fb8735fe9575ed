"""Wiring of the `collect` pipeline."""

from __future__ import annotations

from typing import Any

from kedro.pipeline import Pipeline, node

from sleep_pipeline.pipelines.collect import nodes


def create_pipeline(**_: Any) -> Pipeline:
    """Files -> memories -> contexts."""
    return Pipeline(
        [
            node(
                nodes.collect_memories,
                inputs=["params:collect", "params:night", "memories_folder", "models_folder"],
                outputs=["memories", "quarantine", "collect_summary", "memory_checks"],
                name="collect_memories_node",
            ),
            node(
                nodes.make_contexts,
                inputs=["memories", "params:model", "params:machine", "params:collect"],
                outputs="contexts",
                name="make_contexts_node",
            ),
        ],
        tags=["collect", "night"],
    )
