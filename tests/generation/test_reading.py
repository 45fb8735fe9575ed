"""What texts begin with alike is read once, and nothing else changes."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from sleep_pipeline.generation import reading
from sleep_pipeline.generation.likelihood import reply_log_probs
from sleep_pipeline.generation.reading import (
    goes_on_from_caches,
    inputs_of,
    reading_batches,
    shared_beginnings,
)

ONE, OTHER = list(range(100, 160)), list(range(200, 240))


def about(text: list[int], *rest: int) -> tuple[list[int], int]:
    """A text, a question of two tokens, and an answer."""
    ids = [*text, *rest]
    return ids, len(text) + 2


@pytest.fixture
def conversations() -> list[list[dict[str, str]]]:
    texts = ["Mira has a cat that is old and sleeps by the stove all day. " * 3, "Osk has 12 inns. " * 4]
    asked = [("Who has a cat?", "Mira."), ("How old?", "Nobody knows that."), ("Where, and for how long?", "Osk")]
    told = [
        [
            {"role": "system", "content": text},
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
        for text in texts
        for question, answer in asked * 4
    ]
    return [*told, *(turns[1:] for turns in told[:3])]


def test_each_text_is_read_once_with_all_that_is_asked_about_it() -> None:
    texts = [about(ONE, 1, 2, 3), about(OTHER, 1, 2, 3), about(ONE, 4, 5), about(ONE, 1, 6, 7), about([9, 8], 1, 2, 3)]
    assert shared_beginnings(texts) == [60, 0, 60, 60, 0]
    assert shared_beginnings([*texts, about(OTHER, 4, 5)]) == [60, 40, 60, 60, 0, 40]
    assert shared_beginnings([]) == [] and shared_beginnings(texts[:1]) == [0]
    # What is asked about, and the token that predicts it, are read anew.
    assert shared_beginnings([about(ONE, 1, 2, 3)] * 2) == [61, 61]


def test_a_part_that_a_text_begins_with_does_not_break_up_its_own() -> None:
    part = ONE[:30]
    texts = [about([*part, 7], 1, 2, 3), about([*part, 7], 4, 5, 3), *(about(ONE, n, 2, 3) for n in range(5))]
    assert shared_beginnings(texts) == [31, 31, 60, 60, 60, 60, 60]


def test_likelihoods_are_those_of_single_conversations(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Any, tiny_tokenizer: Any, conversations: list[Any]
) -> None:
    whole = [reply_log_probs(tiny_model, tiny_tokenizer, [one])[0] for one in conversations]
    widths = []
    inputs = inputs_of

    def noted(*args: Any) -> Any:
        made = inputs(*args)
        widths.append((made.own["input_ids"].numel(), made.own["attention_mask"].numel()))
        return made

    monkeypatch.setattr("sleep_pipeline.generation.likelihood.inputs_of", noted)
    for size in (5, 64):
        widths.clear()
        for one, found in zip(
            whole, reply_log_probs(tiny_model, tiny_tokenizer, conversations, batch_size=size), strict=True
        ):
            assert found == pytest.approx(one, abs=1e-4)
        own, seen = map(sum, zip(*widths, strict=True))
        assert own < seen / 2, "what is shared was read again"
    monkeypatch.setattr(reading, "goes_on_from_caches", lambda model: False)
    for one, found in zip(whole, reply_log_probs(tiny_model, tiny_tokenizer, conversations), strict=True):
        assert found == pytest.approx(one, abs=1e-4)


@pytest.mark.parametrize("architecture", ["gpt2", "opt"])
def test_padding_stays_within_a_window_of_learned_positions(architecture: str, tiny_tokenizer: Any) -> None:
    from transformers import GPT2Config, OPTConfig

    longest = 300
    sizes: dict[str, Any] = {"hidden_size": 16, "num_attention_heads": 2, "max_position_embeddings": longest}
    config = (
        GPT2Config(vocab_size=512, n_embd=16, n_layer=1, n_head=2, n_positions=longest)
        if architecture == "gpt2"
        else OPTConfig(vocab_size=512, word_embed_proj_dim=16, num_hidden_layers=1, ffn_dim=32, **sizes)
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    # What a few short rows have in common is almost the window, and other rows are long behind little of it.
    long, short = [n % 500 for n in range(longest - 8)], [n % 400 for n in range(400, 500)]
    texts = [about(long, 1, 2, 3, n) for n in range(4)] + [about(short, 1, 2, *range(100 + n)) for n in range(4)]
    found = {}
    for batch in reading_batches(model, texts, 100, logits=False):
        assert min(batch.skipped) > 0, "the rows go on from what they share"
        with torch.inference_mode():
            inputs = inputs_of(model, tiny_tokenizer, texts, batch)
            logits = model(**inputs.own, **inputs.more).logits
        found |= {row: logits[at, len(texts[row][0]) - 1 - batch.skipped[at]] for at, row in enumerate(batch.rows)}
    for row, (ids, _) in enumerate(texts):
        with torch.inference_mode():
            wanted = model(torch.tensor([ids])).logits[0, -1]
        torch.testing.assert_close(found[row], wanted, atol=1e-4, rtol=1e-3)


def test_every_text_is_in_one_batch(tiny_model: Any, conversations: list[Any]) -> None:
    texts = [about(ONE, n, 2, 3, *range(n)) for n in range(40)] + [about(OTHER[:n], 1, 2, 3) for n in range(1, 20)]
    for size in (1, 7, 100):
        batches = list(reading_batches(tiny_model, texts, size))
        assert sorted(row for batch in batches for row in batch.rows) == list(range(len(texts)))
        assert all(len(batch.rows) <= size and len(batch.skipped) == len(batch.rows) for batch in batches)
        # A row of which nothing is skipped is not made to wait for a cache.
        assert all(all(batch.skipped) or not any(batch.skipped) for batch in batches)


def test_batches_are_small_only_where_their_logits_are_large(monkeypatch: pytest.MonkeyPatch, tiny_model: Any) -> None:
    texts = [about(ONE, n, 2, 3) for n in range(40)]
    monkeypatch.setattr(reading, "LOGITS", 1)
    assert [len(batch.rows) for batch in reading_batches(tiny_model, texts, 30)] == [1] * 40
    assert [len(batch.rows) for batch in reading_batches(tiny_model, texts, 30, logits=False)] == [30, 10]


def test_a_model_that_sees_padding_reads_everything_whole(tiny_model: Any) -> None:
    from transformers import FalconH1Config, Gemma3TextConfig

    assert goes_on_from_caches(tiny_model)
    sizes: dict[str, Any] = {
        "vocab_size": 128,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
    }
    windowed = Gemma3TextConfig(**sizes, sliding_window=4, layer_types=["sliding_attention", "full_attention"])
    recurrent = FalconH1Config(**sizes, mamba_d_ssm=32, mamba_n_heads=2, mamba_d_head=16, mamba_d_state=8)
    for config in (windowed, recurrent):
        torch.manual_seed(0)
        assert not goes_on_from_caches(AutoModelForCausalLM.from_config(config).eval())
