"""What the speed benchmarks share: models, dreams of random tokens, alternating clocks, and the file of figures."""

from __future__ import annotations

import json
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from sleep_pipeline import load_model
from sleep_pipeline.dreaming.rows import Dream, Row

MODELS = ("embedded", "qwen3_1_7b")
SHORTEST, LONGEST = 30, 80
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
"""Seconds that pass, or that this process computes: the same on an idle machine with one thread, and steadier on a
busy one. Never `cpu` where a GPU computes."""


def draw(vocabulary: int, count: int, seed: int = 0) -> list[Dream]:
    """Return dreams of random tokens."""
    generator = random.Random(seed)
    lengths = [generator.randint(SHORTEST, LONGEST) for _ in range(count)]
    return [
        Dream((Row(tuple(generator.randrange(6, vocabulary) for _ in range(length))),), seed=index)
        for index, length in enumerate(lengths)
    ]


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


def alternate(
    ways: Mapping[str, Callable[[], Any]], repetitions: int, clock: str = "wall", seed: int = 0
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Time every way once a repetition, in an order drawn anew.

    Whatever else the machine does then falls on all alike, and the ratio within a repetition is what to look at.

    Returns:
        Seconds of every way, one number a repetition, and what every way returned at last.
    """
    order = list(ways)
    taken: dict[str, list[float]] = {name: [] for name in ways}
    returned: dict[str, Any] = {}
    for repetition in range(repetitions):
        random.Random(f"{seed}/{repetition}").shuffle(order)
        for name in order:
            start = CLOCKS[clock]()
            returned[name] = ways[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            taken[name].append(CLOCKS[clock]() - start)
    return taken, returned


def over(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """The ratio within every repetition."""
    return [a / b for a, b in zip(above, below, strict=True)]


def figure(values: Sequence[float], unit: str) -> dict[str, Any]:
    """Return the median with the least and the greatest value."""
    return {"value": statistics.median(values), "unit": unit, "interval": [min(values), max(values)]}


def machine(device: str, clock: str) -> dict[str, Any]:
    """What the figures were taken on, for the protocol."""
    return {
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
        "threads": torch.get_num_threads(),
        "clock": clock,
        "torch": torch.__version__,
        "machine": platform.machine(),
    }


def report(
    figures: Mapping[str, Mapping[str, Any]], wanted: Mapping[str, str], protocol: Mapping[str, Any], path: Path | None
) -> None:
    """Print a table, and write the JSON if asked."""
    for name, found in figures.items():
        low, high = found["interval"]
        target = f"  target {wanted[name]}" if name in wanted else ""
        print(f"{name:44s} {found['value']:9.3g} {found['unit']:5s} [{low:.3g}, {high:.3g}]{target}")
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"figures": figures, "protocol": protocol}, indent=2) + "\n")
