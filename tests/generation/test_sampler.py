from collections import Counter
from typing import Any

import pytest
import torch
import transformers
from scipy import stats

from sleep_pipeline.generation.sampler import SamplingSettings, TransformersSampler

PROMPTS = [
    [{"role": "system", "content": text}, {"role": "user", "content": question}]
    for text, question in (
        ("Mira lives in Osk.", "Where does Mira live?"),
        ("A much longer text about a town by the river, in which nobody lives any more since 1820.", "Who?"),
        ("Short.", "What is it, and why does it stay as it is?"),
    )
]


def prompt_ids(tokenizer: Any, prompt: Any) -> list[int]:
    return list(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"])


def test_greedy_replies_are_those_of_generate(tiny_model: Any, tiny_tokenizer: Any) -> None:
    sampler = TransformersSampler(tiny_model, tiny_tokenizer, SamplingSettings(max_new_tokens=12, temperature=0))
    for prompt, (reply,) in zip(PROMPTS, sampler.sample(PROMPTS), strict=True):
        ids = torch.tensor([prompt_ids(tiny_tokenizer, prompt)])
        alone = tiny_model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12)
        wanted = alone[0, ids.shape[1] :].tolist()
        assert list(reply.ids) == wanted[: len(wanted) - reply.ended]
        assert reply.ended == (wanted[-1] == tiny_tokenizer.eos_token_id)
        assert reply.text == tiny_tokenizer.decode(reply.ids, skip_special_tokens=True)


@pytest.fixture
def eager_to_end(tiny_model: Any, tiny_tokenizer: Any) -> Any:
    """The tiny model with its end mark made likely, so that replies end at all lengths."""
    end = tiny_tokenizer.eos_token_id
    forward = tiny_model.forward

    def shifted(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits[..., end] += 4.0
        return output

    tiny_model.forward = shifted
    yield tiny_model
    del tiny_model.forward


def test_log_probs_are_those_of_a_reading_without_cache_or_padding(eager_to_end: Any, tiny_tokenizer: Any) -> None:
    sampler = TransformersSampler(eager_to_end, tiny_tokenizer, SamplingSettings(max_new_tokens=16))
    replies = sampler.sample(PROMPTS, count=5, seed=3)
    lengths = set()
    for prompt, drawn in zip(PROMPTS, replies, strict=True):
        for reply in drawn:
            start = prompt_ids(tiny_tokenizer, prompt)
            tail = [*reply.ids, *([tiny_tokenizer.eos_token_id] if reply.ended else [])]
            with torch.no_grad():
                read = eager_to_end(torch.tensor([start + tail])).logits[0].double().log_softmax(-1)
            wanted = [float(read[len(start) + i - 1, token]) for i, token in enumerate(tail)]
            assert reply.log_probs == pytest.approx(wanted, abs=1e-4)
            lengths.add(len(reply.ids))
    assert len(lengths) > 4  # rows did leave the batch at different times


def test_what_is_drawn_depends_on_the_seed_and_not_on_the_batch(eager_to_end: Any, tiny_tokenizer: Any) -> None:
    def draw(batch_size: int, seed: int = 0) -> list[list[tuple[int, ...]]]:
        settings = SamplingSettings(max_new_tokens=10, batch_size=batch_size)
        replies = TransformersSampler(eager_to_end, tiny_tokenizer, settings).sample(PROMPTS, 4, seed)
        return [[reply.ids for reply in drawn] for drawn in replies]

    assert draw(64) == draw(4) == draw(1)
    assert draw(64) != draw(64, seed=1)


def test_a_listener_hears_whose_rows_each_pass_holds(eager_to_end: Any, tiny_tokenizer: Any) -> None:
    heard: list[list[int]] = []
    passes: list[tuple[int, int]] = []
    forward = eager_to_end.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        passes.append((kwargs["input_ids"].shape[0], len(heard[-1])))
        return forward(*args, **kwargs)

    eager_to_end.forward = counted
    settings = SamplingSettings(max_new_tokens=16, batch_size=8)
    sampler = TransformersSampler(eager_to_end, tiny_tokenizer, settings, on_rows=lambda rows: heard.append(list(rows)))
    replies = sampler.sample(PROMPTS, count=4, seed=3)
    assert all(rows == told for rows, told in passes)
    assert {index for rows in heard for index in rows} == {0, 1, 2}
    assert len(set(map(len, heard))) > 3  # rows did leave the batch
    plain = TransformersSampler(eager_to_end, tiny_tokenizer, settings)
    heard.append([])
    assert [[reply.ids for reply in drawn] for drawn in plain.sample(PROMPTS, 4, 3)] == [
        [reply.ids for reply in drawn] for drawn in replies
    ]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_tokens_come_as_often_as_the_model_believes(tiny_model: Any, tiny_tokenizer: Any, temperature: float) -> None:
    count = 4000
    settings = SamplingSettings(max_new_tokens=1, temperature=temperature, batch_size=count)
    (drawn,) = TransformersSampler(tiny_model, tiny_tokenizer, settings).sample(PROMPTS[:1], count)
    seen = Counter(reply.ids[0] if reply.ids else tiny_tokenizer.eos_token_id for reply in drawn)
    with torch.no_grad():
        logits = tiny_model(torch.tensor([prompt_ids(tiny_tokenizer, PROMPTS[0])])).logits[0, -1].double()
    chances = (logits / temperature).softmax(-1)
    often = [token for token in range(len(chances)) if chances[token] * count >= 5]
    rare = 1 - float(chances[often].sum())
    observed = [*(seen[token] for token in often), sum(n for token, n in seen.items() if token not in often)]
    expected = [*(float(chances[token]) * count for token in often), rare * count]
    kept = slice(None) if expected[-1] > 0.5 else slice(-1)
    share = sum(observed[kept]) / sum(expected[kept])
    assert stats.chisquare(observed[kept], [value * share for value in expected[kept]]).pvalue > 1e-4


def test_top_k_and_top_p_leave_only_likely_tokens(tiny_model: Any, tiny_tokenizer: Any) -> None:
    with torch.no_grad():
        logits = tiny_model(torch.tensor([prompt_ids(tiny_tokenizer, PROMPTS[0])])).logits[0, -1]
    order = logits.argsort(descending=True).tolist()
    mass = logits.softmax(-1)[order].cumsum(-1)
    nucleus = int((mass < 0.05).sum()) + 1
    for settings, allowed in (
        (SamplingSettings(max_new_tokens=1, top_k=3), 3),
        (SamplingSettings(max_new_tokens=1, top_p=0.05), nucleus),
    ):
        (drawn,) = TransformersSampler(tiny_model, tiny_tokenizer, settings).sample(PROMPTS[:1], 200)
        tokens = {reply.ids[0] if reply.ids else tiny_tokenizer.eos_token_id for reply in drawn}
        assert tokens <= set(order[:allowed]) and len(tokens) > 1


def test_the_model_is_left_in_the_mode_it_was_in(tiny_model: Any, tiny_tokenizer: Any) -> None:
    tiny_model.train()
    TransformersSampler(tiny_model, tiny_tokenizer, SamplingSettings(max_new_tokens=1)).sample(PROMPTS[:1])
    assert tiny_model.training


def test_a_prompt_that_is_too_long_is_refused(tiny_model: Any, tiny_tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="do not fit into the model's window of 1024 tokens"):
        TransformersSampler(tiny_model, tiny_tokenizer).sample([[{"role": "user", "content": "word " * 1500}]])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_no_numbers_are_refused(
    tiny_model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, temperature: float, value: float
) -> None:
    forward = tiny_model.forward

    def overflowing(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits[-1, -1, 5] = value
        return output

    monkeypatch.setattr(tiny_model, "forward", overflowing)
    settings = SamplingSettings(max_new_tokens=2, temperature=temperature, top_k=3, top_p=0.9)
    with pytest.raises(FloatingPointError, match=r"not finite in torch\.float32: load it in bfloat16 or float32"):
        TransformersSampler(tiny_model, tiny_tokenizer, settings).sample(PROMPTS)


def test_tokens_that_a_model_never_says_are_no_overflow(
    tiny_model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = tiny_model.forward

    def masked(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits[..., 40:] = -torch.inf
        return output

    monkeypatch.setattr(tiny_model, "forward", masked)
    sampler = TransformersSampler(tiny_model, tiny_tokenizer, SamplingSettings(max_new_tokens=4))
    assert all(max(reply.ids, default=0) < 40 for drawn in sampler.sample(PROMPTS, 20) for reply in drawn)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_p": 0.0}, "top_p=0.0"),
    ],
)
def test_settings_that_draw_nothing_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingSettings(**values)


def test_a_reply_knows_which_of_several_end_marks_the_model_said(eager_to_end: Any, tiny_tokenizer: Any) -> None:
    other = 40
    eager_to_end.generation_config.eos_token_id = [other, tiny_tokenizer.eos_token_id]
    sampler = TransformersSampler(eager_to_end, tiny_tokenizer, SamplingSettings(max_new_tokens=8))
    replies = [reply for drawn in sampler.sample(PROMPTS, count=30) for reply in drawn]
    assert {reply.end for reply in replies} == {None, other, tiny_tokenizer.eos_token_id}
    for reply in replies:
        assert (reply.end is not None) == reply.ended
        assert not {other, tiny_tokenizer.eos_token_id} & set(reply.ids)


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_replies_of_one_prompt_do_not_depend_on_how_many_are_drawn_at_a_time(
    eager_to_end: Any, tiny_tokenizer: Any, batch_size: int
) -> None:
    rows: list[int] = []
    sampler = TransformersSampler(
        eager_to_end,
        tiny_tokenizer,
        SamplingSettings(max_new_tokens=6, batch_size=batch_size),
        on_rows=lambda owners: rows.append(len(owners)),
    )
    whole = TransformersSampler(eager_to_end, tiny_tokenizer, SamplingSettings(max_new_tokens=6))
    for ours, theirs in zip(sampler.sample(PROMPTS, 5, seed=3), whole.sample(PROMPTS, 5, seed=3), strict=True):
        assert [reply.ids for reply in ours] == [reply.ids for reply in theirs]
    assert max(rows) == min(batch_size, 15)


@pytest.mark.parametrize("name", ["Qwen3NextConfig", "Lfm2Config"])
def test_models_with_other_mixers_than_attention_say_what_generate_says(name: str, tiny_tokenizer: Any) -> None:
    shape = {"vocab_size": len(tiny_tokenizer), "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    if name == "Qwen3NextConfig":
        linear = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2}
        heads |= {"head_dim": 16, "num_experts": 0, "linear_num_value_heads": 2, **linear}
        config = transformers.Qwen3NextConfig(**shape, **heads, layer_types=["linear_attention", "full_attention"])
    else:
        config = transformers.Lfm2Config(**shape, **heads, layer_types=["conv", "full_attention"])
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.generation_config.eos_token_id = tiny_tokenizer.eos_token_id
    sampler = TransformersSampler(model, tiny_tokenizer, SamplingSettings(max_new_tokens=6, temperature=0))
    prompt = PROMPTS[0]
    ids = torch.tensor([prompt_ids(tiny_tokenizer, prompt)])
    alone = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=6)
    for reply, again in sampler.sample([prompt], count=2):
        assert list(reply.ids) == list(again.ids) == alone[0, ids.shape[1] :].tolist()[: len(reply.ids)]
