"""How far long work is: a bar in a terminal, a line a minute in a log, and nothing about what is done by then."""

from __future__ import annotations

import io
import logging
import math
import sys
from collections.abc import Iterable
from typing import Any, ClassVar

from tqdm import tqdm as tqdm_std
from tqdm.auto import tqdm

logger = logging.getLogger(__name__)

SECONDS = 60.0
"""Between two lines of a log."""


class _Logged(tqdm_std):  # type: ignore[type-arg]
    """Says in a log what a bar shows."""

    monitor_interval: ClassVar[int] = 0  # a thread that would make it speak oftener
    _told: float | None = None

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Log a line, unless it is the last one again."""
        if self.n != self._told:
            self._told = self.n
            logger.info("%s", msg or str(self))


def bar(
    work: Iterable[Any] | None = None,
    title: str | None = None,
    *,
    total: int | None = None,
    initial: int = 0,
    unit: str = "it",
) -> Any:
    """A bar with rate and time left over `work`, or one to be moved by hand.

    Where standard error is no terminal it is a line in the log once in `SECONDS`, for nights that a timer starts.

    Args:
        work: what is gone through; None if `update` is called.
        title: what is done; None shows nothing.
        total: how much there is, if `work` does not tell.
        initial: what was done before.
        unit: of what.
    """
    kind: Any = tqdm
    more: dict[str, Any] = {"disable": title is None}
    if title is not None and (sys.stderr is None or not sys.stderr.isatty()):
        form = "{desc}: {n_fmt} of {total_fmt}, {rate_fmt}, {elapsed} so far, {remaining} left{postfix}"
        kind = _Logged
        more = {"mininterval": SECONDS, "maxinterval": math.inf, "delay": SECONDS, "bar_format": form}
        more["file"] = io.StringIO()  # for the end of a line that every bar writes
    return kind(work, title, total, initial=initial, unit=unit, **more)
