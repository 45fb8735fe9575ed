"""Conversations as ChatGPT and Claude export them, and pairs of a request and a reply: what is read of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from sleep_pipeline.memories.bad_rows import BadRow
from sleep_pipeline.memories.reading import read_folder
from sleep_pipeline.memories.rows import read_row
from sleep_pipeline.memories.settings import CollectSettings

ASKED = ("user", "Where is Elno?")
SAID = ("assistant", "In Drask.")


def message(role: Any, *parts: Any, kind: Any = "text", **more: Any) -> dict[str, Any]:
    content = {"content_type": kind, "parts": list(parts)}
    return {"author": {"role": role}, "content": content, "recipient": "all", "metadata": {}, **more}


def chatgpt(*messages: Any, **more: Any) -> dict[str, Any]:
    """A conversation in which every message is the child of the one before; the root has none."""
    names = ["root", *(f"n{number}" for number in range(1, len(messages) + 1))]
    mapping = {
        name: {"id": name, "message": said, "parent": parent, "children": [child] if child else []}
        for name, said, parent, child in zip(names, [None, *messages], [None, *names], [*names[1:], None], strict=False)
    }
    row = {"title": "Elno", "create_time": 1_700_000_000.5, "mapping": mapping, "current_node": names[-1]}
    return {**row, **more}


def claude(*messages: Any, **more: Any) -> dict[str, Any]:
    return {
        "uuid": "c1",
        "name": "Elno",
        "created_at": "2024-05-06T07:08:09.5Z",
        "chat_messages": list(messages),
        **more,
    }


def turn(sender: Any, text: Any, **more: Any) -> dict[str, Any]:
    content = [{"type": "text", "text": text}]
    return {"sender": sender, "text": text, "content": content, "attachments": [], "files": [], **more}


def turns(row: dict[str, Any]) -> list[tuple[str, str]]:
    return [(said["role"], said["content"]) for said in read_row(row).messages]


Q, A = message("user", "Where is Elno?"), message("assistant", "In Drask.")


@pytest.mark.parametrize(
    "row", [chatgpt(Q, A), claude(turn("human", "Where is Elno?"), turn("assistant", "In Drask."))]
)
def test_an_exported_conversation_is_the_memory_that_its_messages_are(row: dict[str, Any]) -> None:
    content = read_row(row)
    same = read_row({"messages": [{"role": role, "content": text} for role, text in (ASKED, SAID)]})
    assert (content.kind, content.messages, content.digest()) == ("chat", same.messages, same.digest())
    assert content.time == ("2023-11-14T22:13:20Z" if "mapping" in row else "2024-05-06T07:08:09Z")
    assert content.left_out == {}


def test_of_answers_that_were_asked_for_again_the_shown_one_is_read() -> None:
    row = chatgpt(Q, message("assistant", "In Frellon."))
    row["mapping"]["n3"] = {"id": "n3", "message": A, "parent": "n1", "children": []}
    row["mapping"]["n1"]["children"].append("n3")
    assert turns(row) == [ASKED, ("assistant", "In Frellon.")]
    assert turns({**row, "current_node": "n3"}) == [ASKED, SAID]


def test_without_a_current_node_the_only_branch_is_read() -> None:
    assert turns(chatgpt(Q, A, current_node=None)) == [ASKED, SAID]


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (message("system", "Be kind."), "system"),
        (message("tool", "Drask", name="browser"), "tool"),
        (message("assistant", '{"query": "Elno"}', recipient="browser"), "tool"),
        (message("user", "I bake.", metadata={"is_visually_hidden_from_conversation": True}), "hidden"),
        ({**message("wizard"), "metadata": {"is_visually_hidden_from_conversation": True}}, "hidden"),
        (message("assistant", "import this", kind="code"), "wordless"),
        (message("assistant", kind="thoughts"), "wordless"),
        (message("assistant", ""), "empty"),
        (message("user"), "empty"),
    ],
)
def test_what_the_two_did_not_say_to_each_other_is_left_out_and_counted(said: dict[str, Any], kind: str) -> None:
    content = read_row(chatgpt(Q, said, A))
    assert [(m["role"], m["content"]) for m in content.messages] == [ASKED, SAID]
    assert content.left_out == {kind: 1}


def test_of_a_message_with_pictures_the_words_are_read() -> None:
    picture = {"content_type": "image_asset_pointer", "asset_pointer": "file-service://x"}
    spoken = {"content_type": "audio_transcription", "text": "is Elno?"}
    content = read_row(chatgpt(message("user", picture, "Where", spoken, kind="multimodal_text"), A))
    assert content.messages[0]["content"] == "Where\nis Elno?"
    assert content.left_out == {"part": 1}


def test_of_a_message_of_claude_the_texts_are_read() -> None:
    thought, call = {"type": "thinking", "thinking": "Hm."}, {"type": "tool_use", "name": "find", "input": {}}
    parts = [thought, {"type": "text", "text": "In"}, call, {"type": "text", "text": "Drask."}]
    answer = turn("assistant", "This block is not supported.", content=parts)
    asked = turn("human", "Where is Elno?", content=[], attachments=[{"file_name": "x"}])
    content = read_row(claude(asked, answer, turn("assistant", "", content=[])))
    assert [m["content"] for m in content.messages] == ["Where is Elno?", "In\nDrask."]
    assert content.left_out == {"part": 3, "empty": 1}


def test_what_was_extracted_from_an_attachment_of_claude_is_what_the_user_gave() -> None:
    given = [{"extracted_content": "Mira lives in Geska. Summarise."}, {"extracted_content": ""}, 5]
    content = read_row(claude(turn("human", "", content=[], attachments=given), turn("assistant", "Geska.")))
    assert content.messages[0]["content"] == "Mira lives in Geska. Summarise."
    assert content.left_out == {"part": 2}
    content = read_row(
        claude(turn("human", "Where?", attachments=given[:1]), turn("assistant", "x", attachments=given))
    )
    assert [m["content"] for m in content.messages] == ["Where?\n\nMira lives in Geska. Summarise.", "x"]
    assert content.left_out == {"part": 3}


PICTURE = {"content_type": "image_asset_pointer", "asset_pointer": "file-service://x"}


@pytest.mark.parametrize(
    "row",
    [
        chatgpt(message("user", PICTURE, kind="multimodal_text"), message("assistant", "A crane."), Q, A),
        chatgpt(Q, A, message("user", PICTURE, "", kind="multimodal_text"), message("assistant", "A crane.")),
        claude(
            turn("human", "", content=[], files=[{"file_name": "x.png"}]),
            turn("assistant", "A crane."),
            turn("human", "Where is Elno?"),
            turn("assistant", "In Drask."),
        ),
    ],
)
def test_what_was_said_of_a_picture_alone_is_left_out_with_it(row: dict[str, Any]) -> None:
    content = read_row(row)
    assert [(m["role"], m["content"]) for m in content.messages] == [ASKED, SAID]
    assert content.left_out == {"part": 1, "empty": 1, "unasked": 1}


def test_a_picture_beside_a_question_of_its_own_message_takes_no_reply_away() -> None:
    row = chatgpt(Q, message("user", PICTURE, kind="multimodal_text"), A)
    assert turns(row) == [ASKED, SAID]


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("In Drask. \ue200cite\ue202turn0search0\ue202turn1search2\ue201 It is old.", "In Drask. It is old."),
        ("In Drask.\ue200navlist\ue202More\ue202turn0news1\ue201", "In Drask."),
        ("In Drask\u301012\u2020source\u3011.", "In Drask."),
        ('In \ue200entity\ue202["city","Drask"]\ue201.', "In Drask."),
        ('In \ue200entity\ue202["city","Drask","a town of mills"]\ue201.', "In Drask."),
        ('In Drask\ue200entity\ue202["city\ue201\ue200entity\ue202[]\ue201.', "In Drask."),
        ("In \u3010Drask\u3011.", "In \u3010Drask\u3011."),
    ],
)
def test_marks_of_sources_are_no_words(written: str, shown: str) -> None:
    assert turns(chatgpt(Q, message("assistant", written))) == [ASKED, ("assistant", shown)]


def test_marks_of_sources_take_no_long_time() -> None:
    for part in (" ", "\ue200", "\u30101\u2020", "\ue200cite"):
        written = f"In Drask.{part * 50_000}."
        assert turns(chatgpt(Q, message("assistant", written))) == [ASKED, ("assistant", written)]


ROOT = "00000000-0000-4000-8000-000000000000"


def tree(*parents: str, **more: Any) -> dict[str, Any]:
    """A conversation of Claude with messages u1, u2, ... that say their names, and their parents."""
    said = [
        turn("human" if number % 2 else "assistant", f"u{number}", uuid=f"u{number}", parent_message_uuid=parent)
        for number, parent in enumerate(parents, start=1)
    ]
    return claude(*said, **more)


@pytest.mark.parametrize(
    ("row", "read"),
    [
        (tree(ROOT, "u1", "u2", "u3"), ["u1", "u2", "u3", "u4"]),
        (tree(ROOT, "u1", ROOT, "u3"), ["u3", "u4"]),
        (tree(ROOT, "u1", ROOT, "u3", current_leaf_message_uuid="u2"), ["u1", "u2"]),
        (tree(ROOT, "u1", "u2", "u1", current_leaf_message_uuid="gone"), ["u1", "u4"]),
        (tree("", "u1"), ["u1", "u2"]),
        (tree(ROOT, "u1", "gone", "u3"), ["u1", "u2", "u3", "u4"]),
    ],
)
def test_of_a_conversation_of_claude_the_shown_branch_is_read(row: dict[str, Any], read: list[str]) -> None:
    content = read_row(row)
    assert [m["content"] for m in content.messages] == read
    assert content.left_out == ({"branch": 4 - len(read)} if len(row["chat_messages"]) > len(read) else {})


@pytest.mark.parametrize("name", ["uuid", "parent_message_uuid"])
def test_messages_of_claude_that_tell_no_branch_follow_each_other(name: str) -> None:
    row = tree(ROOT, "u1", ROOT, "u3")
    del row["chat_messages"][2][name]
    assert [m["content"] for m in read_row(row).messages] == ["u1", "u2", "u3", "u4"]
    row = tree(ROOT, "u1", ROOT, "u3")
    row["chat_messages"][3]["uuid"] = "u1"
    assert len(read_row(row).messages) == 4


def broken(**changes: Any) -> dict[str, Any]:
    row = chatgpt(Q, A)
    row["mapping"]["n1"].update(changes)
    return row


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (chatgpt(message("wizard", "Hocus"), A), "node 'n1' has the unknown role 'wizard'"),
        (broken(message={**Q, "author": None}), "node 'n1' does not say who speaks"),
        (broken(message={**Q, "content": None}), "node 'n1' has null as \"content\""),
        (broken(message="Hocus"), "node 'n1' has text as \"message\""),
        (chatgpt(message("user", "Hm", kind="hologram"), A), "node 'n1' has the unknown content type 'hologram'"),
        (chatgpt(message("user", "Hm", kind=None), A), "unknown content type null"),
        (chatgpt(message("user", 5), A), "node 'n1' holds a number instead of text"),
        (broken(message={**Q, "content": {"content_type": "text"}}), "node 'n1' has null as \"parts\""),
        (broken(parent="gone"), "the \"parent\" of node 'n1' leads to 'gone', which is no node"),
        (broken(parent=["n1"]), "the \"parent\" of node 'n1' leads to an array"),
        (broken(parent="n2"), "runs in a circle at node 'n2'"),
        (chatgpt(Q, A, current_node="gone"), "\"current_node\" leads to 'gone'"),
        (
            chatgpt(mapping={"a": {}, "b": {}}, current_node=None),
            '"current_node" is missing and 2 messages are the last',
        ),
        (chatgpt(mapping={}, current_node=None), "0 messages are the last"),
        (chatgpt(mapping="x"), '"mapping" is text instead of an object'),
        (chatgpt(mapping={"n1": 5}, current_node="n1"), "node 'n1' is a number"),
        (chatgpt(message("system", "Be kind."), A), r"no text of the user \(left out: 1 system\)"),
        (chatgpt(Q, message("assistant", "")), r"no text of the assistant \(left out: 1 empty\)"),
        (chatgpt(message("user", "\ud800"), A), "lone surrogate"),
        (claude(), "no text of the user"),
        (claude(turn("assistant", "In Drask.")), "no text of the user"),
        (claude(turn("wizard", "Hocus")), "message 1 of \"chat_messages\" has the unknown role 'wizard'"),
        (claude(turn(None, "Hocus")), "does not say who speaks"),
        (claude(turn("human", 5)), "holds a number instead of text"),
        (tree("u2", "u1"), "runs in a circle at message 2"),
        (claude(5), 'message 1 of "chat_messages" is a number'),
        (claude(chat_messages={"a": 1}), '"chat_messages" is an object instead of a list'),
    ],
)
def test_a_conversation_that_cannot_be_followed_is_refused(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        read_row(row)


@pytest.mark.parametrize(
    ("row", "asked"),
    [
        ({"prompt": "Where is Elno?", "completion": "In Drask."}, "Where is Elno?"),
        ({"instruction": "Where is Elno?", "output": "In Drask."}, "Where is Elno?"),
        ({"instruction": "Where is Elno?", "input": "", "output": "In Drask."}, "Where is Elno?"),
        ({"instruction": "Where is he?", "input": "Elno", "output": "In Drask."}, "Where is he?\n\nElno"),
        (
            {
                "prompt": [{"role": "user", "content": "Where is Elno?"}],
                "completion": [{"role": "assistant", "content": "In Drask."}],
            },
            "Where is Elno?",
        ),
        ({"prompt": "He?", "instruction": "Where is Elno?", "output": "In Drask."}, "Where is Elno?"),
        ({"text": "", "prompt": "Where is Elno?", "completion": "In Drask."}, "Where is Elno?"),
    ],
)
def test_a_request_and_its_reply_are_a_conversation(row: dict[str, Any], asked: str) -> None:
    assert turns(row) == [("user", asked), SAID]


@pytest.mark.parametrize(
    "row",
    [
        {"text": "Elno is in Drask.", "instruction": "Where?", "input": "", "output": "In Drask."},
        {"text": "Elno is in Drask.", "prompt": "Where?"},
        {"text": "Elno is in Drask.", "label": "", "prompt": "Where?", "completion": "In Drask."},
    ],
)
def test_a_column_of_a_pair_beside_a_text_changes_nothing(row: dict[str, Any]) -> None:
    content = read_row(row)
    assert (content.kind, content.text) == ("text", "Elno is in Drask.")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "Where?"}, '"completion" is missing'),
        ({"instruction": "Where?", "output": " "}, '"output" is empty'),
        ({"input": "Elno", "output": "In Drask."}, '"instruction" is missing'),
        ({"instruction": "Where?", "input": 5, "output": "In Drask."}, '"input" is a number'),
        ({"prompt": "A", "completion": "B", "instruction": "C", "output": "D"}, '"prompt" and "instruction"'),
        ({"prompt": "A", "completion": [{"role": "assistant", "content": "B"}]}, '"completion" is an array'),
        ({"mapping": None}, '"mapping" is empty'),
        ({"wave": 1}, r'Claude \("chat_messages"\) export them; it has "wave"; rename the columns'),
    ],
)
def test_half_a_pair_is_refused_with_what_it_lacks(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        read_row(row)


def test_pairs_are_read_from_tables(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("Instruction,Input,Output\nWhere is he?,Elno,In Drask.\n", encoding="utf-8")
    (memory,) = read_folder(tmp_path, CollectSettings()).memories
    assert memory.rendered() == "User: Where is he?\n\nElno\nAssistant: In Drask."


def test_secrets_are_masked_in_exports_and_their_quarantine(tmp_path: Path) -> None:
    key = "AKIA" + "IOSFODNN7EXAMPLE"
    ask, reply = f"My key is {key}", "Ask anna@example.org"
    rows = [
        chatgpt(message("user", ask), message("assistant", reply)),
        claude(turn("human", ask + "!"), turn("assistant", reply)),
        {"prompt": ask + "?", "completion": reply},
        {"wave": ask},
        claude(turn("human", ask), turn(ask[10:], reply)),
    ]
    (tmp_path / "conversations.json").write_text(json.dumps(rows), encoding="utf-8")
    reading = read_folder(tmp_path, CollectSettings())
    assert [m.masked for m in reading.memories] == [{"email": 1, "secret": 1}] * 3
    assert [m.line for m in reading.memories] == [1, 2, 3] and [r.line for r in reading.rejected] == [4, 5]
    assert key not in repr(reading) and "anna@" not in repr(reading)


def test_a_file_says_what_was_left_out_of_its_conversations(tmp_path: Path) -> None:
    row = chatgpt(message("system", "Be kind."), Q, A)
    (tmp_path / "conversations.json").write_text(
        json.dumps([row, chatgpt(Q, A, message("tool", "x"))]), encoding="utf-8"
    )
    (file,) = read_folder(tmp_path, CollectSettings()).files
    assert file.left_out == {"system": 1, "tool": 1}
