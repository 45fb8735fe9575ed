"""Makes the embedded language model: vocabulary, training, evaluation, model card."""

from sleep_pipeline.pipelines.pretrain.pipeline import create_pipeline

__all__ = ["create_pipeline"]
