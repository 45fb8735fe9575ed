"""Tokens a second of our pretraining step beside a plain `transformers.Trainer`, same model, same rows, one run.

    python benchmarks/pretrain_speed.py [--quick] [--json PATH] [--rounds N] [--compiled]

Rivals: `Trainer` as it comes (fp32, AdamW, sdpa), and `Trainer` with bf16 switched on. All three take the same packed
rows with the same position ids and count the same tokens; they are timed in turn, round after round, and a ratio is
taken within each round. Ours does more in a step: Muon instead of AdamW, and a loss weighted by token. `--compiled`
times ours with `pretrain.compile` besides; the minutes of compilation are spent beforehand.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import AutoTokenizer, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging

from _timing import report
from sleep_pipeline.hardware import keep_freed_memory, pick_device
from sleep_pipeline.language_model import embedded_path
from sleep_pipeline.pretraining.batches import Batch, PackedBatches
from sleep_pipeline.pretraining.optimizer import PretrainOptimizer
from sleep_pipeline.pretraining.settings import PretrainSettings
from sleep_pipeline.pretraining.trainer import batch_gradient, build_model


class Rows(Dataset[dict[str, torch.Tensor]]):
    """The micro-batches of our batches as the rows of a `Trainer`'s data set."""

    def __init__(self, batches: list[Batch], pad: int) -> None:
        self.items = [self._plain(rows, pad) for batch in batches for rows in batch]

    @staticmethod
    def _plain(rows: dict[str, torch.Tensor], pad: int) -> dict[str, torch.Tensor]:
        labels = rows["input_ids"].masked_fill(rows["input_ids"] == pad, -100)
        return {"input_ids": rows["input_ids"], "position_ids": rows["position_ids"], "labels": labels}

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.items[index]


class Clock(TrainerCallback):  # type: ignore[misc]
    """Seconds from the end of the first step to the end of the last."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())


def tokens(batches: list[Batch]) -> int:
    """Tokens of some batches, padding of the last piece of a row included for everybody alike."""
    return sum(rows["input_ids"].numel() for batch in batches for rows in batch)


def ours(settings: PretrainSettings, tokenizer: Any, batches: list[Batch]) -> float:
    """Tokens a second of our step; the first batch only warms up."""
    device = pick_device("auto")
    model = build_model(settings.architecture, tokenizer, 0).to(device).train()
    if device.type == "cpu":
        model.set_attn_implementation("eager")
    optimizer = PretrainOptimizer(model, settings.optimizer, 1000)
    started = 0.0
    for index, batch in enumerate(batches):
        batch_gradient(model, batch, device, settings.precision, settings.micro_batch_tokens)
        optimizer.step(index)
        if index == 0:
            started = time.perf_counter()
    return tokens(batches[1:]) / (time.perf_counter() - started)


class Compiled:
    """Tokens a second of our step with a compiled model, which has met every shape before."""

    def __init__(self, settings: PretrainSettings, tokenizer: Any, batches: list[Batch]) -> None:
        self.settings, self.batches = settings, batches
        self.device = pick_device("auto")
        model = build_model(settings.architecture, tokenizer, 0).to(self.device).train()
        if self.device.type == "cpu":
            model.set_attn_implementation("eager")
        self.optimizer = PretrainOptimizer(model, settings.optimizer, 1000)
        self.forward: Any = torch.compile(model)
        for _ in range(2):
            self()

    def __call__(self) -> float:
        started = time.perf_counter()
        for batch in self.batches[1:]:
            batch_gradient(self.forward, batch, self.device, self.settings.precision, self.settings.micro_batch_tokens)
            self.optimizer.step(1)
        return tokens(self.batches[1:]) / (time.perf_counter() - started)


def trainer(settings: PretrainSettings, tokenizer: Any, batches: list[Batch], bf16: bool) -> float:
    """Tokens a second of `transformers.Trainer`; the first optimizer step only warms up."""
    model = build_model(settings.architecture, tokenizer, 0)
    per_step = len(batches[0])
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=per_step,
            max_steps=len(batches),
            bf16=bf16,
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            seed=0,
        )
        Trainer(
            model,
            arguments,
            train_dataset=Rows(batches, int(tokenizer.pad_token_id)),
            data_collator=lambda items: items[0],
            callbacks=[clock],
        ).train()
    per_batch = tokens(batches) / len(batches)
    return per_batch * (len(clock.ends) - 1) / (clock.ends[-1] - clock.ends[0])


def measure(rounds: int, steps: int, compiled: bool) -> dict[str, list[float]]:
    """Tokens a second of every rival, one value a round."""
    settings = PretrainSettings()
    tokenizer = AutoTokenizer.from_pretrained(embedded_path())
    stream = PackedBatches(settings, tokenizer, None)
    # Batches with rows of every length in use, so that every rival's optimizer step covers the same rows.
    candidates = (stream[index] for index in range(10 * steps))
    batches = [batch for batch in candidates if len(batch) == len(settings.row_lengths)][: steps + 1]
    contenders: dict[str, Callable[[], float]] = {
        "ours": lambda: ours(settings, tokenizer, batches),
        "trainer": lambda: trainer(settings, tokenizer, batches, bf16=False),
        "trainer_bf16": lambda: trainer(settings, tokenizer, batches, bf16=True),
    }
    # What the allocator is told holds for the whole process, so the rivals have it too.
    keep_freed_memory()
    if compiled:
        contenders["ours_compiled"] = Compiled(settings, tokenizer, batches)
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            speeds[name].append(run())
    return speeds


def figures(speeds: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Medians with the range over the rounds."""
    result = {f"{name} tokens/s": (np.asarray(values), "tokens/s") for name, values in speeds.items()}
    mine = [name for name in speeds if name.startswith("ours")]
    for own, rival in itertools.product(mine, ("trainer", "trainer_bf16")):
        result[f"{own} / {rival}"] = (np.asarray(speeds[own]) / np.asarray(speeds[rival]), "ratio")
    return {
        name: {"value": float(np.median(v)), "unit": unit, "interval": [float(v.min()), float(v.max())]}
        for name, (v, unit) in result.items()
    }


def main() -> None:
    """Run, print a table, and write the JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two rounds of two steps, under a minute")
    parser.add_argument("--rounds", type=int, default=5, help="times that each rival is timed, in turn")
    parser.add_argument("--compiled", action="store_true", help="ours with torch.compile, too: minutes more")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    rounds, steps = (2, 2) if arguments.quick else (arguments.rounds, 8)
    table = figures(measure(rounds, steps, arguments.compiled))
    protocol = {
        "model": "embedded architecture, random weights, seed 0",
        "rounds": rounds,
        "steps": steps,
        "interval": "smallest and largest of the rounds",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    report(table, {}, protocol, arguments.json)


if __name__ == "__main__":
    main()
