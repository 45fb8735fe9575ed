from typing import Any

import pytest
import torch

from sleep_pipeline.generation.replies import greedy_replies

PROMPTS = [
    [{"role": "user", "content": "Where?"}],
    [
        {"role": "system", "content": "Pofler lives in Zan. " * 8},
        {"role": "user", "content": "Where does Pofler live?"},
    ],
    [{"role": "user", "content": "What is the name of the river?"}],
]


def test_batched_replies_equal_token_by_token_argmax(tiny_model: Any, tiny_tokenizer: Any) -> None:
    expected = []
    for prompt in PROMPTS:
        ids = tiny_tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
        new: list[int] = []
        for _ in range(8):
            with torch.no_grad():
                token = int(tiny_model(torch.tensor([ids + new])).logits[0, -1].argmax())
            if token == tiny_tokenizer.eos_token_id:
                break
            new.append(token)
        expected.append(tiny_tokenizer.decode(new, skip_special_tokens=True))
    assert greedy_replies(tiny_model, tiny_tokenizer, PROMPTS, max_new_tokens=8, batch_size=2) == expected


def test_what_a_model_says_of_its_own_accord_about_generation_changes_no_reply(
    tiny_model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [[{"role": "user", "content": "the river the river the river"}]]
    plain = greedy_replies(tiny_model, tiny_tokenizer, prompts, max_new_tokens=12)
    for name, value in (("repetition_penalty", 5.0), ("no_repeat_ngram_size", 1), ("do_sample", True)):
        monkeypatch.setattr(tiny_model.generation_config, name, value)
    assert greedy_replies(tiny_model, tiny_tokenizer, prompts, max_new_tokens=12) == plain


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
