"""Tiny random models of many architectures, and helpers that put a memory into them and teach it something."""

from collections.abc import Callable
from typing import Any

import peft
import torch
from torch import Tensor, nn
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from sleep_pipeline.memory import ContinuumMemoryConfig, LevelConfig, WakeUpdates, activate, unlock
from sleep_pipeline.memory.operations import level_tensors, state_of

VOCAB, WIDTH = 48, 16
COMMON = dict(
    vocab_size=VOCAB,
    hidden_size=WIDTH,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=64,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
GROUPED = {**COMMON, "num_key_value_heads": 1, "head_dim": 8}
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)

ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**GROUPED)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**GROUPED)),
    "qwen3_moe": lambda: Qwen3MoeForCausalLM(Qwen3MoeConfig(**GROUPED, **EXPERTS, mlp_only_layers=[0])),
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**GROUPED, num_local_experts=4)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**GROUPED)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**GROUPED)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**GROUPED)),
    "phi": lambda: PhiForCausalLM(PhiConfig(**COMMON)),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**{**COMMON, "num_key_value_heads": 1})),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCAB, n_embd=WIDTH, n_layer=2, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2)
    ),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**COMMON)),
    "gpt_neox_sequential": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**COMMON, use_parallel_residual=False)),
    "olmo2": lambda: Olmo2ForCausalLM(Olmo2Config(**{**COMMON, "num_key_value_heads": 1})),
    "falcon": lambda: FalconForCausalLM(
        FalconConfig(vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, alibi=False)
    ),
    "falcon_sequential": lambda: FalconForCausalLM(
        FalconConfig(
            vocab_size=VOCAB,
            hidden_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            alibi=True,
            parallel_attn=False,
        )
    ),
}


def build(architecture: str = "llama", dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return the same random model every time."""
    torch.manual_seed(7)
    return ARCHITECTURES[architecture]().to(dtype).eval()


def tokens(batch: int = 2, length: int = 9, seed: int = 0) -> Tensor:
    return torch.randint(3, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def one_level(**changes: object) -> ContinuumMemoryConfig:
    """Return a one-level configuration; changes go to the level, or to the configuration where it has the name."""
    whole = {name: changes.pop(name) for name in ("layers_to_transform", "target_modules") if name in changes}
    return ContinuumMemoryConfig(levels=[LevelConfig(**{"num_slots": 4, "rank": 3, **changes})], **whole)


def three_levels(**changes: object) -> ContinuumMemoryConfig:
    common = {"rank": 3, "base_width": 5, **changes}
    return ContinuumMemoryConfig(
        levels=[
            LevelConfig(period=2, num_slots=4, **common),
            LevelConfig(period=4, num_slots=3, **common),
            LevelConfig(num_slots=4, **common),
        ]
    )


def with_memory(
    config: ContinuumMemoryConfig | None = None, architecture: str = "llama", **kwargs: object
) -> nn.Module:
    return peft.get_peft_model(build(architecture), config or one_level(), **kwargs)


def fill(model: nn.Module, level: int, seed: int, size: float = 0.5) -> None:
    """Give the expert in training of `level` random weights and an open gate, as if it had learned something."""
    generator = torch.Generator().manual_seed(seed)
    for tensors in level_tensors(state_of(model), level):
        with torch.no_grad():
            for name in ("new_key", "new_offset", "new_up"):
                parameter = tensors.get_parameter(name)
                parameter.add_(size * torch.randn(parameter.shape, generator=generator).to(parameter))


def learn(model: nn.Module, level: int = 1, seed: int = 0, night: int | None = None) -> int:
    """Unlock, fill and activate an expert; return its slot."""
    unlock(model, level, night=night)
    fill(model, level, seed)
    return activate(model, level)


def live_a_day(model: nn.Module, updates: WakeUpdates, seed: int = 0) -> None:
    """Accumulate one step's gradients in the fast levels."""
    ids = tokens(seed=seed)
    with updates.awake():
        model(input_ids=ids, labels=ids).loss.backward()
        updates.observe(0.5)


def logits(model: nn.Module, ids: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        return model(input_ids=tokens() if ids is None else ids).logits


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def lived() -> tuple[nn.Module, WakeUpdates]:
    """Return a model with two experts in level 1, one in level 2, and a day's gradients."""
    model = with_memory(three_levels())
    learn(model, 1, seed=1)
    learn(model, 1, seed=2)
    learn(model, 2, seed=3)
    updates = WakeUpdates(model)
    live_a_day(model, updates)
    return model, updates


def everything(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any], Tensor]:
    """Return all that a transaction may change: every tensor, the state, and what the model computes."""
    state = state_of(model)
    return snapshot(model), state.to_dict(), logits(model)


def unchanged(left: tuple[Any, ...], right: tuple[Any, ...]) -> bool:
    return same(left[0], right[0]) and left[1] == right[1] and torch.equal(left[2], right[2])
