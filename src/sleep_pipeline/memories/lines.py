"""The lines of a file, decoded one by one, none longer than a limit: what cannot be read is a line with a problem."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

_CHUNK = 2**16
_SHOWN = 1000
# The marks of UTF-32 begin with those of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_TEXT_CONTROLS = b"\t\n\r\f\x0b\x1b\x08"
_BINARY_SHARE = 0.05


@dataclass(frozen=True)
class Line:
    """A line of a file.

    Attributes:
        number: from 1.
        text: without its end; the beginning of it where there is a problem.
        problem: why it cannot be read and what to do; None if it can.
    """

    number: int
    text: str
    problem: str | None = None


def encoding_of(head: bytes) -> tuple[bytes, str]:
    """The byte order mark at the beginning of a file and the encoding it stands for; without one, UTF-8."""
    return next(((mark, name) for mark, name in _MARKS if head.startswith(mark)), (b"", "utf-8"))


def looks_binary(head: bytes) -> bool:
    """Whether the beginning of a file is no text.

    It is text if a byte order mark of UTF-16 or UTF-32 says so, or if its first line is: what follows may be damaged,
    as by a disk that was full, and is then told line by line.
    """
    if encoding_of(head)[1] != "utf-8":
        return False
    first = head.split(b"\n", 1)[0]
    if _controls(first) > _BINARY_SHARE:
        return True
    try:
        # A character may be cut off where the beginning ends.
        codecs.getincrementaldecoder("utf-8")().decode(first)
    except UnicodeDecodeError:
        return _controls(head) > _BINARY_SHARE
    return False


def _controls(part: bytes) -> float:
    """The share of control characters that no text has."""
    return sum(byte < 32 and byte not in _TEXT_CONTROLS for byte in part) / max(1, len(part))


def read_lines(stream: BinaryIO, max_bytes: int) -> Iterator[Line]:
    """The lines of a binary stream, which is at its beginning: UTF-8, or what its byte order mark says.

    At most `max_bytes` and a little of a line are held at a time. In UTF-16 and UTF-32 the limit counts characters.
    """
    mark, encoding = encoding_of(stream.read(4))
    if encoding == "utf-8":
        stream.seek(len(mark))
        yield from _utf8_lines(stream, max_bytes)
        return
    stream.seek(0)
    text = io.TextIOWrapper(stream, encoding, errors="replace", newline="\n")
    number = 0
    while line := text.readline(max_bytes + 1):
        number += 1
        end = line.endswith("\n")
        if not end and len(line) > max_bytes:
            yield Line(number, line[:_SHOWN], _too_long(max_bytes))
            while line and not line.endswith("\n"):
                line = text.readline(_CHUNK)
        elif "�" in line:
            yield Line(number, line[:_SHOWN], f"a character is not valid {encoding.upper()}; save the file as UTF-8")
        else:
            yield _checked(number, line)
    text.detach()


def _utf8_lines(stream: BinaryIO, max_bytes: int) -> Iterator[Line]:
    number = 0
    while raw := stream.readline(max_bytes + 1):
        number += 1
        if not raw.endswith(b"\n") and len(raw) > max_bytes:
            yield Line(number, raw[:_SHOWN].decode("utf-8", "replace"), _too_long(max_bytes))
            while raw and not raw.endswith(b"\n"):
                raw = stream.readline(_CHUNK)
            continue
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            problem = (
                f"byte {error.start + 1} of the line (0x{raw[error.start]:02x}) is not UTF-8, perhaps Latin-1; save "
                "the file as UTF-8, for instance with iconv -f latin1 -t utf-8"
            )
            yield Line(number, raw[:_SHOWN].decode("utf-8", "replace"), problem)
            continue
        yield _checked(number, line)


def _checked(number: int, line: str) -> Line:
    line = line.rstrip("\r\n")
    if "\0" in line:
        return Line(number, line[:_SHOWN], "the line holds NUL characters; remove them or write the file anew")
    return Line(number, line)


def _too_long(max_bytes: int) -> str:
    return f"the line is longer than {max_bytes} bytes; split it, or raise max_line_bytes"
