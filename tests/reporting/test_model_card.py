"""The README of a checkpoint says where it comes from, and nothing that a memory said."""

from typing import Any

import pytest
import yaml

from sleep_pipeline.evaluation.gate import GateSettings, decide
from sleep_pipeline.reporting import model_card

MANIFEST: dict[str, Any] = {
    "night": 3,
    "parent": 2,
    "base_model": {"name": "acme/small-1b", "digest": "abc123"},
    "memory": {"levels": [{"num_slots": 8, "rank": 32}]},
    "scores": {"recall_gain": {"value": 0.9, "low": 0.8, "high": 0.95, "samples": 48}, "forgetting": 0.01, "odd": None},
    "decision": decide({"forgetting_of_questions": 0.01}, GateSettings()).to_json(),
    "memories": 27,
    "settings": {"seed": {"steps": 300}},
    "command": "kedro run --pipelines=sleep",
    "git_commit": "b490bed",
    "seconds": 266.4,
    "finished": "2026-11-25T03:41:07+00:00",
    "machine": "x86_64, 2 threads",
    "software": {"torch": "2.15.0"},
    "weights_sha256": "ff00",
}


def front_matter(card: str) -> dict[str, Any]:
    _, front, _ = card.split("---\n", 2)
    return dict(yaml.safe_load(front))


def test_the_card_names_base_parent_scores_and_how_to_do_it_again() -> None:
    card = model_card(MANIFEST)
    assert front_matter(card)["base_model"] == "acme/small-1b"
    for part in (
        "# Night 3\n",
        "What `acme/small-1b` has learned asleep, up to night 3, which grew from night 2.",
        "learned from 27 memories",
        "| recall\\_gain | 0.900 | 0.800 to 0.950 | 48 |",
        "| odd | not measured |  |  |",
        "Rejected by the gate.",
        "| forgetting\\_of\\_questions | 0.010 | below 0.05 | yes |",
        "- Command: `kedro run --pipelines=sleep`",
        "- Time: 266 s on x86\\_64, 2 threads",
        '"num_slots": 8',
    ):
        assert part in card


def test_of_what_nothing_was_asked_no_score_is_claimed() -> None:
    nothing = {"value": 0.0, "low": 0.0, "high": 0.0, "samples": 0}
    card = model_card({**MANIFEST, "scores": {"backward_transfer": nothing, "lost": {**nothing, "samples": 9}}})
    assert "| backward\\_transfer | not measured |  | 0 |" in card
    assert "| lost | 0.000 |  | 9 |" in card


def test_only_the_night_and_the_base_model_are_needed() -> None:
    card = model_card({"night": 1, "base_model": {"name": "m"}})
    assert "up to night 1, its first." in card
    assert "## Decision" not in card
    with pytest.raises(KeyError, match="base_model"):
        model_card({"night": 1})


def test_names_cannot_break_out_of_their_place() -> None:
    name = 'x"\n---\n# Owned `code` | <script>'
    card = model_card({**MANIFEST, "base_model": {"name": name}, "scores": {name: 1.0}, "command": "run ``a``"})
    assert front_matter(card)["base_model"] == " ".join(name.split())
    assert "\n# Owned" not in card
    assert "``` run ``a`` ```" in card
    assert 'What `` x" --- # Owned `code` | <script> `` has learned' in card
    assert '| x" --- \\# Owned \\`code\\` \\| \\<script\\> | 1.000 |' in card
