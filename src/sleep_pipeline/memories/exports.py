"""Conversations as ChatGPT and Claude export them (`conversations.json`): what was said, in the order last shown.

Neither format is documented, and both change. What is no word between the two, such as calls of tools, hidden
instructions, thoughts, pictures and replies that were never written, is left out and counted, and so are replies to a
picture alone. What is unknown is refused: a conversation without some of its turns would teach something that nobody
said. Titles are left out, for no memory has one.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sleep_pipeline.memories.bad_rows import BadRow, kind_of, shown
from sleep_pipeline.memories.records import Message

_SENDERS = {"human": "user", "user": "user", "assistant": "assistant"}
_UNSPOKEN = {"system": "system", "developer": "system", "tool": "tool", "function": "tool"}
# Content types of ChatGPT that hold no words for the other: what tools are told and say, thoughts, settings.
_WORDLESS = frozenset(
    (
        *("code", "execution_output", "computer_output", "citable_code_output", "system_error"),
        *("tether_quote", "tether_browsing_display", "tether_browsing_code", "sonic_webpage"),
        *("thoughts", "reasoning_recap"),
        *("user_editable_context", "model_editable_context", "app_pairing_content", "super_widget"),
    )
)
# Where ChatGPT shows links to its sources, or a name with a card behind it, which is the second of a list.
_MARKS = re.compile(r"(?P<before>[ \t]{0,3})(?:\ue200(?P<mark>[^\ue200\ue201\n]*)\ue201|【\d{1,4}†[^【】\n]*】)")
_ENTITY = "entity\ue202"


@dataclass(frozen=True)
class _Turn:
    """Attributes: `role`, `text`, and whether it `held` anything else than text."""

    role: str
    text: str
    held: bool


@dataclass(frozen=True)
class _Node:
    """How a reason names a node; it is masked only where there is a reason, for that takes time."""

    name: str
    before: str = ""

    def __str__(self) -> str:
        return f"{self.before}node {shown(self.name)!r}"


def chatgpt_messages(row: Mapping[Any, Any]) -> tuple[list[Message], Counter[str]]:
    """The branch of a conversation of ChatGPT that was last shown, and how much of what was left out.

    Args:
        row: with `mapping`, a tree of messages in which an answer that was asked for again is a second child, and
            `current_node`, the end of the branch.

    Raises:
        BadRow: the branch is broken or a message is of an unknown kind.
    """
    turns: list[_Turn] = []
    left_out: Counter[str] = Counter()
    for name, node in _branch(row["mapping"], row.get("current_node")):
        message = node.get("message")
        if message is None:  # the root
            continue
        where = _Node(name)
        if not isinstance(message, Mapping):
            raise BadRow(f'{where} has {kind_of(message)} as "message" instead of an object')
        metadata = message.get("metadata")
        if isinstance(metadata, Mapping) and metadata.get("is_visually_hidden_from_conversation"):
            left_out["hidden"] += 1
            continue
        author = message.get("author")
        role = _role(author.get("role") if isinstance(author, Mapping) else None, where)
        if role in _SENDERS.values() and message.get("recipient") not in (None, "all"):
            role = "tool"
        if role not in _SENDERS.values():
            left_out[role] += 1
            continue
        parts = _chatgpt_parts(message.get("content"), where, left_out)
        if parts is not None:
            text, others = _words(parts, where)
            left_out["part"] += others
            turns.append(_Turn(role, _MARKS.sub(_unmarked, text), others > 0))
    return _messages(turns, left_out), +left_out


def claude_messages(row: Mapping[Any, Any]) -> tuple[list[Message], Counter[str]]:
    """The branch of a conversation of Claude that was last shown, and how much of what was left out.

    Args:
        row: with `chat_messages`, each with `sender` and `content`, or `text` where that is missing or empty; the
            `extracted_content` of its `attachments` are words as well. Where each has `uuid` and `parent_message_uuid`,
            they are a tree, of which `current_leaf_message_uuid` or else the last message ends the branch; otherwise,
            as in older exports, they follow each other.

    Raises:
        BadRow: the branch runs in a circle or a message is of an unknown kind.
    """
    items = row["chat_messages"]
    if not isinstance(items, list):
        raise BadRow(f'"chat_messages" is {kind_of(items)} instead of a list of messages')
    turns: list[_Turn] = []
    branch = _claude_branch(items, row.get("current_leaf_message_uuid"))
    left_out: Counter[str] = Counter(branch=len(items) - len(branch))
    for number, item in branch:
        where = f'message {number} of "chat_messages"'
        if not isinstance(item, Mapping):
            raise BadRow(f"{where} is {kind_of(item)} instead of an object")
        role = _role(item.get("sender"), where)
        if role not in _SENDERS.values():
            left_out[role] += 1
            continue
        # Where tools were called, `text` tells of blocks that cannot be shown.
        parts = item.get("content") or item.get("text")
        text, others = _words(parts if isinstance(parts, list) else [parts], where)
        given = [held for name in ("attachments", "files") if isinstance(item.get(name), list) for held in item[name]]
        read = [held.get("extracted_content") if isinstance(held, Mapping) else None for held in given]
        texts = [held for held in read if role == "user" and isinstance(held, str) and held.strip()]
        others += len(given) - len(texts)
        left_out["part"] += others
        turns.append(_Turn(role, "\n\n".join([text, *texts] if text else texts), others > 0))
    return _messages(turns, left_out), +left_out


def tally(left_out: Mapping[str, int]) -> str:
    """What was left out, in words."""
    return ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items()))


def _claude_branch(items: list[Any], last: Any) -> list[tuple[int, Any]]:
    """The messages from the first to the last one of the branch, with their numbers in the file."""
    numbered = [*enumerate(items, start=1)]
    if not all(isinstance(item, Mapping) and isinstance(item.get("uuid"), str) for item in items):
        return numbered
    nodes = {item["uuid"]: (number, item) for number, item in numbered}
    parents = [item.get("parent_message_uuid") for item in items]
    if len(nodes) < len(items) or not all(isinstance(parent, str) for parent in parents[1:]):
        return numbered
    branch: list[tuple[int, Any]] = []
    name = last if isinstance(last, str) and last in nodes else next(reversed(nodes), None)
    while name in nodes:
        if len(branch) == len(nodes):
            raise BadRow(f"the branch runs in a circle at message {nodes[name][0]}; export the conversation again")
        branch.append(nodes[name])
        name = nodes[name][1].get("parent_message_uuid")
    # The parent of the first message is no message; where another one is missing, nothing tells what was shown.
    return branch[::-1] if branch and name == parents[0] else numbered


def _branch(nodes: Any, last: Any) -> list[tuple[str, Mapping[Any, Any]]]:
    """The nodes from the root to the last one, with their names."""
    if not isinstance(nodes, Mapping):
        raise BadRow(f'"mapping" is {kind_of(nodes)} instead of an object of messages')
    if last is None:
        ends = [name for name, node in nodes.items() if isinstance(node, Mapping) and not node.get("children")]
        if len(ends) != 1:
            raise BadRow(f'"current_node" is missing and {len(ends)} messages are the last; name one of them there')
        last = ends[0]
    branch = [*_upwards(nodes, last)]
    return branch[::-1]


def _upwards(nodes: Mapping[Any, Any], name: Any) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    seen: set[str] = set()
    below: object = '"current_node"'
    while name is not None:
        if not isinstance(name, str) or name not in nodes:
            told = repr(shown(name)) if isinstance(name, str) else kind_of(name)
            raise BadRow(f'{below} leads to {told}, which is no node of "mapping"; export the conversation again')
        if name in seen:
            raise BadRow(f"the branch runs in a circle at {_Node(name)}; export the conversation again")
        seen.add(name)
        node = nodes[name]
        if not isinstance(node, Mapping):
            raise BadRow(f"{_Node(name)} is {kind_of(node)} instead of an object")
        yield name, node
        below, name = _Node(name, 'the "parent" of '), node.get("parent")


def _role(role: Any, where: object) -> str:
    if not isinstance(role, str):
        raise BadRow(f"{where} does not say who speaks; take the conversation out, or name its author")
    found = {**_SENDERS, **_UNSPOKEN}.get(role.lower())
    if found is None:
        known = ", ".join((*_SENDERS, *_UNSPOKEN))
        raise BadRow(f"{where} has the unknown role {shown(role)!r}; use one of {known}, or take the conversation out")
    return found


def _chatgpt_parts(content: Any, where: object, left_out: Counter[str]) -> list[Any] | None:
    if not isinstance(content, Mapping):
        raise BadRow(f'{where} has {kind_of(content)} as "content" instead of an object')
    kind = content.get("content_type")
    if kind in ("text", "multimodal_text"):
        parts = content.get("parts")
        if not isinstance(parts, list):
            raise BadRow(f'{where} has {kind_of(parts)} as "parts" instead of a list')
        return parts
    if isinstance(kind, str) and kind in _WORDLESS:
        left_out["wordless"] += 1
        return None
    told = repr(shown(kind)) if isinstance(kind, str) else kind_of(kind)
    raise BadRow(f"{where} has the unknown content type {told}; take the conversation out, or write the turn as text")


def _unmarked(found: re.Match[str]) -> str:
    mark = found["mark"] or ""
    if not mark.startswith(_ENTITY):
        return ""
    try:
        told = json.loads(mark.removeprefix(_ENTITY))
    except (ValueError, RecursionError):
        return ""
    names = [name for name in told if isinstance(name, str)] if isinstance(told, list) else []
    return f"{found['before']}{names[min(1, len(names) - 1)]}" if names else ""


def _words(parts: list[Any], where: object) -> tuple[str, int]:
    """The texts among the parts of a message, a line between them, and how many parts are none.

    What was spoken aloud is a text in writing.
    """
    texts, others = [], 0
    for part in parts:
        text = part
        if isinstance(part, Mapping):
            kind, text = part.get("type") or part.get("content_type"), part.get("text")
            if kind not in ("text", "audio_transcription"):
                others += 1
                continue
        if text is not None and not isinstance(text, str):
            raise BadRow(f"{where} holds {kind_of(text)} instead of text; take the conversation out, or correct it")
        texts.append(text or "")
    return "\n".join(text for text in texts if text.strip()), others


def _messages(turns: list[_Turn], left_out: Counter[str]) -> list[Message]:
    """What was said; the reply to a picture without words is left out with it."""
    messages: list[Message] = []
    asked, before = True, ""
    for turn in turns:
        if turn.role == "user":
            asked = bool(turn.text) or not turn.held or (before == "user" and asked)
        before = turn.role
        if not turn.text:
            left_out["empty"] += 1
        elif turn.role == "assistant" and not asked:
            left_out["unasked"] += 1
        else:
            messages.append({"role": turn.role, "content": turn.text})
    return messages
