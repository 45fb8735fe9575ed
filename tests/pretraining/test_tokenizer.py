import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sleep_pipeline.corpora.mixture import SKILLS
from sleep_pipeline.pretraining.tokenizer import SPECIAL_TOKENS, ConversationEncoder


@given(st.text())
def test_any_text_survives_encoding_and_decoding(tiny_tokenizer: Any, text: str) -> None:
    if not any(token in text for token in SPECIAL_TOKENS):
        assert tiny_tokenizer.decode(tiny_tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("place", ["{}", "He saw {}", "one\n{}", "one\n\n{}", "- {}"])
def test_a_name_is_the_same_tokens_wherever_it_stands(tiny_tokenizer: Any, place: str) -> None:
    alone = tiny_tokenizer("Pofler")["input_ids"]
    assert tiny_tokenizer(place.format("Pofler"))["input_ids"][-len(alone) :] == alone


def test_digits_stay_single(tiny_tokenizer: Any) -> None:
    tokens = tiny_tokenizer.tokenize("from 1987 to 22")
    assert [token for token in tokens if token.isdigit()] == list("198722")


@pytest.mark.parametrize("skill", sorted(SKILLS))
def test_the_fast_encoder_agrees_with_the_chat_template(tiny_tokenizer: Any, skill: str) -> None:
    rng = random.Random(0)
    conversations = [SKILLS[skill](rng, "train").messages for _ in range(5)]
    for messages, (ids, said) in zip(
        conversations, ConversationEncoder(tiny_tokenizer).conversations(conversations), strict=True
    ):
        template = tiny_tokenizer.apply_chat_template(
            list(messages), return_dict=True, return_assistant_tokens_mask=True
        )
        assert ids == template["input_ids"]
        assert [int(flag) for flag in said] == template["assistant_masks"]


def test_an_unknown_role_is_refused(tiny_tokenizer: Any) -> None:
    with pytest.raises(Exception, match="role narrator is unknown"):
        tiny_tokenizer.apply_chat_template([{"role": "narrator", "content": "Once."}])
