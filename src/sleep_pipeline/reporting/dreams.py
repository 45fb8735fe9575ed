"""Every dream of a night beside the context it came from, in one page that sorts itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sleep_pipeline.reporting.charts import percent
from sleep_pipeline.reporting.markup import Child, Html, element, page, passage
from sleep_pipeline.reporting.style import STYLE

# Sorts the table by the column whose heading is clicked, the other way round when clicked again.
_SCRIPT = """
for (const button of document.querySelectorAll("button.sort")) button.addEventListener("click", () => {
  const heading = button.closest("th"), body = heading.closest("table").tBodies[0];
  const up = heading.getAttribute("aria-sort") !== "ascending", column = heading.cellIndex;
  const key = row => row.cells[column].dataset.key ?? row.cells[column].textContent;
  const rows = [...body.rows].map((row, place) => [key(row), place, row]);
  rows.sort(([a, i], [b, j]) => {
    if ((a === "") !== (b === "")) return a === "" ? 1 : -1;
    const order = "numbers" in heading.dataset ? a - b : a.localeCompare(b);
    return (up ? order : -order) || i - j;
  });
  for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", up ? "ascending" : "descending");
  body.append(...rows.map(([, , row]) => row));
});
""".strip()

_COLUMNS = (
    ("Kind", False),
    ("Context", False),
    ("Dream", False),
    ("Score", True),
    ("Tried", False),
    ("Trial", True),
    ("Reward", True),
)


@dataclass(frozen=True)
class DreamRow:
    """One dream.

    Attributes:
        kind: what the model was asked to write.
        context: what it dreamt of.
        text: what it wrote.
        score: importance by its gradient; None if it was not scored.
        kept: why it was tried (`top`, `random`), or empty if it was not.
        before: score of what the trial is compared with.
        after: score of the copies that learned the dream.
        reward: of the trial; None if it was not tried.
    """

    kind: str
    context: str
    text: str
    score: float | None = None
    kept: str = ""
    before: float | None = None
    after: float | None = None
    reward: float | None = None


def render_dreams(dreams: Sequence[DreamRow], night: int, shares: bool = True) -> str:
    """Return the page of a night's dreams; it works without its script too, in the order given.

    Args:
        dreams: of the night.
        night: its number.
        shares: whether trials are measured in shares of the answers, or in nats a token.
    """
    tried = [dream for dream in dreams if dream.reward is not None]
    helped = sum((dream.reward or 0) > 0 for dream in tried)
    head = element(
        "tr",
        *(
            element(
                "th",
                element("button", name, type="button", class_="sort"),
                scope="col",
                class_="number" if numbers else None,
                data_numbers=numbers or None,
            )
            for name, numbers in _COLUMNS
        ),
    )
    rows = [_row(dream, shares) for dream in dreams]
    body = element(
        "main",
        element(
            "header",
            element("h1", f"Dreams of night {night}"),
            element(
                "p",
                f"{len(dreams)} dreams, {len(tried)} tried, {helped} helped. Those of the highest scores (top) were "
                "tried, and some at random. A trial shows what was to be expected without the dream and what its "
                "copies did; a reward takes more than chance. Click a heading to sort.",
            ),
        ),
        element(
            "section",
            element(
                "div",
                element("table", element("thead", head), element("tbody", *rows), class_="stack sortable"),
                class_="wide",
            ),
        ),
    )
    return page(f"Dreams of night {night}", body, STYLE, _SCRIPT)


def _row(dream: DreamRow, shares: bool) -> Html:
    trial: Child = "–"
    change = None
    if dream.before is not None and dream.after is not None:
        trial = " → ".join(_mark(mark, shares) for mark in (dream.before, dream.after))
        change = dream.after - dream.before
    cells: list[tuple[Child, str | None]] = [
        (dream.kind, None),
        (passage(dream.context), dream.context[:200]),
        (passage(dream.text), dream.text[:200]),
        (_shown(dream.score), _key(dream.score)),
        (dream.kept or "–", dream.kept),
        (trial, _key(change)),
        (_shown(dream.reward), _key(dream.reward)),
    ]
    return element(
        "tr",
        *(
            element("td", cell, data_label=name, data_key=key, class_="number" if numbers else None)
            for (name, numbers), (cell, key) in zip(_COLUMNS, cells, strict=True)
        ),
    )


def _mark(mark: float, shares: bool) -> str:
    if shares:
        return percent(mark)
    return f"{mark:.2f} nats" if math.isfinite(mark) else "–"


def _shown(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.3g}"


def _key(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else repr(float(value))
