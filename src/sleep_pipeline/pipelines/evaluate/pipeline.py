"""Wiring of the `evaluate` pipeline."""

from __future__ import annotations

from typing import Any

from kedro.pipeline import Pipeline, node

from sleep_pipeline.pipelines.evaluate import nodes


def create_pipeline(**_: Any) -> Pipeline:
    """The model of the night -> scores -> decision -> register and report."""
    return Pipeline(
        [
            node(
                nodes.evaluate_night,
                inputs=[
                    "night_model",
                    "probes",
                    "seed_summary",
                    "seeded_model",
                    "dream_summary",
                    "params:model",
                    "params:machine",
                    "params:memory",
                    "params:seeding",
                    "params:evaluation",
                    "params:night",
                    "models_folder",
                    "raw_folder",
                    "primary_folder",
                    "reporting_folder",
                ],
                outputs=["night_metrics", "retention", "night_replies"],
                name="evaluate_night_node",
            ),
            node(
                nodes.decide_night,
                inputs=["night_metrics", "retention", "seed_summary", "params:evaluation"],
                outputs="decision",
                name="decide_night_node",
            ),
            node(
                nodes.register_night,
                inputs=["night_model", "decision", "night_metrics", "memories", "params:night", "models_folder"],
                outputs="registered_night",
                name="register_night_node",
            ),
            node(
                nodes.write_report,
                inputs=[
                    "registered_night",
                    "night_metrics",
                    "retention",
                    "decision",
                    "night_replies",
                    "quarantine",
                    "collect_summary",
                    "dreams",
                    "seed_summary",
                    "dream_summary",
                    "night_model",
                    "params:model",
                    "params:evaluation",
                    "reporting_folder",
                ],
                outputs=["night_report", "night_card"],
                name="write_report_node",
            ),
        ],
        tags=["evaluate", "night"],
    )
