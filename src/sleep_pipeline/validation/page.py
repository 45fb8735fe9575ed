"""The results of checks as one HTML page that opens without a network.

Great Expectations' own pages load their styles and scripts from elsewhere, so this one is written here.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from sleep_pipeline.validation.rows import REASON, Checked

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 70rem; margin: 2rem auto;
  padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1.5rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .7rem; border-bottom: 1px solid #ddd; }
th { background: #f4f4f4; } td.n { text-align: right; font-variant-numeric: tabular-nums; }
tr.bad td { background: #fdecea; } code { overflow-wrap: anywhere; }
"""


def render_page(checked: Sequence[Checked], title: str = "Checks of the night", max_rows: int = 50) -> str:
    """The page.

    Args:
        checked: one for each table.
        title: of the page.
        max_rows: bad rows that are shown of each table; how many there are is always said.
    """
    parts = [f"<h1>{escape(title)}</h1>", _overview(checked)]
    for item in checked:
        parts.append(f"<h2>{escape(item.suite)}</h2>")
        parts.append(_checks(item))
        if len(item.bad):
            parts.append(_bad_rows(item, max_rows))
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f"<style>{_STYLE}</style></head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _table(head: Sequence[str], rows: Sequence[tuple[bool, Sequence[str | int]]]) -> str:
    """Rows of (is it bad, cells); numbers stand right."""
    lines = ["<table>", "<tr>" + "".join(f"<th>{escape(name)}</th>" for name in head) + "</tr>"]
    for bad, cells in rows:
        told = "".join(
            f'<td class="n">{cell:,}</td>' if isinstance(cell, int) else f"<td>{escape(cell)}</td>" for cell in cells
        )
        lines.append(f"<tr{' class=' + chr(34) + 'bad' + chr(34) if bad else ''}>{told}</tr>")
    return "\n".join([*lines, "</table>"])


def _overview(checked: Sequence[Checked]) -> str:
    rows = [
        (bool(len(item.bad)), (item.suite, item.rows, len(item.good), len(item.bad), f"{item.success_share:.1%}"))
        for item in checked
    ]
    return _table(("table", "rows", "passed", "failed", "share passed"), rows)


def _checks(item: Checked) -> str:
    rows: list[tuple[bool, Sequence[str | int]]] = []
    for result in item.results:
        check = result.check
        told = ", ".join(f"{name}={value!r}" for name, value in check.arguments.items())
        where = f" where {check.where}" if check.where else ""
        rows.append(
            (
                result.failed > 0,
                (check.column, f"{check.expectation}({told}){where}", result.looked_at, result.failed),
            )
        )
    return _table(("column", "expectation", "rows looked at", "failed"), rows)


def _bad_rows(item: Checked, max_rows: int) -> str:
    placed = {"source", "line"} <= set(item.bad.columns)
    rows: list[tuple[bool, Sequence[str | int]]] = []
    for at, row in item.bad.head(max_rows).iterrows():
        rows.append((False, (f"{row['source']}:{row['line']}" if placed else f"row {at}", str(row[REASON]))))
    more = f"<p>and {len(item.bad) - max_rows:,} more</p>" if len(item.bad) > max_rows else ""
    return _table(("row", "reason"), rows) + more
