import copy

import pytest
import torch
from peft import get_peft_model
from tiny_models import COMMON, GROUPED, VOCAB, WIDTH, build, learn, logits, one_level
from torch import nn
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    JambaConfig,
    JambaForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from sleep_pipeline.memory import BlockError, find_mlp_blocks
from sleep_pipeline.memory.blocks import device_and_dtype, works_by_position


def test_every_decoder_layer_yields_its_mlp(architecture: str) -> None:
    model = build(architecture)
    blocks = find_mlp_blocks(model)
    assert len(blocks) == 2
    for block in blocks:
        assert block.name == f"{block.layer}.mlp"


def test_the_block_is_found_under_any_name() -> None:
    model = build("llama")
    for layer in model.model.layers:
        layer.thinking = layer.mlp
        del layer.mlp
        layer.looking = layer.self_attn
        del layer.self_attn
    assert [block.name for block in find_mlp_blocks(model)] == [f"model.layers.{i}.thinking" for i in range(2)]


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_tower_of_as_many_layers_beside_the_decoder_is_not_taken_for_it(wrapped: bool) -> None:
    model = build("llama")
    # As of a model that reads pictures, too, and of the same depth.
    model.tower = nn.ModuleList(nn.ModuleDict({"mix": nn.Linear(4, 4), "mlp": nn.Linear(4, 4)}) for _ in range(2))
    prefix = "base_model.model." if wrapped else ""
    blocks = find_mlp_blocks(get_peft_model(model, one_level()) if wrapped else model)
    assert [block.name for block in blocks] == [f"{prefix}model.layers.{i}.mlp" for i in range(2)]


def test_hybrid_models_whose_layers_differ_are_understood() -> None:
    torch.manual_seed(0)
    lfm2 = Lfm2ForCausalLM(Lfm2Config(**GROUPED, layer_types=["conv", "full_attention"], block_ff_dim=32)).eval()
    assert [block.name for block in find_mlp_blocks(lfm2)] == [f"model.layers.{i}.feed_forward" for i in range(2)]
    jamba = JambaForCausalLM(
        JambaConfig(
            **{**GROUPED, "num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1},
            expert_layer_period=2,
            expert_layer_offset=1,
            use_mamba_kernels=False,
            mamba_d_state=4,
            mamba_dt_rank=4,
        )
    ).eval()
    assert [block.name for block in find_mlp_blocks(jamba)] == [f"model.layers.{i}.feed_forward" for i in range(2)]


def test_looking_for_the_block_leaves_the_model_alone() -> None:
    model = build("qwen3_moe").train()
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    find_mlp_blocks(model)
    assert torch.equal(torch.rand(1), expected)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_attention_and_recurrences_do_not_work_by_position() -> None:
    class Recurrence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.GRU(WIDTH, WIDTH, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)[0]

    assert not works_by_position(Recurrence(), WIDTH)
    assert not works_by_position(build("gpt2").transformer.h[0].attn, WIDTH)
    assert works_by_position(build("gpt2").transformer.h[0].mlp, WIDTH)


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (
            lambda: OPTForCausalLM(OPTConfig(**{**COMMON, "ffn_dim": 32, "word_embed_proj_dim": WIDTH})),
            ["fc1 \\(Linear\\)", "self_attn"],
        ),
        (
            lambda: MambaForCausalLM(
                MambaConfig(vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=2, use_mambapy=False)
            ),
            ["mixer \\(MambaMixer\\)"],
        ),
        (
            lambda: BloomForCausalLM(BloomConfig(vocab_size=VOCAB, hidden_size=WIDTH, n_layer=2, n_head=2)),
            ["mlp \\(BloomMLP\\)", "self_attention"],
        ),
    ],
)
def test_a_layer_without_the_block_is_refused_by_the_names_of_its_children(model: object, names: list[str]) -> None:
    with pytest.raises(BlockError, match="target_modules") as error:
        find_mlp_blocks(model())
    for name in names:
        error.match(name)


def test_a_model_that_is_no_language_model_is_refused() -> None:
    with pytest.raises(BlockError, match="Linear has no configuration"):
        find_mlp_blocks(nn.Linear(2, 2))


def test_weights_on_the_meta_device_are_refused() -> None:
    with pytest.raises(BlockError, match="meta device"):
        find_mlp_blocks(build().to("meta"))


class Quantised(nn.Module):
    """A linear map whose weights are stored as something smaller, as quantisers of models leave them."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype, scaled: bool) -> None:
        super().__init__()
        scale = linear.weight.detach().abs().max() / 100
        self.weight = nn.Parameter((linear.weight / scale).to(dtype), requires_grad=False)
        if scaled:
            self.weight_scale = nn.Parameter(scale, requires_grad=False)
        self.scale = float(scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale)


@pytest.mark.parametrize(
    ("dtype", "scaled"), [(torch.float8_e4m3fn, True), (torch.float8_e4m3fn, False), (torch.int8, False)]
)
def test_a_quantised_base_has_a_memory_where_its_weights_are_and_in_a_dtype_that_computes(
    dtype: torch.dtype, scaled: bool
) -> None:
    model = build()
    for layer in model.model.layers:
        for name, linear in list(layer.mlp.named_children()):
            if isinstance(linear, nn.Linear):
                setattr(layer.mlp, name, Quantised(linear, dtype, scaled))
    before = logits(model)
    memory = get_peft_model(model, one_level())
    assert torch.equal(logits(memory), before)
    learn(memory)
    assert {p.dtype for name, p in memory.named_parameters() if "continuum" in name} == {torch.float32}
    assert logits(memory).isfinite().all() and not torch.equal(logits(memory), before)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([torch.float8_e4m3fn, torch.bfloat16], torch.bfloat16),
        ([torch.float8_e5m2], torch.float32),
        ([torch.uint8, torch.float16], torch.float16),
        ([torch.int8], torch.float32),
    ],
)
def test_a_memory_is_made_where_the_first_weight_is(weights: list[torch.dtype], expected: torch.dtype) -> None:
    block = nn.ParameterList(
        nn.Parameter(torch.empty(2, 2, dtype=dtype, device="meta"), requires_grad=False) for dtype in weights
    )
    assert device_and_dtype(block) == (torch.device("meta"), expected)
    assert device_and_dtype(nn.Identity()) == (torch.device("cpu"), torch.float32)
