"""What the memory costs: decode and prefill latency with active experts, against the bare model.

    python benchmarks/memory_latency.py --json build/memory_latency.json      # about five minutes on two cores
    python benchmarks/memory_latency.py --quick                               # under a minute, wider intervals

A random Llama of hidden size 1024 with 8 layers carries four memories: 5 experts of rank 64 in every layer, the same
in the layers that a night gives a memory by default (`MemorySettings.starts_at`), 20 with `top_k=2` in every layer, and
20 without. Every repetition times the bare network (the memory's layers taken out, same weights) and each memory once,
in an order drawn anew, so that whatever else the machine does falls on all alike. A figure is the median over the
repetitions of the ratio to the bare network in the same repetition, with a 95 % bootstrap interval of that median.
A second table times the two kinds of expert product that `experts.grouped_pays` chooses between.
"""

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import peft
import torch
from torch import nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from sleep_pipeline.memory import ContinuumMemoryConfig, LevelConfig, memory_aside, state_of
from sleep_pipeline.memory.experts import dense, grouped, inverse_rms
from sleep_pipeline.memory.slots import SlotState
from sleep_pipeline.night_model import MemorySettings

HIDDEN, LAYERS, RANK = 1024, 8, 64
EVERY = list(range(LAYERS))
MEMORIES = {
    "5_experts": (5, None, EVERY),
    "5_experts_upper_half": (5, None, MemorySettings().layers(LAYERS)),
    "20_experts_top_2": (20, 2, EVERY),
    "20_experts_all": (20, None, EVERY),
}
"""Experts, `top_k`, and the layers that carry them."""
TARGETS = {"5_experts": 1.10, "5_experts_upper_half": 1.10, "20_experts_top_2": 1.50}
CONTEXT = 128


def build(dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """Return a PEFT model with all memories filled with random experts, and the network inside it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=HIDDEN,
        intermediate_size=3072,
        num_hidden_layers=LAYERS,
        num_attention_heads=16,
        num_key_value_heads=8,
        max_position_embeddings=2048,
    )
    network = LlamaForCausalLM(config).to(dtype).eval()
    model: nn.Module | None = None
    for name, (experts, top_k, layers) in MEMORIES.items():
        memory = ContinuumMemoryConfig(
            levels=[LevelConfig(num_slots=experts + 2, rank=RANK, top_k=top_k)], layers_to_transform=layers
        )
        if model is None:
            model = peft.get_peft_model(network, memory, adapter_name=name)
        else:
            model.add_adapter(name, memory)  # type: ignore[operator]
        fill(model, name, experts)
    assert model is not None
    return model.eval(), network


def fill(model: nn.Module, name: str, experts: int) -> None:
    """Activate `experts` random experts in every layer."""
    state = state_of(model, name)
    for _ in range(experts):
        state.table.unlock(1)
        state.table.activate(1)
    assert len(state.table.in_state(1, SlotState.ACTIVE)) == experts
    for layer in state.layers:
        (level,) = layer.levels(name)
        with torch.no_grad():
            for tensor in ("keys", "down", "up"):
                parameter = level.get_parameter(tensor)
                parameter[:experts].normal_(std=0.02)
            level.offsets.fill_(-2.0)
    state.changed()


def prefill(network: nn.Module, length: int) -> Callable[[], Any]:
    """Return a function that reads a prompt of `length` tokens."""
    ids = torch.randint(0, 8192, (1, length), generator=torch.Generator().manual_seed(0))
    return lambda: network(input_ids=ids, use_cache=True, logits_to_keep=1)


def decode(network: nn.Module) -> Callable[[], Any]:
    """Return a function that decodes one token after `CONTEXT` others, again and again at the same place."""
    ids = torch.randint(0, 8192, (1, CONTEXT + 1), generator=torch.Generator().manual_seed(0))
    cache = DynamicCache()
    network(input_ids=ids[:, :CONTEXT], past_key_values=cache, use_cache=True)

    def step() -> None:
        network(input_ids=ids[:, CONTEXT:], past_key_values=cache, use_cache=True)
        cache.crop(-1)

    return step


def seconds(run: Callable[[], Any], calls: int) -> float:
    """Return the seconds that `calls` calls take."""
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return time.perf_counter() - start


def interval_of_median(values: list[float], draws: int = 2000) -> list[float]:
    """Return the 95 % bootstrap interval of the median."""
    generator = random.Random(0)
    medians = sorted(statistics.median(generator.choices(values, k=len(values))) for _ in range(draws))
    return [medians[int(0.025 * draws)], medians[int(0.975 * draws)]]


def figure(values: list[float], unit: str) -> dict[str, Any]:
    """Return one figure of the report."""
    return {"value": statistics.median(values), "unit": unit, "interval": interval_of_median(values)}


def compare(
    model: nn.Module, run: Callable[[], Any], repetitions: int, calls: int, order: random.Random
) -> dict[str, dict[str, Any]]:
    """Time the bare network and every memory in every repetition; return ratios to the bare network."""
    views: dict[str, Callable[[], AbstractContextManager[Any]]] = {"bare": lambda: memory_aside(model)}
    for name in MEMORIES:
        views[name] = nullcontext
    taken: dict[str, list[float]] = {name: [] for name in views}
    for repetition in range(repetitions + 1):
        names = list(views)
        order.shuffle(names)
        for name in names:
            if name != "bare":
                model.set_adapter(name)  # type: ignore[operator]
            with views[name]():
                elapsed = seconds(run, calls) / calls
            if repetition:  # the first round warms up
                taken[name].append(elapsed)
    figures = {"bare": figure([1e3 * value for value in taken["bare"]], "ms")}
    for name in MEMORIES:
        ratios = [memory / bare for memory, bare in zip(taken[name], taken["bare"], strict=True)]
        figures[name] = figure(ratios, "x bare")
    return figures


def products(dtype: torch.dtype, tokens: int, repetitions: int) -> dict[str, dict[str, Any]]:
    """Time `grouped` against `dense` for several numbers of experts; top_k is 2."""
    figures = {}
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((tokens, HIDDEN), generator=generator).to(dtype)
    for experts in (3, 4, 5, 8, 20):
        down, up = (torch.randn((experts, RANK, HIDDEN), generator=generator).mul(0.02).to(dtype) for _ in range(2))
        gates = torch.rand((tokens, experts), generator=generator)
        scale = inverse_rms(x)
        ratios = []
        for _ in range(repetitions):
            by_group = seconds(lambda: grouped(x, scale, gates, down, up, "silu", 2), 3)  # noqa: B023 - called here
            whole = seconds(lambda: dense(x, scale, gates, down, up, "silu"), 3)  # noqa: B023 - called here
            ratios.append(by_group / whole)
        figures[f"grouped_over_dense_{experts}_experts_{tokens}_tokens"] = figure(ratios, "x dense")
    return figures


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, float32 only")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    repetitions = 7 if arguments.quick else 40
    length = 128 if arguments.quick else 256
    order = random.Random(0)
    figures: dict[str, dict[str, Any]] = {}
    with torch.no_grad():
        for dtype in (torch.float32,) if arguments.quick else (torch.float32, torch.bfloat16):
            kind = str(dtype).removeprefix("torch.")
            model, network = build(dtype)
            runs = {"decode": (decode(network), 8), f"prefill_{length}": (prefill(network, length), 1)}
            for phase, (run, calls) in runs.items():
                for name, result in compare(model, run, repetitions, calls, order).items():
                    figures[f"{phase}/{kind}/{name}"] = result
            for tokens in (1, length):
                for name, result in products(dtype, tokens, repetitions).items():
                    figures[f"{name}/{kind}"] = result
    for name, result in figures.items():
        low, high = result["interval"]
        target = next((f"  target {value:.2f}" for key, value in TARGETS.items() if name.endswith("/" + key)), "")
        print(f"{name:55} {result['value']:9.3f} {result['unit']:8} [{low:.3f}, {high:.3f}]{target}")
    protocol = {
        "model": f"random Llama, hidden {HIDDEN}, {LAYERS} layers, intermediate 3072, vocabulary 8192",
        "memories": {
            name: {"experts": e, "rank": RANK, "top_k": k, "layers": layers}
            for name, (e, k, layers) in MEMORIES.items()
        },
        "repetitions": repetitions,
        "batch": 1,
        "threads": arguments.threads,
        "rival": "the same network without the memory's layers, interleaved",
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"figures": figures, "protocol": protocol}, indent=2) + "\n")


if __name__ == "__main__":
    main()
