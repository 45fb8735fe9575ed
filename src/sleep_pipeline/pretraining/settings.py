"""Typed settings of pretraining; the comments beside the values are in `conf/base/parameters_pretrain.yml`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

_BYTES_AND_SPECIALS = 256 + 6


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ArchitectureSettings(_Settings):
    """Shape of the model that is trained: a Qwen 3, which is a Llama that normalises its queries and keys."""

    vocab_size: PositiveInt = 4096
    hidden_size: PositiveInt = 192
    num_layers: PositiveInt = 4
    num_heads: PositiveInt = 6
    num_kv_heads: PositiveInt = 6
    intermediate_size: PositiveInt = 512
    max_positions: PositiveInt = 2048
    rope_theta: PositiveFloat = 10000.0

    @model_validator(mode="after")
    def _fits(self) -> ArchitectureSettings:
        if self.vocab_size < _BYTES_AND_SPECIALS:
            raise ValueError(
                f"vocab_size={self.vocab_size} is smaller than the alphabet: 256 bytes and 6 special tokens; "
                f"set it to {_BYTES_AND_SPECIALS} or more"
            )
        if self.hidden_size % self.num_heads or self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} must divide hidden_size={self.hidden_size} and be a multiple of "
                f"num_kv_heads={self.num_kv_heads}"
            )
        return self


class MixtureSettings(_Settings):
    """What a batch is made of. Weights are shares of tokens among the made-up skills; they need not add up to 1."""

    weights: dict[str, float] = Field(
        default_factory=lambda: {
            "reading": 0.36,
            "no_context": 0.01,
            "question_writing": 0.13,
            "rewriting": 0.07,
            "implications": 0.04,
            "summarising": 0.04,
            "needles": 0.13,
            "classification": 0.11,
            "translation": 0.02,
            "stories": 0.04,
            "arithmetic": 0.03,
            "grids": 0.02,
        }
    )
    english_share: float = Field(0.12, ge=0, lt=1)
    practice_share: float = Field(0.08, ge=0, lt=1)
    context_weight: float = Field(0.1, ge=0, le=1)
    text_weight: float = Field(0.25, ge=0, le=1)


class OptimizerSettings(_Settings):
    """Muon for the matrices of the layers, AdamW for embeddings and norms; warm-up, plateau, linear decay to zero."""

    muon_lr: PositiveFloat = 0.02
    adamw_lr: PositiveFloat = 6e-3
    weight_decay: float = Field(0.0, ge=0)
    warmup_share: float = Field(0.02, ge=0, lt=1)
    decay_share: float = Field(0.4, gt=0, le=1)
    clip_norm: PositiveFloat = 1.0


class PretrainSettings(_Settings):
    """Everything that decides what the pretrained model is; equal settings and corpora give equal models."""

    seed: int = 0
    start_from: str | None = None
    steps: PositiveInt = 7000
    batch_tokens: PositiveInt = 4096
    micro_batch_tokens: PositiveInt = 4096
    row_lengths: tuple[PositiveInt, ...] = (128, 256, 512)
    corpora: list[str] = Field(default_factory=list)
    tokenizer_documents: PositiveInt = 12000
    architecture: ArchitectureSettings = Field(default_factory=ArchitectureSettings)
    mixture: MixtureSettings = Field(default_factory=MixtureSettings)
    optimizer: OptimizerSettings = Field(default_factory=OptimizerSettings)
    checkpoint_every: PositiveInt = 200
    device: str = "auto"
    precision: Literal["bf16", "fp32"] = "bf16"
    compile: bool = False
    threads: PositiveInt | None = None
    data_workers: int = Field(0, ge=0)
    evaluation_examples: PositiveInt = 300

    @model_validator(mode="after")
    def _rows_fit(self) -> PretrainSettings:
        if not self.row_lengths or list(self.row_lengths) != sorted(set(self.row_lengths)):
            raise ValueError(f"row_lengths={self.row_lengths} must increase, as in [256, 512]")
        longest = self.row_lengths[-1]
        if longest > self.architecture.max_positions:
            raise ValueError(
                f"row_lengths={self.row_lengths} has rows longer than architecture.max_positions="
                f"{self.architecture.max_positions}; shorten them or raise max_positions"
            )
        if self.batch_tokens < 2 * longest:
            raise ValueError(
                f"batch_tokens={self.batch_tokens} is less than two of the longest rows ({longest}); raise it"
            )
        return self
