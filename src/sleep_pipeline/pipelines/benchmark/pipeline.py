"""Wiring of the `benchmark` pipeline."""

from __future__ import annotations

from typing import Any

from kedro.pipeline import Pipeline, node

from sleep_pipeline.pipelines.benchmark import nodes


def create_pipeline(**_: Any) -> Pipeline:
    """Published files -> stream -> a method's life with it -> its measures, matrix R and a figure."""
    return Pipeline(
        [
            node(
                nodes.load_stream,
                inputs=["params:benchmark", "raw_folder"],
                outputs=["benchmark_stream", "benchmark_quarantines"],
                name="load_stream_node",
            ),
            node(
                nodes.run_method,
                inputs=["benchmark_stream", "params:benchmark", "params:model", "params:machine"],
                outputs="benchmark_results",
                name="run_method_node",
            ),
            node(
                nodes.report_result,
                inputs=["benchmark_results", "params:benchmark"],
                outputs=["benchmark_metrics", "benchmark_matrices", "benchmark_figures"],
                name="report_result_node",
            ),
        ],
        tags="benchmark",
    )
