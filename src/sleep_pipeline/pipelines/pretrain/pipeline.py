"""Wiring of the `pretrain` pipeline."""

from __future__ import annotations

from typing import Any

from kedro.pipeline import Pipeline, node

from sleep_pipeline.pipelines.pretrain import nodes


def create_pipeline(**_: Any) -> Pipeline:
    """Vocabulary -> model -> report and model card."""
    return Pipeline(
        [
            node(
                nodes.train_vocabulary,
                inputs=["params:pretrain", "raw_folder"],
                outputs="pretrain_tokenizer",
                name="train_vocabulary_node",
            ),
            node(
                nodes.train_model,
                inputs=["params:pretrain", "raw_folder", "pretrain_tokenizer", "pretrain_progress_folder"],
                outputs=["pretrained_model", "pretrain_losses"],
                name="train_model_node",
            ),
            node(
                nodes.plot_losses,
                inputs="pretrain_losses",
                outputs="pretrain_loss_plot",
                name="plot_losses_node",
            ),
            node(
                nodes.evaluate_model,
                inputs=["params:pretrain", "raw_folder", "pretrained_model"],
                outputs=["pretrain_metrics", "pretrain_replies"],
                name="evaluate_model_node",
            ),
            node(
                nodes.write_model_card,
                inputs=["pretrained_model", "pretrain_metrics"],
                outputs="pretrain_model_card",
                name="write_model_card_node",
            ),
        ],
        tags="pretrain",
    )
