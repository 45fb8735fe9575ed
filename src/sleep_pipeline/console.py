"""What a command says while it works: a line an event, and none that is meant for programmers of libraries."""

from __future__ import annotations

import copy
import logging
import re

from rich.console import Console
from rich.logging import RichHandler

WIDTH = 160
"""Columns of a line where there is no terminal, such as in a file."""

_DEPRECATION = re.compile(r"[^\n]*[/\\](site|dist)-packages[/\\][^\n]*: (Pending)?(Future|Deprecation)Warning: ")


class ForPeople(logging.Filter):
    """Drops what packages say of their own next versions, and what Kedro says of a way to run that no night uses."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is shown."""
        if record.name == "py.warnings":
            return _DEPRECATION.match(record.getMessage()) is None
        return "--async" not in str(record.msg)


class Names(logging.Formatter):
    """Tells a node by its name, without all that it reads and writes."""

    def format(self, record: logging.LogRecord) -> str:
        """The message of a record."""
        if record.name == "kedro.pipeline.node" and record.args:
            record = copy.copy(record)
            record.args = tuple(str(part).split(":", 1)[0] for part in record.args or ())
        return super().format(record)


def speak_to_people(logger: logging.Logger | None = None) -> None:
    """Let the handlers of `conf/logging.yml` speak to people, in wide lines where no terminal limits them.

    The file itself cannot: Kedro lets it name no classes but its own.

    Args:
        logger: whose handlers; by default the root's.
    """
    for handler in (logger or logging.getLogger()).handlers:
        if isinstance(handler, RichHandler) and not any(isinstance(one, ForPeople) for one in handler.filters):
            handler.addFilter(ForPeople())
            handler.setFormatter(Names())
            if not handler.console.is_terminal:
                handler.console = Console(width=WIDTH)
