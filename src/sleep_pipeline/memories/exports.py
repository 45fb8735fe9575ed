"""Conversations as ChatGPT and Claude export them (`conversations.json`): what was said, in the order last shown.

Neither format is documented, and both change. What is no word between the two, such as calls of tools, hidden
instructions, thoughts, pictures and replies that were never written, is left out and counted. What is unknown is
refused: a conversation without some of its turns would teach something that nobody said. Titles are left out, for no
memory has one.
"""

from __future__ import annotations

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
    messages: list[Message] = []
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
        _add(messages, role, _chatgpt_words(message.get("content"), where, left_out), left_out)
    return messages, left_out


def claude_messages(row: Mapping[Any, Any]) -> tuple[list[Message], Counter[str]]:
    """The messages of a conversation of Claude, and how much of what was left out.

    Args:
        row: with `chat_messages`, each with `sender` and `content`, or `text` where that is missing or empty.

    Raises:
        BadRow: a message is of an unknown kind.
    """
    items = row["chat_messages"]
    if not isinstance(items, list):
        raise BadRow(f'"chat_messages" is {kind_of(items)} instead of a list of messages')
    messages: list[Message] = []
    left_out: Counter[str] = Counter()
    for number, item in enumerate(items, start=1):
        where = f'message {number} of "chat_messages"'
        if not isinstance(item, Mapping):
            raise BadRow(f"{where} is {kind_of(item)} instead of an object")
        role = _role(item.get("sender"), where)
        if role not in _SENDERS.values():
            left_out[role] += 1
            continue
        for name in ("attachments", "files"):
            if isinstance(item.get(name), list) and item[name]:
                left_out["part"] += len(item[name])
        # Where tools were called, `text` tells of blocks that cannot be shown.
        parts = item.get("content") or item.get("text")
        _add(messages, role, _words(parts if isinstance(parts, list) else [parts], where, left_out), left_out)
    return messages, left_out


def tally(left_out: Mapping[str, int]) -> str:
    """What was left out, in words."""
    return ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items()))


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


def _chatgpt_words(content: Any, where: object, left_out: Counter[str]) -> str | None:
    if not isinstance(content, Mapping):
        raise BadRow(f'{where} has {kind_of(content)} as "content" instead of an object')
    kind = content.get("content_type")
    if kind in ("text", "multimodal_text"):
        parts = content.get("parts")
        if not isinstance(parts, list):
            raise BadRow(f'{where} has {kind_of(parts)} as "parts" instead of a list')
        return _words(parts, where, left_out)
    if isinstance(kind, str) and kind in _WORDLESS:
        left_out["wordless"] += 1
        return None
    told = repr(shown(kind)) if isinstance(kind, str) else kind_of(kind)
    raise BadRow(f"{where} has the unknown content type {told}; take the conversation out, or write the turn as text")


def _words(parts: list[Any], where: object, left_out: Counter[str]) -> str:
    """The texts among the parts of a message, a line between them; what was spoken aloud is one in writing."""
    texts = []
    for part in parts:
        text = part
        if isinstance(part, Mapping):
            kind, text = part.get("type") or part.get("content_type"), part.get("text")
            if kind not in ("text", "audio_transcription"):
                left_out["part"] += 1
                continue
        if text is not None and not isinstance(text, str):
            raise BadRow(f"{where} holds {kind_of(text)} instead of text; take the conversation out, or correct it")
        texts.append(text or "")
    return "\n".join(text for text in texts if text.strip())


def _add(messages: list[Message], role: str, text: str | None, left_out: Counter[str]) -> None:
    if text:
        messages.append({"role": role, "content": text})
    elif text is not None:
        left_out["empty"] += 1
