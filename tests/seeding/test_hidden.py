"""Logits from last hidden states, for every architecture."""

from typing import Any

import pytest
import torch
from tiny_models import ARCHITECTURES, GROUPED, build, learn, one_level, tokens, with_memory
from torch import nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GraniteConfig,
    GraniteForCausalLM,
)

from sleep_pipeline.memory import CONTEXT, consolidation
from sleep_pipeline.memory.layer import ContinuumLayer
from sleep_pipeline.seeding.hidden import answer_head, causal_lm, hidden_states, last_block_of


def padded() -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = tokens(3, 9), torch.ones(3, 9, dtype=torch.long)
    mask[1, 5:] = 0
    return ids, mask


def agree(model: nn.Module) -> None:
    ids, mask = padded()
    with torch.no_grad():
        found = answer_head(model)(hidden_states(model, ids, mask))
        wanted = model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(found[mask.bool()], wanted[mask.bool()], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_head_makes_the_models_logits_of_its_hidden_states(architecture: str) -> None:
    agree(build(architecture))
    agree(with_memory(architecture=architecture))


def test_the_experts_of_a_memory_are_in_the_hidden_states() -> None:
    model = with_memory(one_level())
    ids, mask = padded()
    with torch.no_grad():
        before = hidden_states(model, ids, mask)
        learn(model)
        assert not torch.equal(hidden_states(model, ids, mask), before)
    agree(model)


def loud(model: nn.Module) -> nn.Module:
    """Logits so large that a cap or a scale tells."""
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(100)  # type: ignore[operator]
    return model.eval()


SCALED: dict[str, Any] = {
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**GROUPED, final_logit_softcapping=30.0)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**GROUPED, final_logit_softcapping=30.0)),
    "cohere": lambda: CohereForCausalLM(CohereConfig(**{**GROUPED, "bos_token_id": 1}, logit_scale=0.25)),
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**GROUPED, logits_scaling=4.0)),
}


@pytest.mark.parametrize("family", SCALED)
def test_caps_and_scales_of_the_configuration_are_known(family: str) -> None:
    torch.manual_seed(0)
    model = loud(SCALED[family]())
    agree(model)
    ids, mask = padded()
    with torch.no_grad():
        plain = model.get_output_embeddings()(hidden_states(model, ids, mask))
        assert not torch.allclose(plain, model(input_ids=ids, attention_mask=mask).logits, rtol=0.1)


@pytest.mark.parametrize("scale", [1.1, 3.0])
@pytest.mark.parametrize("loudness", ["quiet", "loud"])
def test_a_scale_that_nothing_tells_of_is_refused(scale: float, loudness: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    if loudness == "loud":
        loud(model)
    forward = model.forward

    def scaled(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits = scale * output.logits
        return output

    monkeypatch.setattr(model, "forward", scaled)
    with pytest.raises(ValueError, match="the logits of LlamaForCausalLM are not its output embedding"):
        answer_head(model)


def test_a_bf16_model_passes_the_check() -> None:
    answer_head(loud(build(dtype=torch.bfloat16)))


def test_asking_for_the_head_leaves_the_mode_of_every_module() -> None:
    model = with_memory()
    before = [module.training for module in model.modules()]
    answer_head(model)
    assert [module.training for module in model.modules()] == before


def test_logits_are_made_at_one_position_only() -> None:
    model = build()
    made = []
    model.get_output_embeddings().register_forward_hook(  # type: ignore[operator]
        lambda module, args, output: made.append(output.shape[1])
    )
    hidden_states(model, *padded())
    assert made == [1]
    assert not causal_lm(model).base_model._forward_hooks


def test_the_causal_lm_is_found_inside_wrappers() -> None:
    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module):
            super().__init__()
            self.module = module

    inner = build()
    assert causal_lm(inner) is inner
    model = with_memory()
    assert causal_lm(Wrapper(model)) is model.get_base_model()  # type: ignore[operator]


NEEDED = (torch.tensor([0, 1, 1, 2]), torch.tensor([7, 2, 4, 0]))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_last_block_works_for_the_needed_positions_alone(architecture: str) -> None:
    model = with_memory(one_level(), architecture=architecture)
    learn(model)
    block = last_block_of(model)
    assert isinstance(block, ContinuumLayer)
    ids, mask = padded()
    seen: list[torch.Size] = []
    watch = block.base_layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    with torch.no_grad():
        found = hidden_states(model, ids, mask, NEEDED, block)[NEEDED]
        watch.remove()
        wanted = hidden_states(model, ids, mask)[NEEDED]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    assert [shape[:2] for shape in seen] == [(1, 4)]
    assert [hook for hooks in (block._forward_pre_hooks, block._forward_hooks) for hook in hooks] == []


def test_gradients_do_not_tell_that_the_last_block_was_spared() -> None:
    model = with_memory(one_level()).double()
    learn(model)
    block = last_block_of(model)
    ids, mask = padded()
    found = []
    with consolidation(model, CONTEXT, 1, night=2) as sleep:
        for used in (block, None):
            model.zero_grad()
            hidden_states(model, ids, mask, NEEDED, used)[NEEDED].square().sum().backward()
            found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        sleep.abort()
    assert len(found[0]) == len(found[1]) > 0
    for spared, whole in zip(*found, strict=True):
        torch.testing.assert_close(spared, whole, rtol=1e-10, atol=1e-14)
    assert any(gradient.any() for gradient in found[0])


def test_a_last_block_that_reads_other_positions_is_not_spared() -> None:
    model = build()

    class Looking(nn.Module):
        """An MLP that looks back."""

        def __init__(self, mlp: nn.Module) -> None:
            super().__init__()
            self.mlp = mlp

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = self.mlp(x + x.roll(1, dims=-2))
            return output

    last = model.model.layers[-1]  # type: ignore[union-attr,index]
    last.mlp = Looking(last.mlp)  # type: ignore[arg-type,union-attr]
    assert last_block_of(model) is None
