"""What isolation costs: 32 LoRA trials in stacks, against one ordinary fine-tuning and against one after another.

    python benchmarks/isolated_trials.py --json build/isolated_trials.json     # about ten minutes on one thread
    python benchmarks/isolated_trials.py --quick                               # under a minute, fewer steps
    python benchmarks/isolated_trials.py --model qwen3_1_7b --device cuda      # a model of that shape, random weights

Dreams of 30 to 80 random tokens, all of them learned, on the embedded model; adapters of rank 8 on every linear layer.
Every repetition times each way once, in an order drawn anew, so that whatever else the machine does falls on all alike;
a figure is the median over the repetitions of the ratio within one repetition, its interval their least and greatest.

- `stacked`: `run_trials`, with its own choice of stacks.
- `one_finetuning`: peft, one adapter for all dreams, over exactly the padded batches that `stacked` sees: the floor.
- `one_finetuning_unsorted`: the same, with all dreams in one batch, as a trainer that does not sort by length has it.
- `one_after_another`: peft, a new adapter for every dream, unpadded.
- `seal`: after SEAL (Zweiger et al. 2025, arXiv 2506.10943), one after another: a plain `transformers.Trainer` and
  peft, every dream padded to 2,048 tokens with the padding in the loss, the adapter saved and loaded again. It is slow,
  so a few trials are timed a repetition (`--seal-trials`) and their time is scaled to all 32; trials take equally long,
  for all have equally many tokens. The window of both models is long enough.

On a GPU the base is in bf16 with adapters in fp32 on both sides, and the peak memory and the rate of the stacked trials
are reported too; the rate counts 4 operations a parameter and unpadded token, forward and backward through a base that
does not learn.

Putting 32 peft adapters on takes as long as a step or two of all dreams, so fewer steps than 20 flatter `stacked`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from torch import nn
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainingArguments

from _timing import CLOCKS, LONGEST, MODELS, SHORTEST, alternate, base_model, draw, figure, machine, over, report
from sleep_pipeline.dreaming.rows import Dream, Stack, losses, side_by_side
from sleep_pipeline.dreaming.settings import TrialSettings
from sleep_pipeline.dreaming.stacked_lora import lay_out
from sleep_pipeline.dreaming.trials import run_trials
from sleep_pipeline.environment import apply_defaults

DREAMS = 32
SEAL_LENGTH = 2048
TARGETS = {
    "stacked_over_one_finetuning": "<= 1.1",
    "stacked_over_one_finetuning_unsorted": "<= 1.1",
    "one_after_another_over_stacked": ">= 2.5",
    "seal_over_stacked": ">= 40",
}


def adapter_for(model: nn.Module, settings: TrialSettings) -> peft.LoraConfig:
    """An adapter of peft on the layers that our trials adapt."""
    targets = list(lay_out(model, settings.rank, settings.alpha).shapes)
    return peft.LoraConfig(r=settings.rank, lora_alpha=settings.alpha, lora_dropout=0.0, target_modules=targets)


def finetune(model: nn.Module, batches: Sequence[Stack], settings: TrialSettings) -> None:
    """Train one peft adapter, `settings.steps` times over the batches, and take it off again."""
    adapted = peft.get_peft_model(model, adapter_for(model, settings))
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


def seal_length(model: PreTrainedModel) -> int:
    """How long SEAL's rows are: 2,048 tokens, or the model's window where that is shorter."""
    return min(SEAL_LENGTH, int(model.config.max_position_embeddings))


def seal(model: PreTrainedModel, dreams: Sequence[Dream], settings: TrialSettings, device: str) -> None:
    """Train one adapter after another by a Trainer on padded rows, save each and load it again."""
    length = seal_length(model)
    for dream in dreams:
        (row,) = dream.rows
        ids = torch.zeros(length, dtype=torch.long)
        ids[: len(row.ids)] = torch.tensor(row.ids)
        example = {"input_ids": ids, "attention_mask": (torch.arange(length) < len(row.ids)).long(), "labels": ids}
        adapted = peft.get_peft_model(model, adapter_for(model, settings))
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                max_steps=settings.steps,
                per_device_train_batch_size=1,
                learning_rate=settings.lr,
                weight_decay=settings.weight_decay,
                max_grad_norm=settings.clip_norm or 0.0,
                lr_scheduler_type="constant",
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=not device.startswith("cuda"),
            )
            trainer = Trainer(adapted, arguments, train_dataset=[example])  # type: ignore[arg-type]
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            adapted.save_pretrained(folder)
            adapted.unload()
            peft.PeftModel.from_pretrained(model, folder).unload()


def main() -> None:
    """Run, print a table, and write the JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 repetitions of 10 steps")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--model", default="embedded", choices=MODELS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory", type=float, default=2.0, help="GiB that a stack may take beside the model")
    parser.add_argument("--seal-trials", type=int, default=2, help="that are timed a repetition; 0 leaves SEAL out")
    parser.add_argument("--clock", default="wall", choices=list(CLOCKS), help="cpu on a busy machine without a GPU")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    apply_defaults()
    torch.set_num_threads(arguments.threads)
    repetitions, steps = (2, 10) if arguments.quick else (arguments.repetitions, 20)
    model = base_model(arguments.model, arguments.device)
    settings = TrialSettings(rank=8, steps=steps, memory_budget=int(arguments.memory * 2**30))
    dreams = draw(model.config.vocab_size, DREAMS)
    seal_trials = min(arguments.seal_trials, 1 if arguments.quick else DREAMS)
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
    if seal_trials:
        ways["seal"] = lambda: seal(model, dreams[:seal_trials], settings, arguments.device)
    taken, _ = alternate(ways, repetitions, arguments.clock)
    if seal_trials:
        taken["seal"] = [value * DREAMS / seal_trials for value in taken["seal"]]
    ratios = {
        f"stacked_over_{name}": over(taken["stacked"], taken[name])
        for name in ("one_finetuning", "one_finetuning_unsorted")
    }
    ratios |= {
        f"{name}_over_stacked": over(taken[name], taken["stacked"])
        for name in ("one_after_another", "seal")
        if name in taken
    }
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
    protocol = {
        "model": arguments.model,
        "parameters": model.num_parameters(),
        "dreams": f"{DREAMS} of {SHORTEST}-{LONGEST} random tokens, all learned",
        "tokens": sum(dream.tokens for dream in dreams),
        "stacks": [[len(group), batch.ids_NT.shape[1]] for group, batch in zip(groups, same_batches, strict=True)],
        "seal": f"{seal_trials} trials of {seal_length(model)} tokens timed, seconds scaled to {DREAMS}",
        "steps": steps,
        "rank": settings.rank,
        "repetitions": repetitions,
        "value": "median over repetitions of the ratio within one; interval: least and greatest",
        "dtype": str(next(model.parameters()).dtype),
        **machine(arguments.device, arguments.clock),
    }
    report(figures, TARGETS, protocol, arguments.json)


if __name__ == "__main__":
    main()
