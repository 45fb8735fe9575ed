"""What must hold for the tables of a night, as data: the names are those of Great Expectations, which is not loaded.

Every check speaks of the rows of one column and says what a row that fails should be told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_LARGEST = 1.7976931348623157e308


@dataclass(frozen=True)
class Check:
    """A check of every row.

    Attributes:
        column: that it looks at.
        expectation: class name in `great_expectations.expectations`.
        reason: what is wrong with a row that fails, and the remedy.
        arguments: of the expectation.
        where: rows that it looks at, as pandas' `DataFrame.query` spells it; None for all.
    """

    column: str
    expectation: str
    reason: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    where: str | None = None


@dataclass(frozen=True)
class Suite:
    """The checks of one kind of table.

    Attributes:
        name: of the table.
        texts: columns that hold text; anything else in them is an error.
        numbers: columns that hold numbers; anything else in them is an error.
        checks: in the order in which their reasons are given.
        optional: columns that may be absent, with their checks.
    """

    name: str
    texts: tuple[str, ...]
    numbers: tuple[str, ...]
    checks: tuple[Check, ...]
    optional: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that must be there."""
        return tuple(name for name in (*self.texts, *self.numbers) if name not in self.optional)


def present(column: str, where: str | None = None) -> Check:
    """A value of the column's type is there."""
    reason = f'"{column}" is missing; fill it in or delete the row'
    return Check(column, "ExpectColumnValuesToNotBeNull", reason, where=where)


def filled(column: str, where: str | None = None) -> tuple[Check, Check]:
    """A text is there and says something."""
    reason = f'"{column}" is empty; fill it in or delete the row'
    says = Check(column, "ExpectColumnValuesToMatchRegex", reason, {"regex": r"\S"}, where)
    return present(column, where), says


def one_of(column: str, values: tuple[str, ...]) -> Check:
    """The value is one of a few."""
    reason = f'"{column}" is none of {", ".join(values)}; correct it'
    return Check(column, "ExpectColumnValuesToBeInSet", reason, {"value_set": list(values)})


def matches(column: str, regex: str, form: str) -> Check:
    """The text has a form."""
    reason = f'"{column}" is not {form}; correct it'
    return Check(column, "ExpectColumnValuesToMatchRegex", reason, {"regex": regex})


def between(column: str, least: float, most: float = _LARGEST, where: str | None = None) -> Check:
    """The number lies within bounds, which also makes it finite."""
    bounds = (
        "finite" if least == -_LARGEST else f"at least {least:g}" if most == _LARGEST else f"in [{least:g}, {most:g}]"
    )
    reason = f'"{column}" is not {bounds}; look for the step that computed it'
    return Check(column, "ExpectColumnValuesToBeBetween", reason, {"min_value": least, "max_value": most}, where)


def finite(column: str) -> Check:
    """The number is neither infinite nor missing where it is checked."""
    return between(column, -_LARGEST)


def unique(column: str) -> Check:
    """No two rows have the same value."""
    reason = f'"{column}" is there twice; keep one of the rows'
    return Check(column, "ExpectColumnValuesToBeUnique", reason)


MEMORIES = Suite(
    name="memories",
    texts=(
        "id",
        "kind",
        "text",
        "messages",
        "question",
        "answer",
        "label",
        "source",
        "time",
        "digest",
        "flags",
        "masked",
    ),
    numbers=("line",),
    checks=(
        *filled("id"),
        unique("id"),
        one_of("kind", ("text", "chat", "qa", "label")),
        present("kind"),
        *filled("text", 'kind == "text" or kind == "label"'),
        *filled("label", 'kind == "label"'),
        *filled("question", 'kind == "qa"'),
        *filled("answer", 'kind == "qa"'),
        present("messages"),
        Check(
            "messages",
            "ExpectColumnValuesToMatchRegex",
            '"messages" holds no turn of the assistant; complete the conversation or delete the row',
            {"regex": r'^\[\{.*"role": "assistant"'},
            'kind == "chat"',
        ),
        *filled("source"),
        present("line"),
        between("line", 1),
        present("time"),
        matches("time", r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$", "a time like 2026-01-31T08:00:00Z"),
        present("digest"),
        matches("digest", r"^[0-9a-f]{64}$", "a SHA-256"),
        unique("digest"),
    ),
)

TEACHER_SAMPLES = Suite(
    name="teacher_samples",
    texts=("kind", "question", "answer"),
    numbers=("context", "agreement"),
    checks=(
        present("context"),
        between("context", 0),
        *filled("kind"),
        present("question"),
        *filled("answer"),
        present("agreement"),
        between("agreement", 0, 1),
    ),
)

DREAMS = Suite(
    name="dreams",
    texts=("id", "text"),
    numbers=("score", "reward"),
    checks=(*filled("id"), unique("id"), *filled("text"), finite("score"), finite("reward")),
    optional=("score", "reward"),
)

METRICS = Suite(
    name="metrics",
    texts=("name", "unit"),
    numbers=("value",),
    checks=(
        *filled("name"),
        unique("name"),
        present("value"),
        finite("value"),
        between("value", 0, 1, 'unit == "share"'),
    ),
)

SUITES: dict[str, Suite] = {suite.name: suite for suite in (MEMORIES, TEACHER_SAMPLES, DREAMS, METRICS)}


def suite_named(name: str) -> Suite:
    """A suite by its name.

    Raises:
        KeyError: there is none.
    """
    if name not in SUITES:
        raise KeyError(f"no suite {name!r}; use one of {', '.join(SUITES)}")
    return SUITES[name]
