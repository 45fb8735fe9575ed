"""Nodes of the `collect` pipeline."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sleep_pipeline.memories.settings import CollectSettings
from sleep_pipeline.night_model import MachineSettings
from sleep_pipeline.session import NothingToDo
from sleep_pipeline.validation.rows import TooManyFailures

logger = logging.getLogger(__name__)

# Kedro evaluates the annotations of nodes when a command starts, so these stand for types whose import is slow.
Table = Any  # pandas.DataFrame

_SHOWN = 3


class NothingNewError(NothingToDo):
    """There is nothing to learn tonight.

    Attributes:
        made: what was found all the same, by the name of its data set; the hook of the run writes it.
    """

    made: Mapping[str, Any] = MappingProxyType({})


class TooMuchBadError(TooManyFailures):
    """So much cannot be read that the night must not begin.

    Attributes:
        made: as in `NothingNewError`.
    """

    made: Mapping[str, Any] = MappingProxyType({})


def collect_memories(
    collect: CollectSettings, night: int, memories_folder: Path, models_folder: Path
) -> tuple[Table, Table, dict[str, Any], str]:
    """Read what is new, mask it, drop what was said before, and set aside what is bad.

    Returns:
        The memories; the quarantine, a row for everything that was left out, with its reason; a summary; and the
        checks as a page.

    Raises:
        NothingNewError: no good new memory.
        TooMuchBadError: more bad rows than `max_bad_share`.

    Both errors hold the quarantine and the page, so that the remedy they name is there.
    """
    import pandas as pd

    from sleep_pipeline.memories.reading import rejected_duplicates
    from sleep_pipeline.memories.records import memories_to_frame, rejected_to_frame
    from sleep_pipeline.memories.tonight import read_tonight, taken
    from sleep_pipeline.registry import BASE, NightRegistry
    from sleep_pipeline.validation.page import render_page
    from sleep_pipeline.validation.rows import REASON, validate_rows

    registry = NightRegistry(models_folder)
    known, champion = registry.known_memories(), registry.champion()
    tonight = read_tonight(memories_folder, collect, night, known)
    if far_off := tonight.far_off(night):
        day, source = next(iter(far_off.items()))
        logger.warning(
            "%s waits for night %d, and this is night %d (%d such folders in all): the N of a folder day_N is the "
            "number of the night that may learn it first, and no date; rename what shall be learned earlier",
            source,
            day,
            night,
            len(far_off),
        )
    checked = validate_rows(memories_to_frame(tonight.memories), "memories")
    out = rejected_to_frame([*tonight.refused, *rejected_duplicates(tonight.said_twice)])
    failed = checked.bad.assign(excerpt="")[["source", "line", REASON, "excerpt"]].rename(columns={REASON: "reason"})
    quarantine = pd.concat([out, failed.astype(out.dtypes.to_dict())], ignore_index=True) if len(failed) else out
    page = render_page([checked], f"Memories of night {night}")
    made = {"quarantine": quarantine, "memory_checks": page}
    problem = tonight.too_bad(collect.max_bad_share)
    if problem is None:
        try:
            checked.require(collect.max_bad_share)
        except TooManyFailures as error:
            problem = str(error)
    if problem is not None:
        bad = TooMuchBadError(
            f"{problem}; all of them stand in the night's quarantine.parquet below data/02_intermediate"
        )
        bad.made = made
        raise bad
    if not len(checked.good):
        waiting = tonight.waiting
        later = f", {len(waiting)} files wait for a later night, such as {waiting[0]}" if waiting else ""
        nothing = NothingNewError(
            f"{memories_folder} holds no new memory for night {night} ({len(known)} are learned, {len(quarantine)} are "
            f"in quarantine{later}): put files into it, or see in the night's quarantine.parquet below "
            "data/02_intermediate what is wrong with those that are there"
        )
        nothing.made = made
        raise nothing
    good = checked.good.iloc[taken(list(checked.good["source"]), collect.at_most)]
    left = len(checked.good) - len(good)
    if left:
        logger.info(
            "night %d takes %d new memories (collect.at_most), and %d wait for the next night", night, len(good), left
        )
    if len(quarantine):
        _tell_quarantine(night, quarantine, len(tonight.waiting))
    summary = {
        "memories": len(good),
        "left_for_later": left,
        "known_before": len(known),
        "files": len(tonight.reading.files),
        "quarantined": len(quarantine),
        "masked": int((good["masked"] != "{}").sum()),
        "flagged": int((~good["flags"].isin(["", "[]"])).sum()),
        "kinds": {str(kind): int(count) for kind, count in good["kind"].value_counts().items()},
        "folder_digest": tonight.reading.digest(),
        # By these a night that goes on sees whether it has still collected what is there.
        "parent": BASE if champion is None else champion.number,
        "sources": {file.source: file.digest for file in tonight.reading.files},
    }
    return good, quarantine, summary, page


def _tell_quarantine(night: int, quarantine: Table, waiting: int) -> None:
    from sleep_pipeline.memories.records import rejected_from_frame

    first = "; ".join(map(str, rejected_from_frame(quarantine.head(_SHOWN))))
    logger.warning(
        "%d rows and files are in quarantine on night %d, and %d files wait for a later one: %s%s. All of them stand "
        "in the night's quarantine.parquet below data/02_intermediate",
        len(quarantine),
        night,
        waiting,
        first,
        "; ..." if len(quarantine) > _SHOWN else "",
    )


def make_contexts(memories: Table, model: str, machine: MachineSettings, collect: CollectSettings) -> Table:
    """Pack the memories into texts that fit before a question in the model's window."""
    from sleep_pipeline.language_model import load_tokenizer
    from sleep_pipeline.memories.contexts import contexts_to_frame, pack_contexts
    from sleep_pipeline.memories.records import memories_from_frame

    tokenizer = load_tokenizer(model, trust_remote_code=machine.trust_remote_code)
    packed = pack_contexts(memories_from_frame(memories), tokenizer, collect.context_tokens, collect.together)
    return contexts_to_frame(packed)
