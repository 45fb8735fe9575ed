"""Sampling replies: one protocol, and the implementation that runs wherever transformers does.

Beside `generate` this one draws several replies to a prompt from one reading of it, takes rows out of the batch when
they are done, draws by inverse CDF (which on a CPU costs a tenth of `torch.multinomial`), and gives every reply its own
noise, so that what is drawn depends neither on the batch size nor on the other prompts, up to the rounding of the
model's dtype: in bfloat16 half of the replies may differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from sleep_pipeline.generation.modes import evaluating
from sleep_pipeline.progress import bar

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Conversation = Sequence[dict[str, str]]

_COMPACT_AT = 0.25
"""Share of finished rows at which a batch is compacted: copying its cache costs about as much as some steps."""


@dataclass(frozen=True)
class SamplingSettings:
    """How replies are drawn.

    Attributes:
        max_new_tokens: where a reply is cut, in tokens.
        temperature: 0 takes the likeliest token; 1 draws as the model believes.
        top_k: draw among so many likeliest tokens; None for all.
        top_p: draw among the likeliest tokens that make up this much probability.
        batch_size: replies at a time.
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    batch_size: int = 64

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        if self.max_new_tokens < 1 or self.batch_size < 1:
            raise ValueError(
                f"max_new_tokens={self.max_new_tokens} and batch_size={self.batch_size} must be at least 1"
            )
        if self.temperature < 0:
            raise ValueError(f"temperature={self.temperature} is below 0; give 0 for the likeliest token, 1 to draw")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k} leaves no token; give at least 1, or None for all")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} is no share; give more than 0 and at most 1")


@dataclass(frozen=True)
class Reply:
    """One reply.

    Attributes:
        text: without special tokens.
        ids: its tokens, the end mark left out.
        log_probs: of these tokens and, where the reply ended, its end mark; nats, at the temperature drawn at.
        ended: whether the model ended it, rather than the limit.
        end: the end mark that it said; some models have several.
    """

    text: str
    ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    ended: bool
    end: int | None = None


class Sampler(Protocol):
    """Draws replies to conversations."""

    def sample(
        self, prompts: Sequence[Conversation], count: int = 1, seed: int = 0, progress: str | None = None
    ) -> list[list[Reply]]:
        """`count` replies to each prompt, in the order of the prompts; the same seed draws the same."""
        ...


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Conversation]) -> list[list[int]]:
    """The tokens of conversations up to where the reply begins."""
    return [
        list(tokenizer.apply_chat_template(list(prompt), add_generation_prompt=True, return_dict=True)["input_ids"])
        for prompt in prompts
    ]


class WindowError(ValueError):
    """A prompt and its reply do not fit into the model's window."""


def check_window(model: PreTrainedModel, encoded: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """Raise `WindowError` if a prompt and its reply do not fit into the model's window."""
    window = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max((len(ids) for ids in encoded), default=0)
    if window is not None and longest + max_new_tokens > window:
        raise WindowError(
            f"a conversation of {longest} tokens and a reply of {max_new_tokens} do not fit into the model's window of "
            f"{window} tokens; shorten the text or lower max_new_tokens"
        )


def end_marks(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens by which the model may end a reply."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return sorted({token for token in (*ids, tokenizer.eos_token_id) if token is not None})


def _nobody(rows: Sequence[int]) -> None:
    """Stand in for a listener."""


class TransformersSampler:
    """Samples from a transformers model where it is, in the view that it is in.

    Args:
        model: a causal LM.
        tokenizer: with a chat template, a pad token and an end token.
        settings: see `SamplingSettings`.
        on_rows: told which prompts the rows of the next passes belong to, whenever that changes; for what is chosen
            prompt by prompt inside the model (`memory.random_experts`).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: SamplingSettings | None = None,
        on_rows: Callable[[Sequence[int]], None] | None = None,
    ) -> None:
        self._model, self._tokenizer, self._on_rows = model, tokenizer, on_rows
        self.settings = settings or SamplingSettings()

    def sample(
        self, prompts: Sequence[Conversation], count: int = 1, seed: int = 0, progress: str | None = None
    ) -> list[list[Reply]]:
        """See `Sampler`.

        Raises:
            ValueError: a prompt and its reply do not fit into the model's window.
            FloatingPointError: the model's logits are not finite.
        """
        return self.continue_ids(encode_prompts(self._tokenizer, prompts), count, seed, progress)

    def continue_ids(
        self, prompts: Sequence[Sequence[int]], count: int = 1, seed: int = 0, progress: str | None = None
    ) -> list[list[Reply]]:
        """As `sample`, for prompts that are tokens already, such as the beginning of an answer.

        Raises:
            ValueError: a prompt and its reply do not fit into the model's window.
            FloatingPointError: the model's logits are not finite.
        """
        import torch

        encoded = [list(ids) for ids in prompts]
        check_window(self._model, encoded, self.settings.max_new_tokens)
        replies: list[list[Reply]] = [[] for _ in prompts]
        generator = torch.Generator().manual_seed(seed)
        noise = torch.rand(len(prompts), count, self.settings.max_new_tokens, generator=generator)
        batches = list(self._batches(encoded, count))
        with evaluating(self._model):
            for batch in bar(batches, progress, unit="batch"):
                for some in noise[batch].split(self.settings.batch_size, dim=1):
                    for index, drawn in zip(batch, self._draw(encoded, batch, some), strict=True):
                        replies[index] += drawn
        return replies

    def _batches(self, encoded: Sequence[Sequence[int]], count: int) -> Iterator[list[int]]:
        """Prompts of like length together, so that little is padded; one alone if its replies fill a batch or more."""
        order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
        size = max(1, self.settings.batch_size // count)
        return (order[start : start + size] for start in range(0, len(order), size))

    def _draw(self, encoded: list[list[int]], batch: list[int], noise_PCT: Tensor) -> list[list[Reply]]:
        import torch

        model, tokenizer, device = self._model, self._tokenizer, self._model.device
        tell = self._on_rows or _nobody
        count, limit = noise_PCT.shape[1:]
        prompts = {"input_ids": [encoded[index] for index in batch]}
        padded = tokenizer.pad(prompts, padding_side="left", return_tensors="pt").to(device)
        ends = torch.tensor(end_marks(model, tokenizer), device=device, dtype=torch.long)
        noise = noise_PCT.flatten(0, 1).to(device)
        rows = len(batch) * count
        owners = [index for index in batch for _ in range(count)]
        said = torch.full((rows, limit), -1, device=device)
        log_probs = torch.zeros(rows, limit, device=device)
        with torch.inference_mode():
            mask = padded["attention_mask"]
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            tell(batch)
            output = model(**padded, position_ids=positions, use_cache=True, logits_to_keep=1)
            cache, logits = output.past_key_values, output.logits[:, -1]
            if count > 1:
                # Every kind of layer's cache has this, linear attention's and convolutions' among them.
                cache.reorder_cache(torch.arange(len(batch), device=device).repeat_interleave(count))
                logits = logits.repeat_interleave(count, 0)
                mask = mask.repeat_interleave(count, 0)
            following = mask.sum(-1, keepdim=True)
            live = torch.arange(rows, device=device)
            tell(owners)
            going = torch.ones(rows, dtype=torch.bool, device=device)
            for step in range(limit):
                tokens, values = self._pick(logits, noise[live, step])
                # One logit that is infinite or no number makes every log-probability of its row no number.
                if values[going].isnan().any():
                    raise FloatingPointError(
                        f"the model's logits are not finite in {model.dtype}: load it in bfloat16 or float32 (in a "
                        "night: machine.dtype); if it is already, its weights are damaged"
                    )
                said[live[going], step], log_probs[live[going], step] = tokens[going], values[going]
                going &= ~torch.isin(tokens, ends)
                left = int(going.sum())
                if not left or step == limit - 1:
                    break
                if len(live) - left >= _COMPACT_AT * len(live):
                    keep = going.nonzero()[:, 0]
                    cache.reorder_cache(keep)
                    live, going, tokens, mask, following = (t[keep] for t in (live, going, tokens, mask, following))
                    if self._on_rows is not None:
                        tell([owners[row] for row in live.tolist()])
                mask = torch.cat([mask, mask.new_ones(len(live), 1)], dim=-1)
                output = model(
                    input_ids=tokens[:, None],
                    attention_mask=mask,
                    position_ids=following,
                    past_key_values=cache,
                    use_cache=True,
                )
                logits, following = output.logits[:, -1], following + 1
        ended_by = set(ends.tolist())
        drawn = [
            self._reply(ids, values, ended_by) for ids, values in zip(said.tolist(), log_probs.tolist(), strict=True)
        ]
        return [drawn[start : start + count] for start in range(0, rows, count)]

    def _pick(self, logits_BV: Tensor, noise_B: Tensor) -> tuple[Tensor, Tensor]:
        """Token and log-probability of each row, by inverse CDF of the warped distribution."""
        import torch
        from transformers import TopKLogitsWarper, TopPLogitsWarper

        settings = self.settings
        logits = logits_BV.float()
        if not settings.temperature:
            tokens = logits.argmax(-1)
            return tokens, logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
        logits = logits / settings.temperature
        nothing = torch.empty(0, dtype=torch.long)
        if settings.top_k is not None:
            logits = TopKLogitsWarper(settings.top_k)(nothing, logits)
        if settings.top_p < 1:
            logits = TopPLogitsWarper(settings.top_p)(nothing, logits)
        log_probs = logits.log_softmax(-1)
        # Sums in float32 would round away tokens of small probability in a large vocabulary.
        total = log_probs.double().exp().cumsum(-1)
        drawn = (noise_B.double() * total[:, -1])[:, None]
        tokens = torch.searchsorted(total, drawn, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
        return tokens, log_probs.gather(-1, tokens[:, None])[:, 0]

    def _reply(self, ids: list[int], values: list[float], ends: set[int]) -> Reply:
        length = ids.index(-1) if -1 in ids else len(ids)
        ended = length > 0 and ids[length - 1] in ends
        kept = tuple(ids[: length - ended])
        text = self._tokenizer.decode(kept, skip_special_tokens=True)
        return Reply(text, kept, tuple(values[:length]), ended, ids[length - 1] if ended else None)
