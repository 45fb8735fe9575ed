"""Sampling replies by vLLM (extra `vllm`), for large models on a GPU: the base model, or it with one LoRA adapter.

    with VllmSampler(model, tokenizer, SamplingSettings(160), share_of_gpu=0.5) as sampler:
        replies = sampler.sample(prompts, count=4, seed=1)

vLLM loads the weights from where the model was loaded from and knows nothing of what has become of them in memory, so
experts of a memory cannot take part. It has a process and a copy of the weights of its own, beside the model. It starts
that process anew, so a script that uses it must guard its own start by `if __name__ == "__main__":`.

Not run on a GPU yet: written by vLLM's documentation and its source (0.33), and tested with a stand-in that behaves as
these say (https://docs.vllm.ai: `LLM`, `SamplingParams`, `LoRARequest`).
"""

from __future__ import annotations

import gc
import json
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from sleep_pipeline.environment import apply_defaults
from sleep_pipeline.generation.sampler import (
    Conversation,
    Reply,
    SamplingSettings,
    check_window,
    encode_prompts,
    end_marks,
)

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Largest ranks that vLLM can be told to make room for."""


class VllmSampler:
    """Samples from the base model that a model was loaded from, with the LoRA adapter that is on, if one is.

    The same seed draws the same only as far as vLLM's kernels do, which depend on what else is in the batch.

    Args:
        model: a causal LM without a memory, or with one that is off (`base_view`); where a LoRA adapter is on, the
            PEFT model that holds it.
        tokenizer: with a chat template and an end token.
        settings: see `SamplingSettings`; vLLM makes its own batches, so `batch_size` counts for nothing.
        share_of_gpu: of the GPU's whole memory, what vLLM may take.
        window: tokens of the longest prompt with its reply; None for the model's whole window, whose cache vLLM must
            then have room for.

    Raises:
        ModuleNotFoundError: vLLM is not installed.
        ValueError: the memory has experts on, or adapters other than one LoRA adapter are.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: SamplingSettings | None = None,
        share_of_gpu: float = 0.5,
        window: int | None = None,
    ) -> None:
        # vLLM reads its switches, that of its usage statistics among them, when it is imported.
        apply_defaults()
        check_vllm()
        adapter = servable_adapter(model)
        from sleep_pipeline.memory import save_beside
        from sleep_pipeline.memory.beside import network_of

        self._model, self._tokenizer = model, tokenizer
        self.settings = settings or SamplingSettings()
        self._folder = tempfile.TemporaryDirectory(prefix="dreamer_")
        network: Any = network_of(model)
        options: dict[str, Any] = {}
        self._lora: Any = None
        from vllm import LLM

        if adapter is not None:
            from vllm.lora.request import LoRARequest

            save_beside(adapter[0], self._folder.name)
            (saved,) = Path(self._folder.name).rglob("adapter_config.json")
            rank = int(json.loads(saved.read_text(encoding="utf-8"))["r"])
            options = {"enable_lora": True, "max_lora_rank": min(size for size in _RANKS if size >= rank)}
            self._lora = LoRARequest(adapter[1], 1, str(saved.parent))
        self._engine: Any = LLM(
            model=_local_folder(network.name_or_path),
            skip_tokenizer_init=True,
            trust_remote_code=False,
            dtype=str(network.dtype).removeprefix("torch."),
            gpu_memory_utilization=share_of_gpu,
            max_model_len=window,
            # Those of `Reply` are at the temperature drawn at.
            logprobs_mode="processed_logprobs",
            **options,
        )

    def sample(
        self, prompts: Sequence[Conversation], count: int = 1, seed: int = 0, progress: str | None = None
    ) -> list[list[Reply]]:
        """See `Sampler`.

        Raises:
            ValueError: a prompt and its reply do not fit into the model's window.
        """
        return self.continue_ids(encode_prompts(self._tokenizer, prompts), count, seed, progress)

    def continue_ids(
        self, prompts: Sequence[Sequence[int]], count: int = 1, seed: int = 0, progress: str | None = None
    ) -> list[list[Reply]]:
        """As `sample`, for prompts that are tokens already.

        Raises:
            ValueError: a prompt and its reply do not fit into the model's window.
        """
        from vllm import SamplingParams, TokensPrompt

        settings = self.settings
        check_window(self._model, prompts, settings.max_new_tokens)
        ends = end_marks(self._model, self._tokenizer)
        # The likeliest reply is one, and vLLM refuses to find it twice.
        drawn = count if settings.temperature else 1
        # With one seed for all, equal prompts would get equal replies.
        seeds = random.Random(f"vllm/{seed}")
        parameters = [
            SamplingParams(
                n=drawn,
                temperature=settings.temperature,
                top_k=settings.top_k or 0,
                top_p=settings.top_p,
                seed=seeds.getrandbits(31),
                max_tokens=settings.max_new_tokens,
                stop_token_ids=ends,
                logprobs=0,
                detokenize=False,
            )
            for _ in prompts
        ]
        outputs = self._engine.generate(
            [TokensPrompt(prompt_token_ids=list(ids)) for ids in prompts],
            parameters,
            use_tqdm=progress is not None,
            lora_request=self._lora,
        )
        replies = [[self._reply(output, ends) for output in request.outputs] for request in outputs]
        return replies if drawn == count else [found * count for found in replies]

    def close(self) -> None:
        """End vLLM's process, so that the GPU's memory is free for what comes next."""
        self._engine = None
        self._folder.cleanup()
        gc.collect()

    def __enter__(self) -> VllmSampler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _reply(self, output: Any, ends: Sequence[int]) -> Reply:
        ids = list(output.token_ids)
        log_probs = tuple(entry[token].logprob for token, entry in zip(ids, output.logprobs, strict=True))
        ended = bool(ids) and ids[-1] in ends
        kept = tuple(ids[:-1] if ended else ids)
        text = self._tokenizer.decode(kept, skip_special_tokens=True)
        return Reply(text, kept, log_probs, ended, ids[-1] if ended else None)


def check_vllm() -> None:
    """Make sure that vLLM is there, without the seconds that its import takes.

    Raises:
        ModuleNotFoundError: it is not.
    """
    from importlib.util import find_spec

    if find_spec("vllm") is None:
        raise ModuleNotFoundError(
            "dreaming.dreams.engine=vllm needs vLLM, which is not installed: pip install 'sleep-pipeline[vllm]' on a "
            "machine with a GPU, or set transformers",
            name="vllm",
        )


def servable_adapter(model: PreTrainedModel) -> tuple[PeftModel, str] | None:
    """The LoRA adapter that is on, as the PEFT model that holds it and its name there; None where none is.

    Raises:
        ValueError: something is on that vLLM cannot serve.
    """
    from peft import LoraConfig, PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    from sleep_pipeline.memory.layer import ContinuumLayer

    on: dict[str, None] = {}
    for layer in (module for module in model.modules() if isinstance(module, BaseTunerLayer)):
        if layer.disable_adapters:
            continue
        if isinstance(layer, ContinuumLayer):
            if any(state.plan is not None for state in layer.states.values()):
                raise ValueError(
                    "dreaming.dreams.engine=vllm serves the base model and a LoRA adapter alone, and the memory of "
                    "this model has experts on: set transformers, or dream inside `base_view(model)`"
                )
            continue
        on |= dict.fromkeys(layer.active_adapters)
    if not on:
        return None
    known: dict[str, LoraConfig] = model.peft_config if isinstance(model, PeftModel) else {}
    if len(on) > 1 or not all(isinstance(known.get(name), LoraConfig) for name in on):
        raise ValueError(
            f"dreaming.dreams.engine=vllm serves one LoRA adapter, of the PEFT model that it is given; on here "
            f"{'are' if len(on) > 1 else 'is'} {', '.join(map(repr, on))}: switch off the others, give the PEFT model "
            "that holds it, or set transformers"
        )
    (name,) = on
    return model, name


def _local_folder(name: str) -> str:
    """The folder of a model that has been loaded before, so that no hub is asked."""
    if Path(name).is_dir():
        return name
    from huggingface_hub import snapshot_download

    return snapshot_download(name, local_files_only=True)
