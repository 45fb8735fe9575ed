"""What scoring dreams by their gradients costs: one backward pass a batch, against one backward pass a dream.

    python benchmarks/dream_scores.py --json build/dream_scores.json      # 256 dreams, a few minutes on one thread
    python benchmarks/dream_scores.py --quick                             # 64 dreams, under a minute
    python benchmarks/dream_scores.py --model qwen3_1_7b --device cuda    # a model of that shape, random weights

Dreams of 30 to 80 random tokens, all of them learned; gradients for every linear layer inside the decoder layers.

- `batched`: `dreaming.scores.score`, which gets the score of every dream from the factors of its gradient.
- `one_by_one`: for every dream, unpadded, a forward and a backward pass to the same weights in the same precision, and
  the score from the gradient itself. Only these weights ask for a gradient.

Both give the `gradient_norm` and the `alignment` with the gradient of eight held-out samples; that gradient is part of
the time. Each repetition times every way once, in an order drawn anew; a figure is the median over repetitions of the
ratio within one, its interval their least and greatest. `difference` is the largest one between the two ways' scores
over the score, in float64.
"""

from __future__ import annotations

import argparse
import copy
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from _timing import CLOCKS, LONGEST, MODELS, SHORTEST, alternate, base_model, draw, figure, machine, over, report
from sleep_pipeline.dreaming.gradients import linear_weights
from sleep_pipeline.dreaming.rows import Dream, Row, losses, side_by_side
from sleep_pipeline.dreaming.scores import score
from sleep_pipeline.dreaming.settings import ScoreSettings

KINDS = ("gradient_norm", "alignment")
HELD_OUT = 8
WANTED = {f"{kind}_one_by_one_over_batched": ">= 2.5" for kind in KINDS} | {
    f"{kind}_difference": "<= 1e-6" for kind in KINDS
}


def one_by_one(model: nn.Module, dreams: Sequence[Dream], kind: str, held_out: Sequence[Row]) -> list[float]:
    """Score every dream by the gradient of its loss, made by a backward pass of its own."""
    weights = list(linear_weights(model).values())
    device = next(model.parameters()).device

    def gradient(rows: Sequence[Row]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(losses(model, side_by_side([rows], device)).sum(), weights)

    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    try:
        aim = gradient(held_out) if kind == "alignment" else None
        # One number a dream is read at the end, so that a GPU need not wait for each.
        return torch.stack([_value(gradient(dream.rows), aim) for dream in dreams]).tolist()
    finally:
        for parameter, flag in wanted.items():
            parameter.requires_grad_(flag)


def _value(gradient: Sequence[Tensor], aim: Sequence[Tensor] | None) -> Tensor:
    """The norm of a gradient, or its inner product with another."""
    other = gradient if aim is None else aim
    dtype = torch.promote_types(gradient[0].dtype, torch.float32)
    parts = [torch.dot(g.flatten().to(dtype), o.flatten().to(dtype)) for g, o in zip(gradient, other, strict=True)]
    total = torch.stack(parts).sum()
    return total.sqrt() if aim is None else total


def batched(model: nn.Module, dreams: Sequence[Dream], kind: str, held_out: Sequence[Row]) -> list[float]:
    """The same by the library."""
    return list(score(model, dreams, ScoreSettings(kind=kind), held_out=[held_out]).omega)


def difference(model: nn.Module, dreams: Sequence[Dream], kind: str, held_out: Sequence[Row]) -> float:
    """The largest relative difference between the two ways."""
    pairs = zip(batched(model, dreams, kind, held_out), one_by_one(model, dreams, kind, held_out), strict=True)
    return max(abs(a - b) / abs(b) for a, b in pairs)


def main() -> None:
    """Run, print a table, and write the JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="64 dreams, 3 repetitions")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--dreams", type=int, default=256)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--check", type=int, default=64, help="dreams whose scores are compared in float64")
    parser.add_argument("--model", default="embedded", choices=MODELS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clock", default="wall", choices=list(CLOCKS), help="cpu on a busy machine without a GPU")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    count, repetitions = (64, 3) if arguments.quick else (arguments.dreams, arguments.repetitions)
    checked = min(count, 16 if arguments.quick else arguments.check)
    model = base_model(arguments.model, arguments.device)
    dreams = draw(model.config.vocab_size, count)
    held_out = [row for dream in draw(model.config.vocab_size, HELD_OUT, seed=1) for row in dream.rows]
    ways: dict[str, Callable[[], Any]] = {
        f"{kind}_{way.__name__}": functools.partial(way, model, dreams, kind, held_out)
        for kind in KINDS
        for way in (batched, one_by_one)
    }
    for way in (batched, one_by_one):
        way(model, dreams[:2], "alignment", held_out)
    taken, _ = alternate(ways, repetitions, arguments.clock)
    figures = {}
    for kind in KINDS:
        ratio = over(taken[f"{kind}_one_by_one"], taken[f"{kind}_batched"])
        figures[f"{kind}_one_by_one_over_batched"] = figure(ratio, "times")
    figures |= {f"{name}_seconds": figure(values, "s") for name, values in taken.items()}
    exact = copy.deepcopy(model).double()
    for kind in KINDS:
        figures[f"{kind}_difference"] = figure([difference(exact, dreams[:checked], kind, held_out)], "share")
    protocol = {
        "model": arguments.model,
        "parameters": model.num_parameters(),
        "dreams": f"{count} of {SHORTEST}-{LONGEST} random tokens, all learned; {checked} of them compared in float64",
        "tokens": sum(dream.tokens for dream in dreams),
        "held_out": HELD_OUT,
        "tokens_at_once": ScoreSettings().tokens_at_once,
        "repetitions": repetitions,
        "value": "median over repetitions of the ratio within one; interval: least and greatest",
        "dtype": str(next(model.parameters()).dtype),
        **machine(arguments.device, arguments.clock),
    }
    report(figures, WANTED, protocol, arguments.json)


if __name__ == "__main__":
    main()
