"""How fast dreams are sampled: `TransformersSampler` against `model.generate`, and whether both draw alike.

    python benchmarks/sampling.py --json build/sampling.json    # 512 dreams, some minutes on one thread
    python benchmarks/sampling.py --quick                       # 64 dreams, under a minute

The embedded model dreams of made-up documents by the prompts that a night uses, one reply each: the same prompts,
batch size, limit of tokens and temperature on both sides, and on both sides the replies are decoded.

- `ours`: `TransformersSampler`.
- `generate`: in the batches of like length that `ours` makes, so that neither pads more than the other.
- `generate_unsorted`: in batches as the prompts come.

Each repetition times every way once, in an order drawn anew; a figure is the median over repetitions of the ratio
within one, its interval their least and greatest. Replies differ in length from one seed to the next, so repetitions
draw anew, and the tokens of each way are reported too.

Whether both draw alike is asked twice. `first_token_p`: many first tokens of a few prompts, a chi-squared test of two
rows for every prompt, their statistics and degrees of freedom added up. `all_tokens_p`: the tokens of all timed replies
in bins; tokens of one reply depend on each other, so the chi-squared statistic is compared not with its table but with
what it is when the two replies to a prompt are exchanged at random. A p of 0.01 or less would speak against us, in one
of a hundred runs wrongly.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import chi2, chi2_contingency
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from _timing import CLOCKS, alternate, figure, machine, over, report
from sleep_pipeline import load_model
from sleep_pipeline.corpora.worlds import WorldGenerator
from sleep_pipeline.dreaming.settings import DreamSettings
from sleep_pipeline.generation.sampler import SamplingSettings, TransformersSampler

WANTED = {"generate_over_ours": ">= 1.5", "first_token_p": "> 0.01", "all_tokens_p": "> 0.01"}
ENOUGH = 10
"""Tokens that a bin must hold on both sides together: at least 5 are then expected on each."""


def dream_prompts(tokenizer: PreTrainedTokenizerBase, count: int) -> list[list[int]]:
    """The tokens of prompts to dream, of made-up documents."""
    world = WorldGenerator("sampling", "test", facts=(2, 6), entities=(1, 3))
    asks = [prompt.ask for prompt in DreamSettings().prompts if not prompt.older]
    found: list[list[int]] = []
    while len(found) < count:
        text = world.document().text
        for ask in asks:
            turns = [{"role": "system", "content": text}, {"role": "user", "content": ask}]
            ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
            found.append(list(ids))
    return found[:count]


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    settings: SamplingSettings,
    count: int = 1,
) -> list[list[int]]:
    """What `model.generate` draws, prompt by prompt, up to and with the end mark."""
    replies: list[list[int]] = []
    size = max(1, settings.batch_size // count)
    for start in range(0, len(prompts), size):
        some = {"input_ids": [list(ids) for ids in prompts[start : start + size]]}
        batch = tokenizer.pad(some, padding_side="left", return_tensors="pt").to(model.device)
        drawn = model.generate(
            **batch,
            do_sample=True,
            temperature=settings.temperature,
            top_k=0,
            top_p=1.0,
            max_new_tokens=settings.max_new_tokens,
            num_return_sequences=count,
        )[:, batch["input_ids"].shape[1] :].tolist()
        tokenizer.batch_decode(drawn, skip_special_tokens=True)
        end = tokenizer.eos_token_id
        replies += [ids[: ids.index(end) + 1] if end in ids else ids for ids in drawn]
    return replies


def ours(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    settings: SamplingSettings,
    count: int = 1,
    seed: int = 0,
) -> list[list[int]]:
    """What the library draws, in the same form."""
    drawn = TransformersSampler(model, tokenizer, settings).continue_ids(prompts, count, seed)
    return [[*reply.ids, *([reply.end] if reply.end is not None else [])] for replies in drawn for reply in replies]


def bins(tokens: Sequence[int]) -> dict[int, int]:
    """Token -> bin: its own where there is enough of it; the others share the last one, if they are enough."""
    counts = Counter(tokens)
    often = sorted(token for token, count in counts.items() if count >= ENOUGH)
    found = {token: index for index, token in enumerate(often)}
    rest = sum(count for token, count in counts.items() if token not in found)
    shared = len(often) if rest >= ENOUGH else max(0, len(often) - 1)
    return found | {token: shared for token in counts if token not in found}


def first_token_test(left: Sequence[Sequence[int]], right: Sequence[Sequence[int]]) -> tuple[float, int, float]:
    """Chi-squared, degrees of freedom and p of first tokens, `[prompts][draws]` on each side."""
    statistic, freedom = 0.0, 0
    for one, other in zip(left, right, strict=True):
        to_bin = bins([*one, *other])
        size = 1 + max(to_bin.values())
        if size > 1:
            table = [np.bincount([to_bin[token] for token in side], minlength=size) for side in (one, other)]
            found = chi2_contingency(np.stack(table), correction=False)
            statistic, freedom = statistic + float(found.statistic), freedom + int(found.dof)
    return statistic, freedom, float(chi2.sf(statistic, freedom))


def all_tokens_test(
    left: Sequence[Sequence[int]], right: Sequence[Sequence[int]], exchanges: int = 5000
) -> tuple[int, float]:
    """Number of bins, and p of all tokens by exchanging the two replies of a pair at random."""
    to_bin = bins([token for reply in (*left, *right) for token in reply])
    size = 1 + max(to_bin.values())

    def counts(replies: Sequence[Sequence[int]]) -> NDArray[Any]:
        return np.stack([np.bincount([to_bin[token] for token in reply], minlength=size) for reply in replies])

    one, other = counts(left).astype(float), counts(right).astype(float)
    total = (one + other).sum(0)
    signs = np.random.default_rng(0).choice((-1.0, 1.0), size=(exchanges, len(one)))
    seen = ((one - other).sum(0) ** 2 / total).sum()
    exchanged = ((signs @ (one - other)) ** 2 / total).sum(1)
    return size, float((1 + (exchanged >= seen * (1 - 1e-12)).sum()) / (1 + exchanges))


def main() -> None:
    """Run, print a table, and write the JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="64 dreams, 3 repetitions, fewer first tokens")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--dreams", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=DreamSettings().batch_size)
    parser.add_argument("--max-new-tokens", type=int, default=DreamSettings().max_new_tokens)
    parser.add_argument("--temperature", type=float, default=DreamSettings().temperature)
    parser.add_argument("--first-tokens", type=int, default=512, help="of each of 8 prompts, on each side")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clock", default="wall", choices=list(CLOCKS), help="cpu on a busy machine without a GPU")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    dreams, repetitions = (64, 3) if arguments.quick else (arguments.dreams, arguments.repetitions)
    firsts = 128 if arguments.quick else arguments.first_tokens
    model, tokenizer = load_model()
    model.to(arguments.device)
    prompts = dream_prompts(tokenizer, dreams)
    ordered = sorted(prompts, key=len)
    settings = SamplingSettings(arguments.max_new_tokens, arguments.temperature, batch_size=arguments.batch_size)
    torch.manual_seed(0)
    tokens: dict[str, list[list[list[int]]]] = {"ours": [], "generate": [], "generate_unsorted": []}
    ways: dict[str, Callable[[], Any]] = {
        "ours": lambda: tokens["ours"].append(ours(model, tokenizer, ordered, settings, seed=len(tokens["ours"]))),
        "generate": lambda: tokens["generate"].append(generate(model, tokenizer, ordered, settings)),
        "generate_unsorted": lambda: tokens["generate_unsorted"].append(generate(model, tokenizer, prompts, settings)),
    }
    short = SamplingSettings(4, arguments.temperature)
    ours(model, tokenizer, ordered[:2], short)
    generate(model, tokenizer, ordered[:2], short)
    taken, _ = alternate(ways, repetitions, arguments.clock)

    few = ordered[:: max(1, len(ordered) // 8)][:8]
    one = SamplingSettings(1, arguments.temperature, batch_size=firsts)
    first = [
        [[reply[0] for reply in way(model, tokenizer, [prompt], one, count=firsts)] for prompt in few]
        for way in (ours, generate)
    ]
    statistic, freedom, first_p = first_token_test(*first)
    both = [[reply for replies in tokens[name] for reply in replies] for name in ("ours", "generate")]
    number, all_p = all_tokens_test(*both)

    figures = {
        f"{name}_over_ours": figure(over(taken[name], taken["ours"]), "times") for name in ways if name != "ours"
    }
    figures |= {f"{name}_seconds": figure(values, "s") for name, values in taken.items()}
    drawn = {name: [sum(len(reply) for reply in replies) for replies in tokens[name]] for name in ways}
    figures |= {f"{name}_tokens": figure(values, "tokens") for name, values in drawn.items()}
    figures["first_token_p"] = figure([first_p], "p")
    figures["all_tokens_p"] = figure([all_p], "p")
    protocol = {
        "model": "embedded",
        "parameters": model.num_parameters(),
        "dreams": f"{dreams} prompts of {len(ordered[0])}-{len(ordered[-1])} tokens, one reply each",
        "batch_size": settings.batch_size,
        "max_new_tokens": settings.max_new_tokens,
        "temperature": settings.temperature,
        "repetitions": repetitions,
        "value": "median over repetitions of the ratio within one; interval: least and greatest",
        "first_token": f"{firsts} of each of {len(few)} prompts a side: chi2 {statistic:.1f}, {freedom} degrees",
        "all_tokens": f"chi-squared in {number} bins, p by 5,000 exchanges of the two replies to a prompt",
        "dtype": str(next(model.parameters()).dtype),
        **machine(arguments.device, arguments.clock),
    }
    report(figures, WANTED, protocol, arguments.json)


if __name__ == "__main__":
    main()
