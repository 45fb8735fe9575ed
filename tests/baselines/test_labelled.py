from typing import Any

import pytest
import torch

from sleep_pipeline.baselines.labelled import Spent, text_bytes
from sleep_pipeline.evaluation.tasks import Example

SHOWN = [Example(f"the river {n} is long and cold", f"label {n}") for n in range(8)]


def test_the_most_useful_example_stands_nearest_the_question(answering: Any) -> None:
    system, user = answering.prompt("where is it", SHOWN[:3])
    assert system["content"].split("\n") == [f"the river {n} is long and cold -> label {n}" for n in (2, 1, 0)]
    assert user == {"role": "user", "content": "where is it ->"}


def test_examples_that_do_not_fit_the_window_go_from_the_end(answering: Any) -> None:
    whole = answering.prompt("where", SHOWN[:2])
    room = len(
        answering.tokenizer.apply_chat_template(whole, add_generation_prompt=True, return_dict=True)["input_ids"]
    )
    assert answering.prompt("where", SHOWN, room) == whole
    assert answering.prompt("where", SHOWN, room - 1) == answering.prompt("where", SHOWN[:1])


def test_a_text_beyond_the_window_is_cut(answering: Any) -> None:
    (turn,) = answering.prompt("river " * 400, SHOWN, room=40)
    ids = answering.tokenizer.apply_chat_template([turn], add_generation_prompt=True, return_dict=True)["input_ids"]
    assert 30 < len(ids) <= 40
    with pytest.raises(ValueError, match="leaves no room"):
        answering.prompt("river", (), room=2)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("text", ["\U0001f600" * 200, "\u6771\u4eac\u306f\u9996\u90fd\u3002" * 50])
def test_a_text_of_characters_that_take_several_tokens_is_cut_too(answering: Any, text: str) -> None:
    for room in range(60, 68):
        (turn,) = answering.prompt(text, (), room)
        assert "\ufffd" not in turn["content"] and text[:1] in turn["content"]
        ids = answering.tokenizer.apply_chat_template([turn], add_generation_prompt=True, return_dict=True)["input_ids"]
        assert len(ids) <= room


def test_long_texts_and_many_examples_are_answered(answering: Any, tiny_model: Any) -> None:
    shown = [[Example("river " * 300, "label 1")] * 9, []]
    labels = ["label 1", "label 2"]
    assert {choice.label for choice in answering.ask(tiny_model, ["a", "b " * 3000], labels, shown)} <= set(labels)


def test_what_is_asked_before_anything_is_learned_is_refused(answering: Any, tiny_model: Any) -> None:
    for freely in (False, True):
        with pytest.raises(ValueError, match="let the method observe a task first"):
            answering.ask(tiny_model, ["a"], [], freely=freely)


def test_tokens_are_counted_without_padding_and_once_behind_a_cache(tiny_model: Any) -> None:
    spent = Spent()
    ids = torch.ones(2, 5, dtype=torch.long)
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    with spent.metering(tiny_model):
        output = tiny_model(input_ids=ids, attention_mask=mask, use_cache=True)
        longer = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], dim=-1)
        tiny_model(input_ids=ids[:, :1], attention_mask=longer, past_key_values=output.past_key_values)
        tiny_model(ids[:, :2])
    tiny_model(input_ids=ids)
    assert spent.tokens == 8 + 2 + 4
    assert spent.seconds > 0


def test_bytes_of_text_are_those_of_utf_8() -> None:
    assert text_bytes([Example("é", "ab"), Example("c", "")]) == 5
