"""Nodes of the `collect` pipeline."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sleep_pipeline.memories.settings import CollectSettings
from sleep_pipeline.night_model import MachineSettings

# Kedro evaluates the annotations of nodes when a command starts, so these stand for types whose import is slow.
Table = Any  # pandas.DataFrame

_DAY = re.compile(r"(?:^|/)day_(\d+)(?:/|$)")


class NothingNewError(RuntimeError):
    """There is nothing to learn tonight."""


def day_of(source: str) -> int:
    """The night from which a memory may be learned: N for what lies in a folder `day_N`, else 0."""
    found = _DAY.search(source)
    return int(found.group(1)) if found else 0


def collect_memories(
    collect: CollectSettings, night: int, memories_folder: Path, models_folder: Path
) -> tuple[Table, Table, dict[str, Any], str]:
    """Read what is new, mask it, drop what was said before, and set aside what is bad.

    Returns:
        The memories; the quarantine, a row for everything that was left out, with its reason; a summary; and the
        checks as a page.

    Raises:
        NothingNewError: no good new memory.
        TooManyFailures: more bad rows than `max_bad_share`.
    """
    import pandas as pd

    from sleep_pipeline.memories.duplicates import drop_near_duplicates
    from sleep_pipeline.memories.reading import new_memories, read_folder, rejected_duplicates
    from sleep_pipeline.memories.records import memories_to_frame, rejected_to_frame
    from sleep_pipeline.registry import NightRegistry
    from sleep_pipeline.validation.page import render_page
    from sleep_pipeline.validation.rows import REASON, TooManyFailures, validate_rows

    known = NightRegistry(models_folder).known_memories()
    reading = read_folder(memories_folder, collect)
    fresh = [memory for memory in new_memories(reading, known) if day_of(memory.source) <= night]
    unique = drop_near_duplicates(fresh, collect.duplicates)
    refused = [item for item in reading.rejected if day_of(item.source) <= night]
    seen = len(unique.memories) + len(refused)
    if len(refused) > collect.max_bad_share * seen:
        first = "; ".join(map(str, refused[:3]))
        raise TooManyFailures(
            f"memories: {len(refused)} of {seen} could not be read, more than the share {collect.max_bad_share:g} that "
            f"is allowed ({first}); correct them, or raise collect.max_bad_share"
        )
    checked = validate_rows(memories_to_frame(unique.memories), "memories", collect.max_bad_share)
    said_twice = [item for item in (*reading.duplicates, *unique.duplicates) if day_of(item.source) <= night]
    out = rejected_to_frame([*refused, *rejected_duplicates(said_twice)])
    failed = checked.bad.assign(excerpt="")[["source", "line", REASON, "excerpt"]].rename(columns={REASON: "reason"})
    quarantine = pd.concat([out, failed.astype(out.dtypes.to_dict())], ignore_index=True) if len(failed) else out
    if not len(checked.good):
        raise NothingNewError(
            f"{memories_folder} holds no new memory for night {night} ({len(known)} are learned, {len(quarantine)} are "
            "in quarantine): put files into it, or see the quarantine for what is wrong with those that are there"
        )
    summary = {
        "memories": len(checked.good),
        "known_before": len(known),
        "files": len(reading.files),
        "quarantined": len(quarantine),
        "masked": int((checked.good["masked"] != "{}").sum()),
        "flagged": int((~checked.good["flags"].isin(["", "[]"])).sum()),
        "kinds": {str(kind): int(count) for kind, count in checked.good["kind"].value_counts().items()},
        "folder_digest": reading.digest(),
    }
    return checked.good, quarantine, summary, render_page([checked], f"Memories of night {night}")


def make_contexts(memories: Table, model: str, machine: MachineSettings, collect: CollectSettings) -> Table:
    """Pack the memories into texts that fit before a question in the model's window."""
    from sleep_pipeline.language_model import load_tokenizer
    from sleep_pipeline.memories.contexts import contexts_to_frame, pack_contexts
    from sleep_pipeline.memories.records import memories_from_frame

    tokenizer = load_tokenizer(model, trust_remote_code=machine.trust_remote_code)
    packed = pack_contexts(memories_from_frame(memories), tokenizer, collect.context_tokens, collect.together)
    return contexts_to_frame(packed)
