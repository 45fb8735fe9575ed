"""Charts as markup: a curve over the nights, the matrix R as a heat map, bars of time, the slots of the memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sleep_pipeline.evaluation.retention import Floats, Retention
from sleep_pipeline.reporting.markup import Html, element, join

_FIRST, _LATEST = 5, 30
"""Nights of a long life that the matrix R shows: its cells grow with the square of them, to megabytes in a year."""

_ROOMY = 20
"""Nights up to which its cells are large; more of them would not fit beside each other on a page or a sheet."""

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 320.0, 150.0, 44.0, 60.0, 12.0, 22.0


def percent(share: float | None, digits: int = 0) -> str:
    """Return a share of 1 as a percentage; a dash for what was not measured."""
    if share is None or not math.isfinite(share):
        return "–"
    # Adding nothing makes a zero of a negative zero.
    return f"{round(100 * share, digits) + 0.0:.{digits}f} %"


def duration(seconds: float | None) -> str:
    """Return a time in its two largest units; a dash for what was not measured."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def curve(
    title: str,
    points: Sequence[tuple[int, float | None]],
    show: Callable[[float | None], str],
    top: float | None = None,
) -> Html:
    """Return a figure with one curve; where a value is missing the curve has a gap.

    Args:
        title: what is shown.
        points: night and value.
        show: turns a value into words.
        top: end of the scale; None takes the next round number above the values.
    """
    known = [(night, value) for night, value in points if value is not None and math.isfinite(value)]
    if not known:
        return element("figure", element("figcaption", title), element("p", "not measured", class_="note"))
    low = min(0.0, *(value for _, value in known)) if len(known) > 1 else min(0.0, known[0][1])
    high = top if top is not None else _round_up(max(value for _, value in known))
    low = -_round_up(-low) if low < 0 else 0.0
    first, last = points[0][0], points[-1][0]

    def x(night: int) -> float:
        share = 0.5 if last == first else (night - first) / (last - first)
        return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(value: float) -> float:
        return round(_TOP + (high - value) / ((high - low) or 1.0) * (_HEIGHT - _TOP - _BOTTOM), 1)

    lines = [
        join(
            element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y(value), y2=y(value), class_="grid"),
            element("text", show(value), x=_LEFT - 6, y=y(value) + 4, text_anchor="end"),
        )
        for value in sorted({low, 0.0, (low + high) / 2 if low == 0 else 0.0, high})
    ]
    ticks = _ticks([night for night, _ in points])
    nights = [element("text", night, x=x(night), y=_HEIGHT - 6, text_anchor="middle") for night in ticks]
    curves = [
        element("polyline", points=" ".join(f"{x(night)},{y(value)}" for night, value in run), class_="curve")
        for run in _runs(points)
        if len(run) > 1
    ]
    dots = [
        element(
            "g",
            element("title", f"night {night}: {show(value)}"),
            element("circle", cx=x(night), cy=y(value), r=4 if len(known) <= 30 else 2.5, class_="dot"),
        )
        for night, value in known
    ]
    end, value = known[-1]
    label = element("text", show(value), x=x(end) + 8, y=y(value) + 4, class_="last")
    words = f"{title}: " + ", ".join(f"night {night} {show(value)}" for night, value in known)
    drawing = element(
        "svg",
        *lines,
        *nights,
        *curves,
        *dots,
        label,
        viewBox=f"0 0 {_WIDTH:g} {_HEIGHT:g}",
        role="img",
        aria_label=words,
    )
    return element("figure", element("figcaption", title), drawing)


def _round_up(value: float) -> float:
    """Return the next of 1, 2, 5, 10, 20 ... times a power of ten, not below `value`."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value * (1 - 1e-12))


def _ticks(nights: Sequence[int]) -> list[int]:
    step = max(1, math.ceil(len(nights) / 8))
    return [*nights[::-step]][::-1]


def _runs(points: Sequence[tuple[int, float | None]]) -> list[list[tuple[int, float]]]:
    runs: list[list[tuple[int, float]]] = [[]]
    for night, value in points:
        if value is None or not math.isfinite(value):
            runs.append([])
        else:
            runs[-1].append((night, value))
    return [run for run in runs if run]


def heat_map(retention: Retention) -> Html:
    """Return R as a table with a colour a cell; every cell carries its number.

    Of a long life the first nights and the latest are shown, and a note says so; the means are over all.
    """
    means = retention.means()
    nights = _shown(len(retention))
    head = element(
        "tr",
        element("th", "after ↓ of →", scope="col"),
        *(_heading(retention, j) for j in nights),
        element("th", "mean", scope="col"),
    )
    rows = []
    for i in nights:
        if i is None:
            rows.append(element("tr", element("th", "…", scope="row"), *(element("td", "") for _ in (*nights, "mean"))))
            continue
        cells = (_cell(retention, means, i, j) for j in nights)
        mean = element("th", f"{100 * means[i, : i + 1].mean():.0f}", scope="row", class_="mean")
        rows.append(element("tr", element("th", retention.nights[i], scope="row"), *cells, mean))
    style = "heat" if len(nights) <= _ROOMY else "heat dense"
    table = element("table", element("thead", head), element("tbody", *rows), class_=style)
    note = None
    if None in nights:
        words = f"Nights {retention.nights[_FIRST]} to {retention.nights[-_LATEST - 1]} are left out of the table"
        note = element("p", f"{words}; means and measures are over all nights.", class_="note")
    return join(element("div", table, class_="wide"), note)


def _shown(nights: int) -> list[int | None]:
    """Places of the nights that the matrix shows; None stands where some are left out."""
    if nights <= _FIRST + _LATEST + 1:
        return [*range(nights)]
    return [*range(_FIRST), None, *range(nights - _LATEST, nights)]


def _heading(retention: Retention, j: int | None) -> Html:
    if j is None:
        return element("th", "…", scope="col")
    night, asked = retention.nights[j], len(retention.scores[j][j])
    return element("th", night, scope="col", title=f"{asked} questions of night {night}")


def _cell(retention: Retention, means: Floats, i: int, j: int | None) -> Html:
    if j is None:
        return element("td", "")
    if j > i:
        return element("td", "", aria_label="not asked yet")
    words = f"{percent(means[i, j], 1)} of night {retention.nights[j]}'s questions"
    return element(
        "td",
        f"{100 * means[i, j]:.0f}",
        class_="own" if i == j else None,
        style=f"background: rgb(var(--heat) / {0.04 + 0.52 * means[i, j]:.2f})",
        title=f"after night {retention.nights[i]}: {words}",
    )


def bars(seconds: Mapping[str, float]) -> Html:
    """Return phases with their times as bars on one scale."""
    longest = max(seconds.values(), default=0.0) or 1.0
    parts = []
    for phase, value in seconds.items():
        bar = element("div", class_="bar", style=f"width: {100 * max(0.0, value) / longest:.1f}%")
        parts += [element("span", phase), element("div", bar, class_="track", aria_hidden="true")]
        parts.append(element("span", duration(value), class_="number"))
    return element("div", *parts, class_="bars")


def slots(levels: Sequence[Sequence[Mapping[str, Any]]], night: int) -> Html:
    """Return every level's slots with their state and the night that filled them; those of `night` stand out.

    Args:
        levels: `SlotTable.to_dict()["levels"]`, fastest level first.
        night: of the report.
    """
    parts: list[Html] = []
    for number, level in enumerate(levels, start=1):
        used = sum(slot["state"] == "active" for slot in level)
        name = f"Level {number}" + (", the slowest" if number == len(levels) and number > 1 else "")
        parts.append(element("h3", f"{name}: {used} of {len(level)} slots in use"))
        parts.append(element("ol", *(_slot(index, slot, night) for index, slot in enumerate(level)), class_="slots"))
    key = [
        element("span", element("span", shown, class_=f"slot {kind}"), meaning)
        for kind, shown, meaning in (
            ("active", "4", " filled in night 4"),
            ("active tonight", str(night), " filled tonight"),
            ("training", "4", " in training"),
            ("free", "·", " free"),
        )
    ]
    return join(*parts, element("p", *key, class_="key note"))


def _slot(index: int, slot: Mapping[str, Any], night: int) -> Html:
    state, filled = str(slot["state"]), slot.get("night")
    words = f"slot {index}: {state}"
    if state != "free":
        words += f", night {filled}" + (f", from {slot['origin']}" if slot.get("origin") else "")
    kind = state + (" tonight" if state != "free" and filled == night else "")
    shown = "·" if state == "free" else "?" if filled is None else str(filled)
    return element("li", shown, class_=f"slot {kind}", title=words, aria_label=words)
