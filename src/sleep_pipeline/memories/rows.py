"""One row of a file, as JSON or a table gives it, as the content of a memory, or the reason why it is none."""

from __future__ import annotations

import datetime
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sleep_pipeline.memories.bad_rows import BadRow, kind_of, shown
from sleep_pipeline.memories.exports import chatgpt_messages, claude_messages, tally
from sleep_pipeline.memories.records import Content, Message

_FORMS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "conversations": ("conversations",),
    "qa": ("question", "answer"),
    "text": ("text", "label"),
}
_PAIRS: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "completion"),
    "instruction": ("instruction", "output"),
}
# What other programs write. Sets for training often hold such columns beside one of the forms above, which then counts.
_FOREIGN: dict[str, tuple[str, ...]] = {**_PAIRS, "chatgpt": ("mapping",), "claude": ("chat_messages",)}
COLUMNS: tuple[str, ...] = tuple(name for names in (*_FORMS.values(), *_PAIRS.values()) for name in names)
_TIMES = ("time", "timestamp")
BESIDES = (*_TIMES, "input")
"""Columns that say more about a memory and make none alone."""
_EXPORTS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "chatgpt": (chatgpt_messages, ("create_time",)),
    "claude": (claude_messages, ("created_at",)),
}
# Calls of tools and what tools answer are made for programs; a turn of them is passed over.
_TOOLS = frozenset(
    (
        *("tool", "function", "ipython"),
        *("function_call", "function_response", "function_call_output", "observation"),
        *("tool_call", "tool_response", "tool_result"),
    )
)
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_SHAREGPT = {
    **{name: "user" for name in ("human", "user")},
    **{name: "assistant" for name in ("gpt", "chatgpt", "assistant", "model", "bot")},
    "system": "system",
}
# Entries of OpenAI's responses that nobody speaks, and what an assistant's turn may hold in the place of text.
_UNSPOKEN = re.compile(r"(?:\w+_)?call(?:_output)?|reasoning|item_reference")
_INSTEAD = ("tool_calls", "function_call", "refusal", "audio")
_TEXT_PARTS = ("text", "input_text", "output_text")
_EMPTY: tuple[Any, ...] = (None, "", [])
_SECONDS = re.compile(r"\d{9,18}(?:\.\d+)?", re.A)
_MILLISECONDS = 1e11  # epoch seconds reach this number in the year 5138


def read_row(row: Any) -> Content:
    """The content of a row.

    Args:
        row: a JSON value or a table's row; empty fields (None) count as missing.

    Raises:
        BadRow: it is no object, says nothing, says two things at once, or a field has the wrong type.
    """
    if not isinstance(row, Mapping):
        raise BadRow(f"the row is {kind_of(row)} instead of an object; write it as {{...}}")
    form, empty = _form(row)
    if form in _EXPORTS:
        read, times = _EXPORTS[form]
        time, flags = _time(row, (*_TIMES, *times))
        found, left_out = read(row)
        messages = _both_sides(found, left_out)
        return Content("chat", messages=messages, time=time, flags=flags, left_out=dict(left_out))
    time, flags = _time(row, _TIMES)
    if form in ("messages", "conversations"):
        return Content("chat", messages=_messages(row[form], form), time=time, flags=flags)
    if form in _PAIRS:
        return Content("chat", messages=_pair(row, *_PAIRS[form]), time=time, flags=flags)
    if form == "qa":
        question, answer = _text(row, "question"), _text(row, "answer")
        return Content("qa", question=question, answer=answer, time=time, flags=flags)
    if (label := row.get("label")) not in empty:
        # Classes are often numbered.
        label = str(label) if isinstance(label, int) and not isinstance(label, bool) else _text(row, "label")
        return Content("label", text=_text(row, "text"), label=label, time=time, flags=flags)
    return Content("text", text=_text(row, "text"), time=time, flags=flags)


def _form(row: Mapping[Any, Any]) -> tuple[str, tuple[Any, ...]]:
    """Which form a row has, and what counts as an empty field of it."""

    def holding(forms: Mapping[str, tuple[str, ...]], empty: tuple[Any, ...]) -> list[str]:
        return [form for form, names in forms.items() if any(row.get(name) not in empty for name in names)]

    empty: tuple[Any, ...] = (None,)
    own = holding(_FORMS, empty)
    foreign = [form for form, names in _FOREIGN.items() if all(row.get(name) not in _EMPTY for name in names)]
    # An empty field beside a full form is what tables of several kinds look like.
    if len(own) + len(foreign) > 1:
        empty = _EMPTY
        own = holding(_FORMS, empty) or ([] if foreign else own[:1])
    forms = own or foreign or holding(_FOREIGN, empty)[:1]
    if not forms:
        raise BadRow(_nothing(row))
    if len(forms) > 1:
        held = [next(name for name in (_FORMS | _FOREIGN)[form] if row.get(name) not in empty) for form in forms]
        named = " and ".join(f'"{name}"' for name in held)
        raise BadRow(f"the row holds {named}, which belong to different kinds of memory; make two rows of it")
    return forms[0], empty


def _nothing(row: Mapping[Any, Any]) -> str:
    empty = [name for name in (*COLUMNS, "mapping", "chat_messages") if name in row]
    if empty:
        return f'"{empty[0]}" is empty; delete the line or fill it in'
    names = ", ".join(f'"{shown(name)}"' for name in list(row)[:5]) or "nothing"
    return (
        'the row has none of "text", "messages", "conversations", "question" with "answer", "prompt" with '
        '"completion", "instruction" with "output", and is no conversation as ChatGPT ("mapping") and Claude '
        '("chat_messages") export them; '
        f"it has {names}; rename the columns"
    )


def _text(row: Mapping[Any, Any], name: str) -> str:
    value = row.get(name)
    if value is None or (isinstance(value, str) and not value.strip()):
        state = "is empty" if name in row else "is missing"
        raise BadRow(f'"{name}" {state}; delete the line or fill it in')
    if not isinstance(value, str):
        raise BadRow(f'"{name}" is {kind_of(value)} instead of text; put it in quotes')
    _check_unicode(value, name)
    return value


def _check_unicode(value: str, name: str) -> None:
    # JSON can spell half a character, which no file can hold.
    if re.search(r"[\ud800-\udfff]", value):
        raise BadRow(f'"{name}" holds half of a character (a lone surrogate); write the row anew')
    if "\0" in value:
        raise BadRow(f'"{name}" holds NUL characters; remove them')


def _messages(value: Any, name: str) -> tuple[Message, ...]:
    """Messages in the form of OpenAI (`role`, `content`) or ShareGPT (`from`, `value`), those of tools left out."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise BadRow(f'"{name}" is text that is no JSON; write a list of messages') from error
    if not isinstance(value, list):
        raise BadRow(f'"{name}" is {kind_of(value)} instead of a list of messages')
    if not value:
        raise BadRow(f'"{name}" is empty; delete the line or fill it in')
    read = (_message(item, name, number) for number, item in enumerate(value, start=1))
    return _both_sides([message for message in read if message is not None], {})


def _both_sides(messages: Sequence[Message], left_out: Mapping[str, int]) -> tuple[Message, ...]:
    for role in ("user", "assistant"):
        if not any(message["role"] == role for message in messages):
            but = f" (left out: {tally(left_out)})" if left_out else ""
            raise BadRow(f"the conversation has no text of the {role}{but}; delete the line or complete it")
    for message in messages:
        _check_unicode(message["content"], "content")
    return tuple(messages)


def _pair(row: Mapping[Any, Any], asked: str, answered: str) -> tuple[Message, ...]:
    """What is asked and answered, each a text or, as TRL has them, a list of messages."""
    if isinstance(row.get(asked), list) and isinstance(row.get(answered), list):
        return _messages([*row[asked], *row[answered]], f"{asked}+{answered}")
    question, answer = _text(row, asked), _text(row, answered)
    if asked == "instruction" and row.get("input") not in _EMPTY:
        question = f"{question}\n\n{_text(row, 'input')}"
    return {"role": "user", "content": question}, {"role": "assistant", "content": answer}


def _message(item: Any, name: str, number: int) -> Message | None:
    """A turn; None if it is one of a tool, or holds no text for people."""
    where = f'message {number} of "{name}"'
    if not isinstance(item, Mapping):
        raise BadRow(f"{where} is {kind_of(item)} instead of an object")
    role_key, content_key = ("role", "content") if item.get("role") is not None else ("from", "value")
    roles = _ROLES if role_key == "role" else _SHAREGPT
    role, content = item.get(role_key), item.get(content_key)
    if role is None:
        if _UNSPOKEN.fullmatch(str(item.get("type"))):
            return None
        raise BadRow(f'{where} has no "role" (or "from"); say who speaks')
    if isinstance(role, str) and role.lower() in _TOOLS:
        return None
    if not isinstance(role, str) or role.lower() not in roles:
        raise BadRow(f"{where} has the unknown role {shown(role)!r}; use one of {', '.join(roles)}")
    wordless = any(item.get(key) for key in _INSTEAD)
    if isinstance(content, list):
        texts = [_part(part, where) for part in content]
        wordless = wordless or None in texts
        content = "\n".join(text for text in texts if text is not None)
    if content is None or (isinstance(content, str) and not content.strip()):
        if wordless:
            return None
        raise BadRow(f'{where} has an empty "{content_key}"; delete the line or fill it in')
    if not isinstance(content, str):
        raise BadRow(f'{where} has {kind_of(content)} as "{content_key}" instead of text')
    _check_unicode(content, name)
    return {"role": roles[role.lower()], "content": content}


def _part(part: Any, where: str) -> str | None:
    """The text of a part of a message; None for a picture, a call of a tool, and whatever else is no text."""
    text = part
    if isinstance(part, Mapping):
        kind, text = part.get("type") or "text", part.get("text")
        if kind not in _TEXT_PARTS:
            return None
    if not isinstance(text, str):
        raise BadRow(f"{where} holds a part that is no text; take the part out, or name its type")
    return text


def _time(row: Mapping[Any, Any], names: Sequence[str]) -> tuple[str | None, tuple[str, ...]]:
    """The row's own time, or the flag that it cannot be read; a bad time is no reason to lose the memory."""
    value = next((row[name] for name in names if row.get(name) not in (None, "")), None)
    if value is None:
        return None, ()
    try:
        return utc(value), ()
    except (ValueError, OverflowError, OSError, TypeError):
        return None, ("unread_time",)


def utc(value: str | float | datetime.datetime) -> str:
    """A moment as ISO 8601 in UTC, to the second: text in ISO 8601 (without zone: UTC), or seconds since 1970.

    Very many seconds are milliseconds. Tables have numbers as text: nine digits and more, for 20240506 is a date.

    Raises:
        ValueError, OverflowError, OSError, TypeError: it is no moment.
    """
    if isinstance(value, bool):
        raise TypeError(f"{value} is no moment")
    if isinstance(value, str):
        text = value.strip()
        value = float(text) if _SECONDS.fullmatch(text) else datetime.datetime.fromisoformat(text)
    if isinstance(value, int | float):
        if not math.isfinite(value):
            raise ValueError(f"{value} is no moment")
        seconds = value / 1000 if abs(value) >= _MILLISECONDS else value
        value = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    if not isinstance(value, datetime.datetime):
        raise TypeError(f"{value} is no moment")
    if value.tzinfo is None:
        value = value.replace(tzinfo=datetime.UTC)
    return value.astimezone(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
