"""HTML that is escaped by construction: text becomes markup only through `element`."""

from __future__ import annotations

import base64
import hashlib
import html
import re

_VOID = {"meta", "br", "rect", "line", "circle", "polyline"}
# Not allowed in HTML, and some of them end a string for a careless reader.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")

_LONG = 400


class Html(str):
    """Markup that needs no more escaping."""

    __slots__ = ()


Child = str | int | Html | None


def escape(text: object) -> Html:
    """Return text as markup that shows it; `Html` stays what it is."""
    if isinstance(text, Html):
        return text
    return Html(html.escape(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(text)), quote=True))


def join(*parts: Child) -> Html:
    """Return the parts one after the other, plain text escaped and None left out."""
    return Html("".join(escape(part) for part in parts if part is not None))


def element(name: str, /, *children: Child, **attributes: str | float | bool | None) -> Html:
    """Return an element; children and attribute values that are plain text are escaped.

    Args:
        name: of the tag.
        children: None is left out.
        attributes: `class_` is `class`, `data_label` is `data-label`; None and False leave an attribute out.
    """
    shown = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(value)}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in _VOID:
        return Html(f"<{name}{shown}>" if name in ("meta", "br") else f"<{name}{shown}/>")
    return Html(f"<{name}{shown}>{join(*children)}</{name}>")


def page(title: str, body: Html, style: str, script: str = "") -> str:
    """Return a whole page that loads nothing and runs nothing but `script`.

    The security policy allows this one script by its digest, so that markup which slipped through would still be inert.

    Args:
        title: plain text.
        body: of the page.
        style: CSS of our own.
        script: JavaScript of our own.
    """
    allowed = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        allowed += f"; script-src 'sha256-{digest}'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=allowed),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Html(style)),
    )
    content = element("body", body, element("script", Html(script)) if script else None)
    return f"<!doctype html>\n{element('html', head, content, lang='en')}\n"


def table(headings: list[str], rows: list[list[Child]], class_: str = "stack", numbers: tuple[int, ...] = ()) -> Html:
    """Return a table that becomes a list of cards on a narrow screen.

    Args:
        headings: of the columns.
        rows: cells.
        class_: `stack` makes cards when narrow.
        numbers: columns that are set flush right.
    """
    kinds = ["number" if column in numbers else None for column in range(len(headings))]
    head = element(
        "tr", *(element("th", text, scope="col", class_=kind) for text, kind in zip(headings, kinds, strict=True))
    )
    lines = [
        element(
            "tr",
            *(
                element("td", cell, data_label=heading, class_=kind)
                for heading, cell, kind in zip(headings, row, kinds, strict=True)
            ),
        )
        for row in rows
    ]
    return element(
        "div", element("table", element("thead", head), element("tbody", *lines), class_=class_), class_="wide"
    )


def passage(text: str | None) -> Html:
    """Return words of a model or a memory; of many the beginning is shown, and all of them after a click."""
    if text is None or len(text) <= _LONG:
        return said(text)
    return element("details", element("summary", said(text[: _LONG // 2] + " …")), said(text), class_="long")


def said(text: str | None) -> Html:
    """Return words of a model or a memory: shown as they are, in their own direction."""
    return element("span", text, class_="said", dir="auto") if text else element("span", "(nothing)", class_="dim")
