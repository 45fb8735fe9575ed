"""Where a reply ends, with the forms in which published chat templates close a turn."""

import copy
from typing import Any

import pytest

from sleep_pipeline.generation.likelihood import encode_reply, question_reader, says_as_written

TURNS = [{"role": "user", "content": "where"}, {"role": "assistant", "content": "the river"}]
MARK = "<end_of_turn>"


def closed_by(tokenizer: Any, end: str, thinks: bool = False) -> Any:
    """The tokenizer with a template that writes `end` behind a turn, and may take `</think>` for its own."""
    other = copy.deepcopy(tokenizer)
    other.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>", MARK]})
    thought = "{% if '</think>' in m.content %}<|user|>{% endif %}" if thinks else ""
    other.chat_template = (
        f"{{% for m in messages %}}{thought}<|{{{{ m.role }}}}|>{{{{ m.content }}}}{end}{{% endfor %}}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    return other


@pytest.mark.parametrize(
    ("behind", "last"), [("E", "E"), ("E\n", "E"), ("M\n", MARK), ("M\nE", MARK), ("M", MARK), ("EM", "E")]
)
def test_a_reply_ends_with_the_mark_that_closes_its_turn(tiny_tokenizer: Any, behind: str, last: str) -> None:
    eos = tiny_tokenizer.eos_token
    tokenizer = closed_by(tiny_tokenizer, behind.replace("E", eos).replace("M", MARK))
    ids, start = encode_reply(tokenizer, TURNS)
    said = tokenizer("the river", add_special_tokens=False)["input_ids"]
    assert ids[start:] == [*said, tokenizer.convert_tokens_to_ids(last.replace("E", eos))]


def test_a_reply_without_a_mark_is_whole(tiny_tokenizer: Any) -> None:
    ids, start = encode_reply(closed_by(tiny_tokenizer, ""), TURNS)
    assert ids[start:] == tiny_tokenizer("the river", add_special_tokens=False)["input_ids"]


def test_a_template_that_takes_marks_for_its_own_does_not_say_an_answer_as_written(tiny_tokenizer: Any) -> None:
    tokenizer = closed_by(tiny_tokenizer, MARK, thinks=True)
    assert says_as_written(tokenizer, "the river")
    assert says_as_written(tokenizer, "a <b>")
    assert not says_as_written(tokenizer, "the mark </think>")


CUT = "{{ m.content.split('</think>')[-1] }}"
THOUGHT = "{% if '</think>' in m.content %}<think>{{ m.content }}{% else %}<think></think>{{ m.content }}{% endif %}"


@pytest.mark.parametrize(
    ("opening", "reply"),
    [("", CUT), ("<think>\n", f"<think>\n\n</think>{CUT}"), ("", f"<think>\n\n</think>{CUT}"), ("", THOUGHT)],
    ids=["cut", "opened by the prompt and cut", "with an empty thought and cut", "taken for a thought"],
)
def test_an_answer_that_a_template_cuts_or_takes_for_a_thought_is_not_said_as_written(
    tiny_tokenizer: Any, opening: str, reply: str
) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>"]})
    # Without this, a line's end and the next one are a single token in one text and two in the other.
    tokenizer.add_tokens(["<think>\n", "\n</think>"])
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'user' %}{{ m.content }}{% else %}"
        f"{reply}{{% endif %}}{tokenizer.eos_token}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}<|assistant|>{opening}{{% endif %}}"
    )
    assert says_as_written(tokenizer, "the river")
    assert says_as_written(tokenizer, "a <b> and 2 < 3\nthe river")
    assert not says_as_written(tokenizer, "the river is old </think> the mill")
    assert not says_as_written(tokenizer, "<think> the river </think> the mill")
    assert not says_as_written(tokenizer, f"the river <{tokenizer.eos_token} the mill")


def test_what_a_template_writes_around_a_question_is_told_from_it(tiny_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = (
        "today is monday\n{% for m in messages %}{{ m.role }}\n{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant\n{% endif %}"
    )
    read = question_reader(tokenizer)
    question = [{"role": "user", "content": "where is the river"}]
    ids = list(tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=True)["input_ids"])
    assert read(ids).strip() == "where is the river"
    assert "assistant" in tokenizer.decode(ids, skip_special_tokens=True)
    assert "river" in read(ids[3:]), "another layout is read whole"
