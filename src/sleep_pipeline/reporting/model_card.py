"""The README of a night's checkpoint, made from its manifest."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import yaml

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#])")


def model_card(manifest: Mapping[str, Any]) -> str:
    """Return a model card in Markdown with the front matter that hubs read.

    It names no memory and quotes none: a card travels further than the memories may.

    Args:
        manifest: of the checkpoint. Read where present: `night`, `parent`, `base_model` (`name`, `digest`), `memory`
            (settings), `scores` (name -> number, or `value`, `low`, `high`, `samples`), `decision`
            (`Decision.to_json()`), `memories` (how many), `settings`, `command`, `git_commit`, `seconds`, `finished`,
            `machine`, `software` (name -> version), `weights_sha256`.

    Raises:
        KeyError: `night` or `base_model` is missing.
    """
    night, base = manifest["night"], manifest["base_model"]
    front = {
        "base_model": " ".join(str(base["name"]).split()),
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["sleep-pipeline", "continual-learning"],
    }
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False).strip()}\n---",
        f"# Night {night}",
        _origin(manifest),
        _section("Decision", _decision(manifest.get("decision"))),
        _section("Scores", _scores(manifest.get("scores"))),
        _section("How it was made", _facts(manifest)),
        _section("Settings", _settings(manifest)),
        _section(
            "Limits",
            "It repeats what its memories said, true or not. Scores are of one run; intervals are over questions.",
        ),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _plain(text: Any) -> str:
    """Return text that Markdown shows as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(str(text).split()))


def _code(text: Any) -> str:
    """Return text as inline code, fenced by more backticks than it holds."""
    line = " ".join(str(text).split())
    fence = "`" * (max((len(run) for run in re.findall("`+", line)), default=0) + 1)
    pad = " " if "`" in line else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def _section(title: str, content: str) -> str:
    return f"## {title}\n\n{content}" if content else ""


def _origin(manifest: Mapping[str, Any]) -> str:
    parent, base = manifest.get("parent") or 0, manifest["base_model"]
    learned = manifest.get("memories")
    words = f"What {_code(base['name'])} has learned asleep"
    words += f", up to night {manifest['night']}" + (f", which grew from night {parent}." if parent else ", its first.")
    if isinstance(learned, int):
        words += f" This night learned from {learned} {'memory' if learned == 1 else 'memories'}."
    digest = base.get("digest")
    return words + (
        f"\n\nThe folder holds adapters, not the base model, which has the digest {_code(digest)}." if digest else ""
    )


def _decision(decision: Mapping[str, Any] | None) -> str:
    if not decision:
        return ""
    rows = ["| check | value | limit | passed |", "|---|---|---|---|"]
    for check in decision.get("checks", ()):
        value = "not measured" if check["value"] is None else f"{check['value']:.3f}"
        rows.append(
            f"| {_plain(check['name'])} | {value} | {_plain(check['limit'])} | {'yes' if check['passed'] else 'no'} |"
        )
    return f"{'Promoted' if decision['promote'] else 'Rejected'} by the gate.\n\n" + "\n".join(rows)


def _scores(scores: Mapping[str, Any] | None) -> str:
    if not scores:
        return ""
    rows = ["| score | value | 95 % interval | questions |", "|---|---|---|---|"]
    for name, score in scores.items():
        record = score if isinstance(score, Mapping) else {"value": score}
        unknown = record.get("value") is None or record.get("samples") == 0
        value = "not measured" if unknown else f"{record['value']:.3f}"
        # Answers that are all alike tell no interval of a difference.
        wide = not unknown and {"low", "high"} <= record.keys() and record["low"] < record["high"]
        interval = f"{record['low']:.3f} to {record['high']:.3f}" if wide else ""
        rows.append(f"| {_plain(name)} | {value} | {interval} | {record.get('samples', '')} |")
    return "\n".join(rows)


def _facts(manifest: Mapping[str, Any]) -> str:
    lines = []
    if command := manifest.get("command"):
        lines.append(f"Command: {_code(command)}")
    if commit := manifest.get("git_commit"):
        lines.append(f"Commit: {_code(commit)}")
    if (seconds := manifest.get("seconds")) is not None:
        machine = manifest.get("machine")
        lines.append(f"Time: {seconds:.0f} s" + (f" on {_plain(machine)}" if machine else ""))
    if finished := manifest.get("finished"):
        lines.append(f"Finished: {_plain(finished)}")
    if software := manifest.get("software"):
        lines.append(
            "Software: " + ", ".join(f"{_plain(name)} {_plain(version)}" for name, version in software.items())
        )
    if digest := manifest.get("weights_sha256"):
        lines.append(f"SHA-256 of the weights: {_code(digest)}")
    return "\n".join(f"- {line}" for line in lines)


def _settings(manifest: Mapping[str, Any]) -> str:
    found = {name: manifest[name] for name in ("memory", "settings") if manifest.get(name)}
    if not found:
        return ""
    text = json.dumps(found, indent=2, default=str, ensure_ascii=False)
    fence = "`" * max(3, max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    return f"{fence}json\n{text}\n{fence}"
