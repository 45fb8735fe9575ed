"""Every dream beside its context, sortable by one script that the page's own policy names."""

import base64
import hashlib
import html
import re
from dataclasses import replace

from sleep_pipeline.reporting import DreamRow, render_dreams

DREAMS = [
    DreamRow("rewrite", "a context", "a dream", 0.5, "top", 0.4, 0.6, 1.0),
    DreamRow("questions", "another", "<script>alert(1)</script>", None),
    DreamRow("rewrite", "c " * 300, "short", float("nan"), "random", 0.5, 0.5, 0.0),
]


def test_every_dream_stands_with_its_score_trial_and_reward() -> None:
    page = render_dreams(DREAMS, 3)
    assert "3 dreams, 2 tried, 1 helped." in page
    rows = re.findall(r"<tr>(.*?)</tr>", page[page.index("<tbody>") :], re.S)
    cells = [[re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row, re.S)] for row in rows]
    assert cells[0] == ["rewrite", "a context", "a dream", "0.5", "top", "40 % → 60 %", "1"]
    assert cells[1][3:] == ["–", "–", "–", "–"]
    assert cells[2][3] == "–"


def test_numbers_are_sorted_as_numbers_and_what_is_missing_has_no_key() -> None:
    page = render_dreams(DREAMS, 3)
    numeric = re.findall(r"<th[^>]* data-numbers><button[^>]*>(\w+)</button>", page)
    assert numeric == ["Score", "Trial", "Reward"]
    assert numeric == re.findall(r'<th[^>]* class="number"[^>]*><button[^>]*>(\w+)</button>', page)
    keys = re.findall(r'<td data-label="Score" data-key="([^"]*)"', page)
    assert [key and float(key) for key in keys] == [0.5, "", ""]


def test_only_our_script_may_run() -> None:
    page = render_dreams(DREAMS, 3)
    scripts = re.findall(r"<script>(.*?)</script>", page, re.S)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    policy = html.unescape(re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)[0])
    assert policy.startswith("default-src 'none'")
    assert re.findall(r"script-src ([^;]+)", policy) == [f"'sha256-{digest}'"]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_a_long_context_is_folded_but_whole() -> None:
    page = render_dreams(DREAMS, 3)
    assert page.count("<details") == 1
    assert DREAMS[2].context in page


def test_what_was_tried_is_not_said_to_be_kept() -> None:
    page = render_dreams(DREAMS, 3)
    assert re.findall(r'<td data-label="Tried" data-key="([^"]*)"', page) == ["top", "", "random"]
    assert "Kept" not in page


def test_a_night_without_dreams_gives_a_page() -> None:
    assert "0 dreams, 0 tried, 0 helped." in render_dreams([], 1)


def test_likelihoods_are_shown_in_nats_not_in_per_cent() -> None:
    dream = DreamRow("questions", "context", "text", score=1.0, kept="top", before=-3.25, after=-0.5, reward=1.0)
    assert "-3.25 nats → -0.50 nats" in render_dreams([dream], 1, shares=False)
    unknown = replace(dream, before=float("nan"))
    assert "– → -0.50 nats" in render_dreams([unknown], 1, shares=False)
