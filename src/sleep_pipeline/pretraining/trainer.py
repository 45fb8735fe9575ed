"""The pretraining loop: packed batches, Muon and AdamW, bf16 autocast, checkpoints that resume exactly.

Deviations from the usual: the rows are packed and the loss is weighted, the text that is only read counting less
than the answers; batch `i` depends on the seed and `i` alone, so nothing of the data's state needs to be saved.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Subset

from sleep_pipeline.hardware import autocast, keep_freed_memory, pick_device
from sleep_pipeline.metrics import MetricSink, NullSink
from sleep_pipeline.pretraining.batches import Batch, PackedBatches
from sleep_pipeline.pretraining.checkpoint import Progress, load_checkpoint, save_checkpoint
from sleep_pipeline.pretraining.optimizer import PretrainOptimizer, schedule
from sleep_pipeline.pretraining.settings import ArchitectureSettings, PretrainSettings
from sleep_pipeline.progress import bar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

_LOG_EVERY = 10


def build_model(settings: ArchitectureSettings, tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """A Qwen 3 with random weights, fp32, embeddings tied.

    Its normalised queries and keys are what lets so small a model learn to find things in its context under Muon: with
    a Llama the attention sticks (benchmarks/LOG.md, 2026-11-24).
    """
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=settings.vocab_size,
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=settings.num_heads,
        num_key_value_heads=settings.num_kv_heads,
        head_dim=settings.hidden_size // settings.num_heads,
        max_position_embeddings=settings.max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": settings.rope_theta},
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


def continued_model(settings: PretrainSettings) -> tuple[Qwen3ForCausalLM, dict[str, Any]]:
    """The model that a run starts from, and the record of how that was made (at least the digest of its weights).

    Raises:
        ValueError: it has another architecture than the settings say.
    """
    from sleep_pipeline.language_model import EMBEDDED, embedded_path, load_model

    assert settings.start_from is not None
    model, tokenizer = load_model(settings.start_from)
    fresh = build_model(settings.architecture, tokenizer, settings.seed)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    wanted = {name: tuple(parameter.shape) for name, parameter in fresh.named_parameters()}
    if type(model) is not type(fresh) or shapes != wanted:
        raise ValueError(
            f"start_from={settings.start_from!r} is not the model that pretrain.architecture describes: set the "
            "architecture to that of the model, or start from another one"
        )
    folder = embedded_path() if settings.start_from == EMBEDDED else Path(settings.start_from)
    record = folder / "manifest.json"
    before: dict[str, Any] = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    return model, {**before, "weights_sha256": weights_digest(model)}


def weights_digest(model: torch.nn.Module) -> str:
    """SHA-256 over the names and bytes of all parameters, in hexadecimal."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def summed_loss(model: torch.nn.Module, rows: dict[str, torch.Tensor]) -> torch.Tensor:
    """Cross-entropy of packed rows, in nats, weighted by token and summed; scalar, fp32.

    Conversations in one row do not see each other: `transformers` derives the mask from the restarts of
    `position_ids`.
    """
    logits = model(input_ids=rows["input_ids"], position_ids=rows["position_ids"], use_cache=False).logits
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), rows["labels"].flatten(), reduction="none")
    return (losses * rows["weights"].flatten()).sum()


def batch_gradient(
    model: torch.nn.Module, batch: Batch, device: torch.device, precision: str, micro_batch_tokens: int
) -> torch.Tensor:
    """Accumulate the gradient of a batch's mean loss into the model and return that loss, nats a token.

    The loss, a scalar, stays on the device, so that a GPU need not wait for the CPU to look at it.
    """
    total_weight = sum(float(rows["weights"].sum()) for rows in batch)
    mean = torch.zeros((), device=device)
    for rows in batch:
        rows = {name: tensor.to(device, non_blocking=True) for name, tensor in rows.items()}
        count, length = rows["input_ids"].shape
        size = max(1, micro_batch_tokens // length)
        for start in range(0, count, size):
            part = {name: tensor[start : start + size] for name, tensor in rows.items()}
            with autocast(device, precision):
                loss = summed_loss(model, part) / total_weight
            loss.backward()
            mean += loss.detach()
    return mean


def fingerprint(
    settings: PretrainSettings,
    corpora: dict[str, str],
    tokenizer: PreTrainedTokenizerFast,
    before: dict[str, Any] | None = None,
) -> str:
    """Digest of all that decides a run's outcome: settings, corpora, tokenizer, first weights; SHA-256 in hexadecimal.

    Args:
        settings: of the run.
        corpora: file name -> SHA-256.
        tokenizer: of the model.
        before: the record that `continued_model` returns, where the run starts from a model.
    """
    beside_the_point = {
        "corpora",
        "checkpoint_every",
        "data_workers",
        "device",
        "evaluation_examples",
        "threads",
        "start_from",
    }
    chosen = settings.model_dump(exclude=beside_the_point)
    first = before["weights_sha256"] if before else None
    text = json.dumps([chosen, sorted(corpora.items()), first], sort_keys=True) + tokenizer.backend_tokenizer.to_str()
    return hashlib.sha256(text.encode()).hexdigest()


def machine(device: torch.device) -> dict[str, str]:
    """What a run computes on and with: hardware and versions, in words."""
    import transformers

    on = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads, no GPU"
    return {
        "machine": f"{platform.machine()}, {on}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def pretrain(
    settings: PretrainSettings,
    batches: PackedBatches,
    model: Qwen3ForCausalLM,
    checkpoints: Path,
    run: str,
    sink: MetricSink | None = None,
) -> Progress:
    """Train the model in place and return the record of the run.

    Args:
        settings: see `PretrainSettings`.
        batches: the stream of training batches.
        model: made by `build_model`; left on the CPU in fp32 at the end.
        checkpoints: folder from which the run resumes if it holds a checkpoint of the same run.
        run: the run's `fingerprint`.
        sink: takes loss, gradient norm, learning-rate factor and tokens/s every few steps.

    Raises:
        FloatingPointError: the loss is not a number; the last checkpoint stays as it is.
    """
    sink = sink or NullSink()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    device = pick_device(settings.device)
    if device.type == "cpu":
        keep_freed_memory()
        # The fused kernel's backward pass costs more than plain products at these lengths and head counts.
        model.set_attn_implementation("eager")
    model.to(device).train()
    optimizer = PretrainOptimizer(model, settings.optimizer, settings.steps)
    progress = load_checkpoint(checkpoints, run, model, optimizer) or Progress(0, 0.0, 0, [], {})
    forward: torch.nn.Module = torch.compile(model) if settings.compile else model  # type: ignore[assignment]
    losses, tokens = list(progress.losses), progress.tokens
    started = time.perf_counter() - progress.seconds
    remaining = Subset(batches, range(progress.step, settings.steps))
    loader = DataLoader(remaining, batch_size=None, num_workers=settings.data_workers, pin_memory=device.type == "cuda")
    steps = bar(loader, "pretrain", total=settings.steps, initial=progress.step, unit="step")
    unseen: list[torch.Tensor] = []
    for step, batch in enumerate(steps, start=progress.step):
        unseen.append(batch_gradient(forward, batch, device, settings.precision, settings.micro_batch_tokens))
        norm = optimizer.step(step)
        tokens += sum(rows["input_ids"].numel() for rows in batch)
        done = step + 1
        saving = done % settings.checkpoint_every == 0 or done == settings.steps
        if saving or done % _LOG_EVERY == 0:
            losses += torch.stack(unseen).tolist()
            unseen = []
            if not all(math.isfinite(value) for value in losses[-_LOG_EVERY:]):
                raise FloatingPointError(
                    f"the loss is {losses[-1]} at step {step}; lower optimizer.muon_lr={settings.optimizer.muon_lr} or "
                    f"optimizer.adamw_lr={settings.optimizer.adamw_lr}; the last checkpoint in {checkpoints} is intact"
                )
            recent = losses[-_LOG_EVERY:]
            mean = sum(recent) / len(recent)
            seconds = time.perf_counter() - started
            rate = tokens / seconds
            steps.set_postfix_str(f"loss {mean:.3f}, {rate:,.0f} tokens/s", refresh=False)
            sink.log_metrics(
                {
                    "pretrain/loss": mean,
                    "pretrain/gradient_norm": float(norm),
                    "pretrain/learning_rate_factor": schedule(step, settings.steps, settings.optimizer),
                    "pretrain/tokens_per_second": rate,
                },
                step=done,
            )
        if saving:
            progress = Progress(done, seconds, tokens, losses, machine(device))
            save_checkpoint(checkpoints, run, progress, model, optimizer)
    model.to("cpu").eval()
    return progress
