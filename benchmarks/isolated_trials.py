"""What isolation costs: 32 LoRA trials in stacks, against one ordinary fine-tuning and against one after another.

    python benchmarks/isolated_trials.py --json build/isolated_trials.json     # about five minutes on one thread
    python benchmarks/isolated_trials.py --quick                               # under a minute, fewer steps
    python benchmarks/isolated_trials.py --model qwen3_1_7b --device cuda      # a model of that shape, random weights

Dreams of 30 to 80 random tokens, all of them learned, on the embedded model; adapters of rank 8 on every linear layer.
Every repetition times each way once, in an order drawn anew, so that whatever else the machine does falls on all alike;
a figure is the median over the repetitions of the ratio within one repetition, its interval their least and greatest.

- `stacked`: `run_trials`, with its own choice of stacks.
- `one_finetuning`: peft, one adapter for all dreams, over exactly the padded batches that `stacked` sees: the floor.
- `one_finetuning_unsorted`: the same, with all dreams in one batch, as a trainer that does not sort by length has it.
- `one_after_another`: peft, a new adapter for every dream, unpadded.

On a GPU the base is in bf16 with adapters in fp32 on both sides, and the peak memory and the rate of the stacked trials
are reported too; the rate counts 4 operations a parameter and unpadded token, forward and backward through a base that
does not learn.

Putting 32 peft adapters on takes as long as a step or two of all dreams, so fewer steps than 20 flatter `stacked`.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from torch import nn
from transformers import PreTrainedModel

from sleep_pipeline import load_model
from sleep_pipeline.dreaming.rows import Dream, Row, Stack, losses, side_by_side
from sleep_pipeline.dreaming.settings import TrialSettings
from sleep_pipeline.dreaming.stacked_lora import lay_out
from sleep_pipeline.dreaming.trials import run_trials

DREAMS, SHORTEST, LONGEST = 32, 30, 80
TARGETS = {
    "stacked_over_one_finetuning": "<= 1.1",
    "stacked_over_one_finetuning_unsorted": "<= 1.1",
    "one_after_another_over_stacked": ">= 2.5",
}


def draw(vocabulary: int, seed: int = 0) -> list[Dream]:
    """Return dreams of random tokens."""
    generator = random.Random(seed)
    lengths = [generator.randint(SHORTEST, LONGEST) for _ in range(DREAMS)]
    return [
        Dream((Row(tuple(generator.randrange(6, vocabulary) for _ in range(length))),), seed=index)
        for index, length in enumerate(lengths)
    ]


def finetune(model: nn.Module, batches: Sequence[Stack], settings: TrialSettings) -> None:
    """Train one peft adapter, `settings.steps` times over the batches, and take it off again."""
    targets = list(lay_out(model, settings.rank, settings.alpha).shapes)
    config = peft.LoraConfig(r=settings.rank, lora_alpha=settings.alpha, lora_dropout=0.0, target_modules=targets)
    adapted = peft.get_peft_model(model, config)
    parameters = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, settings.lr, weight_decay=settings.weight_decay, fused=True)
    for _ in range(settings.steps):
        for batch in batches:
            optimizer.zero_grad()
            losses(adapted.get_base_model(), batch).mean().backward()
            nn.utils.clip_grad_norm_(parameters, settings.clip_norm or torch.inf)
            optimizer.step()
    adapted.unload()


def stacks_of(model: nn.Module, dreams: Sequence[Dream], settings: TrialSettings) -> list[tuple[int, ...]]:
    """Return which dreams `run_trials` puts together."""
    found: list[tuple[int, ...]] = []

    def note(model: nn.Module, trials: Sequence[int]) -> Sequence[int]:
        found.append(tuple(trials))
        return trials

    run_trials(model, dreams, settings.model_copy(update={"steps": 1}), note)
    return found


def base_model(name: str, device: str) -> PreTrainedModel:
    """Return the embedded model, or one in the shape of Qwen3-1.7B with random weights (bf16 on a GPU)."""
    if name == "embedded":
        return load_model()[0].to(device)
    from transformers import Qwen3Config, Qwen3ForCausalLM

    shape = Qwen3Config(
        vocab_size=151_936,
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    )
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    torch.manual_seed(0)
    with torch.device(device):
        return Qwen3ForCausalLM(shape).to(dtype).eval()


def seconds(run: Callable[[], Any]) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def figure(values: Sequence[float], unit: str) -> dict[str, Any]:
    """Return the median with the least and the greatest value."""
    return {"value": statistics.median(values), "unit": unit, "interval": [min(values), max(values)]}


def main() -> None:
    """Run, print a table, and write the JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 repetitions of 10 steps")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--model", default="embedded", choices=["embedded", "qwen3_1_7b"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory", type=float, default=2.0, help="GiB that a stack may take beside the model")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    repetitions, steps = (2, 10) if arguments.quick else (7, 20)
    model = base_model(arguments.model, arguments.device)
    settings = TrialSettings(rank=8, steps=steps, memory_budget=int(arguments.memory * 2**30))
    dreams = draw(model.config.vocab_size)
    groups = stacks_of(model, dreams, settings)
    same_batches = [side_by_side([dreams[index].rows for index in group], arguments.device) for group in groups]
    one_batch = [side_by_side([dream.rows for dream in dreams], arguments.device)]

    def one_after_another() -> None:
        for dream in dreams:
            finetune(model, [side_by_side([dream.rows], arguments.device)], settings)

    ways: dict[str, Callable[[], Any]] = {
        "stacked": lambda: run_trials(model, dreams, settings),
        "one_finetuning": lambda: finetune(model, same_batches, settings),
        "one_finetuning_unsorted": lambda: finetune(model, one_batch, settings),
        "one_after_another": one_after_another,
    }
    order = list(ways)
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for repetition in range(repetitions):
        random.Random(repetition).shuffle(order)
        for name in order:
            taken[name].append(seconds(ways[name]))
    ratios = {
        f"stacked_over_{name}": [a / b for a, b in zip(taken["stacked"], taken[name], strict=True)]
        for name in ("one_finetuning", "one_finetuning_unsorted")
    }
    ratios["one_after_another_over_stacked"] = [
        a / b for a, b in zip(taken["one_after_another"], taken["stacked"], strict=True)
    ]
    figures = {name: figure(values, "times") for name, values in ratios.items()}
    figures |= {f"{name}_seconds": figure(values, "s") for name, values in taken.items()}
    if arguments.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        run_trials(model, dreams, settings)
        figures["model_memory"] = figure([held / 2**30], "GiB")
        figures["stacked_peak_memory"] = figure([torch.cuda.max_memory_allocated() / 2**30], "GiB")
        operations = 4 * model.num_parameters() * steps * sum(dream.tokens for dream in dreams)
        figures["stacked_rate"] = figure([operations / value / 1e12 for value in taken["stacked"]], "TFLOP/s")
    for name, found in figures.items():
        low, high = found["interval"]
        target = f"  target {TARGETS[name]}" if name in TARGETS else ""
        print(f"{name:40s} {found['value']:7.2f} {found['unit']:5s} [{low:.2f}, {high:.2f}]{target}")
    if arguments.json:
        protocol = {
            "model": arguments.model,
            "device": torch.cuda.get_device_name() if arguments.device.startswith("cuda") else "cpu",
            "parameters": model.num_parameters(),
            "dreams": f"{DREAMS} of {SHORTEST}-{LONGEST} random tokens, all learned",
            "tokens": sum(dream.tokens for dream in dreams),
            "stacks": [[len(group), batch.ids_NT.shape[1]] for group, batch in zip(groups, same_batches, strict=True)],
            "steps": steps,
            "rank": settings.rank,
            "repetitions": repetitions,
            "value": "median over repetitions of the ratio within one; interval: least and greatest",
            "threads": torch.get_num_threads(),
            "dtype": str(next(model.parameters()).dtype),
            "torch": torch.__version__,
            "machine": platform.machine(),
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"figures": figures, "protocol": protocol}, indent=2) + "\n")


if __name__ == "__main__":
    main()
