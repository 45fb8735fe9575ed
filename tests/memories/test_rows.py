"""Conversations as programs log them: what a tool was asked and said is passed over, what people read is kept."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from sleep_pipeline.memories.bad_rows import BadRow
from sleep_pipeline.memories.rows import read_row

ASKED = {"role": "user", "content": "Where is Elno?"}
SAID = {"role": "assistant", "content": "In Drask."}
BOTH = [("user", "Where is Elno?"), ("assistant", "In Drask.")]
CALL = [{"id": "c1", "type": "function", "function": {"name": "find", "arguments": "{}"}}]
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def turns(messages: Sequence[Any], name: str = "messages") -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in read_row({name: list(messages)}).messages]


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "content": None, "tool_calls": CALL},
        {"role": "assistant", "tool_calls": CALL},
        {"role": "assistant", "content": "", "tool_calls": CALL},
        {"role": "assistant", "content": None, "function_call": {"name": "find", "arguments": "{}"}},
        {"role": "assistant", "content": None, "refusal": "No."},
        {"role": "assistant", "content": None, "audio": {"id": "a1"}},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "find", "input": {}}]},
        {"role": "tool", "tool_call_id": "c1", "content": '{"town": "Drask"}'},
        {"role": "tool", "content": None},
        {"role": "tool", "content": {"town": "Drask"}},
        {"role": "function", "name": "find", "content": "Drask"},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "Drask"}]},
        {"role": "user", "content": [IMAGE]},
        {"type": "function_call", "name": "find", "arguments": "{}", "call_id": "c1"},
        {"type": "function_call_output", "call_id": "c1", "output": "Drask"},
        {"type": "reasoning", "summary": []},
    ],
)
def test_a_turn_without_words_for_people_is_passed_over(turn: dict[str, Any]) -> None:
    assert turns([ASKED, turn, SAID]) == BOTH


@pytest.mark.parametrize("name", ["function_call", "observation", "tool", "function", "tool_call", "tool_response"])
def test_what_tools_say_in_sharegpt_is_passed_over(name: str) -> None:
    spoken = [{"from": "human", "value": "Where is Elno?"}, {"from": name, "value": "{}"}]
    assert turns([*spoken, {"from": "gpt", "value": "In Drask."}], "conversations") == BOTH


def test_a_whole_log_of_an_agent_keeps_its_words() -> None:
    log = [
        {"role": "system", "content": "Be kind."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Look at this."}, IMAGE, {"type": "text", "text": "Who?"}],
        },
        {"role": "assistant", "content": "Let me look.", "tool_calls": CALL},
        {"role": "tool", "tool_call_id": "c1", "content": "Drask"},
        {
            "role": "assistant",
            "content": [{"type": "thinking", "thinking": "Hm."}, {"type": "output_text", "text": "Elno."}],
        },
    ]
    kept = [
        ("system", "Be kind."),
        ("user", "Look at this.\nWho?"),
        ("assistant", "Let me look."),
        ("assistant", "Elno."),
    ]
    assert turns(log) == kept
    # As a cell of a table holds it.
    assert [m["content"] for m in read_row({"messages": json.dumps(log)}).messages] == [text for _, text in kept]


@pytest.mark.parametrize(
    ("messages", "role"),
    [
        ([ASKED, {"role": "assistant", "content": None, "tool_calls": CALL}], "assistant"),
        ([{"role": "user", "content": [IMAGE]}, SAID], "user"),
        ([{"role": "tool", "content": "Drask"}], "user"),
    ],
)
def test_a_conversation_of_which_one_side_is_left_without_words_is_refused(messages: list[Any], role: str) -> None:
    with pytest.raises(BadRow, match=f"no text of the {role}"):
        turns(messages)


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ({"role": "assistant", "content": None}, 'message 2 of "messages" has an empty "content"'),
        ({"role": "assistant", "content": None, "tool_calls": []}, 'message 2 of "messages" has an empty "content"'),
        ({"role": "user", "content": "  "}, 'message 2 of "messages" has an empty "content"'),
        (
            {"role": "user", "content": [{"type": "text", "text": " "}]},
            'message 2 of "messages" has an empty "content"',
        ),
        ({"role": "user", "content": []}, 'message 2 of "messages" has an empty "content"'),
        ({"role": "user", "content": [{"type": "text", "text": 5}]}, "message 2 .* holds a part that is no text"),
        ({"role": "user", "content": [5]}, "message 2 .* holds a part that is no text"),
        ({"role": "user", "content": 5}, "message 2 .* has a number"),
        ({"role": "wizard", "content": "Hocus"}, "unknown role 'wizard'"),
        ({"type": "message", "content": "Hocus"}, 'message 2 .* has no "role"'),
    ],
)
def test_a_turn_that_is_broken_is_named(turn: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRow, match=message):
        turns([ASKED, turn, SAID])


@pytest.mark.parametrize(
    ("value", "time"),
    [
        ("1700000000", "2023-11-14T22:13:20Z"),
        (" 1700000000.5 ", "2023-11-14T22:13:20Z"),
        ("1700000000000", "2023-11-14T22:13:20Z"),
        (1_700_000_000, "2023-11-14T22:13:20Z"),
        ("20240506", "2024-05-06T00:00:00Z"),
    ],
)
def test_a_time_in_seconds_may_be_text(value: Any, time: str) -> None:
    content = read_row({"text": "x", "time": value})
    assert (content.time, content.flags) == (time, ())


@pytest.mark.parametrize("value", ["1700", "9" * 18, "17000000x0", True])
def test_what_is_no_time_is_flagged(value: Any) -> None:
    assert read_row({"text": "x", "time": value}).flags == ("unread_time",)


def test_parts_may_be_plain_text() -> None:
    parts = ["Where", {"type": None, "text": "is Elno?"}]
    assert turns([{"role": "user", "content": parts}, SAID])[0] == ("user", "Where\nis Elno?")
