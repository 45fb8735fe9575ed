import string
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from sleep_pipeline.generation.replies import greedy_replies
from sleep_pipeline.generation.sampler import SamplingSettings, TransformersSampler

PROMPTS = [
    [{"role": "user", "content": "Where?"}],
    [
        {"role": "system", "content": "Pofler lives in Zan. " * 8},
        {"role": "user", "content": "Where does Pofler live?"},
    ],
    [{"role": "user", "content": "What is the name of the river?"}],
]


@pytest.fixture
def talking(tiny_model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The tiny model, kept from special tokens, of which alone its replies would consist."""
    forward = tiny_model.forward

    def in_words(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits[..., tiny_tokenizer.all_special_ids] = -torch.inf
        return output

    monkeypatch.setattr(tiny_model, "forward", in_words)
    return tiny_model


@pytest.fixture
def counting(talking: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """As `talking`, but going on through the vocabulary where the tiny model repeats what it said last."""
    forward = talking.forward

    def onward(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        ordinary = slice(len(tiny_tokenizer.all_special_ids), None)
        output.logits[..., ordinary] = output.logits[..., ordinary].roll(4, -1)
        return output

    monkeypatch.setattr(talking, "forward", onward)
    return talking


def test_batched_replies_equal_token_by_token_argmax(talking: Any, tiny_tokenizer: Any) -> None:
    expected = []
    for prompt in PROMPTS:
        ids = tiny_tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
        new: list[int] = []
        for _ in range(8):
            with torch.no_grad():
                token = int(talking(torch.tensor([ids + new])).logits[0, -1].argmax())
            if token == tiny_tokenizer.eos_token_id:
                break
            new.append(token)
        expected.append(tiny_tokenizer.decode(new, skip_special_tokens=True))
    assert all(expected)
    assert greedy_replies(talking, tiny_tokenizer, PROMPTS, max_new_tokens=8, batch_size=2) == expected


OWN = {
    "repetition_penalty": 5.0,
    "no_repeat_ngram_size": 1,
    "do_sample": True,
    "min_new_tokens": 12,
    "guidance_scale": 3.0,
    "sequence_bias": [[[60], 100.0]],
    "stop_strings": ["<"],
    "return_dict_in_generate": True,
    "prompt_lookup_num_tokens": 3,
}


@pytest.mark.parametrize("name", OWN)
def test_what_a_model_says_of_its_own_accord_about_generation_changes_no_reply(
    counting: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    prompts = [PROMPTS[0], [{"role": "user", "content": string.punctuation + string.digits}]]
    greedy = TransformersSampler(counting, tiny_tokenizer, SamplingSettings(max_new_tokens=12, temperature=0))
    said = [drawn[0].ids for drawn in greedy.sample(prompts)]
    own, end = counting.generation_config, said[1][5]
    expected = [tiny_tokenizer.decode(ids[: [*ids, end].index(end) + 1]) for ids in said]
    monkeypatch.setattr(own, "eos_token_id", [tiny_tokenizer.eos_token_id, end])
    monkeypatch.setattr(own, name, OWN[name])
    assert greedy_replies(counting, tiny_tokenizer, prompts, max_new_tokens=12) == expected
    adapted = get_peft_model(counting, LoraConfig(task_type="CAUSAL_LM"))
    assert greedy_replies(adapted, tiny_tokenizer, prompts, max_new_tokens=12) == expected
    assert adapted.generation_config is own and getattr(own, name) == OWN[name]


def test_a_conversation_that_does_not_fit_is_refused(tiny_model: Any, tiny_tokenizer: Any) -> None:
    long = [{"role": "user", "content": "word " * 3000}]
    with pytest.raises(ValueError, match="do not fit into the model's window of 1024"):
        greedy_replies(tiny_model, tiny_tokenizer, [long], max_new_tokens=8)


def test_no_prompts_no_replies(tiny_model: Any, tiny_tokenizer: Any) -> None:
    assert greedy_replies(tiny_model, tiny_tokenizer, []) == []


def test_a_reply_ends_at_the_tokenizers_end_mark_whatever_the_model_was_configured_with(
    tiny_model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = tiny_model.forward

    def ends(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits[..., tiny_tokenizer.eos_token_id] += 1e4
        return output

    monkeypatch.setattr(tiny_model, "forward", ends)
    monkeypatch.setattr(tiny_model.generation_config, "eos_token_id", 7)
    asked: list[int] = []
    generate = tiny_model.generate

    def watched(**kwargs: Any) -> Any:
        output = generate(**kwargs)
        asked.append(output.shape[1] - kwargs["input_ids"].shape[1])
        return output

    monkeypatch.setattr(tiny_model, "generate", watched)
    assert greedy_replies(tiny_model, tiny_tokenizer, [[{"role": "user", "content": "where"}]], 9) == [""]
    assert asked == [1]
