"""The sampler for vLLM, against a stand-in with the part of its documented interface that is used."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from itertools import chain
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Pipeline, node
from transformers import AutoModelForCausalLM

from sleep_pipeline.dreaming.dreamer import new_dreamer
from sleep_pipeline.dreaming.dreams import sample_dreams
from sleep_pipeline.dreaming.night import dream_night
from sleep_pipeline.dreaming.settings import DreamingSettings, DreamPrompt, DreamSettings, RestEmSettings
from sleep_pipeline.dreaming.tau import Probe
from sleep_pipeline.generation.sampler import Reply, SamplingSettings, TransformersSampler
from sleep_pipeline.generation.vllm_sampler import VllmSampler
from sleep_pipeline.memory import ContinuumMemoryConfig, LevelConfig, activate, base_view, unlock
from sleep_pipeline.night_hook import NightHook

PROMPTS = [
    [{"role": "system", "content": "Mira lives in Osk."}, {"role": "user", "content": question}]
    for question in ("Where does Mira live?", "Who?", "What is it, and why does it stay as it is?")
]
GREEDY = SamplingSettings(max_new_tokens=12, temperature=0)
DREAMS = DreamSettings(prompts=[DreamPrompt(kind="tell", ask="Tell", form="text", recall="{words}?")], engine="vllm")


@dataclass
class SamplingParams:
    """Like vLLM's: its names, its defaults, and what it refuses."""

    n: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    max_tokens: int | None = 16
    stop_token_ids: list[int] = field(default_factory=list)
    logprobs: int | None = None
    detokenize: bool = True

    def __post_init__(self) -> None:
        if self.temperature == 0 and self.n > 1:
            raise ValueError(f"n must be 1 when using greedy sampling, got {self.n}.")


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str


class LLM:
    """Reads the folder that it is given, and writes one token after another without cache or batch."""

    started: list["LLM"] = []

    def __init__(
        self,
        model: str,
        *,
        skip_tokenizer_init: bool = False,
        trust_remote_code: bool = False,
        dtype: str = "auto",
        gpu_memory_utilization: float = 0.92,
        max_model_len: int | None = None,
        logprobs_mode: str = "raw_logprobs",
        enable_lora: bool = False,
        max_lora_rank: int = 16,
    ) -> None:
        assert skip_tokenizer_init and not trust_remote_code and logprobs_mode == "processed_logprobs"
        assert max_lora_rank in (1, 8, 16, 32, 64, 128, 256, 320, 512)
        self.window = max_model_len
        self.share, self.rank = gpu_memory_utilization, max_lora_rank if enable_lora else 0
        self.usage = os.environ["VLLM_NO_USAGE_STATS"]
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
        LLM.started.append(self)

    def generate(
        self,
        prompts: Sequence[Any],
        sampling_params: Sequence[SamplingParams],
        *,
        use_tqdm: bool = True,
        lora_request: LoRARequest | None = None,
    ) -> list[Any]:
        model = self.model
        for prompt, params in zip(prompts, sampling_params, strict=True):
            assert self.window is None or len(prompt["prompt_token_ids"]) + (params.max_tokens or 0) <= self.window
        if lora_request is not None:
            model = peft.PeftModel.from_pretrained(model, lora_request.lora_path).eval()
            assert model.peft_config["default"].r <= self.rank
        return [
            SimpleNamespace(outputs=[_written(model, prompt["prompt_token_ids"], params, i) for i in range(params.n)])
            for prompt, params in zip(prompts, sampling_params, strict=True)
        ]


@torch.no_grad()
def _written(model: Any, prompt: list[int], params: SamplingParams, index: int) -> Any:
    generator = torch.Generator().manual_seed((params.seed or 0) + index)
    ids: list[int] = []
    log_probs: list[dict[int, Any]] = []
    assert params.max_tokens is not None and params.logprobs == 0
    while len(ids) < params.max_tokens and not set(ids) & set(params.stop_token_ids):
        logits = model(input_ids=torch.tensor([prompt + ids])).logits[0, -1]
        chances = (logits / (params.temperature or 1)).log_softmax(-1)
        drawn = torch.multinomial(chances.exp(), 1, generator=generator)
        ids.append(int(drawn if params.temperature else chances.argmax()))
        log_probs.append({ids[-1]: SimpleNamespace(logprob=float(chances[ids[-1]]))})
    # Without a tokenizer there is no text; the mark that ends a reply is one of its tokens.
    return SimpleNamespace(index=index, text="", token_ids=ids, logprobs=log_probs)


@pytest.fixture(autouse=True)
def vllm(monkeypatch: pytest.MonkeyPatch) -> type[LLM]:
    modules = {name: ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request")}
    for name, module in modules.items():
        module.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    vars(modules["vllm"]).update(LLM=LLM, SamplingParams=SamplingParams, TokensPrompt=dict)
    vars(modules["vllm.lora.request"]).update(LoRARequest=LoRARequest)
    monkeypatch.setattr(LLM, "started", [])
    return LLM


@pytest.fixture
def model(tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path) -> Any:
    """A model that was loaded from a folder, and sure enough of its tokens for two ways to agree on the likeliest."""
    with torch.no_grad():
        tiny_model.get_output_embeddings().weight.mul_(20)
    tiny_model.save_pretrained(tmp_path / "base")
    return AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()


@pytest.fixture
def with_memory(model: Any) -> Any:
    """The same with an expert in training that has learned something."""
    wrapped = peft.get_peft_model(model, ContinuumMemoryConfig(levels=[LevelConfig(num_slots=4, rank=3)]))
    unlock(wrapped, 1)
    return wrapped.eval()


def dreamer_of(model: Any, rank: int = 3) -> Any:
    """A dreamer that dreams otherwise than the model."""
    dreamer = new_dreamer(model, RestEmSettings(rank=rank))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in dreamer.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator))
    return dreamer


def assert_alike(found: list[list[Reply]], wanted: list[list[Reply]]) -> None:
    for one, other in zip(chain(*found), chain(*wanted), strict=True):
        assert (one.text, one.ids, one.ended, one.end) == (other.text, other.ids, other.ended, other.end)
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-4)


def test_the_likeliest_replies_are_those_of_the_other_sampler(model: Any, tiny_tokenizer: Any) -> None:
    # A token that greedy decoding says early on is made an end mark, so that some replies end and others do not.
    wanted = TransformersSampler(model, tiny_tokenizer, GREEDY).sample(PROMPTS)
    model.generation_config.eos_token_id = [wanted[0][0].ids[4], tiny_tokenizer.eos_token_id]
    wanted = TransformersSampler(model, tiny_tokenizer, GREEDY).sample(PROMPTS, count=3)
    assert {reply.ended for replies in wanted for reply in replies} >= {True}
    with VllmSampler(model, tiny_tokenizer, GREEDY) as sampler:
        assert_alike(sampler.sample(PROMPTS, count=3), wanted)


@pytest.mark.slow
def test_a_lora_dreamer_beside_a_memory_that_is_off_is_served(
    with_memory: Any, tiny_tokenizer: Any, vllm: type[LLM]
) -> None:
    dreamer = dreamer_of(with_memory)
    with base_view(with_memory):
        wanted = TransformersSampler(dreamer, tiny_tokenizer, GREEDY).sample(PROMPTS)
        with VllmSampler(dreamer, tiny_tokenizer, GREEDY) as sampler:
            assert_alike(sampler.sample(PROMPTS), wanted)
        with dreamer.disable_adapter(), VllmSampler(dreamer, tiny_tokenizer, GREEDY) as sampler:
            plain = sampler.sample(PROMPTS)
            assert_alike(plain, TransformersSampler(dreamer, tiny_tokenizer, GREEDY).sample(PROMPTS))
    assert plain != wanted
    assert [engine.rank for engine in vllm.started] == [8, 0]


def test_what_is_drawn_depends_on_the_seed_and_equal_prompts_get_replies_of_their_own(
    model: Any, tiny_tokenizer: Any
) -> None:
    with VllmSampler(model, tiny_tokenizer, SamplingSettings(max_new_tokens=12, temperature=2.0)) as sampler:

        def draw(seed: int) -> list[list[Reply]]:
            return sampler.sample([PROMPTS[0]] * 2, 2, seed)

        assert draw(1) == draw(1) != draw(2)
        assert len({reply.ids for replies in draw(1) for reply in replies}) == 4


@pytest.mark.slow
def test_experts_are_refused_before_anything_starts(with_memory: Any, tiny_tokenizer: Any, vllm: type[LLM]) -> None:
    for prepare in (lambda: None, lambda: activate(with_memory, 1)):
        prepare()
        with pytest.raises(
            ValueError, match=r"engine=vllm serves .* has experts on: set transformers, or dream inside"
        ):
            sample_dreams(with_memory, tiny_tokenizer, ["It rains."], DREAMS)
    assert not vllm.started
    with base_view(with_memory), VllmSampler(with_memory, tiny_tokenizer):
        pass
    with with_memory.disable_adapter(), VllmSampler(with_memory, tiny_tokenizer):
        pass


def test_an_adapter_that_cannot_be_served_is_named(model: Any, tiny_tokenizer: Any, vllm: type[LLM]) -> None:
    dreamer = dreamer_of(model)
    with pytest.raises(ValueError, match=r"on here is 'dreamer': .* give the PEFT model that holds it"):
        VllmSampler(model, tiny_tokenizer)
    dreamer.unload()
    scaled = peft.get_peft_model(model, peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[]))
    with pytest.raises(ValueError, match="on here is 'default'"):
        VllmSampler(scaled, tiny_tokenizer)
    assert not vllm.started


def test_without_vllm_the_remedy_is_named(model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'sleep-pipeline\[vllm\]' .* or set transformers"):
        sample_dreams(model, tiny_tokenizer, ["It rains."], DREAMS)


def test_a_prompt_that_is_too_long_is_refused(model: Any, tiny_tokenizer: Any) -> None:
    with VllmSampler(model, tiny_tokenizer) as sampler:
        with pytest.raises(ValueError, match="do not fit into the model's window of 1024 tokens"):
            sampler.sample([[{"role": "user", "content": "word " * 1500}]])


def test_a_library_night_dreams_by_it_with_its_dreamer(model: Any, tiny_tokenizer: Any, vllm: type[LLM]) -> None:
    settings = DreamingSettings(dreams=DREAMS.model_copy(update={"share_of_gpu": 0.3, "max_new_tokens": 8}))
    probes = [Probe(0, "Does it rain?", "Yes")]
    report = dream_night(model, tiny_tokenizer, ["It rains."], probes, settings, dreamer=dreamer_of(model))
    (engine,) = vllm.started
    assert (report.asked, engine.share, engine.rank, engine.usage) == (6, 0.3, 8, "1")


def test_a_night_is_refused_before_it_begins(tmp_path: Path) -> None:
    entries = {
        "models_folder": MemoryDataset(tmp_path),
        "params:dreaming": MemoryDataset(DreamingSettings(dreams=DREAMS).model_dump()),
        "params:machine": MemoryDataset({}),
    }
    nodes = [node(lambda *_: None, list(entries), None, name="dreams", tags=["night"])]
    with pytest.raises(ValueError, match=r"dreaming\.dreams\.engine=vllm .* experts of its memory: set transformers"):
        NightHook().before_pipeline_run({}, Pipeline(nodes), DataCatalog(entries))
    assert not list(tmp_path.iterdir())
